"""Asynchronous methods: each worker exchanges with a center whenever it has taken its steps, and waits for nobody else.

The center serves one message at a time, in the order in which they arrive; see `tether.workers.center`.
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tether.checks import whole
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
class Downpour(CenterMethod):
    """Downpour SGD: a worker sends how far it has come, the center adds that, the worker goes on from the center.

    z <- z + (x_i - z_i),    x_i <- z,    z_i <- z,    z_i what worker i received last

    Others have moved z in the meantime, so changes are added to another model than they were made from. With one
    worker it is SGD.

    Dean et al., "Large scale distributed deep networks" (2012); as in Zhang et al., "Deep learning with elastic
    averaging SGD" (2015), which also has the pseudocode.

    Args:
        period: local steps of a worker between its exchanges (tau), at least 1. Leader SGD's authors take 1, as longer
            ones make it unstable.

    Raises:
        ValueError: if the period is below 1.
    """

    def init(self, x: Float[Tensor, "r d"], workers: Workers) -> State:
        """What each row received last, `[r, d]`: where it starts."""
        return {"received": x.clone()}

    def message(self, x: Float[Tensor, "r d"], state: State) -> Float[Tensor, "r d"]:
        """The change since then."""
        return x - state["received"]

    def serve(self, center: State, message: Float[Tensor, "1 d"], staleness: int) -> Float[Tensor, "1 d"]:
        """The center adds the change, and replies with its model."""
        return center["anchor"].add_(message).clone()

    def receive(self, x: Float[Tensor, "r d"], state: State, reply: Float[Tensor, "r d"]) -> None:
        """The worker goes on from there."""
        x.copy_(reply)
        state["received"].copy_(reply)


@dataclass(frozen=True)
class AsynchronousEASGD(CenterMethod):
    """Elastic averaging, asynchronous: worker and anchor move toward each other whenever that worker comes by.

    x_i <- x_i - alpha (x_i - z),    z <- z + alpha (x_i - z)

    both from the old values. With Nesterov momentum in the workers' optimizer, `SGD(..., momentum=0.9, nesterov=True)`,
    it is EAMSGD.

    Zhang, Choromanska, LeCun, "Deep learning with elastic averaging SGD" (2015), algorithms 1 and 2.

    Args:
        period: local steps of a worker between its exchanges (tau), at least 1.
        alpha: elasticity, between 0 and 1. Default: beta/m with the paper's beta of 0.9.
        beta: m alpha, in its place.

    Raises:
        ValueError: if alpha is not between 0 and 1, or beta is given too.
    """

    alpha: float | None = None
    beta: float | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.alpha is not None and self.beta is not None:
            raise ValueError(f"alpha={self.alpha} and beta={self.beta}: give one; beta is m alpha")

    def elasticity(self, workers: int) -> float:
        """Alpha, for m workers."""
        alpha = (0.9 if self.beta is None else self.beta) / workers if self.alpha is None else self.alpha
        if not 0 < alpha < 1:
            raise ValueError(
                f"alpha={alpha:.6g}: a worker and the anchor come closer only for 0 < alpha < 1, where 1/2 makes them "
                f"meet; beta={alpha * workers:.6g} is {workers} times that"
            )
        return alpha

    def init_center(self, mean: Float[Tensor, "1 d"], workers: int) -> State:
        """The anchor at the mean, and alpha, which depends on the number of workers."""
        return {"anchor": mean.clone(), "alpha": mean.new_tensor(self.elasticity(workers))}

    def message(self, x: Float[Tensor, "r d"], state: State) -> Float[Tensor, "r d"]:
        """The worker's model."""
        return x

    def serve(self, center: State, message: Float[Tensor, "1 d"], staleness: int) -> Float[Tensor, "1 d"]:
        """The anchor moves by the elastic difference, which is the reply."""
        difference = center["alpha"] * (message - center["anchor"])
        center["anchor"].add_(difference)
        return difference

    def receive(self, x: Float[Tensor, "r d"], state: State, reply: Float[Tensor, "r d"]) -> None:
        """The worker moves by the same, the other way."""
        x.sub_(reply)


@dataclass(frozen=True)
class AsynchronousDiLoCo(CenterMethod):
    """An optimizer at the center takes each worker's change for a gradient, as it arrives.

    g = w(s) (z_i - x_i),    v <- mu v + g,    z <- z - lr (g + mu v),    x_i <- z,    z_i <- z

    z_i is what worker i received last, s the staleness: how many messages of others the center has served since. Stale
    changes weigh w(s) = (1 + s)^-a. With lr=1 and mu=0 it is `Downpour`.

    Liu et al., "Asynchronous local-SGD training for language modeling" (2024); Douillard et al., "DiLoCo" (2023); the
    weight and the bound are from Xie et al., "Asynchronous federated optimization" (2019).

    Args:
        period: local steps of a worker between its exchanges (tau), at least 1.
        lr: learning rate of the center. DiLoCo takes 0.7 for the mean of m workers' changes; here each arrives by
            itself, so the same change is a learning rate of 0.7 / m.
        momentum: Nesterov momentum of the center (mu), in [0, 1). Each message is a step of it.
        staleness_exponent: a; 0 weighs all changes alike.
        staleness_bound: changes that are staler are not added; that worker goes on from the center's model.

    Raises:
        ValueError: if a number is outside its range.
    """

    lr: float
    momentum: float = 0.0
    staleness_exponent: float = 0.0
    staleness_bound: int | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.lr < float("inf"):
            raise ValueError(f"lr={self.lr}: the center's learning rate must be positive")
        if not 0 <= self.momentum < 1:
            raise ValueError(f"momentum={self.momentum}: give a number in [0, 1)")
        if not 0 <= self.staleness_exponent < float("inf"):
            raise ValueError(f"staleness_exponent={self.staleness_exponent}: give a number, at least 0")
        if self.staleness_bound is not None:
            whole("staleness_bound", self.staleness_bound, least=0)

    def init(self, x: Float[Tensor, "r d"], workers: Workers) -> State:
        """What each row received last, `[r, d]`: where it starts."""
        return {"received": x.clone()}

    def init_center(self, mean: Float[Tensor, "1 d"], workers: int) -> State:
        """The anchor at the mean, its velocity v at zero."""
        return {"anchor": mean.clone(), "velocity": mean.new_zeros(mean.shape)}

    def message(self, x: Float[Tensor, "r d"], state: State) -> Float[Tensor, "r d"]:
        """The change since then, downhill: what a gradient is."""
        return state["received"] - x

    def serve(self, center: State, message: Float[Tensor, "1 d"], staleness: int) -> Float[Tensor, "1 d"]:
        """The center's step of Nesterov momentum; it replies with its model."""
        if self.staleness_bound is None or staleness <= self.staleness_bound:
            gradient = message * (1 + staleness) ** -self.staleness_exponent
            velocity = center["velocity"].mul_(self.momentum).add_(gradient)
            center["anchor"].sub_(self.lr * (gradient + self.momentum * velocity))
        return center["anchor"].clone()

    def receive(self, x: Float[Tensor, "r d"], state: State, reply: Float[Tensor, "r d"]) -> None:
        """The worker goes on from there."""
        x.copy_(reply)
        state["received"].copy_(reply)
