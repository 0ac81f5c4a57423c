"""Gradients of many workers: the ways to take local steps, and blocks of rows that step together.

Between rounds workers do not touch one another, so a block of rows is taken through all the steps up to the next
round before the next block begins: what it needs stays in cache. The result does not depend on the way or the blocks
beyond rounding, but for random numbers drawn by the model itself (dropout), which are drawn anew for each block.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.func import functional_call, grad_and_value, vmap

from tether.replicas import Replicas

Objective: TypeAlias = Callable[[nn.Module, Any], Tensor]
"""objective(model, batch) -> scalar loss."""

Batch: TypeAlias = "tuple[Tensor, ...] | None"
"""The batches of several rows: tensors `[r, batch, ...]`. None for objectives that need no data."""

OptimizerFactory: TypeAlias = Callable[[Any], torch.optim.Optimizer]
SchedulerFactory: TypeAlias = Callable[[torch.optim.Optimizer], Any]

Stepping = Literal["auto", "stacked", "rows"]


@runtime_checkable
class Gradients(Protocol):
    """A way to compute the gradients of several rows."""

    def __call__(
        self, x: Float[Tensor, "r d"], buffers: dict[str, Tensor], batch: Batch, out: Float[Tensor, "r d"]
    ) -> Float[Tensor, " r"]:
        """The loss of each row on its batch; its gradient goes to `out`, its buffers are updated in place."""
        ...


class _Bound(nn.Module):
    """A model and its objective as one module, so that the objective sees the parameters it is called with."""

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Any) -> Tensor:
        given = dict(self.model.named_buffers())
        loss = self.objective(self.model, batch)
        for name, buffer in self.model.named_buffers() if given else ():
            # Assigned anew instead of changed in place: the caller would never see it.
            if name in given and buffer is not given[name]:
                given[name].copy_(buffer.detach())
        if not isinstance(loss, Tensor) or loss.numel() != 1:
            shape = tuple(loss.shape) if isinstance(loss, Tensor) else type(loss).__name__
            raise ValueError(f"the objective must return one number, the loss of its batch; it returned {shape}")
        return loss.reshape(())


class _Way:
    def __init__(self, replicas: Replicas, model: nn.Module, objective: Objective):
        self._replicas = replicas
        self._bound = _Bound(copy.deepcopy(model), objective)

    def _loss(self, row: Float[Tensor, " d"], buffers: dict[str, Tensor], batch: Batch) -> Tensor:
        tensors = self._replicas.views(row) | buffers
        return functional_call(self._bound, {f"model.{name}": t for name, t in tensors.items()}, (batch,))


class StackedGradients(_Way):
    """All rows at once, by `torch.func.vmap`."""

    def __call__(  # noqa: D102
        self, x: Float[Tensor, "r d"], buffers: dict[str, Tensor], batch: Batch, out: Float[Tensor, "r d"]
    ) -> Float[Tensor, " r"]:
        dims = (0, 0, None if batch is None else 0)
        gradients = vmap(grad_and_value(self._loss), in_dims=dims, randomness="different")
        gradient, losses = gradients(x, buffers, batch)
        out.copy_(gradient)
        return losses.detach()


class RowGradients(_Way):
    """One row after the other: works for any module."""

    def __call__(  # noqa: D102
        self, x: Float[Tensor, "r d"], buffers: dict[str, Tensor], batch: Batch, out: Float[Tensor, "r d"]
    ) -> Float[Tensor, " r"]:
        losses = []
        for i, row in enumerate(x):
            leaf = row.detach().requires_grad_()
            mine = None if batch is None else tuple(part[i] for part in batch)
            with torch.enable_grad():
                loss = self._loss(leaf, {name: b[i] for name, b in buffers.items()}, mine)
                (gradient,) = torch.autograd.grad(loss, leaf)
            out[i] = gradient
            losses.append(loss.detach())
        return torch.stack(losses)


def choose_gradients(
    stepping: Stepping, replicas: Replicas, model: nn.Module, objective: Objective, batch: Batch
) -> Gradients:
    """The way of stepping by name, or for "auto" the stacked one where the model and objective allow it.

    Args:
        stepping: "auto", "stacked" or "rows".
        replicas: the rows.
        model: the model that the rows are copies of.
        objective: its loss.
        batch: batches of the first rows, to try the way with; nothing is changed by it.

    """
    ways: dict[str, Gradients] = {
        "stacked": StackedGradients(replicas, model, objective),
        "rows": RowGradients(replicas, model, objective),
    }
    _check_reaches_parameters(ways["rows"], replicas, model, objective, batch)
    if stepping != "auto":
        return ways[stepping]
    rows = len(batch[0]) if batch else 1
    x, buffers = replicas.x[:rows], {name: b[:rows].clone() for name, b in replicas.buffers.items()}
    # Where vmap has no rule for an operation it loops over the rows itself, slower than we do; that counts as a no.
    functorch: Any = torch._C._functorch
    fallback = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        ways["stacked"](x, buffers, batch, torch.empty_like(x))
    except Exception:
        # Not every operation can be batched, nor control flow that depends on data. If the fault is the user's own,
        # rows meet it too and raise it without vmap in between.
        return ways["rows"]
    finally:
        functorch._set_vmap_fallback_enabled(fallback)
    return ways["stacked"]


def _check_reaches_parameters(
    rows: Gradients, replicas: Replicas, model: nn.Module, objective: Objective, batch: Batch
) -> None:
    """Raise `ValueError` if rows would not be trained, or not all of them, where the module itself would be.

    Rows stand in for the module's own parameters while the objective runs. An objective that does not use the model it
    is given, or a module that keeps a parameter somewhere else as well, would silently train nothing.
    """
    module = copy.deepcopy(model)
    parameters = [p for p in module.parameters() if p.requires_grad]
    first = None if batch is None else tuple(part[:1] for part in batch)
    with torch.enable_grad():
        loss = objective(module, None if first is None else tuple(part[0] for part in first))
    reached = loss.requires_grad if isinstance(loss, Tensor) else True
    if isinstance(loss, Tensor) and loss.numel() != 1:
        return  # said by the objective's first call in earnest
    own = torch.autograd.grad(loss, parameters, allow_unused=True) if reached else ()
    if not any(gradient is not None for gradient in own):
        raise ValueError(
            "the objective's loss does not depend on the parameters of the model it is given: compute it from its "
            "argument `model`, not from a model that it knows otherwise, and without detach() or no_grad()"
        )
    row = torch.cat([p.detach().reshape(-1) for p in parameters])[None]
    gradient = torch.empty_like(row)
    rows(row, {name: buffer[:1].clone() for name, buffer in replicas.buffers.items()}, first, gradient)
    names = [name for name, p in model.named_parameters() if p.requires_grad]
    for name, mine, theirs in zip(names, replicas.views(gradient[0]).values(), own, strict=True):
        if theirs is not None and theirs.any() and not mine.any():
            raise ValueError(
                f"{name!r} would not be trained: the module uses it through a reference that it keeps elsewhere (a "
                "list, a closure); let forward take it from the module it belongs to"
            )


class Block:
    """Some rows of X that step together, with an optimizer of their own.

    Args:
        replicas: the rows.
        rows: which of them.
        optimizer: makes an elementwise `torch.optim` optimizer from a list with one parameter, `[rows, d]`.
        scheduler: makes a learning-rate scheduler from the optimizer; stepped after every local step.

    Attributes:
        lr: the learning rate of the step that `gradients` was last called for.
    """

    def __init__(
        self,
        replicas: Replicas,
        rows: slice,
        optimizer: OptimizerFactory,
        scheduler: SchedulerFactory | None,
    ):
        self.rows = rows
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
            self.parameter.grad = torch.empty_like(self.x)
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

    def moments(self) -> dict[str, Float[Tensor, "rows d"]]:
        """The optimizer's state that has a value a parameter, such as momentum."""
        state = self.optimizer.state.get(self.parameter, {})
        return {name: s for name, s in state.items() if isinstance(s, Tensor) and s.shape == self.x.shape}

    def reset_optimizer(self) -> None:
        """Put the optimizer's state back to what it was before the first step."""
        first = {"state": copy.deepcopy(self._first_state), "param_groups": self.optimizer.state_dict()["param_groups"]}
        self.optimizer.load_state_dict(first)


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
