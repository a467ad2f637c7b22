"""Pairs of a real preference file, from lines to tokens: read, encoded, cut to fit, and split. For real.py.

A line is one pair in JSON, in one of two layouts; other fields are ignored. In the second, as in Anthropic's
hh-rlhf, chosen and rejected are whole dialogues, and what they have in common is the prompt:

    {"prompt": "Why is tea hot?", "chosen": " It was boiled.", "rejected": " Because."}
    {"chosen": "\\n\\nHuman: Why?\\n\\nAssistant: So.", "rejected": "\\n\\nHuman: Why?\\n\\nAssistant: No."}
"""

import gzip
import json
import os
import random
import re
from collections import Counter, defaultdict
from itertools import pairwise

import tiktoken
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

TURN = "\n\nAssistant:"  # where a response begins in a dialogue
PATTERN = r" ?\w+| ?[^\w\s]+|\s+(?!\S)|\s+"  # the words that byte pairs stay within


def common_prompt(chosen, rejected):
    """What two texts have in common, back to where the last speaker's turn begins, or else to the last space:
    no response begins within a word. common_prompt("Tea is hot.", "Tea is here.") == "Tea is "."""
    common = os.path.commonprefix([chosen, rejected])
    turn = common.rfind(TURN)
    return common[: turn + len(TURN)] if turn >= 0 else re.match(r"(.*\s)?", common, re.DOTALL)[0]


def read_row(line):
    """A line (bytes) in either layout -> (prompt, chosen, rejected). ValueError says what is wrong."""
    try:
        row = json.loads(line)
        texts = [row.get(name) or "" for name in ("prompt", "chosen", "rejected")]
    except (ValueError, RecursionError, AttributeError):
        raise ValueError("not a JSON object") from None
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a field is not a text (lists of messages are not read)")
    # Half an emoji, as careless cutting leaves it, is no character: no encoding would take it.
    prompt, chosen, rejected = (text.encode(errors="replace").decode() for text in texts)
    if chosen == rejected:
        raise ValueError("chosen equals rejected")
    prompt = prompt or common_prompt(chosen, rejected)
    if chosen.startswith(prompt) and rejected.startswith(prompt):  # some files repeat the prompt in both
        chosen, rejected = chosen[len(prompt) :], rejected[len(prompt) :]
    if not chosen.strip() or not rejected.strip():
        raise ValueError("an empty or missing response")
    return prompt, chosen, rejected


def read_pairs(path):
    """A file, gzipped or not -> [(line number, prompt, chosen, rejected)], {why skipped: [line numbers]}."""
    data = path.read_bytes()
    if data.startswith(b"\x1f\x8b"):  # gzip, whatever its name
        data = gzip.decompress(data)
    pairs, skipped = [], defaultdict(list)
    for number, line in enumerate(data.removeprefix(b"\xef\xbb\xbf").split(b"\n"), 1):
        if line.strip():
            try:
                pairs.append((number, *read_row(line)))
            except ValueError as error:
                skipped[str(error)].append(number)
    return pairs, skipped


def train_bpe(texts, size):
    """Byte-pair encoding: from the 256 bytes on, the most frequent pair of neighbours becomes a token, again
    and again, until there are `size` tokens or no pair occurs twice. It can encode any text."""
    times = Counter(word for text in texts for word in re.findall(PATTERN, text))
    parts = {word: [bytes([byte]) for byte in word.encode()] for word in times}
    ranks = {bytes([byte]): byte for byte in range(256)}
    counts, words_with = Counter(), defaultdict(dict)  # of each pair; a dict keeps its words in order

    def count(word, sign):
        for pair in pairwise(parts[word]):
            counts[pair] += sign * times[word]
            words_with[pair][word] = True

    for word in times:
        count(word, 1)
    for _ in tqdm(range(256, size), "byte pairs", leave=False, disable=None):
        pair = max(counts, key=counts.get, default=None)
        if counts[pair] < 2:
            break
        ranks.setdefault(pair[0] + pair[1], len(ranks))  # subtle: "ab" + "c" and "a" + "bc" are one
        for word in words_with.pop(pair):
            count(word, -1)
            merged = []
            for part in parts[word]:
                if merged and (merged[-1], part) == pair:
                    merged[-1] += part
                else:
                    merged.append(part)
            parts[word] = merged
            count(word, 1)
    return tiktoken.Encoding("own", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


def cut(prompt, chosen, rejected, room):
    """Three lists of ids -> [prompt + chosen, prompt + rejected], at most `room` ids each. The prompt loses
    its left, as much in both; a response that is too long by itself loses its end.

    cut([1, 2, 3], [4, 5], [6], 4) == [[2, 3, 4, 5], [2, 3, 6]]"""
    responses = [chosen[:room], rejected[:room]]
    start = max(0, len(prompt) + max(map(len, responses)) - room)
    return [prompt[start:] + response for response in responses]


def tokenise(pairs, encoding_name, vocabulary, room, skipped):
    """[(line number, prompt, chosen, rejected)] -> (rows, lengths, prompts, vocab_size).

    rows (N, 2, T): of each pair prompt + chosen and prompt + rejected, at most `room` tokens, EOS included if
    it fits, then PAD; lengths (N, 2) of the whole responses; prompts (N) as text. Pairs in which nothing
    differs any more are left out, and added to `skipped`."""
    texts = [text for _, *pair in pairs for text in pair]
    try:
        encoding = train_bpe(texts, vocabulary) if encoding_name == "own" else tiktoken.get_encoding("gpt2")
    except OSError:
        raise ValueError("--encoding gpt2 is neither cached nor reachable; own needs no network") from None
    ids = [encoding.encode_ordinary(text) for text in tqdm(texts, "encoding", leave=False, disable=None)]
    # A tiny model has no use for gpt2's 50,000 tokens: the frequent ones are renumbered, the rest are one.
    frequent = Counter(token for row in ids for token in row).most_common(vocabulary)
    number = {token: n for n, (token, _) in enumerate(frequent)}
    rare, eos, pad = range(len(number), len(number) + 3)
    ids = [[number.get(token, rare) for token in row] for row in ids]
    rows, lengths, prompts = [], [], []
    for (line, *text), prompt, chosen, rejected in zip(pairs, ids[::3], ids[1::3], ids[2::3], strict=True):
        both = cut(prompt, chosen + [eos], rejected + [eos], room)
        if both[0] == both[1]:
            skipped["equal once cut to fit"].append(line)
        else:
            rows += map(torch.tensor, both)
            lengths.append([len(chosen), len(rejected)])
            prompts.append(text[0] or text[1])  # without a prompt, its own
    rows = pad_sequence(rows, True, pad).view(len(prompts), 2, -1) if rows else None
    return rows, torch.tensor(lengths), prompts, pad + 1


def split(prompts, share, seed):
    """Which pairs are held out: (N,) booleans, about that share of them. The pairs of a prompt stay together,
    and so do dialogues that open alike: hh-rlhf has some at several lengths."""
    places, held_out = defaultdict(list), torch.zeros(len(prompts), dtype=torch.bool)
    for i, prompt in enumerate(prompts):
        places[prompt.split(TURN)[0]].append(i)
    openings = sorted(places)
    random.Random(seed).shuffle(openings)
    for opening in openings:
        if held_out.sum() + len(places[opening]) <= max(share * len(prompts), 1):
            held_out[places[opening]] = True
    if held_out.sum() < share * len(prompts) / 2:
        raise ValueError(f"{len(prompts)} pairs have {len(places)} prompts: too few to hold some out")
    return held_out
