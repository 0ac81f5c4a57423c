"""Rounds in a Lightning Trainer: a strategy in which processes compute on their own and meet rarely."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor

from tether.attached import Attached
from tether.attachment import attach
from tether.methods import Method


class RoundsStrategy(DDPStrategy):
    """Lightning's strategy for one process a device, with rounds in place of the all-reduce of gradients.

        strategy = RoundsStrategy(tether.LocalSGD(period=20), overlap=5)
        Trainer(strategy=strategy, accelerator="cpu", devices=1, num_nodes=4)

    Validation sees the center, and the Trainer's checkpoints hold it, with the first process's optimizer state: a
    `Trainer.fit(ckpt_path=...)` goes on from there on every process. Rounds travel in a process group of their own,
    so whatever the Trainer and the metrics communicate cannot come between.

    Args:
        method: what a round between processes does, and how often.
        overlap, order, buffers, optimizer_state, samples, timeout: as of `tether.attach`.

    Attributes:
        rounds: what `tether.attach` returned for the last fit, None before.

    Raises:
        ValueError: at the start of the fit, if the module has more than one optimizer, or as `tether.attach`.
        WorkerLostError: during the fit, if a process has ended or cannot be reached.
    """

    strategy_name = "tether_rounds"

    def __init__(self, method: Method, **options: Any):
        super().__init__()
        self.rounds: Attached | None = None
        self._method = method
        self._options = options
        self._at_center = ExitStack()

    def configure_ddp(self) -> None:
        """Nothing: gradients stay where they are."""

    def setup(self, trainer: Trainer) -> None:
        """Everything is on its device, and has its optimizer."""
        super().setup(trainer)
        if trainer.state.fn != TrainerFn.FITTING:
            return
        if len(self.optimizers) != 1:
            raise ValueError(f"rounds are of one optimizer, and configure_optimizers gives {len(self.optimizers)}")
        assert self.model is not None
        self.rounds = attach(self.model, self.optimizers[0], self._method, group=dist.new_group(), **self._options)

    @property
    def _training(self) -> Attached | None:
        """The rounds, while they go on."""
        return self.rounds if self.rounds is not None and self.rounds.open else None

    def post_backward(self, closure_loss: Tensor) -> None:
        """The loss of the step to come, for methods that rank workers by it."""
        if self.rounds is not None:
            self.rounds.report(closure_loss)

    def on_validation_start(self) -> None:
        """Validation is of the center."""
        super().on_validation_start()
        if training := self._training:
            self._at_center.enter_context(training.center())

    def on_validation_end(self) -> None:
        """Training goes on with the process's own parameters."""
        self._at_center.close()
        super().on_validation_end()

    def lightning_module_state_dict(self) -> dict[str, Any]:
        """The center's, for the Trainer's checkpoints; every process calls it."""
        if not (training := self._training):
            return super().lightning_module_state_dict()
        with training.center():
            return {name: value.clone() for name, value in super().lightning_module_state_dict().items()}

    def on_train_end(self) -> None:
        """Every process is left with the center."""
        super().on_train_end()
        if self.rounds is not None:
            self.rounds.close()
