"""The center where it lives: a thread of the first process that serves the workers' messages, one at a time."""

from __future__ import annotations

import logging
import os
import socket as sockets
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import torch
import torch.distributed as dist
import zmq
from jaxtyping import Float
from torch import Tensor

from tether.workers.center import Center, Visit
from tether.workers.ranks import Ranks
from tether.workers.wire import Kind, Letter, Wire

INSIDE = "inproc://center"
"""Where the first process's own messages come in."""

WAITING = 4
"""Letters of one worker that wait to be served, at most; the next ones stay with it."""

BEGUN, OTHERS = -1, -2
"""In place of how many messages a worker has sent, or the center served of it: it begins anew; they were others'."""

log = logging.getLogger(__name__)


class Rule(Protocol):
    """What the center does; see `tether.methods.CenterMethod`."""

    def init_center(self, mean: Float[Tensor, "1 d"], workers: int) -> dict[str, Tensor]:
        """The center's state."""
        ...

    def serve(self, center: dict[str, Tensor], message: Float[Tensor, "1 d"], staleness: int) -> Float[Tensor, "1 d"]:
        """Move it by a message."""
        ...


class CenterServer:
    """Serves letters until all workers have closed or are lost.

    A letter that is not of this run, or not whole, is dropped and changes nothing. A worker that dies is missed by its
    signs of life, and counts as closed from then on.

    Args:
        rule: what the center does with a message.
        mean: `[1, d]`, where its model starts.
        beside: by name `[1, n]`, the real buffers that workers start with.
        wire: how letters are read and written.
        ranks: the workers.
        on_visit: called after each message has been served.

    Attributes:
        address: where workers reach it.
        context: of ZeroMQ, which this process's own worker must use too.
    """

    def __init__(
        self,
        rule: Rule,
        mean: Float[Tensor, "1 d"],
        beside: Mapping[str, Float[Tensor, "1 n"]],
        wire: Wire,
        ranks: Ranks,
        on_visit: Callable[[Visit], None],
    ):
        self._rule, self._wire, self._watch = rule, wire, ranks.watch
        self._workers, self._rows = ranks.size, ranks.rows.stop - ranks.rows.start
        self._on_visit = on_visit
        self._center = self._made(mean)
        self._beside = {name: one.repeat(ranks.size, 1) for name, one in beside.items()}
        self._sent = [0] * ranks.size  # messages of each worker
        self._letters = [0] * ranks.size
        self._restored: bool | None = None
        self._joining: list[tuple[bytes, Letter]] = []
        self._closing: dict[int, tuple[bytes, Letter]] = {}
        self._lost: set[int] = set()
        self._failure = ""
        self._stopped = False
        self._lock = threading.Lock()
        self._began = time.monotonic()

        self.context = zmq.Context()
        self._socket = self.context.socket(zmq.ROUTER)
        self._socket.setsockopt(zmq.MAXMSGSIZE, wire.largest)
        self._socket.setsockopt(zmq.RCVHWM, WAITING)
        self._socket.setsockopt(zmq.SNDHWM, 0)
        self._socket.setsockopt(zmq.LINGER, int(1000 * self._watch.timeout))
        self._socket.bind(INSIDE)
        self.address = _bind(self._socket, ranks.group)
        self._thread = threading.Thread(target=self._run, name="tether-center", daemon=True)
        self._thread.start()

    def state_dict(self) -> dict[str, Any]:
        """All that it needs to go on, as of between two messages; tensors and numbers only."""
        with self._lock:
            beside = {name: matrix.clone() for name, matrix in self._beside.items()}
            return {"center": self._center.state_dict(), "sent": list(self._sent), "beside": beside}

    def restore(self, saved: dict[str, Any] | None) -> None:
        """Go on from a `state_dict`, or begin: whoever joins is answered only once this is known.

        One of another number of workers gives the model; all else starts anew from it.
        """
        with self._lock:
            self._restored = saved is not None
            if saved is None:
                return
            if len(saved["sent"]) == self._workers:
                self._center.load_state_dict(saved["center"])
                self._sent = list(saved["sent"])
                self._beside = {name: matrix.clone() for name, matrix in saved["beside"].items()}
            else:
                self._center = self._made(saved["center"]["state"]["anchor"])
                self._center.served = saved["center"]["served"]
                self._sent = [OTHERS] * self._workers
                means = {name: matrix.mean(0, keepdim=True) for name, matrix in saved["beside"].items()}
                self._beside = {name: mean.repeat(self._workers, 1) for name, mean in means.items()}

    def join(self) -> None:
        """Wait until it is done; its own worker has closed."""
        self._thread.join()
        self.context.term()

    def stop(self) -> None:
        """Serve no more, though workers have not closed."""
        self._stopped = True
        self._thread.join()
        self.context.term()

    def _made(self, anchor: Tensor) -> Center:
        state = self._rule.init_center(anchor, self._workers)
        return Center(state, self._rule.serve, self._workers, self._on_visit)

    @torch.no_grad()
    def _run(self) -> None:
        next_look = 0.0
        while len(self._closing.keys() | self._lost) < self._workers:
            if self._stopped:
                self._socket.close(linger=int(1000 * self._watch.beat))
                return
            if self._socket.poll(int(1000 * self._watch.beat)):
                self._answer(*self._socket.recv_multipart(copy=False))
            if time.monotonic() > next_look:
                self._look_for_lost()
                next_look = time.monotonic() + self._watch.beat
        for sender, letter in self._closing.values():
            self._reply(sender, letter, self._model() if letter.step else None)
        self._socket.close()

    def _answer(self, sender: zmq.Frame, *frames: zmq.Frame) -> None:
        try:
            letter = self._wire.read(frames)
            self._check(letter)
        except ValueError as error:
            log.warning("a message that reached the center was dropped: %s", error)
            return
        self._letters[letter.worker] += 1
        if letter.worker in self._lost:
            self._lost.discard(letter.worker)
            log.warning("worker %d, which was taken for lost, is back", letter.worker)
        try:
            self._do(sender.bytes, letter)
        except Exception as error:  # of a method of the user's own: whoever waits for a reply must know
            log.exception("the center cannot go on")
            self._failure = f"the center has failed: {type(error).__name__}: {error}"
            self._reply(sender.bytes, letter)

    def _check(self, letter: Letter) -> None:
        if not 0 <= letter.worker < self._workers:
            raise ValueError(f"it is of worker {letter.worker}, of {self._workers}")
        if letter.number != self._letters[letter.worker]:
            raise ValueError(f"number {letter.number} of worker {letter.worker}, not {self._letters[letter.worker]}")
        if len(letter.tensors) != (self._wire.forms if letter.kind == Kind.EXCHANGE else 0):
            raise ValueError(f"{len(letter.tensors)} tensors in a letter of kind {letter.kind.name}")

    def _do(self, sender: bytes, letter: Letter) -> None:
        """What a letter asks for; the reply is sent at once, or kept for when it can be."""
        if self._failure and letter.kind != Kind.CLOSE:
            self._reply(sender, letter)
            return
        match letter.kind:
            case Kind.EXCHANGE:
                self._reply(sender, letter, [self._serve(letter)])
            case Kind.READ:
                self._reply(sender, letter, self._model())
            case Kind.JOIN:
                self._joining.append((sender, letter))
                while self._joining and self._restored is not None:
                    self._admit(*self._joining.pop(0))
            case Kind.CLOSE:
                self._closing[letter.worker] = sender, letter
            case _:
                self._reply(sender, letter)

    def _serve(self, letter: Letter) -> Tensor:
        message, *beside = letter.tensors
        with self._lock:
            seconds = time.monotonic() - self._began
            reply = self._center.visit(letter.worker, message, letter.step, seconds)
            self._sent[letter.worker] += 1
            for name, row in zip(self._wire.names, beside, strict=True):
                self._beside[name][letter.worker] = row[0]
            return reply

    def _admit(self, sender: bytes, letter: Letter) -> None:
        """Tell a worker how many of its messages are in this center."""
        known = self._sent[letter.worker] if self._restored else BEGUN
        if letter.step != known and self._restored:
            with self._lock:
                self._center.refresh(letter.worker)  # it goes on from what it is sent now
                self._sent[letter.worker] = max(letter.step, 0)
        self._reply(sender, letter, self._model(), step=known)

    def _model(self) -> list[Tensor]:
        """The center's model, and the mean of the workers' last buffers."""
        return [self._center.state["anchor"].clone(), *(one.mean(0, keepdim=True) for one in self._beside.values())]

    def _reply(self, sender: bytes, letter: Letter, tensors: list[Tensor] | None = None, step: int = 0) -> None:
        kind = Kind.FAILED if self._failure else letter.kind
        sent = [] if self._failure else tensors or []
        reply = Letter(kind, letter.worker, step, letter.number, sent, self._failure)
        # If the worker is gone, this goes nowhere.
        self._socket.send_multipart([sender, *self._wire.write(reply)], copy=False)

    def _look_for_lost(self) -> None:
        for process, silence in self._watch.lost().items():
            workers = set(range(process * self._rows, (process + 1) * self._rows)) - self._lost - self._closing.keys()
            if workers:
                log.warning(
                    "process %d has given no sign of life for %.0f s: the center goes on without it", process, silence
                )
            self._lost |= workers


def _bind(socket: zmq.Socket[bytes], group: dist.ProcessGroup) -> str:
    """Listen where other hosts reach this one: at the interface that Gloo is told to use, or the way to the store."""
    interfaces = [name for name in os.environ.get("GLOO_SOCKET_IFNAME", "").split(",") if name]
    host = interfaces[0] if interfaces else _own_address(group)
    try:
        socket.bind(f"tcp://{host}:*")
    except zmq.ZMQError as error:
        socket.close(0)
        raise ValueError(
            f"the center cannot listen at {host!r}: {error.strerror}; set GLOO_SOCKET_IFNAME to the interface by which "
            "other hosts reach this one"
        ) from error
    return socket.getsockopt_string(zmq.LAST_ENDPOINT).rstrip("\0")


def _own_address(group: dist.ProcessGroup) -> str:
    """The address from which this host reaches the group's store, and so the others who do too."""
    store: Any = dist.distributed_c10d._get_process_group_store(group)
    while isinstance(store, dist.PrefixStore):
        store = store.underlying_store
    host = store.host if isinstance(store, dist.TCPStore) else sockets.gethostname()
    with sockets.socket(sockets.AF_INET, sockets.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing
        return str(probe.getsockname()[0])
