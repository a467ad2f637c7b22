"""experiments/cache.py: never yesterday's result, never half of one."""
import pytest
import torch

from cache import Cache, code_of, write_whole


@pytest.fixture
def cache(tmp_path):
    return Cache(tmp_path / "runs", "cpu")


def never():
    raise AssertionError("computed again")


def test_computed_once(cache):
    """A stage that runs again although its result is there, or comes back as another value."""
    value, key = cache("stage", {"seed": 0}, lambda: {"scores": torch.arange(3.0), "names": ["a"]})
    stored, same_key = Cache(cache.folder, "cpu")("stage", {"seed": 0}, never)
    assert torch.equal(stored["scores"], value["scores"]) and stored["names"] == ["a"] and same_key == key


@pytest.mark.parametrize("name, inputs", [("stage", {"seed": 1}), ("stage", {"seed": 0, "n": 2}), ("other", {"seed": 0})])
def test_other_inputs_compute_anew(cache, name, inputs):
    """Yesterday's result under today's settings."""
    _, key = cache("stage", {"seed": 0}, lambda: 1)
    value, other_key = cache(name, inputs, lambda: 2)
    assert value == 2 and other_key != key


def test_half_a_file_is_named(cache):
    """A file cut by a full disk, read as a result or reported as a riddle of pickle's."""
    cache("stage", 0, lambda: torch.arange(1000))
    path, = cache.folder.iterdir()
    path.write_bytes(path.read_bytes()[:path.stat().st_size // 2])
    with pytest.raises(ValueError, match=f"{path.name} is damaged"):
        cache("stage", 0, never)


def test_another_stages_file_is_refused(cache):
    """A result copied or renamed to another key's name."""
    _, first = cache("stage", 0, lambda: "first")
    _, second = cache("stage", 1, lambda: "second")
    one, two = (cache.folder / f"stage-{key}.pt" for key in (first, second))
    two.write_bytes(one.read_bytes())
    with pytest.raises(ValueError, match=f"{two.name} holds a result of other settings"):
        cache("stage", 1, never)


def test_a_failed_stage_leaves_nothing(cache):
    """A stage that stops half-way and counts as done."""
    with pytest.raises(ZeroDivisionError):
        cache("stage", 0, lambda: 1 / 0)
    assert not any(cache.folder.iterdir()) and cache("stage", 0, lambda: 5)[0] == 5


@pytest.mark.parametrize("before", [None, b"old"])
def test_write_is_whole_or_not_at_all(tmp_path, before):
    """Half a file, a forgotten temporary one, or the old result lost to a write that failed."""
    path = tmp_path / "result"
    if before:
        path.write_bytes(before)
    def fail(file):
        file.write(b"half")
        raise OSError("disk full")
    with pytest.raises(OSError, match="disk full"):
        write_whole(path, fail)
    assert [p.read_bytes() for p in tmp_path.iterdir()] == ([before] if before else [])
    write_whole(path, lambda file: file.write(b"new"))
    assert [p.read_bytes() for p in tmp_path.iterdir()] == [b"new"]


def test_code_of_reads_formulas_not_comments(tmp_path):
    """A changed comment that costs hours, or a changed formula that shows yesterday's result."""
    def code(text):
        (tmp_path / "code.py").write_text(text)
        return code_of(tmp_path / "code.py")
    original = code('"""Module."""\ndef loss(x):\n    """Squared."""\n    return x ** 2\n')
    assert code('"""Other."""\n\n\ndef loss(x):   # why\n    """Words,\n    lines."""\n    return (x**2)\n') == original
    assert code("def loss(x):\n    return x ** 2\n") == original
    assert code('"""Module."""\ndef loss(x):\n    """Squared."""\n    return x ** 3\n') != original
