"""Blocks of rows that step together, each with an optimizer of its own.

Between rounds workers do not touch one another, so a block of rows is taken through all the steps up to the next
round before the next block begins: what it needs stays in cache. The result does not depend on the blocks beyond
rounding, but for random numbers drawn by the model itself (dropout), which are drawn anew for each block.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor, nn

from tether.data import Feed
from tether.gradients import Batch, Gradients
from tether.replicas import Replicas

OptimizerFactory: TypeAlias = Callable[[Any], torch.optim.Optimizer]
SchedulerFactory: TypeAlias = Callable[[torch.optim.Optimizer], Any]


class RandomSteps:
    """What a model draws (dropout): seeded by (seed, step, first worker of the block).

    So it does not depend on when rounds or evaluations interrupt the steps.

    Args:
        seed: of the run.
        device: where the model is.
    """

    def __init__(self, seed: int, device: torch.device):
        self._run = seed
        # On the CPU a hundred times faster than to seed every device there might be.
        self._seed = torch.default_generator.manual_seed if device.type == "cpu" else torch.manual_seed

    def seed(self, step: int, worker: int) -> None:
        """Before the gradients of this step, of a block that begins with this worker."""
        self._seed(hash((self._run, step, worker)) & (2**63 - 1))


class Block:
    """Some rows of X that step together, with an optimizer of their own.

    Args:
        replicas: the rows.
        rows: which of them.
        optimizer: makes an elementwise `torch.optim` optimizer from a list with one parameter, `[rows, d]`.
        scheduler: makes a learning-rate scheduler from the optimizer; stepped after every local step.
        spare: matrices for gradients that no block needs at the moment; all blocks share them, so that gradients
            need not exist for all rows at once.

    Attributes:
        lr: the learning rate of the step that `gradients` was last called for.
    """

    def __init__(
        self,
        replicas: Replicas,
        rows: slice,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
        spare: list[Tensor] | None = None,
    ):
        self.rows = rows
        self._spare = [] if spare is None else spare
        self.x = replicas.x[rows]
        self.buffers = {name: buffer[rows] for name, buffer in replicas.buffers.items()}
        self.parameter = nn.Parameter(self.x)
        self.optimizer = optimizer([self.parameter])
        for group in self.optimizer.param_groups:
            # A tensor learning rate may be one object for all blocks; each block's scheduler must move its own.
            group.update({name: value.clone() for name, value in group.items() if isinstance(value, Tensor)})
        self.scheduler = scheduler(self.optimizer) if scheduler else None
        if isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            raise ValueError("ReduceLROnPlateau waits for a measure; take a scheduler that follows the steps")
        self._first_state = copy.deepcopy(self.optimizer.state_dict()["state"])
        self.lr = 0.0

    def gradients(self, gradients: Gradients, batches: list[Batch]) -> Float[Tensor, " rows"]:
        """The losses of the rows; their gradients, averaged over the batches, wait for `update`."""
        self.lr = float(self.optimizer.param_groups[0]["lr"])
        if self.parameter.grad is None:
            fitting = [number for number, spare in enumerate(self._spare) if spare.shape == self.x.shape]
            self.parameter.grad = self._spare.pop(fitting[0]) if fitting else torch.empty_like(self.x)
        total = self.parameter.grad
        losses = gradients(self.x, self.buffers, batches[0], total)
        if len(batches) > 1:
            more = torch.empty_like(total)
            for batch in batches[1:]:
                losses = losses + gradients(self.x, self.buffers, batch, more)
                total.add_(more)
            total.div_(len(batches))
        return losses / len(batches)

    def update(self) -> None:
        """The optimizer's step, then the scheduler's."""
        self.optimizer.step()
        if self.scheduler:
            self.scheduler.step()

    def release(self) -> None:
        """Leave the memory of the gradients to other blocks."""
        if self.parameter.grad is not None:
            self._spare.append(self.parameter.grad)
            self.parameter.grad = None

    def moments(self) -> dict[str, Float[Tensor, "rows d"]]:
        """The optimizer's state that has a value a parameter, such as momentum."""
        state = self.optimizer.state.get(self.parameter, {})
        return {name: s for name, s in state.items() if isinstance(s, Tensor) and s.shape == self.x.shape}

    def reset_optimizer(self) -> None:
        """Put the optimizer's state back to what it was before the first step."""
        first = {"state": copy.deepcopy(self._first_state), "param_groups": self.optimizer.state_dict()["param_groups"]}
        self.optimizer.load_state_dict(first)


