"""more/pairs.py and real.py: a real preference file, read with care, and what reward models make of it."""

import gzip
import json
import random
import time

import pytest
import torch

import real
from pairs import own_encoding, read_row, split, tokenise
from report import exit_status

HH, ASKED, RIGHT, WRONG = "\n\nHuman: {}\n\nAssistant:", "Why? Say it.", " It is so.", " It was so."
SAY, LIE = ({"role": "assistant", "content": text[1:]} for text in (RIGHT, WRONG))
ASK = {"role": "user", "content": ASKED}
WORSE_FIRST = {"prompt": ASKED, "response_a": WRONG, "response_b": RIGHT}


def both(start, **more):
    return {"chosen": start + RIGHT, "rejected": start + WRONG, **more}


LAYOUTS = [
    *(both("", **{name: ASKED}, source=1) for name in ("prompt", "question", "Query")),
    {"prompt": ASKED, "chosen_response": RIGHT, "rejected_response": WRONG},
    {"instruction": "Why?", "input": "Say it.", "answer_1": RIGHT, "answer_2": WRONG, "label": 1.0},
    {"prompt": ASKED, "response_0": WRONG, "response_1": RIGHT, "better_response_id": 1, "label": 0},
    {"prompt": ASKED, "response_0": WRONG, "response_1": RIGHT, "safer_response_id": 1},
    *({**WORSE_FIRST, "label": label} for label in ("B", 1, "model_b", "response_b")),
    *({**WORSE_FIRST, name: value} for name, value in {"winner": "b", "chosen": "b", "score_b": 2}.items()),
    *(both(HH.format(ASKED), prompt=prompt) for prompt in (None, ASKED, HH.format("Why?\nSay  it."))),
    *(both(start + ASKED, prompt=f" {ASKED}\n") for start in ("Q: ", "\n", "")),
    *({"chosen": [ASK, SAY], "rejected": [ASK, LIE], "prompt": prompt} for prompt in ("", ASKED, [ASK])),
    {"chosen": [SAY], "rejected": [LIE], "prompt": [ASK]},
]
GOOD = json.dumps(both("", prompt=ASKED)).encode()
BAD_LINES = {
    b'{"prompt": "Why?", "chosen": "a"': "not a JSON object",
    b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}': "not a JSON object",
    b"[" * 100000: "not a JSON object",
    b'{"prompt": "a", "chosen": "b", "text": 1}': "the fields are ['prompt', 'chosen', 'text']; wanted are",
    b'{"prompt": "a", "chosen": null, "rejected": null}': "the fields are ['prompt']; wanted are prompt, ",
    b'{"prompt": "a", "chosen": " ", "rejected": "c"}': "an empty response: 2, the first in line 3",
    b'{"prompt": "a", "chosen": "b", "rejected": "b"}': "chosen equals rejected: 2, the first in line 3",
    json.dumps(WORSE_FIRST | {"winner": "Tie (bad)"}).encode(): "the winner is 'tie (bad)'; wanted is a or b",
    json.dumps(WORSE_FIRST | {"winner": None}).encode(): "the winner is 'none'; wanted is a or b in better_",
}
BAD_RUNS = [
    *((gzip.compress(b"\n".join([GOOD, b"", line, GOOD, line])), "", f"2 usable pairs (skipped: {why}")
      for line, why in BAD_LINES.items()),
    (b"", "", "0 usable pairs (skipped: none), at least 50 are needed"),
    (b"[" + GOOD + b",\n" + GOOD + b"]", "", "2 usable pairs"),
    (b"[" * 100000, "", "is damaged"),
    (b'{"chosen": "Why? > So.", "rejected": "Why? > No."}', "", "no known marker (such as Assistant:)"),
    (b"PAR1\x15\x04", "", "parquet is not read: convert it with pandas"),
    (json.dumps(WORSE_FIRST | {"label": 2}).encode(), "", "line 1: the winner is '2'; wanted is a or b"),
    ((GOOD + b"\n") * 60, "", "60 pairs have 1 prompts: too few"),
    (gzip.compress(b"{}" * 100)[:-12], "", "is damaged"),
    (gzip.compress(b"{}" * 100)[:10] + b"\xff" * 30, "", "is damaged"),
    (b"", "--held-out nan", "--held-out must be >= 0.01"),
]  # fmt: skip
FORMATS = [
    *(HH, "Human: {}\nAssistant: ", "{}\n", "A chat. USER: {} ASSISTANT: "),
    *("SUBREDDIT: r/tea\n\nPOST: {}\n\nTL;DR: ", "<s>[INST] <<SYS>>\nBe nice.\n<</SYS>>\n\n{} [/INST] "),
    "<|im_start|>system\nHi.<|im_end|>\n<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    "<|start_header_id|>user<|end_header_id|>\n\n{}<|start_header_id|>assistant<|end_header_id|>\n\n",
    "Below is an instruction.\n\n### Instruction:\n{}\n\n### Response:\n",
    HH.format("Hi!") + " Hello, how can I help you?" + HH,  # all dialogues open so
    HH + " So." + HH.format("And?"),  # some dialogues are longer
]


@pytest.mark.parametrize("row", LAYOUTS)
def test_every_layout_is_one_pair(row):
    """A layout that is skipped, the loser as chosen, or a prompt that stays in its responses."""
    questions, prompt, *responses = read_row(json.dumps({"score_a": 1, **row}))
    assert questions[0].startswith("why") and prompt.count("Why?") == 1 and responses == [RIGHT, WRONG]


