"""What real workers did, done again by simulated ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from tether.arrivals import Arrivals
from tether.data import Dataset
from tether.methods import CenterMethod, Method
from tether.result import Result
from tether.simulation import simulate


def replay(log: str | Path, model: nn.Module, method: Method, data: Dataset | None = None, **simulation: Any) -> Result:
    """Simulate what real workers did, in the order in which they came to the center, or to rounds.

    In real processes that order is a matter of chance. With it, the same local steps lead to the same model, to the bit
    where they are computed alike; so a run can be looked at again, and asked what it would have been otherwise.

    Args:
        log: as `tether.attach(..., arrivals=log)` has written it.
        model: what they all started from.
        method: the method of that run.
        data: as they had it, worker i the share of process i.
        simulation: whatever else the run had, as `simulate` takes it: objective, optimizer, batch_size, trigger, ...
            The log says how many workers and steps there were, and the overlap.

    Returns:
        What a simulation returns. It ends with the last that the log has.

    Raises:
        ValueError: if it is not a log of arrivals, or one of another method.
    """
    arrivals = Arrivals.read(log)
    if type(method).__name__ != arrivals.method:
        raise ValueError(f"{log} is a log of {arrivals.method}, not of {type(method).__name__}")
    if not isinstance(method, CenterMethod) and simulation.get("trigger") is None:
        raise ValueError(f"{log}: say by which trigger rounds were started, trigger=tether.TotalSteps() or another")
    # One worker after the other, each by itself, as in a process of its own.
    alone: dict[str, Any] = {"stepping": "rows", "block": 1}
    steps = int(arrivals.steps.sum()) // arrivals.workers
    said = {"workers": arrivals.workers, "steps": steps, "overlap": arrivals.overlap, "clock": arrivals}
    return simulate(model, method, data, **(alone | simulation | said))
