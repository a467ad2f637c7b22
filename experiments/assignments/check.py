"""Check an assignment, in words.

    python experiments/assignments/check.py 3               # the answer in stubs/3_rank.py
    python experiments/assignments/check.py 3 --of ada      # the answer in ada/3_rank.py

An answer is read before it is run, and refused if it imports more than a few modules, touches files or sets
attributes of anything but self. The message says what is allowed.
"""

import argparse
import ast
import contextlib
import importlib.util
import json
import sys
import traceback
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path[:0] = [str(HERE / "checks"), str(HERE.parent), str(HERE.parent.parent)]

from expect import MEASURED, Wrong, expect  # noqa: E402

CHECKS = {int(path.name[0]): path for path in sorted(HERE.glob("checks/[0-9]_*.py"))}
MODULES = set("math itertools functools collections dataclasses statistics random re numpy torch".split())
WORLD = set("SLOTS WORDS DETAILS KIND".split())  # what may be imported from world
FORBIDDEN = set(  # ways to files and to other code
    "__import__ eval exec open breakpoint globals locals vars getattr setattr delattr os _os sys "
    "_sys importlib subprocess builtins inspect ctypes ctypeslib load loadtxt genfromtxt fromfile "
    "fromregex memmap open_memmap from_file DataSource save savez savetxt tofile dump "
    "f_back f_globals f_locals gi_frame tb_frame".split()
)


def refusal(source):
    """Why an answer (bytes) is refused, or None. It is read here, before any of its code runs."""
    for node in ast.walk(ast.parse(source)):
        imported, names = [], []
        if isinstance(node, ast.Import):
            imported = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            imported = [f"{'.' * node.level}{node.module or ''}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Name):
            names = [node.id]
        elif isinstance(node, ast.Attribute):
            names = [node.attr]
            if not isinstance(node.ctx, ast.Load) and not ast.unparse(node).startswith("self."):
                return f"line {node.lineno} sets {ast.unparse(node)}: answers set attributes of self alone"
        for name in imported:
            module, *rest = name.split(".")
            names += rest
            if module not in MODULES and not (module == "world" and rest and WORLD.issuperset(rest)):
                rule = f"{', '.join(sorted(MODULES))}, and from world {', '.join(sorted(WORLD))}"
                return f"line {node.lineno} imports {name}. Answers may import {rule}"
        for name in names:
            if name in FORBIDDEN or name.startswith("__") and name != "__name__":
                return f"line {node.lineno} uses {name}: answers may not touch files or other code"
    return None


def functions(path, prefix=""):
    """Names of the functions that a file defines."""
    body = ast.parse(path.read_text("utf-8")).body
    return [node.name for node in body if isinstance(node, ast.FunctionDef) and node.name.startswith(prefix)]


def load(path):
    """A file as a module, whatever its name."""
    spec = importlib.util.spec_from_file_location(f"file_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def answer_file(number, folder):
    """The file handed in for an assignment; Wrong if there is none, or more than one."""
    files = sorted(folder.glob(f"{number}_*.py"))
    expect(files, "not handed in")
    expect(len(files) == 1, f"two files for one assignment: {', '.join(file.name for file in files)}")
    return files[0]


def load_answer(number, path):
    """The answer as a module; Wrong if it is refused, or lacks a function of the stub."""
    refused = refusal(path.read_bytes())
    expect(not refused, f"{path.name}: {refused}")
    answer = load(path)
    for name in functions(HERE / "stubs" / CHECKS[number].name):
        expect(callable(vars(answer).get(name)), f"{path.name} has no function {name}")
    return answer


def in_words(error, path):
    """What an exception says; if it is none of ours, with the line of the answer that it came from."""
    if isinstance(error, Wrong | NotImplementedError):
        return str(error)
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == str(path)]
    if isinstance(error, SyntaxError):
        lines, error.filename = [error.lineno], path.name
    return f"{path.name}, line {lines[-1] if lines else '?'}: {type(error).__name__}: {error}"


def verdicts(number, folder):
    """Yield (check, what is wrong or None) for the answer in a folder, one after the other."""
    path = refused = None
    try:
        path = answer_file(number, folder.resolve())
        answer, checks = load_answer(number, path), load(CHECKS[number])
    except (Exception, SystemExit) as error:
        refused = in_words(error, path)
    for name in functions(CHECKS[number], "check_"):
        wrong = refused
        try:
            if not refused:
                getattr(checks, name)(answer)
        except (Exception, SystemExit) as error:
            wrong = in_words(error, path)
        yield name, wrong


def main():
    """The command line -> exit status, 1 if a check failed."""
    raw = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=raw)
    parser.add_argument("number", type=int, choices=CHECKS)
    parser.add_argument("--of", type=Path, default=HERE / "stubs", metavar="FOLDER", help="default: stubs")
    parser.add_argument("--json", action="store_true", help="for grade.py: a line of JSON for each verdict")
    args = parser.parse_args()
    if not args.of.is_dir():
        parser.error(f"{args.of} is not a folder")
    out, said = sys.stdout, {None: "passed"}
    with contextlib.redirect_stdout(sys.stderr) if args.json else contextlib.nullcontext():
        for name, wrong in verdicts(args.number, args.of):
            shown = f"{name.removeprefix('check_').replace('_', ' ')}: {said.get(wrong, wrong)}"
            said.setdefault(wrong, "as above")
            print(json.dumps([name, wrong]) if args.json else shown, file=out, flush=True)
    if args.json:
        print(json.dumps(["measured", MEASURED]))
    for name, value in {} if args.json else MEASURED.items():
        print(f"measured: {name}: {value}")
    return int(len(said) > 1)


if __name__ == "__main__":
    sys.exit(main())
