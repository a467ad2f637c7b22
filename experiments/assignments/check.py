"""Check an assignment, in words.

    python experiments/assignments/check.py 3               # the answer in stubs/3_kl.py
    python experiments/assignments/check.py 3 --of ada      # the answer in ada/3_kl.py

The answer runs in a process of its own (answer.py), which computes and can open no file. The checks run here,
and see the numbers and texts that come back.
"""

import argparse
import importlib.util
import json
import os
import re
import signal
import stat
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from functools import cache, partial
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE), str(HERE / "checks"), str(HERE.parent), str(HERE.parent.parent)]

import answer  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402
from expect import Given, Wrong, clean, expect  # noqa: E402

import world  # noqa: E402

torch.set_num_threads(1)  # faster for tiny models
CHECKS = {int(path.name[0]): path for path in sorted(HERE.glob("checks/[0-9]_*.py"))}
STUBS = "|".join(path.stem for path in CHECKS.values())
# Such as ada_123_3_kl.py and 3_kl (1).py
NAMED = re.compile(rf"(?:(.+)_)?({STUBS})(?:[-_ ]?\(?\d+\)?)?\.py", re.IGNORECASE)
MEMORY, SOURCE, REPLY = 2 * 2**30, 200_000, 4 * 2**20  # at most: bytes of memory, of an answer, of a reply


@cache
def load(path):
    """A file as a module, whatever its name. It is loaded once, and keeps what it has computed."""
    spec = importlib.util.spec_from_file_location(f"file_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def check_names(number):
    return [name for name in vars(load(CHECKS[number])) if name.startswith("check_")]


def hand_ins(folder, depth=6):
    """Files in and below a folder that are named as a stub, after a prefix perhaps: [(number, prefix, path)];
    (None, "", path) of others. Not what archives add (__MACOSX, ._3_kl.py), nor what lies behind a link or in
    more folders than `depth`."""
    found = []
    for place, folders, files in os.walk(folder):
        deep = len(Path(place).relative_to(folder).parts) == depth
        folders[:] = [name for name in sorted(folders) if not name.startswith((".", "__")) and not deep]
        for name in sorted(files):
            prefix, stem = named.groups() if (named := NAMED.fullmatch(name)) else ("", None)
            if not name.startswith((".", "__")):
                found.append((stem and int(stem[0]), prefix or "", Path(place, name)))
    return found


def read_answer(files):
    """The bytes of the only file handed in. They are read once: what is checked is what was read."""
    expect(files, "not handed in")
    names = ", ".join(f"{file.parent.name}/{file.name}" for file in files)
    expect(len(files) == 1, f"{len(files)} files for one assignment: {names}")
    status = files[0].lstat()
    expect(stat.S_ISREG(status.st_mode), f"{names} is a link or a device, no file")
    expect(status.st_size <= SOURCE, f"{names} has {status.st_size} bytes, more than {SOURCE}")
    return files[0].read_bytes()


@contextmanager
def process(limit, start, output=subprocess.DEVNULL):
    """A function ask(line) -> line, to an answer's process: in an empty folder, and in a process group of its
    own, which is killed whole after `limit` seconds of work, or when done. Its start does not count."""
    kept = {name: value for name, value in os.environ.items() if name in ("PATH", "SYSTEMROOT")}
    settings = {"env": kept | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}, "start_new_session": True}
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": output}
    left = limit  # seconds: only those count in which the answer is waited for

    def kill():
        with suppress(OSError):  # there is none left
            os.killpg(child.pid, signal.SIGKILL) if hasattr(os, "killpg") else child.kill()

    def ask(line):
        nonlocal left
        start, timer = time.monotonic(), threading.Timer(left, kill)
        timer.start()
        with suppress(OSError):  # its end of the pipe is closed
            child.stdin.write(line.encode() + b"\n")
            child.stdin.flush()
        reply = child.stdout.readline(REPLY)
        timer.cancel()
        left -= time.monotonic() - start
        expect(reply, "it ended its process" if left > 0 else f"not finished after {limit:g} seconds")
        expect(len(reply) < REPLY, f"a reply of more than {REPLY} bytes")
        return reply

    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-I", "-B", HERE / "answer.py"]
        child = subprocess.Popen(command, cwd=folder, **settings, **pipes)
        try:
            child.stdin.write(json.dumps(start).encode() + b"\n")
            child.stdin.flush()
            expect(child.stdout.readline().strip() == b"ready", "its process did not start")
            yield ask
        finally:
            kill()
            child.communicate()


