"""What travels between workers and the center: letters of several frames, a header and then tensors as plain bytes.

A message of ZeroMQ arrives with all of its frames or not at all. Nothing in it is ever unpickled, and what is not
exactly a letter of this run is refused.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum

import torch
import zmq
from torch import Tensor

TOKEN_BYTES = 16

HEADER = struct.Struct(f"<{TOKEN_BYTES}sBIqQQ")
"""Of a letter: the run's token, its kind, worker, step, number, and the bytes that follow."""


class Kind(IntEnum):
    """What a letter asks for; the reply to it is of the same kind, or of the last."""

    HELLO = 0  # whether the center can be reached
    EXCHANGE = 1  # a worker's message; the reply to it
    READ = 2  # the center's model as it is
    JOIN = 3  # the model, once it is known whether the center goes on from a checkpoint
    CLOSE = 4  # no more of this worker; a reply, with the model if its step is not 0, once there is no more of any
    FAILED = 5  # what has gone wrong at the center, as text


@dataclass(frozen=True)
class Letter:
    """A message to the center, or what it replies.

    Attributes:
        kind: what it is about.
        worker: who sends it, or whom it is for.
        step: local steps that the worker has taken; or what else the kind of letter says.
        number: how many letters the worker has sent before. The reply has that of the letter.
        tensors: a model's row, and what real buffers go with it.
        text: of one that says what has failed.
    """

    kind: Kind
    worker: int
    step: int
    number: int
    tensors: Sequence[Tensor] = field(default=())
    text: str = ""


class Wire:
    """How letters of one run are written and read.

    Args:
        token: known to the processes of this run alone.
        row: `[1, d]`, such as the models are.
        beside: by name `[1, n]`, such as the real buffers are; none if they stay where they are.
    """

    def __init__(self, token: bytes, row: Tensor, beside: Mapping[str, Tensor]):
        self._token = token
        self._forms = [(tensor.dtype, tensor.shape) for tensor in (row, *beside.values())]
        self.names = list(beside)

    @property
    def largest(self) -> int:
        """Bytes of the largest frame that a worker sends."""
        return max(HEADER.size, *(dtype.itemsize * shape.numel() for dtype, shape in self._forms))

    def write(self, letter: Letter) -> list[bytes | memoryview]:
        """The frames of a letter. Its tensors must not change any more: what is sent is their memory."""
        for tensor, (dtype, shape) in zip(letter.tensors, self._forms, strict=False):
            if tensor.dtype != dtype or tensor.shape != shape:
                raise ValueError(
                    f"a message to or from the center is {tuple(tensor.shape)} of {tensor.dtype}; all of this run "
                    f"must be like the model, {tuple(shape)} of {dtype}"
                )
        content = [_bytes(tensor) for tensor in letter.tensors] if not letter.text else [letter.text.encode()]
        size = sum(len(frame) for frame in content)
        header = HEADER.pack(self._token, letter.kind, letter.worker, letter.step, letter.number, size)
        return [header, *content]

    def read(self, frames: Sequence[zmq.Frame]) -> Letter:
        """The letter, its tensors in memory of their own.

        Raises:
            ValueError: if it is none of this run, or not whole; says what is wrong.
        """
        header, *content = frames
        if len(header) != HEADER.size:
            raise ValueError(f"a header of {len(header)} bytes instead of {HEADER.size}")
        token, kind, worker, step, number, size = HEADER.unpack(header.buffer)
        if token != self._token:
            raise ValueError("it is not of this run")
        if kind not in list(Kind):
            raise ValueError(f"it is of no kind ({kind})")
        if size != sum(len(frame) for frame in content):
            raise ValueError(f"{sum(len(frame) for frame in content)} bytes instead of {size}")
        if kind == Kind.FAILED:
            return Letter(Kind.FAILED, worker, step, number, text=b"".join(f.bytes for f in content).decode())
        if len(content) > len(self._forms):
            raise ValueError(f"{len(content)} tensors instead of at most {len(self._forms)}")
        tensors = []
        for frame, (dtype, shape) in zip(content, self._forms, strict=False):
            tensor = torch.empty(shape, dtype=dtype)
            memory = _bytes(tensor)
            if len(frame) != len(memory):
                raise ValueError(f"a tensor of {len(frame)} bytes instead of {len(memory)}")
            memory[:] = frame.buffer
            tensors.append(tensor)
        return Letter(Kind(kind), worker, step, number, tensors)

    @property
    def forms(self) -> int:
        """Tensors of a letter that has a model and its buffers."""
        return len(self._forms)


def _bytes(tensor: Tensor) -> memoryview:
    return tensor.view(torch.uint8).view(-1).numpy().data
