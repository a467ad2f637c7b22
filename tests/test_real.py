"""experiments/pairs.py and real.py: a real preference file, read with care, and what reward models make of it."""
import gzip
import json
import random
import time

import numpy as np
import pytest
import tiktoken
import torch

import pairs
from pairs import common_prompt, cut, in_words, read_pairs, read_row, split, tokenise, train_bpe
import real

GOOD = {"prompt": "Why?", "chosen": " Because it is.", "rejected": " No."}
SMALL = ("--processes 1 --encoding own --vocabulary 300 --context 40 --width 16 --layers 1 --pretrain-seeds 2 --finetune-seeds 2 "
         "--pretrain-steps 10 --rm-epochs 1 --held-out 0.3").split()


def made_up(count, better=" sure", seed=0):
    """Rows of words drawn at random; to chosen (or to rejected, if its place says so) one more word is added, at a random place."""
    rng, rows = random.Random(seed), []
    for i in range(count):
        chosen, rejected = ([rng.choice([" tea", " hot", " cup", " ice", " pot"]) for _ in range(5)] for _ in range(2))
        chosen.insert(rng.randrange(6), better)
        rejected.insert(rng.randrange(6), " well")
        rows.append({"prompt": f"Question {i}?", "chosen": "".join(chosen), "rejected": "".join(rejected)})
    return rows


