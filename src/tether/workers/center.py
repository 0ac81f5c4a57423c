"""The center of asynchronous methods: a model that workers visit, one at a time."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from tether.workers.base import Arrived, Pending

Serve: TypeAlias = Callable[[dict[str, Tensor], Tensor, int], Tensor]
"""serve(center, message, staleness) -> reply; see `tether.methods.CenterMethod`."""


@dataclass(frozen=True)
class Visit:
    """A message that the center has served.

    Attributes:
        worker: whose.
        step: how many local steps the worker had taken when it sent the message.
        staleness: how many messages of others the center has served since it replied to this worker.
        seconds: when it arrived, since the start.
    """

    worker: int
    step: int
    staleness: int
    seconds: float


class Center:
    """The center's model and what else is kept with it; moves by one message after the other.

    Args:
        state: the model, "anchor" `[1, d]`, and the rest of the method's.
        serve: how a message moves it.
        workers: number of workers m.
        on_visit: called after each message has been served.

    Attributes:
        state: as given, moved in place.
        served: messages served so far.
    """

    def __init__(
        self,
        state: dict[str, Tensor],
        serve: Serve,
        workers: int,
        on_visit: Callable[[Visit], None] = lambda visit: None,
    ):
        self.state = state
        self.served = 0
        self._serve = serve
        self._replied = [0] * workers
        self._on_visit = on_visit

    def visit(self, worker: int, message: Float[Tensor, "1 d"], step: int, seconds: float) -> Float[Tensor, "1 d"]:
        """Serve the message that a worker has sent after so many local steps of its own. Returns the reply."""
        staleness = self.staleness(worker)
        reply = self._serve(self.state, message, staleness)
        self.served += 1
        self._replied[worker] = self.served
        self._on_visit(Visit(worker, step, staleness, seconds))
        return reply

    def staleness(self, worker: int) -> int:
        """How many messages of others have been served since the reply to this worker."""
        return self.served - self._replied[worker]

    def refresh(self, worker: int) -> None:
        """A worker has received the model as it is now by other means than a reply."""
        self._replied[worker] = self.served

    def state_dict(self) -> dict[str, Any]:
        """All that it needs to go on, tensors and numbers only."""
        state = {name: value.clone() for name, value in self.state.items()}
        return {"state": state, "served": self.served, "replied": list(self._replied)}

    def load_state_dict(self, saved: dict[str, Any]) -> None:
        """Go on from a `state_dict`."""
        for name, value in self.state.items():
            value.copy_(saved["state"][name])
        self.served = saved["served"]
        self._replied = list(saved["replied"])


class Visitor:
    """A simulated worker, one row, who visits a center in this process.

    Args:
        center: the center.
        worker: its number.
        size: number of workers m.

    Attributes:
        step: its local steps when it sends what it exchanges next.
        seconds: when that arrives.
        staleness: how many messages of others the center had served in between, when it served the last.
    """

    def __init__(self, center: Center, worker: int, size: int):
        self.size = size
        self.rows = slice(worker, worker + 1)
        self.present: Bool[Tensor, " m"] = torch.ones(size, dtype=torch.bool)
        self.step, self.seconds, self.staleness = 0, 0.0, 0
        self._center = center

    def exchange(self, message: Float[Tensor, "1 d"]) -> Pending:
        """See `CenterWorkers.exchange`."""
        worker = self.rows.start
        self.staleness = self._center.staleness(worker)
        return Arrived(self._center.visit(worker, message, self.step, self.seconds))

    def _alone(self, *_: object, **__: object) -> Any:
        raise TypeError("a worker that visits a center does not meet the others")

    mean = mix = best = gather = exclude = _alone
