"""The engine: a cached map over several processes. It knows nothing of reward models.

    with processes(2) as executor:
        squares = Pool(executor, folder).map(square, [{"x": 1}, {"x": 2}, {"x": 3}])

A job is the arguments of a pure function, by name. Its value is kept in the folder under a key: a hash of the
arguments, by content, and of the code that the function reaches. Only the parent process touches the disk.
"""

import ast
import hashlib
import inspect
import io
import multiprocessing
import os
import pickle
import platform
import signal
import sys
import threading
import time
import uuid
from concurrent.futures import CancelledError, ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import asdict, is_dataclass
from functools import cache
from pathlib import Path

import torch
from tqdm import tqdm

HERE = Path(__file__).parent
PATHS = [path for folder in (HERE.parent, HERE, HERE / "more") for path in folder.glob("*.py")]
MODULES = {path.stem: path.read_text("utf-8") for path in PATHS}  # our code, as it was when the process began
tqdm.set_lock(threading.RLock())  # its own leaks a semaphore, with a warning, when a process is killed


class Pool:
    """Where jobs run, a concurrent.futures Executor, and the folder that keeps their values."""

    def __init__(self, executor, folder):
        self.executor, self.folder, self.start = executor, folder, time.perf_counter()
        folder.mkdir(parents=True, exist_ok=True)

    def say(self, text):
        """Print a line, with the time since the start."""
        tqdm.write(f"[{time.perf_counter() - self.start:4.0f} s] {text}")
        sys.stdout.flush()

    def map(self, function, jobs, tell=None, **shared):
        """function(**job, **shared) of every job, in order: tensors, numbers, strings, or lists and dicts of
        these. What is not in the folder is computed. With `tell`, a line says tell(value) as soon as it is
        there."""
        jobs = [job | shared for job in jobs]
        keys = [key(function, job) for job in jobs]
        paths = [self.folder / f"{function.__name__}-{name}.pt" for name in keys]
        futures = {}
        for path, name, job in {row[0]: row for row in zip(paths, keys, jobs, strict=True)}.values():
            if not path.exists():
                futures[self.executor.submit(run, function, pickle.dumps(job), name)] = path
            elif tell:
                self.say(tell(load(path)))
        what, done = function.__name__.replace("_", " "), len(jobs) - len(futures)
        for future in tqdm(as_completed(futures), what, len(jobs), initial=done, leave=False, disable=None):
            value, path = future.result(), futures[future]
            write_whole(path, value)
            if tell:
                self.say(tell(load(path)))
        return [load(path) for path in paths]


def run(function, job, wanted):
    """What a worker does: function(**job), as the bytes of a file. One thread: these matrices are too small
    to be split, so two processes of one thread do far more than one process of two."""
    torch.set_num_threads(1)
    job = pickle.loads(job)
    if key(function, job) != wanted:
        raise ValueError("a worker has other code or versions than this process: start it again")
    return saved(function(**job))


def saved(value):
    """The bytes of torch.save: a full disk is then an OSError, where torch.save has a RuntimeError."""
    file = io.BytesIO()
    torch.save(value, file)
    return file.getvalue()


def load(path):
    """A value that was kept, on the CPU. ValueError, naming the file, if it is damaged."""
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception:
        raise ValueError(f"{path} is damaged. Delete it and run again.") from None


