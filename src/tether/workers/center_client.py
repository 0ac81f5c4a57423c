"""Real workers that reach a center: it lives in the first process, and each exchanges with it when it likes."""

from __future__ import annotations

import secrets
import time
import weakref
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
import zmq
from jaxtyping import Bool, Float
from torch import Tensor
from zmq.utils.monitor import recv_monitor_message

from tether.errors import WorkerLostError
from tether.workers.base import Pending
from tether.workers.center import Visit
from tether.workers.center_server import BEGUN, INSIDE, CenterServer, Rule
from tether.workers.ranks import Ranks
from tether.workers.wire import TOKEN_BYTES, Kind, Letter, Wire

ADDRESS_BYTES = 128
"""Room for the center's address."""

GRACE = 0.1
"""Seconds in which what came before a connection broke is still handed over."""


def connect(
    ranks: Ranks,
    rule: Rule,
    mean: Float[Tensor, "1 d"],
    steps: Callable[[], int],
    *,
    beside: Callable[[], Mapping[str, Float[Tensor, "r n"]]] = dict,
    on_visit: Callable[[Visit], None] = lambda visit: None,
) -> CenterClient:
    """Start the center in the first process, and let the workers of all processes reach it.

    Every process calls it at the same point; from then on they need not meet.

    Args:
        ranks: the workers.
        rule: what the center does with a message: a `CenterMethod`.
        mean: where the center's model starts; the first process's counts.
        steps: how many local steps the workers here have taken, as it is at the moment of the call.
        beside: real buffers that go with each message, by name, such as they are at the moment of the call. The
            center's model has the mean of those that workers have sent last.
        on_visit: called in the first process, by the center's thread, after each message has been served.

    Raises:
        ValueError: if the method does not suit the number of workers, or the center cannot listen.
        WorkerLostError: if the center cannot be reached.
    """
    row = mean.detach().to("cpu", copy=True)
    rule.init_center(row, ranks.size)  # an error of everyone
    buffers = {name: ranks.mean(matrix).wait()[:1].cpu() for name, matrix in beside().items()}
    published = torch.zeros(TOKEN_BYTES + ADDRESS_BYTES, dtype=torch.uint8)
    server = None
    if ranks.process == 0:
        token = secrets.token_bytes(TOKEN_BYTES)
        server = CenterServer(rule, row, buffers, Wire(token, row, buffers), ranks, on_visit)
        published = torch.frombuffer(bytearray(token + server.address.encode().ljust(ADDRESS_BYTES)), dtype=torch.uint8)
    known = bytes(ranks.of_first(published.to(mean.device)).tolist())
    wire = Wire(known[:TOKEN_BYTES], row, buffers)
    address = known[TOKEN_BYTES:].decode().rstrip()
    return CenterClient(ranks, wire, address, server, steps, beside, mean.device)


@dataclass(frozen=True)
class Model:
    """The center's model.

    Attributes:
        x: `[1, d]`.
        beside: by name `[1, n]`, the mean of the workers' real buffers.
    """

    x: Tensor
    beside: Mapping[str, Tensor]


@dataclass(frozen=True)
class Joined:
    """What a worker that begins or goes on learns of the center.

    Attributes:
        anew: whether the center has begun anew, and not gone on from a checkpoint.
        same: whether it has served just the messages that this worker has sent.
        model: its model.
    """

    anew: bool
    same: bool
    model: Model


class Replies:
    """The center's replies to the messages of some rows, `[r, d]`."""

    def __init__(self, client: CenterClient, letters: list[Letter], device: torch.device):
        self._client, self._letters, self._device = client, letters, device
        self._value: Tensor | None = None

    def wait(self) -> Tensor:
        """The value, as soon as it is here."""
        if self._value is None:
            replies = [self._client.reply(letter).tensors[0] for letter in self._letters]
            self._value = torch.cat(replies).to(self._device)
        return self._value

    def done(self) -> bool:
        """Whether `wait` would return at once."""
        return self._value is not None or self._client.has(self._letters)


