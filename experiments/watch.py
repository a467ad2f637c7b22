"""Watch a reward being hacked: PPO from a trained policy, and what it makes of one post on its way.

    python experiments/watch.py                                   # one reward model, then a pretrain ensemble
    python experiments/watch.py --reward finetune contrast --kl-weight 0.1
    python experiments/watch.py --post "ben lost two kites in lima on friday. our food was awful. tl;dr:"
    python experiments/watch.py --models runs/quick/models-1-tldr.pt          # of a run of your own

Nothing is trained first: the policy (SFT) and the reward models are those of one world of the results, and
PPO has the default settings, and the prompts and seed of that world's first run. It is not the same run:
weights are rounded, and of each pretraining there are two reward models, so a finetune ensemble has two
members. README.md explains the columns; the text answers the one post, each time with the same luck.
Contrast is scaled as the reward models are.
"""

import copy
import sys
import textwrap
from functools import partial
from pathlib import Path
from shutil import get_terminal_size

sys.path.insert(0, str(Path(__file__).parent / "more"))  # remedies.py
sys.path.insert(0, str(Path(__file__).parent.parent))  # the five files live one folder up

import torch
from tqdm import tqdm

import world
from claims import KINDS, all_ensembles
from ensemble import Ensemble
from models import SHIPPED, load_models
from overopt import PPO_PROMPTS, seed_for
from policy import sample
from ppo import PPOConfig, ppo
from remedies import CHOSEN, contrast, normalised
from report import exit_status, gold_in_parts, parser_of

REWARDS = KINDS | {"contrast": "pretrain ensemble, less half of what a text earns under other posts"}
# Of the world's first 50 posts, that on which this very PPO on one model raises proxy minus gold most.
POST = "on thursday ben sold six books in london. my food seemed loud. tl;dr:"
EVERY = 4  # updates from line to line
HEAD = """\
                             all texts             this text     liked by
update   KL  proxy  gold  lists   most overused  proxy  gold"""


def groups_of(models, kind):
    """{group: Ensemble}: the members of a kind of reward, the other reward models, and the jury."""
    rms = [rm for row in models.grid for rm in row]
    ensembles = all_ensembles(len(models.grid), len(models.grid[0]))
    members = ensembles["pretrain" if kind == "contrast" else kind][0]
    others = [m for m in range(len(rms)) if m not in members]
    groups = {"members": [rms[m] for m in members], "others": [rms[m] for m in others], "jury": models.jury}
    return {name: Ensemble(rms) for name, rms in groups.items() if rms}


def with_contrast(reward, models):
    """A reward, less half of what a response earns under other posts: see `remedies.contrast`."""
    posts = world.sample_posts(CHOSEN["others"], seed_for(models.seed, "contrast"))
    return contrast(reward, posts, CHOSEN["contrast_weight"])


def marks(rewards, first):
    """What each reward model says of a text against the first one: + better, - worse, . within a tenth of a
    standard deviation: marks(rewards=[1, 2, 3], first=[0, 3, 3]) -> "+-."."""
    changes = [reward - before for reward, before in zip(rewards, first, strict=True)]
    return "".join("+" if change > 0.1 else "-" if change < -0.1 else "." for change in changes)


