"""Results of stages on disk: computed once, under a key of all that they depend on, whole or not at all."""
import ast
import hashlib
import json
import os
from pathlib import Path
import time

import torch

ROOT = Path(__file__).parent.parent


def code_of(*files):
    """What the given source files do, as text: comments, docstrings and layout left out. It is part of the
    keys, so that a run after you changed a formula never shows you yesterday's result."""
    trees = [ast.parse((ROOT / file).read_text()) for file in files]
    for node in (node for tree in trees for node in ast.walk(tree)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return "".join(map(ast.dump, trees))


def write_whole(path, write):
    """Call write(file) on a temporary file beside `path` and put it in place: readers see all of it or nothing."""
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "wb") as file:
            write(file)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


class Cache:
    """cache(name, inputs, compute) -> (value, key): `compute()`'s value, or the file's if one was made before.

    The key is a hash of `inputs` (anything JSON can write; the keys of earlier stages among it). Values are
    tensors, numbers, strings and plain containers of them: what torch.load reads with weights_only=True."""

    def __init__(self, folder, device):
        self.folder, self.device, self.seconds, self.computed = Path(folder), device, {}, 0
        self.folder.mkdir(parents=True, exist_ok=True)

    def __call__(self, name, inputs, compute):
        key = hashlib.sha256(json.dumps([name, inputs], sort_keys=True).encode()).hexdigest()[:12]
        path = self.folder / f"{name}-{key}.pt"
        if not path.exists():
            start = time.perf_counter()
            value = compute()
            self.computed += 1
            stored = {"key": key, "seconds": time.perf_counter() - start, "value": value}
            write_whole(path, lambda file: torch.save(stored, file))
        stored = self.load(path, key)
        self.seconds[name] = stored["seconds"]
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
