"""Puts the repository on the path, says verdicts without tracebacks through PyTorch, and lets a teacher check another folder's functions."""
from pathlib import Path
import sys

HERE = Path(__file__).parent
sys.path[:0] = [str(HERE.parent.parent), str(HERE.parent), str(HERE)]

import pytest
import torch

import checks

torch.set_num_threads(1)
REFUSED = {}            # module of checks -> why the file handed in for it can't be checked


def pytest_addoption(parser):
    parser.addoption("--of", metavar="FOLDER", help="check the functions in the files of this folder, by the checks of this one")


def pytest_configure(config):
    if config.option.tbstyle == "auto":
        config.option.tbstyle = "short"


def pytest_collection_modifyitems(config, items):
    folder = config.getoption("--of")
    for module in {item.module for item in items} if folder else ():
        try:
            checks.hand_in(module, folder)
        except ValueError as error:
            REFUSED[module] = str(error)


def pytest_runtest_setup(item):
    checks.expect(item.module not in REFUSED, REFUSED.get(item.module))


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A stub that is still one says so in a line."""
    outcome = yield
    if call.excinfo and call.excinfo.errisinstance(NotImplementedError):
        outcome.get_result().longrepr = str(call.excinfo.value)


def pytest_terminal_summary(terminalreporter):
    if checks.NOTES:
        terminalreporter.section("measured")
        terminalreporter.write_line("\n".join(checks.NOTES))
