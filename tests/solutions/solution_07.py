"""A solution of experiments/assignments/test_07_bug.py: what is carried back is the advantage, not this step's delta. With the fault a reward
reaches the last two tokens alone, so that only words right before the end are reinforced, and the end itself earlier and earlier."""
from ppo import gae
