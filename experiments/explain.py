"""What `overopt.py --explain` says: before each stage what happens there and what to look for, after it the one number that matters."""
import textwrap

import numpy as np
import torch

from analysis import aggregate
from bon import expected_best_of_n
from policy import lm_loss
from report import KINDS, headline_section, view
import world

BEFORE = {
    "pretraining": "Small language models learn to write posts and summaries as careless and careful people do. Each starts from other random weights and reads "
                   "other texts of the same kind. Look for: they end equally good. What they differ in is what they know nothing about, and that is where "
                   "their reward models will err, each in its own way.",
    "sft": "One of them, which no reward model will start from, becomes the policy: supervised finetuning (SFT) on responses alone. Look for: its texts are mediocre. "
           "That is the point where all optimisation starts.",
    "rewards": "Raters who know the true reward (gold) have said, with noise, which of two responses is better (nli: whether one is true). Reward models learn from that alone: from each "
               "pretraining several, which differ in finetuning seed. Look for: they are all equally good on pairs that they have not seen, so accuracy "
               "will not tell you which one will be fooled.",
    "best of n": "The policy writes many responses to each post, every reward model scores them, and its favourite is kept. More samples are more pressure. "
                 "Look for: the favourite's score rises with n for ever. Its gold need not.",
    "control": "The same reward models once more, from preferences in which lists tell nothing about who wrote them. Look for: if lists were liked because careful "
               "people write them, the liking is gone here. That is cause, not coincidence.",
    "ppo": "Now the policy itself is changed to please one reward model, or an ensemble, at a price (the KL weight) for each step away from SFT. This takes longest. "
           "Look for: proxy and gold part ways, soonest for one reward model. Then look at what even the ensemble pays for.",
    "claims": "Each claim of the paper becomes a number with a 95 % interval over seeds and posts, and a verdict.",
}


class Guide:
    """Speaks if it is on."""

    def __init__(self, on):
        self.on = on

    def before(self, stage):
        if self.on:
            print(f"\n{textwrap.fill(f'{stage.upper()}. {BEFORE[stage]}', 100)}\n", flush=True)

    def after(self, number, *args):
        """number(*args) -> a sentence; it is not computed in vain."""
        if self.on:
            print(textwrap.indent(textwrap.fill(number(*args), 96), "  > "), flush=True)


@torch.no_grad()
def pretraining_loss(pipeline, states):
    """Nats per token of fresh texts, of every pretrained model."""
    texts, s = torch.cat(world.sample_texts(512, pipeline.seed_for("fresh texts"), world.writers(pipeline.s.list_gap)), 1).to(pipeline.device), pipeline.s
    losses = []
    for i, state in enumerate(states):
        model = pipeline.language_model(s.width if i == 0 else s.rm_width, state)
        losses.append(lm_loss(model, texts[:, :1], texts[:, 1:]).item())
    return f"On fresh texts they need {min(losses):.2f} to {max(losses):.2f} nats per token. Guessing among all words would need {np.log(world.VOCAB_SIZE - 1):.2f}."


def sft_gold(pipeline, sft):
    gold = world.gold(sft["posts"], sft["responses"], pipeline.s.task).mean().item()
    return f"What it writes is worth {gold:.2f} gold on average. It says: \"{world.decode(sft['responses'][0].tolist())}\""


def accuracies(pipeline, found):
    return f"They order {np.mean(found):.1%} of unseen pairs as the rater did (std {np.std(found):.1%}); the true reward itself would reach {pipeline.ceiling():.1%}."


def favourites(scores, gold, groups):
    """Own score and gold of the best of n by single reward models, and gold by pretrain ensembles."""
    N = gold.shape[-1]
    ends = lambda proxies, values: np.mean([expected_best_of_n(proxy, values, [1, N]).mean(0) for proxy in proxies], 0)
    own = np.mean([expected_best_of_n(proxy, proxy, [1, N]).mean(0) for proxy in scores], 0)
    single, ensemble = ends(scores, gold), ends([aggregate("mean", scores[members]) for members in groups["pretrain"]], gold)
    return (f"From 1 to {N} samples, by one reward model: its own score {own[0]:.2f} -> {own[1]:.2f}, gold {single[0]:.2f} -> {single[1]:.2f}. By the mean of one reward "
            f"model from each pretraining: gold {ensemble[0]:.2f} -> {ensemble[1]:.2f}.")


def lists(scores, control, traits, groups):
    rate = lambda by: np.mean([expected_best_of_n(aggregate("mean", by[members]), traits["list"], [traits["list"].shape[-1]]).mean() for members in groups["pretrain"]])
    return f"Lists among the ensembles' favourites: {rate(scores):.0%} with the correlation, {rate(control):.0%} without ({traits['list'].mean():.0%} among all samples)."


def after_ppo(s, runs, sft_gold):
    least = min(s.kl_weights)
    golds = {kind: np.mean([run["gold"].mean() for run in runs if (run["kind"], run["kl_weight"]) == (kind, least)]) for kind in KINDS}
    return f"Gold with the smallest KL weight ({least:g}), from {sft_gold:.2f}: " + ", ".join(f"{KINDS[kind]} {gold:.2f}" for kind, gold in golds.items()) + "."


def in_short(results):
    """In place of all tables."""
    return "\n\n".join(f"{task}, in short\n\n{headline_section(view(results, task))}" for task in results["tasks"])
