"""Results of stages on disk: computed once, under a key of all that they depend on, whole or not at all."""
import ast
import hashlib
import inspect
import json
import os
from pathlib import Path
import re
import sys
import time
from types import CodeType
import uuid

import numpy as np
import torch

ROOT = Path(__file__).parent.parent


def code_of(*sources):
    """What the given source files (paths) or classes do, as text: comments, docstrings and layout left out. It is
    part of the keys, so that a run after you changed a formula never shows you yesterday's result."""
    texts = [(ROOT / source).read_text() if isinstance(source, (str, Path)) else inspect.getsource(source) for source in sources]
    trees = [ast.parse(text) for text in texts]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return "".join(map(ast.dump, trees))


def fingerprint(function):
    """What a stage of the main script does, as nested lists that JSON can write: compiled code, names, constants."""
    def of(code):
        constants = [of(c) if isinstance(c, CodeType) else repr(sorted(c) if isinstance(c, frozenset) else c) for c in code.co_consts]
        return [code.co_code.hex(), code.co_names, constants]
    return of(function.__code__)


def write_whole(path, write):
    """Call write(file) on a temporary file beside `path` and put it in place: readers see all of it or nothing."""
    part = path.with_name(f"{path.name}.{uuid.uuid4().hex}.part")       # on several machines process numbers repeat
    try:
        with open(part, "wb") as file:
            write(file)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def to_json(x):
    """Bytes of indented JSON, lists of plain values on one line."""
    return re.sub(r"\[[^\[\]{}]*\]", lambda match: " ".join(match[0].split()), json.dumps(x, indent=1, allow_nan=False)).encode()


def rounded(x, digits=5):
    """Plain lists and floats for JSON, rounded so that the file is short; NaN, which JSON does not have, as None."""
    if isinstance(x, dict):
        return {key: rounded(value, digits) for key, value in x.items()}
    if isinstance(x, (list, tuple)):
        return [rounded(value, digits) for value in x]
    if isinstance(x, (np.ndarray, torch.Tensor)):
        return rounded(x.tolist(), digits)
    if isinstance(x, (float, np.floating)):
        return round(float(x), digits) if np.isfinite(x) else None
    return x


def peak_memory_gb():
    """Most memory that this process has held, in GB (0 where the system does not tell, as on Windows)."""
    try:
        import resource
    except ImportError:
        return 0.0
    unit = 1 if sys.platform == "darwin" else 1024          # bytes there, kilobytes elsewhere
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e9


class Cache:
    """cache(name, inputs, compute) -> (value, key): `compute()`'s value, or the file's if one was made before.

    The key is a hash of `inputs` (anything JSON can write; the keys of earlier stages among it). Values are
    tensors, numbers, strings and plain containers of them: what torch.load reads with weights_only=True."""

    def __init__(self, folder, device):
        self.folder, self.device, self.seconds, self.peak_memory_gb = Path(folder), device, {}, 0.0
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name, inputs, compute):
        key = hashlib.sha256(json.dumps([name, inputs], sort_keys=True).encode()).hexdigest()[:12]
        path = self.folder / f"{name}-{key}.pt"
        if not path.exists():
            start = time.perf_counter()
            value = compute()
            stored = {"key": key, "seconds": time.perf_counter() - start, "peak_memory_gb": peak_memory_gb(), "value": value}
            write_whole(path, lambda file: torch.save(stored, file))
        stored = self.load(path, key)
        self.seconds[name] = stored["seconds"]
        self.peak_memory_gb = max(self.peak_memory_gb, stored["peak_memory_gb"])
        return stored["value"], key

    def load(self, path, key):
        """The stored dict; ValueError, naming the file, if it is damaged or is another stage's result."""
        try:
            stored = torch.load(path, map_location=self.device, weights_only=True)
            found = stored["key"]
        except Exception as error:
            raise ValueError(f"cache: {path} is damaged ({type(error).__name__}). Delete that file and run again; "
                             "all other stages are kept.") from None
        if found != key:
            raise ValueError(f"cache: {path} holds a result of other settings. Delete that file and run again.")
        return stored
