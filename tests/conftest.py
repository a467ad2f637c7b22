"""Puts our folders on the path, and gives the tests one tiny model over ten tokens:
words 0 to 7, EOS 8, PAD 9."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT / folder) for folder in ("", "experiments", "experiments/more", ".ci")]
sys.path.append(str(ROOT / "experiments/assignments"))
torch.set_num_threads(1)

from policy import Config, LanguageModel  # noqa: E402


@pytest.fixture
def config():
    return Config(vocab_size=10, context=16, width=16, layers=2, heads=2)


@pytest.fixture
def model(config):
    return LanguageModel(config, seed=0)


@pytest.fixture
def prompts():
    return torch.randint(8, (12, 4), generator=torch.Generator().manual_seed(0))


@pytest.fixture
def responses():
    """Twelve responses of 1 to 6 tokens: words, EOS, PAD. The seventh ran out of room: it has no EOS."""
    words = torch.randint(8, (12, 6), generator=torch.Generator().manual_seed(1))
    position, end = torch.arange(6), (torch.arange(12) % 7)[:, None]
    return words.where(position < end, 8).where(position <= end, 9)


TINY = """--quick --width 16 --rm-width 16 --pretrain-seeds 2 --finetune-seeds 2 --pretrain-texts 300
--pretrain-steps 20 --sft-steps 5 --pairs 100 --prompts 8 --n 8 --ppo-updates 2 --ppo-batch 16
--kl-weights 0.02 0.1 --jury 2 --eta 0.010000001""".split()


def overopt(out, *flags):
    """The command of a tiny run of the main script."""
    return [sys.executable, str(ROOT / "experiments/overopt.py"), *TINY, "--out", str(out), *flags]


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """The folder of one tiny world, made once for all tests: interrupted by Ctrl-C, then continued."""
    out = tmp_path_factory.mktemp("tiny") / "deep" / "er"
    command = overopt(out, "--seeds", "3", "--processes", "2")
    stopped = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    while not list(out.glob("cache/*.pt")):
        assert stopped.poll() is None, stopped.stderr.read()
        time.sleep(0.05)
    os.killpg(stopped.pid, signal.SIGINT)  # as a terminal does: to all of the run's processes
    _, said = stopped.communicate()
    assert stopped.returncode == 130, said
    assert "Traceback" not in said
    assert not list(out.glob("world-*.json")), "it was not interrupted, but ran to its end"
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return out
