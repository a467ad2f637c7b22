"""Pairs of a real preference file, from bytes to tokens: read, encoded, cut to fit, and split. For real.py.

A file has one JSON object a line, or an array of them, counted as lines. Each is a pair, in a layout such as

    {"prompt": "Why is tea hot?", "chosen": "It was boiled.", "rejected": "Because."}
    {"question": "Why?", "response_a": "So.", "response_b": "Steam.", "winner": "b"}    or score_a and score_b
    {"chosen": "\\n\\nHuman: Why?\\n\\nAssistant: So.", "rejected": "\\n\\nHuman: Why?\\n\\nAssistant: No."}
"""

import gzip
import json
import random
import re
import zlib
from collections import Counter, defaultdict
from os.path import commonprefix

import tiktoken
import torch

PROMPTS = ("prompt", "question", "instruction", "input", "query")  # if there are several, all of them
RESPONSES = [("chosen", "rejected"), ("chosen_response", "rejected_response")]
RESPONSES += [(f"{x}_{a}", f"{x}_{b}") for x in ("response", "answer") for a, b in ("01", "12", "ab")]
LABELS = ("better_response_id", "safer_response_id", "label", "winner", "preference", "preferred", "chosen")
NO_PROMPT = "no prompt, and no known marker (such as Assistant:) of where the responses begin"
# Where a role's turn begins: `Role:`, `### Role`, <|im_start|>role, <|role|>, and others; where a line ends.
ROLE = r"^[ #]{0,5}(?:~) ?:|^### ?(?:~)$|(?:<\|\w{1,16}\|>|<start_of_turn>)(?:~)\b(?:<\|\w+\|>)?|<\|(?:~)\|>"
ASKER = ROLE.replace("~", "user|human|question|instruction|post|q") + r"|\buser:|\[INST\]|<</SYS>>"
WRITER = ROLE.replace("~", "assistant|model|gpt|ai|answer|response|a") + r"|\bassistant:|\[/INST\]|tl;dr:"
ASKER, WRITER, LINE = (re.compile(role, re.I | re.M) for role in (ASKER, WRITER, r"(?<=\S)\s*\n"))
PIECE = r" ?\w{1,16}| ?[^\s\w]{1,16}|\s{1,16}"  # never long: linear time


def chosen_first(row):
    """The names of a row's two responses, the better one first. LookupError if that is unclear."""
    names = next((names for names in RESPONSES if row.keys() >= set(names)), None)
    if names is None:
        wanted = "prompt, chosen and rejected, or prompt, response_a, response_b and winner"
        raise ValueError(f"the fields are {str(list(row))[:90]}; wanted are {wanted}")
    if names[0].startswith("chosen"):
        return names
    one, two = (name[-1] for name in names)
    a, b = (float(row.get(f"score_{end}", "nan")) for end in (one, two))
    by_score = one if a > b else two if a < b else "tie" if a == b else "none"
    label = str(next((row[name] for name in LABELS if name in row), by_score)).strip().lower()
    label = re.sub(r"^(response|model)_|\.0$", "", label)
    label = {"0": "a", "1": "b"}.get(label, label) if one == "a" else label
    if label not in (one, two):
        error = ValueError if label.startswith(("tie", "both", "neither", "draw", "none")) else LookupError
        raise error(
            f"the winner is {label[:20]!r}; wanted is {one} or {two} in {', '.join(LABELS)}, or scores"
        )
    return names if label == one else names[::-1]


def text_of(value):
    """A text as it is; messages become turns, such as "\\n\\nuser: Why?"."""
    if isinstance(value, list):
        value = "".join("\n\n" + message["role"] + ": " + message["content"] for message in value)
    return value.encode(errors="replace").decode()  # half an emoji, cut in two, is no text


def read_row(line):
    """A line, in any layout -> (questions, prompt, chosen, rejected). ValueError says what is wrong.
    Questions: what is asked, turn by turn. Pairs stay together that share the first; no answer is in it."""
    try:
        row = {name.lower(): value for name, value in json.loads(line).items() if value is not None}
        chosen, rejected = (text_of(row[name]) for name in chosen_first(row))
        prompt = "\n\n".join(filter(str.strip, (text_of(row[name]) for name in PROMPTS if name in row)))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, AttributeError, KeyError, TypeError):
        raise ValueError("not a JSON object whose texts are texts, or lists of messages") from None
    # Both may begin with the prompt, or with all there is of one: up to the last marker.
    common = commonprefix([chosen, rejected])
    marker = WRITER if prompt or WRITER.search(common) else LINE
    end = max((found.end() for found in marker.finditer(common)), default=0)
    before, found, _ = common.partition(prompt.strip() or "\n")
    if prompt and found and not end and not ASKER.sub("", before).strip():
        end = len(before + found)
    shared, chosen, rejected = common[:end], chosen[end:], rejected[end:]
    if chosen == rejected or not chosen.strip() or not rejected.strip():
        raise ValueError("chosen equals rejected" if chosen == rejected else "an empty response")
    turns = marker.split(prompt or shared)
    first = ASKER.split(turns[0])[-1]
    asked = [ASKER.split(turn)[-1] for turn in turns if ASKER.search(turn)]
    asked = [first, *asked, prompt] if prompt else [re.match(r"\s*[^?\n]*", first)[0], *asked]
    questions = tuple(filter(None, (" ".join(text.split()).casefold() for text in asked)))
    if not questions:
        raise ValueError(NO_PROMPT)
    inside = "".join(prompt.split()) in "".join(shared.split())
    return questions, shared if inside else prompt + shared, chosen, rejected


