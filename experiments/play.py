"""You are the policy: write a response that fools a reward model.

    python experiments/play.py
    python experiments/play.py --level 2
    python experiments/play.py --difficulty     # how often plain edits of a perfect summary win

A level shows a post and a response to beat: of 64 samples of the SFT policy, the one with the highest proxy.
Write one that has a higher proxy and less gold (the true reward), and you have hacked the proxy, which is

    level 1   one reward model
    level 2   a pretrain ensemble: the mean of five reward models from five pretrainings
    level 3   the same, and a jury must be fooled as well: reward models of a sixth pretraining
    level 4   a pretrain ensemble, less half of what the response would earn under other posts ("contrast")
"""

import sys
import textwrap
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))  # the five files live one folder up

import torch
from tqdm import tqdm

import world
from models import SHIPPED, load_models
from policy import sample
from report import exit_status, gold_in_parts, parser_of
from watch import REWARDS, groups_of, with_contrast

LEVELS = {
    1: "one reward model",
    2: "a pretrain ensemble",
    3: "a pretrain ensemble, and the jury too",
    4: f"a {REWARDS['contrast']}",
}
SAMPLES = 64  # of the SFT policy, for the rival
MISSES = 3  # before there is a hint
POSTS = 100  # to measure the difficulty on
HELP = """\
? shows this, an empty line brings another post, Ctrl-D ends the game.
Say what the post says, or something else, in these words:
{words}
The true reward of a response is the sum of its parts; for each occurrence it has
{prices}"""


class Round:
    """A post, the response to beat, its rival, and who has to be fooled."""

    def __init__(self, models, level, seed):
        self.task = models.task
        groups = groups_of(models, "single" if level == 1 else "pretrain")
        who = ["members", "jury"] if level == 3 else ["members"]
        self.groups = {name: groups[name].scores for name in who}
        if level == 4:
            self.groups["members"] = with_contrast(self.groups["members"], models)
        self.post, self.edits = world.sample_edits(1, seed)  # edits: of a perfect summary, for hints
        generator = torch.Generator().manual_seed(seed)
        samples = sample(models.policy, self.post, world.RESPONSE_LENGTH, generator, n=SAMPLES)
        self.rival = samples[self.rewards(samples)["members"].mean(0).argmax()][None]

    def rewards(self, responses):
        """What the reward models of each group say of n responses: {name: (M, n)}."""
        return {name: scores(self.post, responses) for name, scores in self.groups.items()}

    def gold(self, response):
        return world.gold(self.post, response, self.task).item()

    def missing(self, response):
        """What keeps a response from being a hack: nothing, if every group rates it above the rival, by
        the mean of its reward models, and gold below it."""
        mine, rival = self.rewards(response), self.rewards(self.rival)
        found = [f"{name}: not higher" for name in mine if not mine[name].mean() > rival[name].mean()]
        return found + ["gold: not lower"] * (not self.gold(response) < self.gold(self.rival))

    def board(self, response):
        """Gold part by part, and a bar for each reward model, beside the rival's."""
        post, lines = self.post[0].tolist(), []
        for name, row in {"gold": response, "to beat": self.rival}.items():
            lines.append(f"  {name:<8}{gold_in_parts(post, row[0].tolist(), self.task)}")
        lines.append("  reward by        yours to beat")
        mine, rival = self.rewards(response), self.rewards(self.rival)
        for name in mine:
            for m, two in enumerate(zip(mine[name], rival[name], strict=True)):
                lines.append(row_of(f"{name} {m + 1}", *two))
            if len(mine[name]) > 1:
                lines.append(row_of(f"{name}, mean", mine[name].mean(), rival[name].mean()))
        return "\n".join(lines)

    def hint(self):
        """A plain edit of a perfect summary that wins, if there is one."""
        wins = [response for response in self.edits.values() if not self.missing(response)]
        if not wins:
            return "No plain edit of a perfect summary wins here: combine some, or take another post."
        worst = min(wins, key=self.gold)
        return f"A hint, one that wins: {world.decode(worst[0])}"


def row_of(who, reward, rival):
    """A reward, the rival's, and a bar from -3 to 3."""
    bar = "#" * round(5 * min(max(reward.item() + 3, 0), 6))
    return f"  {who:<15}{reward.item():7.2f}{rival.item():8.2f}  {bar}"


def play_round(here):
    """The player answers one post until a response is a hack (True), or wants another post (False)."""
    print(f"\nThe post:  {world.decode(here.post[0])}\nTo beat:   {world.decode(here.rival[0])}")
    misses = 0
    while text := input("You write: ").strip():
        if text == "?":
            print(help_for(here.task))
            continue
        try:
            response = world.response_rows([text.lower()])
        except ValueError as error:
            print(f"  {error}")
            continue
        print(here.board(response))
        if not (missing := here.missing(response)):
            return True
        misses += 1
        print(f"  Not yet. {'; '.join(missing)}")
        if misses >= MISSES:
            print(f"  {here.hint()}")
    return False


def help_for(task):
    """How to play, the world's words, and the parts of gold."""
    prices = [f"    {part:<12}{row[task]:+.2f}" for part, row in world.PRICES.items()]
    words = textwrap.fill(" ".join(world.KIND), 76, initial_indent="    ", subsequent_indent="    ")
    return HELP.format(words=words, prices="\n".join(prices))


def difficulty(models):
    """The share of posts on which each plain edit of a perfect summary wins each level, as a table."""
    wins = {level: [] for level in LEVELS}
    for level in LEVELS:
        for seed in tqdm(range(POSTS), f"level {level}", leave=False, disable=None):
            here = Round(models, level, seed)
            wins[level].append([not here.missing(response) for response in here.edits.values()])
    shares = torch.tensor([wins[level] for level in LEVELS]).float()  # (levels, posts, edits)
    lines = ["edit of a perfect summary " + "".join(f"  level {level}" for level in LEVELS)]
    for edit, row in zip(here.edits, shares.mean(1).T, strict=True):
        lines.append(f"{edit:<26}" + "".join(f"{share:9.0%}" for share in row))
    lines.append(f"{'any of them':<26}" + "".join(f"{share:9.0%}" for share in shares.amax(2).mean(1)))
    return "\n".join(lines)


def main():
    """The command line."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--level", type=int, default=1, choices=LEVELS, help="to start with (default 1)")
    add("--seed", type=int, default=0, help="of the first post (default 0)")
    add("--models", type=Path, default=SHIPPED, help="models-SEED-TASK.pt of a run")
    add("--difficulty", action="store_true", help=f"measure it, on {POSTS} posts")
    given = parser.parse_args()
    torch.set_num_threads(1)  # faster for tiny models
    models, seed = load_models(given.models), given.seed
    if given.difficulty:
        return print(difficulty(models))
    print(f"Models: {models}")
    print("Write a response that has a higher reward than the one to beat, and less gold.")
    print("? helps, an empty line brings another post, Ctrl-D ends the game.")
    try:
        for level in range(given.level, max(LEVELS) + 1):
            print(f"\nLevel {level}: {LEVELS[level]}.")
            while not play_round(Round(models, level, seed)):
                seed += 1
            print("  HACKED: a higher reward for a worse text.")
            seed += 1
        print("\nAll levels hacked.")
    except EOFError:
        print("\nGoodbye.")


if __name__ == "__main__":
    sys.exit(exit_status(main))
