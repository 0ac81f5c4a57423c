"""Leader SGD: workers are pulled toward the one that does best at the moment.

Teng et al., "Leader stochastic gradient descent for distributed training of deep learning models" (2019).
"""

from __future__ import annotations

from dataclasses import dataclass

from jaxtyping import Float
from torch import Tensor

from tether.checks import whole
from tether.methods.base import Method, State, Step
from tether.periods import Period, check_period
from tether.workers import Message, Workers, check_groups


@dataclass(frozen=True)
class LSGD(Method):
    """Pull every worker toward the leader: the worker with the lowest recent training loss.

    x_i <- x_i - pull (x_i - x_leader),    leader = argmin_i of the mean of worker i's last `window` losses

    (Leader SGD, eq. 3 and algorithm 1, synchronous, with one leader.) Under overlap, which moves rows by what the
    round would have done when it was sent, the leader's row is as it was then.

    Args:
        period: local steps between rounds (tau), at least 1.
        pull: strength of the pull (lambda), between 0 and 2; 1 copies the leader.
        window: over how many of its last batches a worker's training loss is averaged.
        groups: number of groups of consecutive workers, each with a leader of its own. Default: one leader of all.
        pull_scaled_by_lr: pull by learning rate times `pull`, as the paper's theory does; its algorithm does not.

    Raises:
        ValueError: if the pull does not bring workers closer, or the groups do not divide the workers.
    """

    pull: float = 0.1
    window: int = 10
    groups: int | None = None
    pull_scaled_by_lr: bool = False

    needs_losses = True

    def __post_init__(self) -> None:
        super().__post_init__()
        whole("window", self.window, least=1)
        if not 0 < self.pull < (float("inf") if self.pull_scaled_by_lr else 2):
            raise ValueError(f"pull={self.pull:g}: a pull brings workers to the leader only if it lies between 0 and 2")

    def init(self, x: Float[Tensor, "r d"], workers: Workers) -> State:
        """No state; checks the groups against the number of workers."""
        check_groups(workers.size, self.groups)
        return {}

    def send(self, x: Float[Tensor, "r d"], state: State, workers: Workers, step: Step) -> Message:
        """The leader's row and its number."""
        pull = self.pull * step.lr if self.pull_scaled_by_lr else self.pull
        if pull >= 2:
            raise ValueError(f"pull={self.pull:g} times the learning rate of {step.lr:g} is {pull:g}; keep it below 2")
        return workers.best(x, step.losses.mean(1), within=self.groups) | {"pull": x.new_tensor(pull)}

    def receive(self, x: Float[Tensor, "r d"], state: State, message: dict[str, Tensor]) -> None:
        """Every row moves toward its leader."""
        x.lerp_(message["row"], message["pull"])


@dataclass(frozen=True)
class MultiLeaderLSGD(Method):
    """Leader SGD with a leader in each group, and one of all: pull to the first often, to the second rarely.

    x_i <- x_i - pull (x_i - x_group leader),    x_i <- x_i - global_pull (x_i - x_leader)

    every `period` and every `global_period` local steps; the local pull first where both fall on one step (Leader SGD,
    algorithm 1, synchronous). A group is meant to be a machine: its links are fast, those between groups slow.

    Args:
        period: local steps between pulls to the group's leader (tau), at least 1.
        global_period: local steps between pulls to the leader of all (tau_G), at least 1.
        groups: number of groups of consecutive workers; must divide m.
        pull: strength of the pull to the group's leader (lambda), between 0 and 2.
        global_pull: strength of the pull to the leader of all (lambda_G), between 0 and 2.
        window: over how many of its last batches a worker's training loss is averaged.
        pull_scaled_by_lr: pull by learning rate times these, as the paper's theory does; its algorithm does not.

    Raises:
        ValueError: if a pull does not bring workers closer, or the groups do not divide the workers.
    """

    global_period: Period
    groups: int
    pull: float = 0.1
    global_pull: float = 0.1
    window: int = 10
    pull_scaled_by_lr: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        check_period("global_period", self.global_period)
        assert self.parts  # builds both parts, which check their own parameters

    @property
    def parts(self) -> tuple[Method, ...]:
        """The pull within groups, then the pull to the leader of all."""
        scaled = self.pull_scaled_by_lr
        return (
            LSGD(self.period, self.pull, self.window, self.groups, scaled),
            LSGD(self.global_period, self.global_pull, self.window, None, scaled),
        )
