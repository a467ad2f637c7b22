"""The process that an answer runs in: it computes what it is asked, and is never told what is right.

check.py starts it with `python -I` and sends lines of JSON: the answer's source, then calls of its functions.
Each gets one line back. The verdict falls in check.py's process, where no line of the answer runs, so nothing
that an answer prints, forges or changes here earns a point.
"""

import ast
import hashlib
import json
import os
import sys
import time
import traceback
import types
from importlib import import_module

import numpy as np
import torch

try:
    import resource
except ImportError:  # Windows: no limits but time
    resource = None

MODULES = (  # what an answer may import, loaded beforehand
    "abc bisect cmath collections copy dataclasses decimal enum fractions functools heapq itertools math "
    "numbers numpy operator random re statistics string torch typing"
).split()
HARMLESS = "import compile exec sys._getframe builtins.id object.__getattr__ object.__setattr__".split()


def pack(x):
    """For json.dumps: a tensor or an array as a dict."""
    if isinstance(x, torch.Tensor | np.ndarray | np.generic):
        return {"tensor" if isinstance(x, torch.Tensor) else "array": x.tolist()}
    raise TypeError(f"a {type(x).__name__} is no number, text, tensor or array, nor a list or dict of them")


def unpack(x):
    """For json.loads: the way back. It makes numbers and texts, and runs nothing."""
    if len(x) == 1 and {"tensor", "array"} & set(x):
        return torch.tensor(x["tensor"]) if "tensor" in x else np.array(x["array"])
    return x


def seal(memory, seconds):
    """From here on this process opens no file, starts no process or thread, sends no signal, and takes no
    more bytes of memory and seconds of the CPU than this."""
    sys.path.clear()
    if resource:
        if os.getuid() == 0:  # root is above limits, so become somebody who has nothing, and nobody else is
            nobody = 20000 + os.getpid() % 40000
            os.setgroups([])
            os.setgid(nobody)
            os.setuid(nobody)
        cpu = round(time.process_time() + seconds) + 1
        for name, most in {"NOFILE": 0, "NPROC": 0, "CORE": 0, "DATA": memory, "CPU": cpu}.items():
            resource.setrlimit(getattr(resource, f"RLIMIT_{name}"), (most, most))

    def refuse(event, _, harmless=frozenset(HARMLESS)):
        if event not in harmless:
            raise PermissionError(f"answers may not use {event}")

    sys.addaudithook(refuse)


def syntax_tree(source, name):
    """A digest of a Python text: equal for texts that differ in blanks and comments alone."""
    return hashlib.sha256(ast.dump(ast.parse(source, name)).encode()).hexdigest()


class Session:
    """An answer, and what it replies."""

    def __init__(self, start):
        self.name, self.source, self.world = start["name"], start["source"], start["world"]
        self.module = types.ModuleType("handed_in")

    def tree(self):
        return syntax_tree(self.source, self.name)

    def load(self):
        sys.modules.update(handed_in=self.module, world=types.ModuleType("world"))
        vars(sys.modules["world"]).update(self.world)
        exec(compile(self.source, self.name, "exec", dont_inherit=True), vars(self.module))

    def call(self, function, args, expressions, gradient):
        """The function's value; with `gradient` also the value's gradient in the first argument, or None."""
        args = [eval(text, vars(torch) | vars(self.module)) for text in expressions] + args
        theirs = vars(self.module).get(function)
        if not callable(theirs):
            raise NotImplementedError(f"{self.name} has no function {function}")
        if not gradient:
            return theirs(*args)
        value = theirs(args[0].requires_grad_(), *args[1:])
        kept = isinstance(value, torch.Tensor) and value.requires_grad
        return value, torch.autograd.grad(value.sum(), args[0])[0] if kept else None

    def reply(self, line):
        """A request -> its value, or what went wrong: both are a line of JSON."""
        request = json.loads(line, object_hook=unpack)
        try:
            return json.dumps({"value": getattr(self, request.pop("do"))(**request)}, default=pack)
        except BaseException as error:
            return json.dumps({"error": self.in_words(error)})

    def in_words(self, error):
        """What an exception says, with the line of the answer that it came from."""
        if isinstance(error, NotImplementedError):
            return str(error) or "NotImplementedError"
        frames = traceback.extract_tb(error.__traceback__)
        lines = ["?", *(frame.lineno for frame in frames if frame.filename == self.name)]
        line = error.lineno if isinstance(error, SyntaxError) else lines[-1]
        words = f"{self.name}, line {line}: {type(error).__name__}: {error}"
        rule = f". Answers open no files, and import {', '.join(MODULES)}, and tables of world"
        return words + rule * isinstance(error, ImportError | PermissionError)


def main():
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what an answer prints is no reply
    torch.set_num_threads(1)
    for name in (*MODULES, "numpy.random"):
        import_module(name)
    repr(torch.ones(1))  # loads what torch loads late
    start = json.loads(sys.stdin.readline())
    session = Session(start)
    seal(start["memory"], start["seconds"])
    print("ready", file=replies, flush=True)
    for line in sys.stdin:
        print(session.reply(line), file=replies, flush=True)


if __name__ == "__main__":
    main()
