"""Losses, and the objectives made of them: what a step goes down."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor, nn

Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""loss(outputs, targets) -> its mean over the targets."""


def entropy_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """The mean cross-entropy, in nats a target.

    Args:
        outputs: `[*, classes]`, a logit a class; or `[*, 1]`, the log odds of class 1 against class 0.
        targets: `[*]`, classes.
    """
    if outputs.shape[-1] == 1:
        return nn.functional.binary_cross_entropy_with_logits(outputs.squeeze(-1), targets.to(outputs))
    return nn.functional.cross_entropy(outputs.flatten(0, -2), targets.flatten().long())


def squared_loss(outputs: Tensor, targets: Tensor) -> Tensor:
    """Half the squared distance to the targets, ½‖f(x) − y‖², its mean over the samples (ReLU paper, section 3).

    Args:
        outputs: `[*, k]`.
        targets: `[*, k]`, real; or `[*]`, real or 0 and 1 for one output, classes (a one in k places) for several.
    """
    if targets.ndim < outputs.ndim:
        targets = targets.unsqueeze(-1)
        if outputs.shape[-1] > 1:
            targets = targets == torch.arange(outputs.shape[-1], device=targets.device)
    return (outputs - targets.to(outputs)).square().sum(-1).mean() / 2


def cross_entropy(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """The mean cross-entropy of a classifier, in nats: an objective for `simulate`.

    Of images a label each; of texts every next byte, `[batch, length]`; of a model with one output the logistic loss,
    the output being the log odds of class 1.

    Args:
        model: gives logits `[batch, ..., classes]`, or log odds `[batch, 1]`.
        batch: inputs, and the classes `[batch, ...]` that they should be given.
    """
    inputs, targets = batch
    return entropy_loss(model(inputs), targets)


def squared_error(model: nn.Module, batch: tuple[Tensor, ...]) -> Tensor:
    """Half the mean squared distance between outputs and targets: an objective for `simulate`.

    Args:
        model: gives `[batch, k]`.
        batch: inputs, and targets: real `[batch]` or `[batch, k]`, or classes `[batch]`.
    """
    inputs, targets = batch
    return squared_loss(model(inputs), targets)


LOSSES: dict[str, Loss] = {"cross-entropy": entropy_loss, "squared-error": squared_loss}
"""Every loss by the name that configs use."""

OBJECTIVES: dict[str, Callable[[nn.Module, tuple[Tensor, ...]], Tensor]] = {
    "cross-entropy": cross_entropy,
    "squared-error": squared_error,
}
"""The objectives that they make, by the same names."""
