"""X for this process: one `[r, d]` matrix whose rows are the parameters of r copies of a module.

Everything that trains moves this matrix: a local step moves each row, a round moves rows toward one another. The
modules themselves hold no parameters of their own: theirs are views of a row, so communication gathers and scatters
nothing, and an optimizer's step on the matrix is a step of every worker's model.
"""

from __future__ import annotations

import copy
import math
import mmap
from collections.abc import Iterator

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from tether.checks import whole


class Replicas:
    """r copies of a module's trainable parameters, as the rows of one matrix; its buffers likewise, beside it.

    Frozen parameters stay in the module, one copy for all rows. Tied parameters are one set of columns. Buffers that
    a forward pass may change (BatchNorm's) exist once a row.

    Args:
        module: the model to copy; it is not changed.
        rows: number of copies r, at least 1.
        start: `[r, d]`, what the rows are at first. Default: the module's own parameters, in every row.

    Attributes:
        x: `[r, d]`; row i is `torch.nn.utils.parameters_to_vector` of copy i's trainable parameters.
        buffers: by name, `[r, *shape]`.

    Raises:
        ValueError: if there is nothing to train, or parameters cannot be the columns of one real matrix: mixed
            dtypes or devices, complex, integer or sparse ones, lazy modules that have not seen a batch.
    """

    x: Float[Tensor, "r d"]
    buffers: dict[str, Tensor]

    def __init__(self, module: nn.Module, rows: int, start: Float[Tensor, "r d"] | None = None):
        rows = whole("rows", rows, least=1)
        trainable = _trainable(module)
        try:
            self._template = copy.deepcopy(module)
        except RuntimeError as error:
            raise ValueError(
                f"{type(module).__name__} cannot be copied: {error} (old-style weight_norm does this; "
                "torch.nn.utils.parametrizations.weight_norm does not)"
            ) from error
        self._names = list(trainable)
        self._shapes = [p.shape for p in trainable.values()]
        self._sizes = [p.numel() for p in trainable.values()]

        row = torch.cat([p.detach().reshape(-1) for p in trainable.values()])
        self.x = row.repeat(rows, 1)
        if start is not None:
            start = torch.as_tensor(start).detach()
            if start.shape != self.x.shape:
                raise ValueError(
                    f"start has shape {tuple(start.shape)}; {rows} workers with {len(row)} trainable parameters each "
                    f"need {tuple(self.x.shape)}"
                )
            self.x.copy_(start)
        self.buffers = {
            name: buffer.detach().expand(rows, *buffer.shape).clone(memory_format=torch.contiguous_format)
            for name, buffer in module.named_buffers()
        }

    @property
    def parameters(self) -> int:
        """The number of trainable parameters d."""
        return self.x.shape[1]

    def averaged_buffers(self) -> dict[str, Float[Tensor, "r n"]]:
        """The buffers of which a mean makes sense, as matrices that share their memory: the real ones."""
        return {n: b.view(len(b), -1) for n, b in self.buffers.items() if b.is_floating_point() and b.numel()}

    def share(self) -> None:
        """Move the rows, on the CPU, to memory that processes forked from this one have in common with it."""
        self.x = _shared(self.x)
        self.buffers = {name: _shared(buffer) for name, buffer in self.buffers.items()}

    def part(self, rows: slice | list[int]) -> Replicas:
        """Some of the rows, as replicas: a slice of them shares its memory with these, others are copies."""
        part = copy.copy(self)
        part.x = self.x[rows]
        part.buffers = {name: buffer[rows] for name, buffer in self.buffers.items()}
        return part

    def views(self, rows: Float[Tensor, "*r d"]) -> dict[str, Tensor]:
        """Rows of X taken apart: each parameter by name, `[*r, *shape]`, views of the rows."""
        leading = rows.shape[:-1]
        pieces = rows.split(self._sizes, dim=-1)
        return {
            name: piece.view(*leading, *shape)
            for name, piece, shape in zip(self._names, pieces, self._shapes, strict=True)
        }

    def bind(self, module: nn.Module, row: int) -> nn.Module:
        """Make the parameters and buffers of a module of this kind views of a row: what moves one moves the other."""
        mine = dict(module.named_parameters()) | dict(module.named_buffers())
        buffers = {name: buffer[row] for name, buffer in self.buffers.items()}
        for name, view in (self.views(self.x[row]) | buffers).items():
            mine[name].data = view
        return module

    def worker(self, row: int) -> nn.Module:
        """A module whose parameters and buffers are views of a row."""
        return self.bind(copy.deepcopy(self._template), row)

    def module(self, matrices: dict[str, Float[Tensor, "1 n"]]) -> nn.Module:
        """A module of its own with these parameters and real buffers, and this process's first row's other buffers.

        Args:
            matrices: one row of each of `matrices`, such as their means.
        """
        row = matrices["x"][0]
        values = self.views(row) | {name: buffer[0] for name, buffer in self.buffers.items()}
        values |= {name: matrix.view_as(values[name]) for name, matrix in matrices.items() if name != "x"}
        module = copy.deepcopy(self._template)
        with torch.no_grad():
            for name, mine in [*module.named_parameters(), *module.named_buffers()]:
                if name in values:
                    mine.copy_(values[name])
        return module

    def matrices(self) -> dict[str, Float[Tensor, "r n"]]:
        """X, as "x", and the real buffers by name: all of which a mean over workers makes sense."""
        return {"x": self.x} | self.averaged_buffers()


