"""Gradients of many workers: the ways to compute them, and the choice between these.

    rows       one worker after the other: any model; best where one worker's operations are large
    stacked    all workers of a block at once, by `torch.func.vmap`: best where operations are so small that starting
               them takes longer than they do
    compiled   the same as one compiled function: twice as fast, once it has been compiled, which takes a while

The result does not depend on the way beyond rounding, but for random numbers drawn by the model itself (dropout).
"""

from __future__ import annotations

import copy
import logging
import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call, grad_and_value, vmap
from torch.utils.flop_counter import FlopCounterMode

from tether.layers import written_out
from tether.replicas import Replicas

log = logging.getLogger(__name__)

Objective: TypeAlias = Callable[[nn.Module, Any], Tensor]
"""objective(model, batch) -> scalar loss."""

Batch: TypeAlias = "tuple[Tensor, ...] | None"
"""The batches of several rows: tensors `[r, batch, ...]`. None for objectives that need no data."""

Stepping = Literal["auto", "stacked", "compiled", "rows"]

LARGE = 1e8
"""Floating-point operations of a worker's step from which stacking gains nothing: starting operations costs little."""

LONG = 2e12
"""Floating-point operations of a run from which compiling pays: minutes without it, of which it saves about half."""

KEEP: dict[str, str | int | bool | Callable[..., Any]] = {"realize_reads_threshold": 1}
"""For the compiler: what is read more than once is kept, not computed anew for each reader, of which a convolution has
one for each of its weights. It makes the second-order paper's network 1.7 times as fast."""

CACHE = 7 * 2**20
"""Bytes that a block of rows should work on at most: a few times a core's own cache, for starting costs time too."""

MOST = 50
"""Rows that step together at most; more gain nothing."""


@runtime_checkable
class Gradients(Protocol):
    """A way to compute the gradients of several rows."""

    def __call__(
        self, x: Float[Tensor, "r d"], buffers: dict[str, Tensor], batch: Batch, out: Float[Tensor, "r d"]
    ) -> Float[Tensor, " r"]:
        """The loss of each row on its batch; its gradient goes to `out`, its buffers are updated in place."""
        ...


class Bound(nn.Module):
    """A model and its objective as one module, so that the objective sees the parameters it is called with."""

    def __init__(self, model: nn.Module, objective: Objective):
        super().__init__()
        self.model = model
        self.objective = objective

    def forward(self, batch: Any) -> Tensor:  # noqa: D102
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
        self._bound = Bound(copy.deepcopy(model), objective)
        self._places = _places(self._bound.model)

    def _loss(self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: Batch) -> Tensor:
        tensors = parameters | buffers
        placed = {f"model.{place}": tensors[name] for place, name in self._places.items() if name in tensors}
        return functional_call(self._bound, placed, (batch,), tie_weights=False)


def _places(model: nn.Module) -> dict[str, str]:
    """Where a model keeps its parameters and buffers, and by what name we know what is there: of tied ones, the first.

    `functional_call` can tie by itself, but then a module that is used twice cannot be compiled.
    """
    names = {id(tensor): name for name, tensor in [*model.named_parameters(), *model.named_buffers()]}
    return {
        f"{prefix}.{own}" if prefix else own: names[id(tensor)]
        for prefix, part in model.named_modules()
        for own, tensor in [*part._parameters.items(), *part._buffers.items()]
        if tensor is not None
    }


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
                loss = self._loss(self._replicas.views(leaf), {name: b[i] for name, b in buffers.items()}, mine)
                (gradient,) = torch.autograd.grad(loss, leaf)
            out[i] = gradient
            losses.append(loss.detach())
        return torch.stack(losses)


class StackedGradients(_Way):
    """All rows at once, by `torch.func.vmap`."""

    def __call__(  # noqa: D102
        self, x: Float[Tensor, "r d"], buffers: dict[str, Tensor], batch: Batch, out: Float[Tensor, "r d"]
    ) -> Float[Tensor, " r"]:
        gradients, losses = self._stacked(self._replicas.views(x), buffers, batch)
        for name, gradient in self._replicas.views(out).items():
            gradient.copy_(gradients[name])
        return losses.detach()

    def _stacked(
        self, parameters: dict[str, Tensor], buffers: dict[str, Tensor], batch: Batch
    ) -> tuple[dict[str, Tensor], Tensor]:
        dims = (0, 0, None if batch is None else 0)
        return vmap(grad_and_value(self._loss), in_dims=dims, randomness="different")(parameters, buffers, batch)