def written(path, rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def line(**fields):
    return json.dumps(fields).encode()


# ----- the file -------------------------------------------------------------------------------------

def test_both_layouts_are_one():
    """A dialogue whose prompt stays in its response, a prompt given twice, or a reply cut in two where both begin alike."""
    prompt, chosen, rejected = "\n\nHuman: Why?\n\nAssistant:", " It is so.", " It was so."
    expected = (prompt, chosen, rejected)
    assert read_row(line(prompt=prompt, chosen=chosen, rejected=rejected, source="extra")) == expected
    assert read_row(line(chosen=prompt + chosen, rejected=prompt + rejected)) == expected
    assert read_row(line(prompt=None, chosen=prompt + chosen, rejected=prompt + rejected)) == expected
    assert read_row(line(prompt=prompt, chosen=prompt + chosen, rejected=prompt + rejected)) == expected


def test_the_prompt_ends_at_the_last_common_turn():
    """An earlier turn taken for the last, or one that only one of the dialogues has."""
    start = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:"
    assert common_prompt(start + " yes", start + " yes\n\nHuman: d\n\nAssistant: e") == start
    assert common_prompt("Tea is hot.", "Tea is here.") == "Tea is "
    assert common_prompt("\nTea\nis", "\nTea\nwas") == "\nTea\n"
    assert common_prompt("yes", "yesterday") == "" == common_prompt("a b", "c d")


@pytest.mark.parametrize("bad, reason", [
    (b'{"prompt": "Why?", "chosen": "a"', "broken JSON"),
    (b"[" * 100000, "broken JSON"),
    (b'{"prompt": "\xff", "chosen": "a", "rejected": "b"}', "not UTF-8"),
    (b"[1, 2]", "without the fields chosen and rejected"),
    (line(prompt="a", chosen="b"), "without the fields chosen and rejected"),
    (line(chosen=[{"role": "user", "content": "a"}], rejected="b"), "a field is not a text (lists of messages are not read)"),
    (line(prompt="", chosen="b", rejected="c"), "an empty field"),
    (line(prompt="a", chosen=" \n", rejected="c"), "an empty field"),
    (line(chosen="", rejected=""), "an empty field"),
    (line(chosen="\n\nHuman: a\n\nAssistant:", rejected="\n\nHuman: a\n\nAssistant: b"), "an empty field"),
    (line(prompt="a", chosen="b", rejected="b"), "chosen equals rejected")])
def test_a_bad_line_is_named_and_counted(tmp_path, bad, reason):
    """A bad line that stops the run, goes unmentioned, is counted under a wrong number, or is trained on."""
    lines = [json.dumps(GOOD).encode()] * 60
    lines[4] = lines[8] = bad
    (tmp_path / "pairs.jsonl").write_bytes(b"\r\n".join(lines[:10] + [b""] + lines[10:]) + b"\n")
    found, count, skipped, _ = read_pairs(tmp_path / "pairs.jsonl")
    assert len(found) == 58 and count == 60 and skipped == {reason: [5, 9]}
    assert found[8][0] == 12 and in_words(skipped) == f"{reason}: 2 (lines 5, 9)"


def test_the_first_three_lines_are_shown():
    """Ten thousand line numbers on the screen."""
    assert in_words({"broken JSON": [2, 4, 6, 8], "x": [1]}) == "broken JSON: 4 (lines 2, 4, 6, ...); x: 1 (line 1)"


@pytest.mark.parametrize("content, message", [
    (b"", "has 0 usable pairs, at least 50 are needed. Skipped: none"),
    ("\n".join([json.dumps(GOOD)] * 5).encode(), "has 5 usable pairs"),
    (json.dumps(GOOD).encode("utf-16") * 9, "has 0 usable pairs, at least 50 are needed. Skipped: not UTF-8: 1 (line 1)"),
    ("\n".join([json.dumps(GOOD | {"chosen": " No."})] * 70).encode(), r"Skipped: chosen equals rejected: 70 (lines 1, 2, 3, ...)"),
    (gzip.compress(b"{}" * 100)[:-12], "is damaged gzip"),
    (gzip.compress(b"{}" * 100)[:12] + b"\xff" * 30, "is damaged gzip")])
def test_a_file_of_no_use_stops_with_one_line(tmp_path, capsys, content, message):
    """A traceback, or a grid trained on five pairs."""
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(content)
    assert real.main([str(path), "--out", str(tmp_path / "out")]) == 2
    said = capsys.readouterr().err
    assert message in said and said.count("\n") == 1 and not (tmp_path / "out").exists()


def test_gzip_is_known_by_its_first_bytes(tmp_path, capsys):
    """A gzipped file under a plain name that is refused, and a plain one under a .gz name that gives a riddle of zlib's."""
    text = "\n".join([json.dumps(GOOD)] * 50).encode()
    (tmp_path / "a.jsonl").write_bytes(gzip.compress(text))
    (tmp_path / "b.jsonl").write_bytes(b"\xef\xbb\xbf" + text)
    assert read_pairs(tmp_path / "a.jsonl")[:3] == read_pairs(tmp_path / "b.jsonl")[:3]
    (tmp_path / "c.jsonl.gz").write_bytes(text)
    assert real.main([str(tmp_path / "c.jsonl.gz")]) == 2 and "is not gzip" in capsys.readouterr().err
    assert real.main([str(tmp_path / "none.jsonl")]) == 2 and "No such file" in capsys.readouterr().err


@pytest.mark.parametrize("flags, message", [("--pairs 5", "--pairs"), ("--held-out 1", "--held-out"), ("--encoding gpt9", "--encoding"), ("--width 15", "--width"),
                                            ("--vocabulary 100", "--vocabulary"), ("--eta nan", "--eta"), ("--processes 0", "--processes")])
def test_a_senseless_flag_is_named(tmp_path, capsys, flags, message):
    """A flag that is found out after minutes, in a traceback."""
    path = written(tmp_path / "pairs.jsonl", [GOOD] * 60)
    assert real.main([str(path), *flags.split()]) == 2 and message in capsys.readouterr().err


# ----- tokens ---------------------------------------------------------------------------------------

TEXTS = ["the tea is hot, the cup is hot", "чай горячий, 茶は熱い, الشاي ساخن", "👩‍🚀 🎉🎉 e\u0301 \u200d", "  two  spaces\n\n\ttab ", "\x00 <|endoftext|>",
         "a" * 500]


def test_byte_pairs_keep_every_text():
    """A script, an emoji or a white space that encoding loses; a text with the name of a special token that raises."""
    encoding = train_bpe(TEXTS, 300)
    for text in [*TEXTS, "ελληνικά: never seen 🦜", ""]:
        assert encoding.decode(encoding.encode_ordinary(text)) == text


def test_byte_pairs_by_hand():
    """Merges in another order than of frequency; a merge across words; a wrong count after a merge."""
    encoding = train_bpe(["abab abab ab cd cd"], 260)
    new = [encoding.decode_single_token_bytes(i) for i in range(256, encoding.n_vocab)]
    assert new[0] == b"ab" and set(new) <= {b"ab", b" ab", b"abab", b" abab", b"cd", b" cd", b" c"}
    assert encoding.n_vocab == 260 and train_bpe(["abc"], 300).n_vocab == 256, "no pair occurs twice"


def test_byte_pairs_are_the_same_every_time_and_quick():
    """Merges that depend on the order of a set of strings, so that no run can continue another."""
    rng = random.Random(0)
    texts = [" ".join("".join(rng.choices("etaoins", k=4)) for _ in range(100)) for _ in range(30)]
    start = time.perf_counter()
    assert train_bpe(texts, 800)._mergeable_ranks == train_bpe(texts, 800)._mergeable_ranks
    assert time.perf_counter() - start < 5


def test_surrogates_do_not_stop_the_run():
    """Half an emoji in a file, which no encoding takes: an error from deep inside, after minutes."""
    _, chosen, _ = read_row(b'{"prompt": "a", "chosen": "half \\ud83d, whole \\ud83d\\ude00", "rejected": "b"}')
    assert chosen == "half \ufffd, whole 😀" and train_bpe([chosen], 300).encode_ordinary(chosen)


def test_gpt2_gives_up(monkeypatch):
    """A run that hangs for ever on a network that swallows packets, or dies where there is none."""
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: time.sleep(3))
    start = time.perf_counter()
    assert pairs.gpt2(seconds=0.1) is None and time.perf_counter() - start < 2
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: 1 / 0)
    assert pairs.gpt2() is None
    with pytest.raises(ValueError, match="gpt2 is neither cached nor reachable"):
        pairs.encoding_for("gpt2", TEXTS, 300)
    assert pairs.encoding_for("auto", TEXTS, 300).name == "own"


