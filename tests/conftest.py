"""Puts the repository and experiments/ on the path, and gives the tests one tiny model over ten tokens:
words 0 to 7, EOS 8, PAD 9."""
from pathlib import Path
import signal
import subprocess
import sys
import time

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]
torch.set_num_threads(1)

from policy import Config, LanguageModel


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
    """Twelve responses of 1 to 6 tokens, EOS included, then PAD."""
    words, place = torch.randint(8, (12, 6), generator=torch.Generator().manual_seed(1)), torch.arange(6)
    end = (torch.arange(12) % 6)[:, None]
    return words.where(place < end, 8).where(place <= end, 9)


@pytest.fixture(scope="session")
def quick(tmp_path_factory):
    """The one --quick run of all tests, as the README's reader makes it, stopped by Ctrl-C and continued:
    (its folder, the stopped process, what it said, the finished one)."""
    out = tmp_path_factory.mktemp("quick") / "deep" / "er"
    command = [sys.executable, ROOT / "experiments" / "overopt.py", "--quick", "--seed", "7", "--out", out]
    stopped = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    while not list(out.glob("cache/pretrain-1*.pt")):
        assert stopped.poll() is None, stopped.stderr.read()
        time.sleep(0.1)
    stopped.send_signal(signal.SIGINT)
    _, said = stopped.communicate()
    return out, stopped, said, subprocess.run(command, capture_output=True, text=True)