class Lockstep:
    """Local steps of rows that all take the same number of them.

    Args:
        blocks: the rows, in blocks that step together.
        gradients: computes gradients.
        feed: what each worker takes its steps on.
        first: the number of the worker whose row is the first.
        random: seeds what the model draws.

    Attributes:
        count: local steps so far.
    """

    def __init__(self, blocks: Sequence[Block], gradients: Gradients, feed: Feed, first: int, random: RandomSteps):
        self.blocks = blocks
        self.count = 0
        self._gradients, self._feed, self._first, self._random = gradients, feed, first, random
        self._held = False

    @property
    def lr(self) -> float:
        """The learning rate of the last step."""
        return self.blocks[0].lr

    def take(self, steps: int, hold: bool = False) -> Float[Tensor, "r steps"]:
        """Take so many steps. Returns the losses in each.

        Args:
            steps: how many.
            hold: whether the last of them has its gradients only; `finish` takes it.
        """
        losses = torch.empty(sum(len(block.x) for block in self.blocks), steps, dtype=torch.float64)
        for block in self.blocks:
            for step in range(steps):
                losses[block.rows, step] = self._gradients_of(block, self.count + step)
                if not (hold and step == steps - 1):
                    block.update()
            if not hold:
                block.release()
        self.count += steps
        self._held = hold
        return losses

    def finish(self) -> bool:
        """Take the step whose gradients are there, if one was held. Returns whether."""
        held, self._held = self._held, False
        for block in self.blocks if held else ():
            block.update()
            block.release()
        return held

    def moments(self) -> list[dict[str, Float[Tensor, "rows d"]]]:
        """The optimizers' state that has a value a parameter, by blocks."""
        return [block.moments() for block in self.blocks]

    def reset_optimizer(self) -> None:
        """Put the optimizers' state back to what it was before the first step."""
        for block in self.blocks:
            block.reset_optimizer()

    def state(self) -> tuple[dict[str, Float[Tensor, "r d"]], dict[str, Any]]:
        """The optimizers' and schedulers' state: moments as rows, and the rest."""
        return optimizer_state(self.blocks)

    def load(self, count: int, moments: Mapping[str, Float[Tensor, "r d"]], rest: Mapping[str, Any]) -> None:
        """Go on from a `state` after so many steps."""
        self.count = count
        load_optimizer_state(self.blocks, moments, rest)

    def _gradients_of(self, block: Block, step: int) -> Float[Tensor, " rows"]:
        workers = range(self._first + block.rows.start, self._first + block.rows.stop)
        self._random.seed(step, workers.start)
        return block.gradients(self._gradients, self._feed(workers, step))


def optimizer_state(blocks: Sequence[Block]) -> tuple[dict[str, Float[Tensor, "r d"]], dict[str, Any]]:
    """The optimizers' and schedulers' state: moments as rows, and the rest, which all blocks have in common."""
    moments = [block.moments() for block in blocks]
    whole = blocks[0].optimizer.state_dict()
    rest = {name: value for name, value in whole["state"].get(0, {}).items() if name not in moments[0]}
    scheduler = blocks[0].scheduler.state_dict() if blocks[0].scheduler else None
    return (
        {name: torch.cat([each[name] for each in moments]) for name in moments[0]},
        {"state": rest, "param_groups": whole["param_groups"], "scheduler": scheduler},
    )


def load_optimizer_state(
    blocks: Sequence[Block], moments: Mapping[str, Float[Tensor, "r d"]], rest: Mapping[str, Any]
) -> None:
    """Give blocks what `optimizer_state` took of the same rows, in whatever blocks they were then."""
    for block in blocks:
        state = rest["state"] | {name: rows[block.rows] for name, rows in moments.items()}
        # The optimizer keeps what it is given where it can; blocks must not share it.
        whole = {"state": {0: state} if state else {}, "param_groups": rest["param_groups"]}
        block.optimizer.load_state_dict(copy.deepcopy(whole))
        if block.scheduler:
            block.scheduler.load_state_dict(copy.deepcopy(rest["scheduler"]))


def check_dense(model: nn.Module) -> None:
    """Raise `ValueError` if a module makes sparse gradients, which a block of rows does not take."""
    for name, part in model.named_modules():
        if getattr(part, "sparse", False) and isinstance(part, (nn.Embedding, nn.EmbeddingBag)):
            raise ValueError(f"{name!r} makes sparse gradients, which rows of X do not take: give it sparse=False")


def check_elementwise(optimizer: OptimizerFactory, like: Tensor) -> None:
    """Raise `ValueError` unless an optimizer of several rows treats each as if it were alone.

    Rows of X share one optimizer, so one that looks across the numbers of a matrix (a norm of the whole, a low-rank
    factor, a line search) would mix workers. Tried out: two rows together against each by itself, with gradients
    small and large.
    """
    generator = torch.Generator().manual_seed(0)
    start, *gradients = (torch.randn(2, 3, generator=generator).to(like) for _ in range(4))
    gradients = [gradient * scale for gradient, scale in zip(gradients, (1.0, 1e-3, 1e3), strict=True)]

    def run(rows: slice) -> Tensor:
        parameter = nn.Parameter(start[rows].clone())
        memory = parameter.data_ptr()
        mine = optimizer([parameter])
        if not isinstance(mine, torch.optim.Optimizer):
            raise ValueError(f"`optimizer` made a {type(mine).__name__}: it takes parameters, returns an optimizer")
        if not any(parameter is p for group in mine.param_groups for p in group["params"]):
            raise ValueError(
                "`optimizer` made an optimizer of other parameters than it was given: write "
                "optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)"
            )
        for gradient in gradients:
            parameter.grad = gradient[rows].clone()
            mine.step()
        if parameter.data_ptr() != memory:
            raise ValueError("this optimizer gives parameters new memory instead of changing them in place")
        return parameter.detach()

    try:
        together, apart = run(slice(0, 2)), torch.cat([run(slice(0, 1)), run(slice(1, 2))])
    except (TypeError, RuntimeError, AssertionError) as error:
        raise ValueError(f"this optimizer does not step on a plain matrix of numbers: {error}") from error
    if not torch.allclose(together, apart, rtol=1e-3, atol=1e-6):
        raise ValueError(
            "this optimizer is not elementwise: one row's update depends on the others, so workers would influence "
            "one another. Use one such as SGD, Adam, AdamW, RMSprop or Adagrad"
        )