def write_whole(path, content):
    """Write bytes to a temporary file, then move it to `path`: readers see all of it or nothing."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")
    try:
        part.write_bytes(content)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


# ----- executors ----------------------------------------------------------------------------------
@contextmanager
def processes(count):
    """An executor of `count` processes on this machine, which end with it, whatever ends it."""
    executor = ProcessPoolExecutor(count, multiprocessing.get_context("spawn"), end_with_parent)
    on_ctrl_c = signal.signal(signal.SIGINT, signal.SIG_IGN)  # it goes to all processes: ours inherit that
    for _ in range(count):
        executor.submit(int)  # each starts a process
    signal.signal(signal.SIGINT, on_ctrl_c)
    on_sigterm = signal.signal(signal.SIGTERM, signal.default_int_handler)  # KeyboardInterrupt, as by Ctrl-C
    try:
        yield executor
    except BrokenProcessPool:
        raise ValueError("a process has died: did memory run out? The same command continues.") from None
    finally:
        signal.signal(signal.SIGTERM, on_sigterm)
        for child in multiprocessing.active_children():
            child.kill()  # at most the jobs in work are lost
        executor.shutdown(cancel_futures=True)


def end_with_parent():
    """In a worker: a thread that ends the process when its parent is gone, even by kill -9."""

    def watch():
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


@contextmanager
def cluster(address):
    """An executor on several machines: the workers of a dask scheduler, "HOST:PORT"."""
    try:
        from distributed import Client, KilledWorker
    except ImportError:
        raise ValueError("--scheduler needs dask: pip install distributed") from None
    try:
        with Client(address, timeout=10) as client:
            yield client.get_executor(pure=False)
    except (CancelledError, KilledWorker):
        raise ValueError(
            f"--scheduler {address} or its workers are gone. The same command continues."
        ) from None


# ----- keys ---------------------------------------------------------------------------------------
def key(function, job):
    """A hash, 16 hexadecimal digits, of all that function(**job) depends on."""
    versions = [torch.__version__, *platform.python_version_tuple()[:2]]  # Python's: of random.Random
    return hashlib.sha256(b"".join(content([versions, function, job]))).hexdigest()[:16]


def content(x):
    """What an argument is, in bytes: equal only for equal arguments."""
    if isinstance(x, torch.Tensor):
        yield f"{x.dtype} {tuple(x.shape)} ".encode() + x.contiguous().numpy().tobytes()
    elif isinstance(x, dict | list | tuple):
        items = list(x.items()) if isinstance(x, dict) else x
        yield f"{type(x).__name__} {len(items)} ".encode()
        for item in items:
            yield from content(item)
    elif is_dataclass(x) and not isinstance(x, type):
        yield from content([type(x), asdict(x)])
    elif isinstance(x, str | int | float | None):
        yield f"{x!r} ".encode()
    else:
        x = inspect.unwrap(x)
        file = x.__code__.co_filename if hasattr(x, "__code__") else inspect.getfile(x)
        if Path(file).stem not in MODULES or "<" in x.__qualname__:
            raise ValueError(f"{x!r} must be a function of a name of its own, at the top of one of our files")
        yield code_of(Path(file).stem, x.__name__).encode()


@cache
def code_of(module, name):
    """The code that a function reaches: every top-level statement of our modules that defines a name it uses,
    or one that such a statement uses. Without comments and docstrings: editing them reruns nothing."""
    reached, todo = {}, {(module, name)}
    while todo:
        module, name = todo.pop()
        defined, imported = definitions(module)
        reached[module, name] = [ast.dump(statement) for statement in defined.get(name, [])]
        for node in (node for statement in defined.get(name, []) for node in ast.walk(statement)):
            if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Load):
                todo.add(imported.get(node.id, (module, node.id)))
            elif isinstance(node, ast.Attribute) and getattr(node.value, "id", None) in MODULES:
                todo.add((node.value.id, node.attr))  # world.gold
        todo -= reached.keys()
    return repr(sorted(reached.items()))


@cache
def definitions(module):
    """({name: the top-level statements that define or change it}, {name: (module, name there)} of what the
    module imports from our others)."""
    tree, defined, imported = ast.parse(MODULES[module]), {}, {}
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node):
            node.body = node.body[1:]
    for statement in tree.body:
        changed = []  # the parts with the names that it defines or changes
        match statement:
            case ast.Import(names=names):
                imported |= {alias.name: (alias.name, "") for alias in names if alias.name in MODULES}
            case ast.ImportFrom(module=other, names=names) if other in MODULES:
                imported |= {alias.name: (other, alias.name) for alias in names}
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                defined[name] = [statement]
            case ast.Assign(targets=targets):  # HABITS = ..., HABITS[0] = ...
                changed = targets
            case ast.Expr(value=ast.Call(func=called)):  # HABITS.append(...)
                changed = [called]
            case ast.AugAssign() | ast.AnnAssign() | ast.For() | ast.If() | ast.With() | ast.Try():
                changed = [statement]
        for name in {node.id for part in changed for node in ast.walk(part) if isinstance(node, ast.Name)}:
            defined.setdefault(name, []).append(statement)
    return defined, imported