def _shared(tensor: Tensor) -> Tensor:
    if not tensor.numel():
        return tensor
    memory = mmap.mmap(-1, tensor.nbytes)  # not /dev/shm, which containers keep small
    return torch.frombuffer(memory, dtype=tensor.dtype).view(tensor.shape).copy_(tensor)


def _trainable(module: nn.Module) -> dict[str, nn.Parameter]:
    """The parameters with `requires_grad`, tied ones once; or why they cannot be one matrix."""
    parameters = dict(module.named_parameters())
    for name, p in [*parameters.items(), *module.named_buffers()]:
        if is_lazy(p):
            raise ValueError(f"{name!r} has no shape yet: pass one batch through the lazy module first")
    trainable = {name: p for name, p in parameters.items() if p.requires_grad}
    if not trainable:
        frozen = f"all {len(parameters)} are frozen" if parameters else "it has none"
        raise ValueError(f"{type(module).__name__} has no parameters to train: {frozen}")
    for name, p in trainable.items():
        if hasattr(p, "device_mesh"):  # a DTensor, whose import takes longer than all of ours
            raise ValueError(
                f"{name!r} is divided among processes (FSDP, tensor parallelism); a worker's model is a row of X, "
                "whole in its process. Within a machine, wrap it in DistributedDataParallel instead"
            )
        if p.layout != torch.strided or not p.dtype.is_floating_point:
            raise ValueError(f"{name!r} is {p.layout} of {p.dtype}; workers' models are rows of real, dense numbers")
    _same("dtype", {name: p.dtype for name, p in trainable.items()}, "convert the module with .to(dtype)")
    _same("device", {name: p.device for name, p in trainable.items()}, "move the module with .to(device)")
    return trainable


def _same(what: str, values: dict[str, object], remedy: str) -> None:
    (first, value), *rest = values.items()
    for name, other in rest:
        if other != value:
            raise ValueError(
                f"parameters of more than one {what}: {first!r} has {value}, {name!r} has {other}. "
                f"They must be one matrix: {remedy}, or freeze those that are not trained"
            )


def blocks(rows: int, block: int) -> Iterator[slice]:
    """Consecutive blocks of at most so many rows."""
    for first in range(0, rows, block):
        yield slice(first, min(first + block, rows))


def distances(x: Float[Tensor, "r d"], y: Float[Tensor, "#r d"]) -> Float[Tensor, " r"]:
    """||x_i - y_i||, row by row and a block of rows at a time, so that no second matrix comes to be.

    Added up in single precision at least, and returned in double: to add in double would take twice as long.
    """
    block = max(1, math.ceil(2**17 / x.shape[1]))
    precise = torch.promote_types(x.dtype, torch.float32)
    found = torch.empty(len(x), dtype=torch.float64, device=x.device)
    for rows in blocks(len(x), block):
        # Small results kept one by one would lie between large temporary ones, whose memory could not be used again.
        found[rows] = torch.linalg.vector_norm(x[rows] - (y if len(y) == 1 else y[rows]), dim=1, dtype=precise)
    return found
