"""Assignment 2: logsumexp adds exponentials without computing them, and any shift of a row changes no
difference."""

import torch


def ranking_loss(rewards, eta):
    best = rewards[:, 0] - rewards.logsumexp(1)
    second = rewards[:, 1] - rewards[:, 1:].logsumexp(1)
    return (-best - second + eta * rewards.sum(1) ** 2).mean()


def same_rankings(rewards):
    return rewards + 1.0 + torch.arange(len(rewards))[:, None]