class CenterClient:
    """The workers of `Ranks`, who can also reach a center; made by `connect`.

    Args:
        ranks: the workers; means and the like are theirs.
        wire: how letters are written and read.
        address: where the center is reached.
        server: the center, in its own process; there alone.
        steps, beside: see `connect`.
        device: where models live.

    Attributes:
        address: as given.
    """

    def __init__(
        self,
        ranks: Ranks,
        wire: Wire,
        address: str,
        server: CenterServer | None,
        steps: Callable[[], int],
        beside: Callable[[], Mapping[str, Tensor]],
        device: torch.device,
    ):
        self.address = address
        self._ranks, self._wire, self._server = ranks, wire, server
        self._steps, self._beside, self._device = steps, beside, device
        self._numbers = dict.fromkeys(range(ranks.rows.start, ranks.rows.stop), 0)
        self._unanswered: set[tuple[int, int]] = set()
        self._replies: dict[tuple[int, int], Letter] = {}
        context = server.context if server else zmq.Context()
        self._socket = context.socket(zmq.DEALER)
        self._socket.setsockopt(zmq.LINGER, 0)  # what is closed has had all its replies
        self._broken = self._socket.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._socket.connect(INSIDE if server else address)
        # Whoever fails does not close, and ZeroMQ would let the interpreter wait for these at its end.
        self._abandon = weakref.finalize(
            self, _shut, [self._socket, self._broken], server.stop if server else context.term
        )
        self._end = server.join if server else context.term
        hello = self._send(Kind.HELLO, ranks.rows.start)
        try:
            self._receive_until(hello, time.monotonic() + ranks.watch.timeout)
        except TimeoutError as error:
            raise WorkerLostError(
                0,
                f"the center does not answer at {address}: set GLOO_SOCKET_IFNAME on every host to the interface by "
                "which it is reached from the others, and let TCP to any port above 1024 through",
            ) from error

    @property
    def size(self) -> int:
        """The number of workers m."""
        return self._ranks.size

    @property
    def rows(self) -> slice:
        """Which of the m rows this process holds."""
        return self._ranks.rows

    @property
    def present(self) -> Bool[Tensor, " m"]:
        """False for a worker that has been excluded."""
        return self._ranks.present

    def mean(
        self, x: Float[Tensor, "r k"], *, weights: Float[Tensor, " r"] | None = None, within: int | None = None
    ) -> Pending:
        """See `Workers.mean`."""
        return self._ranks.mean(x, weights=weights, within=within)

    def mix(self, x: Float[Tensor, "r k"], weights: Float[Tensor, "m m"]) -> Pending:
        """See `Workers.mix`."""
        return self._ranks.mix(x, weights)

    def best(
        self, x: Float[Tensor, "r k"], loss: Float[Tensor, " r"], *, within: int | None = None
    ) -> dict[str, Pending | Tensor]:
        """See `Workers.best`."""
        return self._ranks.best(x, loss, within=within)

    def gather(self, values: Float[Tensor, " r"]) -> Float[Tensor, " m"]:
        """See `Workers.gather`."""
        return self._ranks.gather(values)

    def exclude(self, worker: int) -> None:
        """See `Workers.exclude`."""
        self._ranks.exclude(worker)

    def exchange(self, message: Float[Tensor, "r k"]) -> Pending:
        """See `CenterWorkers.exchange`."""
        parts = [part.detach().to("cpu", copy=True).contiguous() for part in (message, *self._beside().values())]
        step = self._steps()
        rows = enumerate(range(self.rows.start, self.rows.stop))
        letters = [self._send(Kind.EXCHANGE, w, step, [part[row : row + 1] for part in parts]) for row, w in rows]
        return Replies(self, letters, message.device)

    def center(self) -> Model:
        """The center's model as it is now."""
        return self._model(self.reply(self._send(Kind.READ, self.rows.start)))

    def join(self, sent: list[int] | None, center: dict[str, Any] | None) -> list[Joined]:
        """Begin, or go on from a checkpoint. Every process calls it; the others wait for the first one's.

        Args:
            sent: `[r]`, how many messages the workers here had sent; None if they have no checkpoint.
            center: in the first process, what `state_dict` has returned, or None if there is no checkpoint.

        Returns:
            For each of the workers here, what it has to know of the center.
        """
        if self._server is not None:
            self._server.restore(center)
        mine = sent or [BEGUN] * len(self._numbers)
        letters = [self._send(Kind.JOIN, worker, count) for worker, count in zip(self._numbers, mine, strict=True)]
        replies = [self.reply(letter) for letter in letters]
        return [
            Joined(reply.step == BEGUN, reply.step == count != BEGUN, self._model(reply))
            for reply, count in zip(replies, mine, strict=True)
        ]

    def state_dict(self) -> dict[str, Any] | None:
        """In the first process, all that the center needs to go on, as of between two messages."""
        return self._server.state_dict() if self._server else None

    def close(self, with_model: bool = True) -> Model | None:
        """No more exchanges here. Waits until all workers have closed or are lost.

        Args:
            with_model: whether to bring the center's model of then.
        """
        wanted = [with_model, *[False] * (len(self._numbers) - 1)]  # one serves all rows here
        letters = [self._send(Kind.CLOSE, worker, want) for worker, want in zip(self._numbers, wanted, strict=True)]
        replies = [self.reply(letter) for letter in letters]
        self._abandon.detach()
        self._socket.disable_monitor()
        _shut([self._socket, self._broken], self._end)
        return self._model(replies[0]) if with_model else None

    def reply(self, letter: Letter) -> Letter:
        """The reply to a letter, as soon as it is here; once.

        Raises:
            WorkerLostError: if the center's process has ended or cannot be reached any more.
            RuntimeError: if the center has failed.
        """
        self._receive_until(letter)
        reply = self._replies.pop((letter.worker, letter.number))
        if reply.kind == Kind.FAILED:
            raise RuntimeError(reply.text)
        return reply

    def has(self, letters: list[Letter]) -> bool:
        """Whether all replies to these are here."""
        while self._socket.poll(0):
            self._receive()
        return all((letter.worker, letter.number) in self._replies for letter in letters)

    def _model(self, reply: Letter) -> Model:
        x, *beside = (tensor.to(self._device) for tensor in reply.tensors)
        return Model(x, dict(zip(self._wire.names, beside, strict=True)))

    def _send(self, kind: Kind, worker: int, step: int = 0, tensors: list[Tensor] | None = None) -> Letter:
        letter = Letter(kind, worker, step, self._numbers[worker], tensors or [])
        frames = self._wire.write(letter)
        if not self._unanswered:
            self._connection_broke()  # when nothing was on its way; it is made again
        self._socket.send_multipart(frames, copy=False)
        self._numbers[worker] += 1
        self._unanswered.add((worker, letter.number))
        return letter

    def _receive_until(self, letter: Letter, deadline: float = float("inf")) -> None:
        watch, beat = self._ranks.watch, int(1000 * self._ranks.watch.beat)
        poller = zmq.Poller()
        poller.register(self._socket, zmq.POLLIN)
        poller.register(self._broken, zmq.POLLIN)
        while (letter.worker, letter.number) not in self._replies:
            ready = dict(poller.poll(beat))
            if self._socket in ready:
                self._receive()
            elif self._connection_broke() and not self._socket.poll(int(1000 * GRACE)):
                raise WorkerLostError(
                    0, "process 0, where the center is, has ended or cannot be reached: the connection to it is broken"
                )
            elif not ready:
                watch.check(only=0)
                if time.monotonic() > deadline:
                    raise TimeoutError

    def _receive(self) -> None:
        reply = self._wire.read(self._socket.recv_multipart(copy=False))
        self._unanswered.discard((reply.worker, reply.number))
        self._replies[reply.worker, reply.number] = reply

    def _connection_broke(self) -> bool:
        broke = False
        while self._broken.poll(0):
            recv_monitor_message(self._broken)
            broke = True
        return broke


def _shut(sockets: list[zmq.Socket[bytes]], then: Callable[[], None]) -> None:
    for socket in sockets:
        socket.close(linger=0)
    then()
