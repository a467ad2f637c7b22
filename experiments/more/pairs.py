"""Pairs of a real preference file, from lines to tokens: read, encoded, cut to fit, and split. For real.py.

A line is one pair in JSON, in one of two layouts; other fields are ignored:

    {"prompt": "Why is tea hot?", "chosen": " It was boiled.", "rejected": " Because."}
    {"chosen": "\n\nHuman: Why?\n\nAssistant: It was boiled.", "rejected": "\n\nHuman: Why?\n\nAssistant: Because."}
"""
from collections import Counter, defaultdict
import gzip
import hashlib
import json
import os
import random
import re
from threading import Thread
import zlib

import numpy as np
import tiktoken
import torch
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

LEAST_PAIRS = 50             # fewer say nothing
TURN = "\n\nAssistant:"      # where a response begins in a dialogue
PATTERN = r" ?\w+| ?[^\w\s]+|\s+(?!\S)|\s+"      # what byte pairs stay within: the same words to Python and to tiktoken


# ----- the file -----------------------------------------------------------------------------------------

def common_prompt(chosen, rejected):
    """What two dialogues have in common, back to where the last speaker's turn begins, or to the last white space if nobody speaks:
    common_prompt("Tea is hot.", "Tea is here.") == "Tea is ". So that no response begins in the middle of a word."""
    common = os.path.commonprefix([chosen, rejected])
    turn = common.rfind(TURN)
    return common[:turn + len(TURN)] if turn >= 0 else re.match(r"(.*\s)?", common, re.S)[0]


def read_row(line):
    """A line (bytes), in either layout -> (prompt, chosen, rejected), three texts. ValueError says what is wrong with it."""
    try:
        row = json.loads(line.decode())
    except UnicodeDecodeError:
        raise ValueError("not UTF-8") from None
    except (ValueError, RecursionError):
        raise ValueError("broken JSON") from None
    if not isinstance(row, dict) or not {"chosen", "rejected"} <= row.keys():
        raise ValueError("without the fields chosen and rejected")
    texts = [row[name] for name in ("chosen", "rejected", "prompt") if name != "prompt" or row.get(name) is not None]
    if not all(isinstance(text, str) for text in texts):
        raise ValueError("a field is not a text (lists of messages are not read)")
    # Half an emoji, as careless cutting leaves it, is no character: no encoding would take it.
    chosen, rejected, *prompt = (text.encode("utf-16", "surrogatepass").decode("utf-16", "replace") for text in texts)
    prompt = prompt[0] if prompt else common_prompt(chosen, rejected)
    if chosen == rejected:
        raise ValueError("an empty field" if not chosen.strip() else "chosen equals rejected")
    if chosen.startswith(prompt) and rejected.startswith(prompt):        # dialogues, and some files repeat the prompt in both
        chosen, rejected = chosen[len(prompt):], rejected[len(prompt):]
    if not (chosen.strip() and rejected.strip() and (prompt.strip() or len(texts) == 2)):
        raise ValueError("an empty field")
    return prompt, chosen, rejected


def read_pairs(path):
    """A file -> (pairs, lines, skipped, hash): pairs [(line number, prompt, chosen, rejected)], lines how many there are, skipped {reason:
    [line numbers]}. ValueError if it is no such file or has too few pairs."""
    data = path.read_bytes()
    content = hashlib.sha256(data).hexdigest()
    if data[:2] == b"\x1f\x8b":                      # gzip, whatever its name
        try:
            data = gzip.decompress(data)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"{path}: is damaged gzip ({error})") from None
    elif path.suffix == ".gz":
        raise ValueError(f"{path}: is not gzip (if it is plain text, take .gz off its name)")
    pairs, skipped, lines = [], defaultdict(list), data.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    for number, line in enumerate(tqdm(lines, "reading", leave=False, disable=None), 1):
        if line.strip():
            try:
                pairs.append((number, *read_row(line)))
            except ValueError as error:
                skipped[str(error)].append(number)
    enough(path, len(pairs), skipped)
    return pairs, len(pairs) + sum(map(len, skipped.values())), dict(skipped), content


def in_words(skipped, join="; "):
    """{reason: line numbers} -> "broken JSON: 4 (lines 2, 5, 9, ...); ..."."""
    return join.join(f"{reason}: {len(n)} (line{'s'[:len(n) > 1]} {', '.join(map(str, n[:3]))}{', ...' if len(n) > 3 else ''})" for reason, n in skipped.items())


def enough(path, count, skipped):
    """ValueError if too few pairs are left."""
    if count < LEAST_PAIRS:
        raise ValueError(f"{path}: has {count} usable pairs, at least {LEAST_PAIRS} are needed. Skipped: {in_words(skipped) or 'none'}")


# ----- tokens -------------------------------------------------------------------------------------------