@pytest.mark.parametrize("content, flags, message", BAD_RUNS)
def test_what_is_of_no_use_is_said_in_one_line(tmp_path, capsys, content, flags, message):
    """A traceback, a grid trained on five pairs, labels read the wrong way round, a bad line unmentioned."""
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    assert exit_status(real.main, [str(path), *flags.split()]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_the_encoding():
    """A frequent piece or character in bytes, a text that is lost, or a time that grows as its square."""
    *_, half = read_row(b'{"prompt": "a", "chosen": "b", "rejected": "half \\ud83d"}')
    texts = [half, " tea tea", "茶は熱い。茶" * 9, *"чай, الشاي|👩‍🚀 e\u0301| a\n\n\tb |\x00<|".split("|")]
    few, rng, start = own_encoding(texts[:3] * 2, 300), random.Random(0), time.process_time()
    assert list(map(len, few.encode_ordinary_batch([" tea tea", "熱茶"]))) == [2, 2]
    texts += ["".join(chr(0x4E00 + rng.randrange(3000)) for _ in range(1000)) for _ in range(200)]
    texts += [" " * 10**6, "".join(rng.choices("abcdefgh", k=300_000))]
    for own, some in ((few, texts[:-202]), (own_encoding(texts, 3000), texts)):
        assert own.decode_batch(own.encode_ordinary_batch(some)) == some
    assert own.n_vocab == 3000 and time.process_time() - start < 10, "about one second"


def test_the_cut_keeps_the_difference():
    """A prompt cut on its right, or more in one of two, which shows who is longer; a pair of equal texts."""
    pairs = [(1, "q", "abc", "de", "f"), (2, "r", "a", "bcdef", "b"), (3, "s", "p", "e" * 9 + "a", "e" * 9)]
    skipped, eos, pad, (b, c, d, e, f) = {"equal once cut to fit": []}, 256, 257, b"bcdef"
    rows, lengths, questions, vocab_size = tokenise(pairs, 256, 4, skipped)
    assert rows.tolist() == [[[c, d, e, eos], [c, f, eos, pad]], [[b, c, d, e], [b, eos, pad, pad]]]
    assert lengths.tolist() == [[2, 1], [5, 1]] and questions == ["q", "r"] and vocab_size == 258
    assert skipped == {"equal once cut to fit": [3]}


@pytest.mark.parametrize("start", [*FORMATS, "prompt", "question", "instruction", "input"])
def test_held_out_pairs_are_held_out(start):
    """Responses that begin alike as part of the question; the opening of a dialogue on the other side."""
    rng, pairs = random.Random(0), []
    for i in range(200):
        asked, word = f"Why is cup {i % 40} hot?", rng.choice(("The", "It", "Well", "Sure"))
        shared = (HH if i < 100 and start == FORMATS[-1] else start).format(asked) if "{}" in start else ""
        row = {"chosen": f"{shared}{word} is {i}", "rejected": f"{shared}{word} was {i}"}
        pairs.append(read_row(json.dumps(row if shared else {start: asked, **row})))
    held_out = split([questions for questions, *_ in pairs], 0.2, seed=0).tolist()
    held, trained = ({i % 40 for i in range(200) if held_out[i] == side} for side in (True, False))
    assert len(held) == 8 and len(trained) == 32 and all(len(chosen.split()) == 3 for *_, chosen, _ in pairs)


def test_findings_of_known_rewards():
    """Same and other pretraining mixed up, the mean along a wrong axis, the lengths of the wrong response."""
    generator = torch.Generator().manual_seed(0)
    truth, taste, noise = (torch.randn(P, F, 200, generator=generator) for P, F in ((1, 1), (2, 1), (2, 2)))
    margins = (1 + truth + taste + 0.1 * noise).double()  # a taste for each pretraining
    rewards = torch.stack([margins, 0 * margins], -1).numpy()
    found = real.findings(rewards, rewards[0, 0])
    assert found["accuracy: single"] == pytest.approx((margins > 0).double().mean().item(), abs=1e-4)
    assert found["accuracy: pretrain"] > found["accuracy: finetune"]
    assert found["accuracy where the longer won"] > 0.8
    judges = "itself", "another of its pretraining", "one of another"
    _, same, other = (found[f"orders a pair like {judge}"] for judge in judges)
    itself, alike, unlike = (found[f"reward of its best of 16, judged by {judge}"] for judge in judges)
    assert same > other + 0.1 and itself > alike > unlike > 0.1
    assert found["reward of its best of 1, judged by one of another"] == 0, "the best of one is any"


def test_a_planted_word_is_found(tmp_path, capsys):
    """Labels lost between file and loss; NaN, which JSON has not, in a grid of one column; half a file."""
    rng, path, out = random.Random(0), tmp_path / "pairs.jsonl", tmp_path / "new" / "real.json"
    rows = [{key: "".join(rng.sample([" tea", " hot", " cup", " ice", word], 5))
             for key, word in (("chosen", " sure"), ("rejected", " well"))} for _ in range(200)]  # fmt: skip
    path.write_text("\n".join(json.dumps({"prompt": f"{i}?", **row}) for i, row in enumerate(rows)))
    flags = "--context 40 --width 16 --pretrain-seeds 2 --finetune-seeds 1 --pretrain-steps 10 --rm-epochs 20"
    real.main([str(path), "--json", str(out), *flags.split()])
    found = json.loads(out.read_text("utf-8"), parse_constant=pytest.fail)
    assert found["accuracy: single"] > 0.9 and found["settings"]["rm_epochs"] == 20
    assert "orders a pair like another of its pretraining" not in found
    assert "200 usable pairs (skipped: none), 40 of them held out" in capsys.readouterr().out
    assert list(out.parent.iterdir()) == [out]