def test_rare_tokens_become_one(monkeypatch):
    """An embedding of 50,000 rows, or EOS and PAD that a rare token shares; pairs that differ in rare tokens alone are no pairs."""
    letters = tiktoken.Encoding("gpt2", pat_str=r"(?s).", mergeable_ranks={bytes([b]): b for b in range(256)}, special_tokens={})
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: letters)
    data = tokenise([(1, "aaa", "bb", "cc"), (2, "aaa", "bbx", "bby"), (3, "a", "b", "xyz")], "auto", 3, 16)
    assert data["encoding"] == "gpt2 of tiktoken" and data["vocabulary"] == 6 and data["equal"] == [2] and data["kept"] == [0, 2]
    assert data["rows"].shape == (2, 2, 6) and data["unknown"] == pytest.approx(5 / 21)
    assert data["rows"][1].tolist() == [[0, 1, 4, 5, 5, 5], [0, 3, 3, 3, 4, 5]], "a=0, b=1, unknown=3, EOS=4, PAD=5"


def test_the_cut_keeps_the_difference():
    """A prompt cut on its right, or more in one than in the other (its length would give away the longer response), a response cut while
    there is a prompt left, or all of a prompt where none should be."""
    assert cut([1, 2, 3], [4, 5], [6], 4) == [[2, 3, 4, 5], [2, 3, 6]]
    assert cut([1, 2, 3], [4, 5], [6], 9) == [[1, 2, 3, 4, 5], [1, 2, 3, 6]]
    assert cut([1, 2, 3], [4, 5, 6], [7], 2) == [[4, 5], [7]]
    for room in range(1, 9):
        assert all(len(row) <= room for row in cut([1, 2, 3], [4, 5, 6], [7, 8], room))


def test_equal_once_cut_is_dropped_and_told(tmp_path, capsys):
    """A pair of two equal rows, which train_rm refuses, or which half-counts as right."""
    data = tokenise([(n, "p", "same " * 50 + end, "same " * 50 + "other") for n, end in ((7, "end"), (9, "fin"))], "own", 300, 12)
    assert data["rows"] is None and data["equal"] == [7, 9]
    rows = made_up(50) + [{"prompt": "a", "chosen": "long " * 90 + "a", "rejected": "long " * 90 + "b"}]
    assert real.main([str(written(tmp_path / "pairs.jsonl", rows)), "--out", str(tmp_path / "out"), *SMALL]) == 0
    assert "equal once cut, or without rare tokens: 1 (line 51)" in capsys.readouterr().out


