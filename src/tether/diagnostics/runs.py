"""How far workers are from one another and from where the last round left them; of any run, real ones included.

V_t = (1/m) sum_i ||x_i - mean(x)||^2 (Khaled et al., slides on local GD); ||x_i(t) - x_i(t_c)||, t_c the last round.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor, nn

from tether.checkpoint import Checkpoints
from tether.replicas import distances
from tether.result import Result, consensus_distance
from tether.run_folder import RunFolder
from tether.workers import Stacked


@dataclass(frozen=True, eq=False)
class Drift:
    """What the records of a run say of distances.

    Attributes:
        steps: `[n]`, local steps so far.
        rounds: `[n]`, rounds so far, a record's own included.
        consensus: `[n]`, V just before the round; NaN where a run between processes did not measure it.
        drift: `[n, m]`, how far each worker has moved since the round before.
    """

    steps: np.ndarray
    rounds: np.ndarray
    consensus: Float[np.ndarray, " n"]
    drift: Float[np.ndarray, "n m"]


def drift(run: Result | RunFolder | str | Path) -> Drift:
    """The distances that a run has recorded: every record of a result or of a run's folder.

    Raises:
        ConfigError: if it is not a run's folder.
        ValueError: if it has no records.
    """
    if isinstance(run, Result):
        records: Iterable[Mapping[str, Any]] = map(vars, run.history)
    else:
        records = (run if isinstance(run, RunFolder) else RunFolder(run)).records()
    rows = [(r["step"], r["round"], r["consensus"], r["drift"]) for r in records]
    if not rows:
        raise ValueError("the run has no records yet: there is no drift to look at")
    steps, rounds, consensus, moved = zip(*rows, strict=True)
    return Drift(np.array(steps), np.array(rounds), np.array(consensus, float), np.array(moved, float))


@dataclass(frozen=True, eq=False)
class Snapshot:
    """All workers' models at a checkpoint.

    Attributes:
        step: local steps that had been taken.
        rows: `[m, d]`.
        since_round: `[m, d]`, the rows as the last round left them; None where the checkpoint has none, as `attach`'s.
    """

    step: int
    rows: Float[Tensor, "m d"]
    since_round: Float[Tensor, "m d"] | None

    @property
    def consensus(self) -> float:
        """V = (1/m) sum_i ||x_i - mean(x)||^2."""
        return consensus_distance(self.rows, Stacked(len(self.rows)))

    @property
    def drift(self) -> Float[np.ndarray, " m"]:
        """How far each worker has moved since the last round.

        Raises:
            ValueError: if the checkpoint does not say where that left it.
        """
        if self.since_round is None:
            raise ValueError("checkpoints of `attach` do not hold the models of the last round: there is no drift")
        return distances(self.rows, self.since_round).cpu().numpy()


def snapshot(run: RunFolder | Checkpoints | str | Path, model: nn.Module | None = None) -> Snapshot:
    """The workers' models at the newest checkpoint of a run, simulated or real, on however many processes.

    Args:
        run: a run's folder, or the checkpoints given to `simulate` or `attach`.
        model: the module, of `attach`'s checkpoints, to say which of its tensors are trainable parameters.

    Raises:
        CheckpointError: if there are checkpoints, but none that is whole here.
        ValueError: if there is none, or it is `attach`'s and no model is given.
    """
    checkpoints = (
        run if isinstance(run, Checkpoints) else (run if isinstance(run, RunFolder) else RunFolder(run)).checkpoints
    )
    saved = checkpoints.load(Stacked(1), torch.device("cpu"))
    if saved is None:
        raise ValueError(f"{checkpoints.folder} has no checkpoint")
    if "rows" in saved.parts[0]:
        rows, then = (torch.cat([at(part) for part in saved.parts]) for at in (_rows, _since_round))
        return Snapshot(saved.step, rows, then)
    if model is None:
        raise ValueError(f"{checkpoints.folder} holds checkpoints of `attach`: give the model too")
    names = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    rows = torch.stack([torch.cat([part["model"][name].flatten() for name in names]) for part in saved.parts])
    return Snapshot(saved.step, rows, None)


def _rows(part: Mapping[str, Any]) -> Tensor:
    return part["rows"]["x"]


def _since_round(part: Mapping[str, Any]) -> Tensor:
    return part["since_round"]