class CompiledGradients(StackedGradients):
    """All rows at once, by one function that `torch.compile` makes of `vmap`, for each number of rows.

    What cannot be compiled is stacked without; the log has the reason.

    Attributes:
        seconds: how long compiling took so far.
        plain: the same, not compiled.
    """

    def __init__(self, replicas: Replicas, model: nn.Module, objective: Objective):
        super().__init__(replicas, written_out(copy.deepcopy(model)), objective)
        self.seconds = 0.0
        self.plain = StackedGradients(replicas, model, objective)
        self._known: set[object] = set()
        self._failed = False

        def gradients(x: Tensor, buffers: dict[str, Tensor], batch: Batch, out: Tensor) -> Tensor:
            pieces, losses = self._stacked(replicas.views(x), buffers, batch)
            # One pass over memory; a copy for each parameter would not be fused.
            out.copy_(torch.cat([pieces[name].flatten(1) for name in replicas.views(x)], dim=1))
            return losses

        # The compiler keeps what it has compiled with the code, up to a limit that several runs must not share.
        own = gradients.__code__.replace(co_name=f"gradients_{id(self)}")
        gradients.__code__ = own
        self._compiled = torch.compile(gradients, fullgraph=True, dynamic=False, options=KEEP)

    def __call__(  # noqa: D102
        self, x: Float[Tensor, "r d"], buffers: dict[str, Tensor], batch: Batch, out: Float[Tensor, "r d"]
    ) -> Float[Tensor, " r"]:
        if self._failed:
            return self.plain(x, buffers, batch, out)
        shapes = tuple(part.shape for part in (x, *(batch or ())))
        if shapes in self._known:
            return self._compiled(x, buffers, batch, out).detach()
        began = time.perf_counter()
        try:
            losses = self._compiled(x, buffers, batch, out).detach()
        except Exception as error:
            log.warning("stepping without compiling, which failed: %s", str(error).strip().partition("\n")[0])
            self._failed = True
            return self.plain(x, buffers, batch, out)
        finally:
            self.seconds += time.perf_counter() - began
            self._known.add(shapes)
        return losses


WAYS: dict[str, Callable[[Replicas, nn.Module, Objective], Gradients]] = {
    "rows": RowGradients,
    "stacked": StackedGradients,
    "compiled": CompiledGradients,
}


@dataclass(frozen=True)
class Way:
    """How local steps are taken.

    Attributes:
        name: "rows", "stacked" or "compiled".
        gradients: what computes gradients.
        block: how many rows step together.
    """

    name: str
    gradients: Gradients
    block: int

    def __str__(self) -> str:
        compiled = self.gradients
        taken = f", {compiled.seconds:.1f} s to compile" if isinstance(compiled, CompiledGradients) else ""
        return f"{self.name}, in blocks of {self.block}{taken}"


def choose_way(
    stepping: Stepping,
    block: int | None,
    replicas: Replicas,
    model: nn.Module,
    objective: Objective,
    batch: Batch,
    steps: int,
) -> Way:
    """The way of stepping by name; or, for "auto", one by what a step takes and how many there will be.

    Nothing is timed: the same arguments always choose the same way, so that a run is the same to the bit.

    Args:
        stepping: "auto", "stacked", "compiled" or "rows".
        block: how many rows step together. Default: by the way, and what of a step fits into cache.
        replicas: the rows.
        model: the model that the rows are copies of.
        objective: its loss.
        batch: batches of the first rows, one or two, to try things with; nothing is changed by it.
        steps: local steps that each row will take.
    """
    rows = RowGradients(replicas, model, objective)
    check_reaches_parameters(rows, replicas, model, objective, batch)
    operations, _ = _work(rows, replicas, batch)
    on_cpu = replicas.x.device.type == "cpu"
    name: str = stepping
    if stepping == "auto":
        if (on_cpu and operations >= LARGE) or not _can_be_stacked(replicas, model, objective, batch):
            name = "rows"
        else:
            name = "compiled" if on_cpu and operations * len(replicas.x) * steps >= LONG else "stacked"
    if block is None:
        fits = MOST
        if name != "stacked":
            row = 2 * replicas.x[:1].nbytes
            if name == "compiled":
                row += _work(RowGradients(replicas, written_out(copy.deepcopy(model)), objective), replicas, batch)[1]
            fits = CACHE // row
        block = even_block(len(replicas.x), fits) if on_cpu else len(replicas.x)
    return Way(name, WAYS[name](replicas, model, objective), block)


def even_block(rows: int, fits: int) -> int:
    """How many rows should step together: at most as many as fit, and so that blocks are equal if they can be."""
    most = max(1, min(rows, fits, MOST))
    equal = (size for size in range(most, most // 2, -1) if rows % size == 0)
    return next(equal, math.ceil(rows / math.ceil(rows / most)))


def _work(rows: RowGradients, replicas: Replicas, batch: Batch) -> tuple[int, int]:
    """What a step of one row takes: floating-point operations, and bytes that its backward pass needs."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        kept[tensor.data_ptr()] = tensor.nbytes
        return tensor

    x = replicas.x[:1]
    buffers = {name: buffer[:1].clone() for name, buffer in replicas.buffers.items()}
    counter = FlopCounterMode(display=False)
    with counter, saved_tensors_hooks(keep, lambda tensor: tensor):
        rows(x, buffers, None if batch is None else tuple(part[:1] for part in batch), torch.empty_like(x))
    return counter.get_total_flops(), sum(kept.values())


def _can_be_stacked(replicas: Replicas, model: nn.Module, objective: Objective, batch: Batch) -> bool:
    """Whether `vmap` has a rule for everything that the model and the objective do."""
    rows = len(batch[0]) if batch else 1
    x, buffers = replicas.x[:rows], {name: b[:rows].clone() for name, b in replicas.buffers.items()}
    # Where vmap has no rule for an operation it loops over the rows itself, slower than we do; that counts as a no.
    functorch: Any = torch._C._functorch
    fallback = functorch._is_vmap_fallback_enabled()
    functorch._set_vmap_fallback_enabled(False)
    try:
        StackedGradients(replicas, model, objective)(x, buffers, batch, torch.empty_like(x))
    except Exception:
        # Not every operation can be batched, nor control flow that depends on data. If the fault is the user's own,
        # rows meet it too and raise it without vmap in between.
        return False
    finally:
        functorch._set_vmap_fallback_enabled(fallback)
    return True


def check_reaches_parameters(
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
