"""What to measure of a model on held-out samples."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn

from tether.models.objectives import Loss, entropy_loss, squared_loss

Evaluation = Callable[[nn.Module], dict[str, float]]
Samples = tuple[Tensor, ...]
Prepare = Callable[[Samples], Samples] | None
"""What is done to some samples before a model sees them, such as reading images; None: nothing."""


def classification(
    samples: Samples, batch_size: int = 500, loss: Loss = entropy_loss, prepare: Prepare = None
) -> Evaluation:
    """An evaluation for `simulate`: mean loss and accuracy of a classifier on (inputs, labels).

    Args:
        samples: held-out inputs and labels.
        batch_size: how many to look at at once.
        loss: loss(outputs, labels); cross-entropy unless given.
        prepare: what is done to a batch before the model sees it.
    """

    def measures(outputs: Tensor, labels: Tensor) -> dict[str, Tensor]:
        chosen = outputs.squeeze(-1) > 0 if outputs.shape[-1] == 1 else outputs.argmax(-1)
        return {"loss": loss(outputs, labels), "accuracy": (chosen == labels).double().mean()}

    return _means(samples, batch_size, prepare, measures)


def language(samples: Samples, batch_size: int = 50, loss: Loss = entropy_loss, prepare: Prepare = None) -> Evaluation:
    """An evaluation for `simulate`: mean loss, bits a byte and accuracy at guessing the next byte.

    Args:
        samples: held-out texts and, of each place in them, the byte that follows; `[n, length]`.
        batch_size: how many texts to look at at once.
        loss: loss(outputs, bytes), in nats; cross-entropy unless given.
        prepare: what is done to a batch before the model sees it.
    """

    def measures(outputs: Tensor, following: Tensor) -> dict[str, Tensor]:
        nats = entropy_loss(outputs, following)
        hits = (outputs.argmax(-1) == following).double().mean()
        return {"loss": loss(outputs, following), "bits_per_byte": nats / math.log(2), "accuracy": hits}

    return _means(samples, batch_size, prepare, measures)


def regression(
    samples: Samples, batch_size: int = 500, loss: Loss = squared_loss, prepare: Prepare = None
) -> Evaluation:
    """An evaluation for `simulate`: mean loss of a model on (inputs, real targets).

    Args:
        samples: held-out inputs and targets.
        batch_size: how many to look at at once.
        loss: loss(outputs, targets); half the squared distance unless given.
        prepare: what is done to a batch before the model sees it.
    """
    return _means(samples, batch_size, prepare, lambda outputs, targets: {"loss": loss(outputs, targets)})


def _means(
    samples: Samples, batch_size: int, prepare: Prepare, measures: Callable[[Tensor, Tensor], dict[str, Tensor]]
) -> Evaluation:
    """The means over all samples of measures that are means over some."""
    inputs, targets = samples

    @torch.no_grad()
    def evaluate(model: nn.Module) -> dict[str, float]:
        was_training = model.training
        model.eval()
        device = next(model.parameters()).device
        sums: dict[str, float] = {}
        for batch in zip(inputs.split(batch_size), targets.split(batch_size), strict=True):
            x, y = prepare(batch) if prepare else batch
            for name, mean in measures(model(x.to(device)), y.to(device)).items():
                sums[name] = sums.get(name, 0.0) + float(mean) * len(y)
        model.train(was_training)
        return {name: total / len(targets) for name, total in sums.items()}

    return evaluate
