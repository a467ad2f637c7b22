"""Puts the repository and experiments/ on the path, and gives the tests one tiny model over ten tokens:
words 0 to 7, EOS 8, PAD 9."""

import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "experiments")]
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
