"""Where workers are after some local steps from a point: what residues, updates and deviations are measured on."""

from __future__ import annotations

from jaxtyping import Float
from torch import Tensor

from tether.checks import whole
from tether.data import Assigned
from tether.diagnostics.landscape import Landscape, Row
from tether.methods import LocalSGD
from tether.simulation import simulate
from tether.stepping import OptimizerFactory


def local_steps(
    landscape: Landscape,
    optimizer: OptimizerFactory,
    steps: int,
    batch_size: int | None = 32,
    trials: int | None = None,
    x: Row | None = None,
    seed: int = 0,
) -> Float[Tensor, "trials d"]:
    """Rows after so many local steps from x, without a round: x_{t,i,k} of SecondOrder, eq. 6.

    Trial r is worker r mod m, on batches of its own; the first `steps` of a longer path are the same.

    Args:
        landscape: model, objective, data. Training is on all that workers hold, in training mode.
        optimizer: as for `simulate`: from a list of parameters.
        steps: local steps of each trial.
        batch_size: samples a batch; None for full gradients (local GD).
        trials: how many. Default: one a worker.
        x: `[d]`, the start. Default: the model's own parameters.
        seed: the batches.
    """
    trials = landscape.workers if trials is None else whole("trials", trials, least=1)
    steps = whole("steps", steps, least=0)
    start = landscape.row(x)
    held = [landscape.held[trial % landscape.workers].tolist() for trial in range(trials)]
    result = simulate(
        landscape.model,
        LocalSGD(period=steps + 1),
        landscape.data.partitioned(Assigned(held)),
        workers=trials,
        objective=landscape.objective,
        optimizer=optimizer,
        steps=steps,
        batch_size=batch_size,
        seed=seed,
        start=start.expand(trials, -1),
    )
    return result.rows


def local_sgd_update(
    landscape: Landscape,
    optimizer: OptimizerFactory,
    steps: int,
    batch_size: int | None = 32,
    x: Row | None = None,
    seed: int = 0,
) -> Row:
    """Delta = x - mean_i x_i, what a round of local SGD would subtract from x after so many local steps (eq. 9)."""
    start = landscape.row(x)
    return start - local_steps(landscape, optimizer, steps, batch_size, x=start, seed=seed).mean(0)
