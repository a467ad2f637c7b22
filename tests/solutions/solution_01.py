"""A solution of experiments/assignments/test_01_centring.py."""
import torch
import torch.nn.functional as F


def centred_loss(chosen, rejected, eta):
    return (-F.logsigmoid(chosen - rejected) + eta * (chosen + rejected) ** 2).mean()


def same_preferences(chosen, rejected):
    shift = 1.0 + torch.arange(len(chosen))
    return chosen + shift, rejected + shift