def read_pairs(path):
    """A file -> [(line number, questions, prompt, chosen, rejected)], {why skipped: [line numbers]}."""
    data, pairs, skipped = path.read_bytes(), [], defaultdict(list)
    if data.startswith(b"PAR1"):
        raise ValueError("parquet is not read: convert it with pandas, to_json(lines=True, orient='records')")
    try:
        if data.startswith(b"\x1f\x8b"):  # gzip, whatever its name
            data = gzip.decompress(data)
        data = data.removeprefix(b"\xef\xbb\xbf")
        array = data.lstrip().startswith(b"[")
        lines = map(json.dumps, json.loads(data)) if array else data.split(b"\n")
    except (EOFError, zlib.error, RecursionError):
        raise ValueError(f"{path} is damaged") from None
    for number, line in enumerate(lines, 1):
        try:
            if line.strip():
                pairs.append((number, *read_row(line)))
        except ValueError as error:
            skipped[str(error)].append(number)
        except LookupError as error:
            raise ValueError(f"line {number}: {error}") from None
    if 9 * len(lines := skipped.get(NO_PROMPT, [])) > len(pairs):  # then in others it may be chance
        raise ValueError(f"{NO_PROMPT}: {len(lines)} pairs, the first in line {lines[0]}")
    return pairs, skipped


def own_encoding(texts, size):
    """Tokens for these texts: the 256 bytes, then the most frequent pieces and characters. A piece that is a
    token is found at once; in any other, bytes are merged. So any text can be encoded, in linear time."""
    counts = Counter(piece.encode() for text in texts for piece in re.findall(PIECE, text))
    for character, times in Counter("".join(texts)).items():
        for end in range(2, len(character.encode()) + 1):  # two bytes, three, ...: so are they merged
            counts[character.encode()[:end]] += times
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [token for token, _ in counts.most_common(size) if len(token) > 1][: size - 256]
    ranks = {token: rank for rank, token in enumerate(tokens)}
    return tiktoken.Encoding("own", pat_str=PIECE, mergeable_ranks=ranks, special_tokens={})


def tokenise(pairs, vocabulary, room, skipped):
    """What read_pairs returns -> (rows, lengths, questions, vocab_size). Pairs that the cut makes equal go.
    rows (N, 2, T): of each pair prompt + chosen and prompt + rejected, at most `room` tokens, EOS included
    if it fits, then PAD; lengths (N, 2) of the whole responses."""
    encoding = own_encoding([text for pair in pairs for text in pair[2:]], vocabulary)
    eos, pad = encoding.n_vocab, encoding.n_vocab + 1
    rows, lengths, questions = [], [], []
    for line, asked, *texts in pairs:
        prompt, *responses = map(encoding.encode_ordinary, texts)
        # A response that is too long by itself loses its end; then the prompt its left, as much in both.
        chosen, rejected = ((response + [eos])[:room] for response in responses)
        if chosen == rejected:
            skipped["equal once cut to fit"].append(line)
            continue
        start = max(0, len(prompt) + max(len(chosen), len(rejected)) - room)
        rows += [torch.tensor(prompt[start:] + response) for response in (chosen, rejected)]
        lengths.append([len(response) for response in responses])
        questions.append(asked)
    rows = torch.nn.utils.rnn.pad_sequence(rows, True, pad).view(len(questions), 2, -1) if rows else None
    return rows, torch.tensor(lengths), questions, pad + 1


def split(questions, share, seed):
    """Which pairs are held out: (N,) booleans, about that share. Pairs that open alike stay together: hh-rlhf
    has dialogues at several lengths. If too many do, as after a greeting, what is asked next counts too."""
    for turns in range(1, max(map(len, questions)) + 1):
        sizes = Counter(asked[:turns] for asked in questions)
        held_out, room = set(), max(share * len(questions), 1)
        for opening in random.Random(seed).sample(sorted(sizes), len(sizes)):
            if sizes[opening] <= room:
                held_out.add(opening)
                room -= sizes[opening]
        if room <= share * len(questions) / 2:
            return torch.tensor([asked[:turns] in held_out for asked in questions])
    raise ValueError(f"{len(questions)} pairs have {len(sizes)} prompts: too few to hold some out")
