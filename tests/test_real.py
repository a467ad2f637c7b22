"""more/pairs.py and real.py: a real preference file, read with care, and what reward models make of it."""

import gzip
import json
import random
import signal
import subprocess
import sys

import pytest
import tiktoken
import torch

from conftest import ROOT

sys.path.insert(0, str(ROOT / "experiments" / "more"))

import real
from pairs import common_prompt, cut, read_pairs, read_row, split, tokenise, train_bpe

GOOD = {"prompt": "Why?", "chosen": " Because it is.", "rejected": " No."}


def made_up(count):
    """Words drawn at random; chosen has one word more than rejected has, at a random place."""
    rng, rows = random.Random(0), []
    for i in range(count):
        chosen, rejected = (rng.choices([" tea", " hot", " cup", " ice"], k=5) for _ in range(2))
        chosen.insert(rng.randrange(6), " sure")
        rejected.insert(rng.randrange(6), " well")
        rows.append({"prompt": f"Question {i}?", "chosen": "".join(chosen), "rejected": "".join(rejected)})
    return rows


def written(path, rows):
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return path


def test_both_layouts_are_one():
    """A dialogue whose prompt stays in its responses, a prompt given twice, or a word cut in two."""
    prompt, chosen, rejected = "\n\nHuman: Why?\n\nAssistant:", " It is so.", " It was so."
    dialogues = {"chosen": prompt + chosen, "rejected": prompt + rejected}
    for row in ({"prompt": prompt, "chosen": chosen, "rejected": rejected, "source": 1}, dialogues,
                {"prompt": prompt, **dialogues}, {"prompt": None, **dialogues}):  # fmt: skip
        assert read_row(json.dumps(row).encode()) == (prompt, chosen, rejected)
    earlier = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    assert common_prompt(earlier + " yes", earlier + " yes\n\nHuman: d\n\nAssistant: e") == earlier
    assert common_prompt("Tea is hot.", "Tea is here.") == "Tea is "
    assert common_prompt("yes", "yesterday") == ""


@pytest.mark.parametrize(
    "line, why",
    [
        (b'{"prompt": "Why?", "chosen": "a"', "not a JSON object"),
        (b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}', "not a JSON object"),
        (b"[" * 100000, "not a JSON object"),
        (b'{"chosen": [{"role": "user"}], "rejected": "b"}', "a field is not a text"),
        (b'{"prompt": "a", "chosen": "b"}', "an empty or missing response"),
        (b'{"prompt": "a", "chosen": " ", "rejected": "c"}', "an empty or missing response"),
        (b'{"prompt": "a", "chosen": "b", "rejected": "b"}', "chosen equals rejected"),
    ],
)
def test_a_bad_line_is_skipped_and_counted(tmp_path, line, why):
    """A bad line that stops the run, goes unmentioned, has a wrong number, or is trained on."""
    good = json.dumps(GOOD).encode()
    path = tmp_path / "pairs.jsonl.gz"
    path.write_bytes(gzip.compress(b"\n".join([good, b"", line, good, line])))
    pairs, skipped = read_pairs(path)
    assert [number for number, *_ in pairs] == [1, 4]
    [(reason, lines)] = skipped.items()
    assert reason.startswith(why) and lines == [3, 5]


@pytest.mark.parametrize(
    "content, flags, message",
    [
        (b"", "", "0 usable pairs (skipped: none), at least 50 are needed"),
        (json.dumps(GOOD).encode(), "", "1 usable pairs"),
        (b"version https\n" * 60, "", "skipped: not a JSON object: 60, the first in line 1"),
        (b"\n".join([json.dumps(GOOD).encode()] * 60), "", "60 pairs have 1 prompts: too few"),
        (gzip.compress(b"{}" * 100)[:-12], "", "ended before the end-of-stream marker"),
        (gzip.compress(b"{}" * 100)[:10] + b"\xff" * 30, "", "Error -3 while decompressing"),
        (b"", "--pairs 5", "--pairs must be >= 50, got 5"),
        (b"", "--held-out nan", "--held-out must be >= 0.01, got nan"),
        (b"", "--encoding gpt9", "--encoding own or gpt2"),
        (None, "", "No such file"),
    ],
)
def test_a_file_or_flag_of_no_use_stops_with_one_line(tmp_path, capsys, content, flags, message):
    """A traceback, or a grid trained on five pairs."""
    path = tmp_path / "pairs.jsonl"
    if content is not None:
        path.write_bytes(content)
    assert real.main([str(path), *flags.split()]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1


def test_ctrl_c_ends_in_one_line(tmp_path):
    """A traceback, or half a file of numbers."""
    path, out = written(tmp_path / "pairs.jsonl", made_up(200)), tmp_path / "new" / "real.json"
    command = [sys.executable, "-u", real.__file__, str(path), "--json", str(out)]
    run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert "usable pairs" in run.stdout.readline()
    run.send_signal(signal.SIGINT)
    _, said = run.communicate()
    assert run.returncode == 130 and said.strip() == "Interrupted. Nothing was written."
    assert not list(out.parent.iterdir())


def test_byte_pairs():
    """Merges in an order other than of frequency, or across words; a text that is lost, or that raises."""
    encoding = train_bpe(["abab abab ab cd cd"], 259)
    assert [encoding.decode_single_token_bytes(i) for i in (256, 257, 258)] == [b"ab", b" c", b"abab"]
    assert train_bpe(["abc"], 300).n_vocab == 256, "no pair occurs twice"
    _, half, _ = read_row(b'{"prompt": "a", "chosen": "half \\ud83d", "rejected": "b"}')
    texts = [half, "чай горячий, 茶は熱い, الشاي", "👩‍🚀 🎉 e\u0301", " two\n\n\ttab ", "\x00 <|eot|>", ""]
    encoding = train_bpe(texts[:3], 300)
    assert all(encoding.decode(encoding.encode_ordinary(text)) == text for text in texts)


def test_rare_tokens_become_one(monkeypatch):
    """An embedding of 50,000 rows, or EOS and PAD that a rare token shares."""
    ranks = {bytes([byte]): byte for byte in range(256)}
    letters = tiktoken.Encoding("gpt2", pat_str=r"(?s).", mergeable_ranks=ranks, special_tokens={})
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: letters)
    skipped = {"equal once cut to fit": []}
    pairs = [(1, "aaa", "bb", "cc"), (2, "aaa", "bbx", "bby"), (3, "a", "b", "xyz")]
    rows, lengths, prompts, vocab_size = tokenise(pairs, "gpt2", 3, 16, skipped)
    assert vocab_size == 6 and prompts == ["aaa", "a"] and skipped == {"equal once cut to fit": [2]}
    assert lengths.tolist() == [[2, 2], [1, 3]]
    assert rows[1].tolist() == [[0, 1, 4, 5, 5, 5], [0, 3, 3, 3, 4, 5]], "a=0, b=1, rare=3, EOS=4, PAD=5"