def unpack_numbers(x):
    """As answer.unpack, but no array of texts: numpy makes all as long as the longest."""
    if any(isinstance(item, str) for item in np.array(x.get("array"), dtype=object).flat):
        raise ValueError("an array of texts")
    return answer.unpack(x)


class Answer:
    """What a check is given: `their.k2(x)` calls k2 in the answer's process and returns plain data."""

    def __init__(self, ask, given):
        self.ask, self.given, self.measured = ask, given, {}  # measured: name -> text, to show

    def request(self, do, **request):
        """The value that comes back; Wrong, in words, if there is none."""
        line = self.ask(json.dumps({"do": do, **request}, default=answer.pack))
        try:
            reply = json.loads(line, object_hook=unpack_numbers)
            error, value = reply.get("error"), reply.get("value")
        except Exception:
            raise Wrong("it replied what is no data") from None
        expect(error is None, str(error))
        return value

    def __getattr__(self, function):
        """expressions: the first arguments as Python texts, such as "lambda x: x / 2" or "k2"; gradient: the
        value comes with its gradient in the first argument, or with None."""

        def call(*args, expressions=(), gradient=False):
            how = {"expressions": expressions, "gradient": gradient}
            return self.request("call", function=function, args=args, **how)

        return call


def verdicts(number, files, given, limit, process=process):
    """The only file -> {check: what is wrong, or None}, what was measured, a digest of the syntax tree."""
    found, tree = dict.fromkeys(check_names(number)), None
    tables = {name: getattr(world, name) for name in ("SLOTS", "WORDS", "DETAILS", "KIND")}
    source = read_answer(files).decode("utf-8-sig", "replace")
    start = {"name": files[0].name, "source": source, "world": tables}
    with process(limit, start | {"memory": MEMORY, "seconds": limit}) as ask:
        their = Answer(ask, given)
        try:
            tree = their.request("tree")
            their.request("load")
        except Wrong as wrong:
            return dict.fromkeys(found, clean(wrong)), {}, tree
        for check in found:
            try:
                getattr(load(CHECKS[number]), check)(their)
            except Exception as error:
                found[check] = clean(
                    error if isinstance(error, Wrong) else f"{type(error).__name__}: {error}"
                )
    return found, {clean(key): clean(value) for key, value in their.measured.items()}, tree


def report(found, measured):
    """What is said of an answer, line by line; the same words once."""
    said = {None: "passed"}
    for check, wrong in found.items():
        yield f"{check[6:].replace('_', ' ')}: {said.get(wrong, f'failed: {wrong}')}"
        said.setdefault(wrong, "failed: as above")
    yield from (f"measured: {name}: {value}" for name, value in measured.items())


def main():
    """The command line -> exit status, 1 if a check failed."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("number", type=int, choices=CHECKS)
    parser.add_argument("--of", type=Path, default=HERE / "stubs", metavar="FOLDER", help="default: stubs")
    parser.add_argument("--seed", type=int, default=0, help="of the inputs; the grader draws another")
    args = parser.parse_args()
    files = [path for number, _, path in hand_ins(args.of) if number == args.number]
    shown = partial(process, output=None)  # what it prints is seen
    try:
        found, measured, _ = verdicts(args.number, files, Given(args.seed), 600, shown)
    except Wrong as wrong:
        parser.error(f"{args.of}: {wrong}")
    for line in report(found, measured):
        print(line)
    return int(any(wrong is not None for wrong in found.values()))


if __name__ == "__main__":
    sys.exit(main())