def gpt2(seconds=10):
    """tiktoken's gpt2 encoding; None if it is not cached, and not reached in so many seconds (tiktoken itself would wait for ever)."""
    found = []

    def load():
        try:
            found.append(tiktoken.get_encoding("gpt2"))
        except Exception:                            # no network, a proxy's answer, a full disk: whatever it is, there is the other one
            pass

    thread = Thread(target=load, daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def train_bpe(texts, size):
    """Byte-pair encoding: all 256 bytes, then again and again the pair that is most frequent within words becomes a token, until there are
    `size` tokens, or no pair occurs twice. Every text can be encoded: bytes are enough for all scripts."""
    words = Counter(word for text in texts for word in re.findall(PATTERN, text))
    parts, times = [[bytes([b]) for b in word.encode()] for word in words], list(words.values())
    ranks, counts, where = {bytes([b]): b for b in range(256)}, Counter(), defaultdict(set)

    def count(i, sign):
        for pair in zip(parts[i], parts[i][1:]):
            counts[pair] += sign * times[i]
            where[pair].add(i)                       # may stay after the pair is gone: then nothing is merged there

    for i in range(len(parts)):
        count(i, 1)
    with tqdm(total=size, desc="byte pairs", leave=False, disable=None) as bar:
        while len(ranks) < size and counts and counts[pair := max(counts, key=counts.get)] > 1:
            merged = b"".join(pair)
            ranks.setdefault(merged, len(ranks))     # subtle: "ab" + "c" and "a" + "bc" are one token
            for i in sorted(where.pop(pair)):
                count(i, -1)
                new = []
                for part in parts[i]:
                    if new and (new[-1], part) == pair:
                        new[-1] = merged
                    else:
                        new.append(part)
                parts[i] = new
                count(i, 1)
            del counts[pair]
            bar.update(len(ranks) - bar.n)
    return tiktoken.Encoding("own", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens={})


def cut(prompt, chosen, rejected, room):
    """Three lists of ids -> prompt + chosen and prompt + rejected, each of at most `room` ids. The prompt loses its left, and as much of it
    in both; a response that is too long alone loses its end: cut([1, 2, 3], [4, 5], [6], 4) == [[2, 3, 4, 5], [2, 3, 6]]."""
    responses = [chosen[:room], rejected[:room]]
    start = max(0, len(prompt) + max(map(len, responses)) - room)
    return [prompt[start:] + response for response in responses]


def encoding_for(name, texts, size):
    """The encoding called gpt2, own or auto: see the flags of real.py. ValueError if it cannot be had."""
    encoding = gpt2() if name != "own" else None
    if name == "gpt2" and encoding is None:
        raise ValueError("--encoding: gpt2 is neither cached nor reachable; own needs no network")
    return encoding or train_bpe(texts, size)


def tokenise(pairs, encoding_name, size, context):
    """[(line, prompt, chosen, rejected)] -> a dict of

    rows (N, 2, R): for each pair prompt + chosen, prompt + rejected, each with its EOS if that fits into the context - 1 tokens;
    lengths (N, 2) of the whole responses; kept (N): indices of the pairs that are there; equal: line numbers of those that are not, since
    nothing differed any more; vocabulary (EOS and PAD included), encoding, unknown (share of tokens), cut {prompts, responses}: pairs."""
    texts = [text for _, *pair in pairs for text in pair]
    encoding = encoding_for(encoding_name, texts, size)
    ids = [encoding.encode_ordinary(text) for text in tqdm(texts, "encoding", leave=False, disable=None)]
    # A tiny model has no use for 50,000 tokens of which a file has a tenth: the frequent ones are numbered anew.
    counts = Counter(i for row in ids for i in row)
    place = {i: n for n, (i, _) in enumerate(counts.most_common(size))}
    unknown, eos, pad = range(len(place), len(place) + 3)
    ids = [[place.get(i, unknown) for i in row] for row in ids]
    rows, lengths, kept, equal, shortened = [], [], [], [], {"prompts": 0, "responses": 0}
    for n, (prompt, chosen, rejected) in enumerate(zip(ids[::3], ids[1::3], ids[2::3])):
        both = cut(prompt, chosen + [eos], rejected + [eos], context - 1)
        if both[0] == both[1]:
            equal.append(pairs[n][0])
            continue
        kept.append(n)
        rows += map(torch.tensor, both)
        lengths.append([len(chosen), len(rejected)])
        longest = max(lengths[-1]) + 1
        shortened["prompts"] += len(prompt) + longest > context - 1
        shortened["responses"] += longest > context - 1
    return {"rows": pad_sequence(rows, True, pad).view(len(kept), 2, -1) if rows else None, "lengths": torch.tensor(lengths), "kept": kept, "equal": equal,
            "vocabulary": pad + 1, "encoding": "gpt2 of tiktoken" if encoding.name == "gpt2" else "byte pairs of the file",
            "unknown": sum(n for i, n in counts.items() if i not in place) / sum(counts.values()), "cut": shortened}


def split(prompts, share, seed):
    """Which pairs are held out: (N,) booleans, about that share of them true, the pairs of a prompt on one side, and so are those of dialogues
    that open alike (hh-rlhf has some at several lengths). ValueError if there are too few prompts."""
    places, held = defaultdict(list), np.zeros(len(prompts), dtype=bool)
    for i, prompt in enumerate(prompts):
        places[prompt.split(TURN)[0]].append(i)
    order = sorted(places)
    random.Random(seed).shuffle(order)
    for prompt in order:
        if held.sum() + len(places[prompt]) <= max(share * len(prompts), 1):
            held[places[prompt]] = True
    if held.sum() < share * len(prompts) / 2:
        raise ValueError(f"{len(prompts)} pairs have {len(places)} different prompts: too few to hold {share:.0%} of the pairs out")
    return held
