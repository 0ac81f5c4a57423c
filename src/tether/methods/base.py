"""What a method is: what a round between workers does, as two plain functions.

Communication takes time, so a round has a start and an end: `send` says what travels, `receive` applies what arrived.
Who calls them, how many local steps apart, and how rows reach each other is not the method's business.

A method is a frozen dataclass; its fields are its hyperparameters and its configuration. State is an explicit dict of
tensors that the caller keeps. This is a complete one, local SGD:

    @dataclass(frozen=True)
    class LocalSGD(Method):
        def send(self, x, state, workers, step):
            return workers.mean(x)

        def receive(self, x, state, mean):
            x.copy_(mean)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeAlias

from jaxtyping import Float
from torch import Tensor

from tether.periods import Period, check_period
from tether.workers import Message, Workers

State: TypeAlias = dict[str, Tensor]


@dataclass(frozen=True)
class Step:
    """Where the workers stand when a round starts; the same in simulation and on real workers.

    Attributes:
        count: local steps so far, the one the round belongs to included.
        round: rounds so far, so 0 in the first.
        lr: the optimizer's learning rate now.
        losses: `[r, n]`, each row's last training losses: as many as the method asks for (`Method.window`), fewer
            where fewer steps have been taken.
        samples: `[r]`, how many samples each row's worker holds; ones where nobody knows.
    """

    count: int
    round: int
    lr: float
    losses: Float[Tensor, "r n"]
    samples: Float[Tensor, " r"]


@dataclass(frozen=True)
class Method:
    """What a round does. Subclasses give `send` and `receive`, and `init` if they keep state.

    Args:
        period: local steps between rounds (tau), at least 1; or a schedule of `tether.periods`.

    Raises:
        ValueError: if the period is below 1.
    """

    period: Period

    # How many of the last training losses of each worker `send` wants to see. Not annotated, so not a hyperparameter;
    # a method for which it is one annotates it.
    window = 1

    # Whether `send` looks at losses at all; a training loop must report them then.
    needs_losses = False

    # What of the state is the same on all processes, to the bit, as all receive the same: checked when it is saved.
    replicated: ClassVar[tuple[str, ...]] = ()

    def __post_init__(self) -> None:
        check_period("period", self.period)

    @property
    def parts(self) -> tuple[Method, ...]:
        """The rounds this method is made of, each with a period of its own. Where two fall on one step, in order."""
        return (self,)

    def init(self, x: Float[Tensor, "r d"], workers: Workers) -> State:
        """The state before the first step, from this process's rows of X. Checks what depends on the workers."""
        return {}

    def send(self, x: Float[Tensor, "r d"], state: State, workers: Workers, step: Step) -> Message:
        """Start a round: what travels. May move x and state by what is known here already."""
        raise TypeError(f"{type(self).__name__} does not say what a round sends")

    # `message` has a name of its own in every method: what arrived (the mean, the mixture, the leader).
    def receive(self, x: Float[Tensor, "r d"], state: State, message: Any) -> None:
        """End a round: move x and state, in place, by what arrived."""
        raise TypeError(f"{type(self).__name__} does not say what a round does with what it receives")
