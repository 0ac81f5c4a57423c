"""Methods that experiments need and nobody else: one that does nothing, one that is looked at, several in one."""

from __future__ import annotations

from collections.abc import Callable
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


def copied(x: Float[Tensor, "r d"], state: State) -> tuple[Tensor, State]:
    """The rows and the state as they are now."""
    return x.clone(), {name: value.clone() for name, value in state.items()}


@dataclass(frozen=True)
class Watched(Method):
    """Another method, whose rows and state are looked at when each round starts.

    Args:
        period: that of the method.
        method: what a round does.
        look: look(x, state), what is kept of the rows `[r, d]` and the state.
        seen: where that is put, one a round.
    """

    method: Method
    look: Callable[[Tensor, State], Any] = copied
    seen: list[Any] = field(default_factory=list)

    @classmethod
    def of(cls, method: Method, look: Callable[[Tensor, State], Any] = copied) -> Watched:
        """This method, watched."""
        return cls(method.period, method, look)

    def init(self, x: Float[Tensor, "r d"], workers: Workers) -> State:
        """That of the method."""
        return self.method.init(x, workers)

    def send(self, x: Float[Tensor, "r d"], state: State, workers: Workers, step: Step) -> Message:
        """What the method sends, once the rows have been looked at."""
        self.seen.append(self.look(x, state))
        return self.method.send(x, state, workers, step)

    def receive(self, x: Float[Tensor, "r d"], state: State, message: Any) -> None:
        """As the method does."""
        self.method.receive(x, state, message)


@dataclass(frozen=True)
class InTurn(Method):
    """Several methods with periods of their own; of those whose rounds fall on one step one after the other.

    Args:
        period: that of the first.
        methods: which, in this order.
    """

    methods: tuple[Method, ...]

    @classmethod
    def of(cls, *methods: Method) -> InTurn:
        """These methods."""
        return cls(methods[0].period, methods)

    @property
    def parts(self) -> tuple[Method, ...]:
        """The rounds of all."""
        return tuple(part for method in self.methods for part in method.parts)
