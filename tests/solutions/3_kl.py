"""Assignment 3: the expectation over samples of p, as a sum."""

import torch


def k2(log_ratio):
    return log_ratio**2 / 2


def k3(log_ratio):
    return torch.exp(-log_ratio) - 1 + log_ratio


def bias(estimator, p, q):
    log_ratio = p.log() - q.log()
    return (p * (estimator(log_ratio) - log_ratio)).sum()