def test_no_prompt_on_both_sides():
    """A prompt that is trained on and tested on, or the opening of one; one prompt for all, so that nothing can be held out."""
    prompts = [f"prompt {i % 40}" for i in range(100)]
    held = split(prompts, 0.2, 0)
    inside, outside = ({p for p, h in zip(prompts, held) if h == side} for side in (True, False))
    assert not inside & outside and 15 <= held.sum() <= 20 and (split(prompts, 0.2, 1) != held).any()
    longer = split([f"\n\nHuman: {i % 40}\n\nAssistant:" + i // 40 * " a\n\nHuman: b\n\nAssistant:" for i in range(100)], 0.2, 0)
    assert not {i % 40 for i in np.flatnonzero(longer)} & {i % 40 for i in np.flatnonzero(~longer)}
    with pytest.raises(ValueError, match="100 pairs have 1 different prompts: too few"):
        split(["one"] * 100, 0.2, 0)


# ----- statistics -----------------------------------------------------------------------------------

def test_calibration_of_a_known_judge():
    """The wrong side of 0.5, a bin's share of the wrong pairs, or an error that a good judge has too."""
    logits = np.abs(np.random.default_rng(0).normal(0, 2, 40000))
    right = np.random.default_rng(1).random(40000) < 1 / (1 + np.exp(-logits))
    honest = real.calibration(np.where(right, logits, -logits))
    assert honest["error"] < 0.02 and honest["right"][-1] > 0.9 > honest["right"][0]
    boastful = real.calibration(3 * np.where(right, logits, -logits))
    assert boastful["error"] > 0.1 and boastful["log_loss"] > honest["log_loss"]
    assert real.calibration(np.zeros(16))["log_loss"] == pytest.approx(np.log(2))


def test_order_does_not_matter():
    """A correlation that changes if the two responses of a pair change places, or one that subtracts the mean of what always points to chosen."""
    x, y = np.random.default_rng(0).normal(1, 1, (2, 50))
    sign = np.where(np.arange(50) % 2, 1, -1)
    assert real.either_order(x, y) == pytest.approx(real.either_order(sign * x, sign * y)) == pytest.approx(np.corrcoef([*x, *-x], [*y, *-y])[0, 1])


def test_findings_of_known_rewards():
    """Same and other pretraining mixed up, accuracy of the wrong axis, raw rewards that normalisation has already scaled."""
    rng = np.random.default_rng(0)
    truth, taste = rng.normal(1, 1, (1, 200)), rng.normal(0, 1, (2, 200)).repeat(2, 0)        # of pretraining 0, 0, 1, 1
    difference = truth + taste + 0.1 * rng.normal(0, 1, (4, 200))
    found = real.findings(np.stack([difference, 0 * difference], -1), np.full(4, 2.0), np.stack([difference[0], 0 * difference[0]], -1), 2, 2)
    assert found["accuracy"]["mean"] == pytest.approx((difference > 0).mean()) and found["accuracy"]["std_within"] < 0.03
    for name in ("decisions", "rank_correlation_in_pairs"):
        assert found["agreement"][name]["same"] > found["agreement"][name]["other"] + 0.1
    pool = found["bon"]["pool"]
    assert pool["self"][-1] > pool["same"][-1] > pool["other"][-1] > pool["other"][0] == pytest.approx(0, abs=1e-9)
    assert found["accuracy"]["kinds"]["pretrain"] > found["accuracy"]["kinds"]["finetune"]
    assert found["calibration"]["all"]["log_loss"] == pytest.approx(np.logaddexp(0, -2 * difference.mean(0)).mean())
    assert found["length"]["chosen_longer"] == (difference[0] > 0).mean()
    assert found["length"]["accuracy_longer_chosen"] > 0.8 > 0.5 > found["length"]["accuracy_shorter_chosen"]


# ----- the run --------------------------------------------------------------------------------------

def test_a_planted_word_is_found_and_the_files_are_whole(tmp_path, monkeypatch, capsys):
    """Rewards of the wrong response, labels lost between file and loss, held-out pairs that are trained on; a number that is shown and not
    stored; NaN, which JSON has not."""
    out, train_lm, train_rm, rows = tmp_path / "out", real.train_lm, real.train_rm, []
    monkeypatch.setattr(real, "train_lm", lambda model, texts, *rest, **more: rows.append(len(texts)) or train_lm(model, texts, *rest, **more))
    monkeypatch.setattr(real, "train_rm", lambda rm, prompts, *rest: rows.append(len(prompts)) or train_rm(rm, prompts, *rest))
    path = written(tmp_path / "pairs.jsonl", ["not json", *made_up(200)])
    assert real.main([str(path), "--out", str(out), *SMALL, "--rm-epochs", "20"]) == 0
    def refuse(name):
        raise AssertionError(f"{name} in real.json")
    found = json.loads((out / "real.json").read_text(), parse_constant=refuse)
    assert rows == [280] * 2 + [140] * 4 and found["file"]["training"] == 140
    assert found["accuracy"]["mean"] > 0.9 and np.shape(found["accuracy"]["all"]) == (2, 2)
    assert found["file"]["skipped"] == {"broken JSON": {"count": 1, "first_lines": [1]}} and found["file"]["lines"] == 201
    assert found["file"]["encoding"] == "byte pairs of the file" and found["file"]["used"] == 200 and found["file"]["held_out"] == 60
    assert set(found) == {"settings", "file", "pretraining_loss", "accuracy", "agreement", "calibration", "length", "bon", "stage_seconds"}
    assert (out / "real.png").read_bytes().startswith(b"\x89PNG")
    said = capsys.readouterr().out
    assert "broken JSON: 1 (line 1)" in said and f"{found['accuracy']['mean']:.3f}" in said and "nan" not in said


def test_a_planted_length_bias_is_found(tmp_path):
    """Lengths of the wrong response, or of rows with their prompt and PAD."""
    rows = made_up(200, better=" tea tea ice tea")
    for row in rows[::5]:
        row["chosen"], row["rejected"] = row["rejected"], row["chosen"]
    path = written(tmp_path / "pairs.jsonl", rows)
    assert real.main([str(path), "--out", str(tmp_path), *SMALL, "--rm-epochs", "20", "--pretrain-seeds", "1"]) == 0
    length = json.loads((tmp_path / "real.json").read_text())["length"]
    assert 0.7 < length["chosen_longer"] < 0.9 and length["rm_prefers_longer"]["mean"] > 0.9
    assert length["correlation"] > 0.4 and length["accuracy_longer_chosen"] > 0.9 and length["accuracy_shorter_chosen"] < 0.2


def test_one_seed_has_nothing_to_compare(tmp_path, capsys):
    """A warning, NaN or a crash where a grid has one row or one column."""
    path = written(tmp_path / "pairs.jsonl", made_up(60))
    assert real.main([str(path), "--out", str(tmp_path), *SMALL, "--pretrain-seeds", "1", "--finetune-seeds", "1"]) == 0
    found = json.loads((tmp_path / "real.json").read_text())
    assert found["accuracy"]["std_within"] is None and found["agreement"]["decisions"] == {"same": None, "other": None}


def test_an_interrupted_run_continues(tmp_path, monkeypatch, capsys):
    """Stages computed twice, or a stage of another file taken for this one's."""
    path, train_rm, trained = written(tmp_path / "pairs.jsonl", made_up(60)), real.train_rm, []

    def counted(*args):
        if len(trained) == 2:
            raise KeyboardInterrupt
        trained.append(args[-1])
        return train_rm(*args)

    monkeypatch.setattr(real, "train_rm", counted)
    command = [str(path), "--out", str(tmp_path / "out"), *SMALL]
    assert real.main(command) == 130 and "the same command continues" in capsys.readouterr().err
    before = set((tmp_path / "out" / "cache").iterdir())
    monkeypatch.setattr(real, "train_rm", lambda *args: trained.append(args[-1]) or train_rm(*args))
    assert real.main(command) == 0
    assert trained == [f"reward model ({p}, {f})" for p in range(2) for f in range(2)]
    assert before < set((tmp_path / "out" / "cache").iterdir())
    first = (tmp_path / "out" / "real.json").read_bytes()
    assert real.main(command) == 0 and len(trained) == 4 and (tmp_path / "out" / "real.json").read_bytes() == first
    written(path, made_up(60, seed=1))
    assert real.main(command) == 0 and len(trained) == 8
