"""Asynchronous methods: each worker exchanges with a center whenever it has taken its steps, and waits for nobody else.

The center serves one message at a time, in the order in which they arrive; see `tether.workers.center`.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tether.methods.base import Method, State, Step
from tether.workers import CenterWorkers, Message, Workers


@dataclass(frozen=True)
class CenterMethod(Method):
    """What a worker and the center make of each other's models: three functions of a message and its reply.

        message(x, state)                     what a worker sends
        serve(center, message, staleness)     the center moves by it, and replies; nothing else moves it meanwhile
        receive(x, state, reply)              what the reply does to the worker

    The rows of x need not meet: each exchanges by itself. The model of such a run is the center's.

    Args:
        period: local steps of a worker between its exchanges (tau), at least 1.

    Raises:
        ValueError: if the period is below 1.
    """

    def init_center(self, mean: Float[Tensor, "1 d"], workers: int) -> State:
        """The center's state: its model z, "anchor", at the mean of the rows as they start, and what else it needs."""
        return {"anchor": mean.clone()}

    def message(self, x: Float[Tensor, "r d"], state: State) -> Float[Tensor, "r d"]:
        """What the worker of each row sends."""
        raise TypeError(f"{type(self).__name__} does not say what a worker sends to the center")

    def serve(self, center: State, message: Float[Tensor, "1 d"], staleness: int) -> Float[Tensor, "1 d"]:
        """Move the center's state, in place, by a worker's message.

        Args:
            center: its state.
            message: the worker's.
            staleness: how many messages of others the center has served since it replied to this worker.

        Returns:
            The reply, in memory of its own.
        """
        raise TypeError(f"{type(self).__name__} does not say what the center does with a message")

    def send(self, x: Float[Tensor, "r d"], state: State, workers: Workers, step: Step) -> Message:
        """Exchange with the center."""
        if not isinstance(workers, CenterWorkers):
            raise TypeError(
                f"{type(self).__name__} exchanges with a center, which {type(workers).__name__} has none of"
            )
        return workers.exchange(self.message(x, state))


@dataclass(frozen=True)
class FollowingMethod(CenterMethod):
    """A method whose workers go on from the center's model, and know which one they received last."""

    def init(self, x: Float[Tensor, "r d"], workers: Workers) -> State:
        """What each row received last, `[r, d]`: where it starts."""
        return {"received": x.clone()}

    def receive(self, x: Float[Tensor, "r d"], state: State, reply: Float[Tensor, "r d"]) -> None:
        """The worker goes on from there."""
        x.copy_(reply)
        state["received"].copy_(reply)
