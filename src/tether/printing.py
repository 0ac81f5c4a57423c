"""What `tether train`, `compare` and `partition` print of runs and data."""

from __future__ import annotations

import numpy as np
from rich import box
from rich.table import Table

from tether.config import Config
from tether.data import Dataset
from tether.data.holdings import BUBBLES, Holdings
from tether.history import Record
from tether.result import Result

COLUMNS = (
    "method",
    "test accuracy of center",
    "of best worker",
    "rounds",
    "MB sent a worker",
    "consensus distance",
    "seconds",
)


def columns(config: Config) -> tuple[str, ...]:
    """What is said of a run."""
    return COLUMNS + (("virtual seconds", "waited") if config.clock else ())


def heading(config: Config, data: Dataset) -> str:
    """What all runs of a config have in common."""
    wanted = config.data["name"]
    instead = f" ({wanted[0]} is not installed)" if isinstance(wanted, list) and wanted[0] != data.name else ""
    return f"{data}{instead}, {data.partition}, {config.workers} workers, {config.steps} local steps each"


def row(name: str, result: Result) -> list[str]:
    """A run by a method of this name, in the order of `columns`."""
    last = result.history[-1] if result.history else None

    def accuracy(of: str) -> str:
        measures = getattr(last, of, {})
        return f"{measures['accuracy']:.1%}" if "accuracy" in measures else "-"

    return [
        name,
        accuracy("center"),
        accuracy("best"),
        str(result.rounds),
        f"{result.bytes / result.workers / 1e6:.2f}",
        f"{result.consensus:.2g}",
        f"{result.seconds:.1f}",
        *_times(last),
    ]


def _times(last: Record | None) -> list[str]:
    """When the run would have ended on the cluster that its clock describes, and how much of that was waiting."""
    if last is None or last.virtual is None:
        return []
    now, waited = last.virtual.now, last.virtual.waited
    return [f"{np.nanmax(now):.4g}", f"{np.nansum(waited) / max(np.nansum(now), 1e-300):.0%}"]


def who_holds_what(held: Holdings) -> Table:
    """Each worker's samples and classes; of many workers, how these are spread."""
    if len(held.sizes) <= BUBBLES:
        table = Table("worker", "samples", "of them", box=box.SIMPLE_HEAD)
        for worker, counts in enumerate(held.counts):
            main = (-counts).argsort(kind="stable")[: min(4, (counts > 0).sum())]
            shares = ", ".join(f"{held.names[group]} {counts[group] / counts.sum():.0%}" for group in main)
            table.add_row(str(worker), f"{counts.sum():,}", shares + (", ..." if (counts > 0).sum() > 4 else ""))
        return table
    table = Table("a worker holds", "least", "median", "most", box=box.SIMPLE_HEAD)
    for label, numbers in (("samples", held.sizes), ("classes or groups", (held.counts > 0).sum(1))):
        spread = sorted(numbers.tolist())
        table.add_row(label, *(f"{spread[i]:,}" for i in (0, len(spread) // 2, -1)))
    return table
