"""Methods that experiments need and nobody else: one that does nothing, and one that is looked at."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from jaxtyping import Float
from torch import Tensor

from tether.methods import Method, State, Step
from tether.workers import Message, Workers


@dataclass(frozen=True)
class Uncoupled(Method):
    """Workers that never hear of one another: what any coupling is measured against.

    x_i <- x_i

    Args:
        period: local steps between records in the history.
    """

    def send(self, x: Float[Tensor, "r d"], state: State, workers: Workers, step: Step) -> Message:
        """Nothing travels."""
        return {}

    def receive(self, x: Float[Tensor, "r d"], state: State, message: dict[str, Tensor]) -> None:
        """Nothing has come."""


@dataclass(frozen=True)
class Watched(Method):
    """Another method, whose rows and state are kept as they are when each round starts.

    Args:
        period: that of the method.
        method: what a round does.
        seen: where the rows and the state are put, `[r, d]` and by name, a pair a round.
    """

    method: Method
    seen: list[tuple[Tensor, State]] = field(default_factory=list)

    @classmethod
    def of(cls, method: Method) -> Watched:
        """This method, watched."""
        return cls(method.period, method)

    def init(self, x: Float[Tensor, "r d"], workers: Workers) -> State:
        """That of the method."""
        return self.method.init(x, workers)

    def send(self, x: Float[Tensor, "r d"], state: State, workers: Workers, step: Step) -> Message:
        """What the method sends, once the rows have been copied."""
        self.seen.append((x.clone(), {name: value.clone() for name, value in state.items()}))
        return self.method.send(x, state, workers, step)

    def receive(self, x: Float[Tensor, "r d"], state: State, message: Any) -> None:
        """As the method does."""
        self.method.receive(x, state, message)