def watch(models, kind, post, config):
    """PPO on one kind of reward, with a line every few updates. Returns the last text, as a row, each group's
    marks, and the first and the last record of PPO, with their share of lists."""
    groups, policy = groups_of(models, kind), copy.deepcopy(models.policy)
    prompts = world.sample_posts(PPO_PROMPTS, seed_for(models.seed, "ppo posts"))
    reward, gold = groups["members"], partial(world.gold, task=models.task)

    def answer(posts=post):
        generator = torch.Generator().manual_seed(0)
        return sample(policy, posts, world.RESPONSE_LENGTH, generator)

    if kind == "contrast":
        posts = prompts[:512]
        reward = normalised(with_contrast(reward, models), (posts, answer(posts)))

    print(f"\nPPO on {REWARDS[kind]}, KL weight {config.beta:g}")
    widths = {name: max(len(name), len(group.rms)) for name, group in groups.items()}
    print(HEAD + "".join(f"  {name:{width}}" for name, width in widths.items()) + "  text")
    response, first, start = answer(), None, None
    for record in ppo(policy, reward, prompts, config, gold):  # each has changed the policy
        if record["update"] % EVERY == 0 or record["update"] == config.updates - 1:
            texts = record["prompts"], record["responses"]
            word, used, _ = world.favourite(*texts)
            record["lists"] = world.judge_rows(*texts)[1]["list"].mean().item()
            start = start or record
            rewards = {name: group.scores(post, response)[:, 0] for name, group in groups.items()}
            first = first or rewards
            liked = {name: marks(rewards[name], first[name]) for name in groups}
            line = f"{record['update']:6}{record['kl']:5.1f}{record['proxy']:7.2f}{record['gold']:6.2f}"
            line += f"{record['lists']:7.2f}{word:>11} {used:4.2f}{reward(post, response).item():7.2f}"
            line += f"{gold(post, response).item():6.2f}"
            line += "".join(f"  {liked[name]:{width}}" for name, width in widths.items())
            show(line, world.decode(response[0]))
        last, response = response, answer()
    return last, liked, start, record


def show(line, text):
    """Print a line and the text after it, or below it if the terminal is too narrow."""
    width = get_terminal_size().columns
    if len(line) + 2 + len(text) < width:
        return tqdm.write(f"{line}  {text}")
    tqdm.write(line)
    tqdm.write(textwrap.fill(text, max(width, 20), initial_indent="    ", subsequent_indent="    "))


def ends(models, post, films):
    """The two ends side by side: each text, its gold part by part, and who was fooled."""
    lines = ["\nAt the end"]
    for kind, (response, liked, start, end) in films.items():
        fans = ", ".join(f"{mark.count('+')} of {len(mark)} {name}" for name, mark in liked.items())
        rises = [f"{name} {start[name]:.2f} -> {end[name]:.2f}" for name in ("proxy", "gold", "lists")]
        lines.append(f"  {REWARDS[kind]}, all texts: {', '.join(rises)}")
        lines.append(f"      this text:  {world.decode(response[0])}")
        lines.append(f"      gold {gold_in_parts(post[0].tolist(), response[0].tolist(), models.task)}")
        lines.append(f"      liked better than the first text by {fans}")
    return "\n".join(lines)


def main():
    """The command line, checked before the work."""
    parser = parser_of(__doc__)
    add = parser.add_argument
    add("--post", default=POST, help="a post in the world's words (default: README's)")
    kinds = {"choices": REWARDS, "nargs": "+", "default": ["single", "pretrain"]}
    add("--reward", **kinds, help="what PPO optimises (default single pretrain)")
    add("--kl-weight", type=float, default=0.02, help="weight of the KL penalty (default 0.02)")
    add("--updates", type=int, default=40, help="updates of PPO (default 40)")
    add("--seed", type=int, default=0, help="of PPO; the experiment has 0 and 1 (default 0)")
    add("--models", type=Path, default=SHIPPED, help="models-SEED-TASK.pt of a run")
    given = parser.parse_args()
    if given.updates < 1:
        raise ValueError(f"--updates must be >= 1, got {given.updates}")
    torch.set_num_threads(1)  # faster for tiny models
    models = load_models(given.models)
    post = torch.tensor([world.encode(given.post)])
    if post.shape[1] != world.PROMPT_LENGTH:
        raise ValueError(f"--post must have {world.PROMPT_LENGTH} words and marks, such as: {POST}")
    seed = seed_for(models.seed, "ppo", given.seed)
    config = PPOConfig(given.kl_weight, given.updates + 1, max_new_tokens=world.RESPONSE_LENGTH, seed=seed)
    print(f"Models: {models}\nPost:   {world.decode(post[0])}")
    films = {kind: watch(models, kind, post, config) for kind in dict.fromkeys(given.reward)}
    print(ends(models, post, films))


if __name__ == "__main__":
    sys.exit(exit_status(main))