def test_the_cut_keeps_the_difference():
    """A prompt cut on its right, or more in one of the two, which would give away the longer response; a
    truncated pair of two equal texts."""
    assert cut([1, 2, 3], [4, 5], [6], 4) == [[2, 3, 4, 5], [2, 3, 6]]
    assert cut([1, 2, 3], [4, 5], [6], 9) == [[1, 2, 3, 4, 5], [1, 2, 3, 6]]
    assert cut([1, 2, 3], [4, 5, 6], [7], 2) == [[4, 5], [7]]
    skipped = {"equal once cut to fit": []}
    pairs = [(7, "p", "same " * 50 + "end", "same " * 50 + "other"), (9, "p", "one", "same " * 50)]
    rows, _, prompts, _ = tokenise(pairs, "own", 300, 12, skipped)
    assert skipped == {"equal once cut to fit": [7]} and len(rows) == len(prompts) == 1


def test_held_out_pairs_are_held_out():
    """A prompt that is trained on and tested on, or the opening of a longer dialogue that is."""
    more = " a\n\nHuman: b\n\nAssistant:"
    prompts = [f"\n\nHuman: {i % 40}\n\nAssistant:" + i // 40 * more for i in range(100)]
    held_out = split(prompts, 0.2, seed=0).tolist()
    assert 15 <= sum(held_out) <= 20 and split(prompts, 0.2, seed=1).tolist() != held_out
    assert not {i % 40 for i in range(100) if held_out[i]} & {i % 40 for i in range(100) if not held_out[i]}


def test_findings_of_known_rewards():
    """Same and other pretraining mixed up, the mean along a wrong axis, the lengths of the wrong response."""
    generator = torch.Generator().manual_seed(0)
    truth, taste, noise = (torch.randn(P, F, 200, generator=generator) for P, F in ((1, 1), (2, 1), (2, 2)))
    margins = 1 + truth + taste + 0.1 * noise  # a taste for each pretraining
    rewards = torch.stack([margins, 0 * margins], -1).double()
    found = real.findings(rewards, rewards[0, 0])
    assert found["accuracy"]["one reward model"] == pytest.approx([(margins > 0).double().mean().item()])
    assert found["accuracy"]["ensembles: pretrain"] > found["accuracy"]["ensembles: finetune"]
    alike = found["orders a pair like"]
    assert alike["another of its pretraining"][0] > alike["one of another"][0] + 0.1
    picks = found["reward of its best of n, judged by"]
    assert picks["itself"][-1] > picks["another of its pretraining"][-1] > picks["one of another"][-1] > 0.1
    assert picks["one of another"][0] == pytest.approx(0, abs=1e-9), "the best of one is any"
    assert found["length"]["accuracy where the longer won"][0] > 0.8


def test_a_planted_word_is_found(tmp_path, capsys):
    """Rewards of the wrong response, labels lost between file and loss; NaN, which JSON has not; a grid of
    one column, in which nobody shares a pretraining; a file half-written."""
    path, out = written(tmp_path / "pairs.jsonl", made_up(200)), tmp_path / "new" / "real.json"
    flags = (
        "--vocabulary 300 --context 40 --width 16 --pretrain-seeds 2 --finetune-seeds 1 --pretrain-steps 10"
    )
    assert real.main([str(path), "--json", str(out), *flags.split(), "--rm-epochs", "20"]) == 0
    found = json.loads(out.read_text("utf-8"), parse_constant=pytest.fail)
    assert found["accuracy"]["one reward model"][0] > 0.9 and found["settings"]["rm_epochs"] == 20
    assert found["orders a pair like"]["another of its pretraining"] == []
    said = capsys.readouterr().out
    assert "200 usable pairs (skipped: none), 40 of them held out" in said
    assert list(out.parent.iterdir()) == [out]
