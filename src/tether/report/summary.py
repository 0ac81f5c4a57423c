"""The numbers at the end of runs, as the command's table has them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from tether.report.curves import training_loss, window_of
from tether.report.runs import Run
from tether.report.timelines import waited


@dataclass(frozen=True)
class Column:
    """A column of the summary.

    Attributes:
        key: a short name.
        title: its heading.
        values: a number a run, or None.
        shown: how a number is written.
    """

    key: str
    title: str
    values: list[float | None]
    shown: Callable[[float], str]

    def text(self, row: int) -> str:
        """What stands in a row."""
        value = self.values[row]
        return "–" if value is None else self.shown(value)


def summary(runs: Sequence[Run]) -> list[Column]:
    """The columns that at least one run has a number for."""
    window = window_of(runs)
    curves = [training_loss(run, window) for run in runs]
    measures = dict.fromkeys(name for run in runs for name in run.center if name != "accuracy")

    def evaluated(of: str, name: str) -> list[float | None]:
        return [_last(getattr(run, of).get(name, np.empty(0))) for run in runs]

    def final(name: str) -> list[float | None]:
        return [run.result[name] if run.ended and run.result else None for run in runs]

    columns = [
        Column("center-accuracy", "test accuracy of center", evaluated("center", "accuracy"), "{:.1%}".format),
        Column("best-accuracy", "of best worker", evaluated("best", "accuracy"), "{:.1%}".format),
        *(Column(f"center-{m}", f"test {m.replace('_', ' ')}", evaluated("center", m), _short) for m in measures),
        Column("loss", "training loss", [_last(curve.y) if curve else None for curve in curves], _short),
        Column("rounds", "rounds", [_last(run.rounds) for run in runs], "{:,.0f}".format),
        Column("megabytes", "MB sent a worker", [_last(run.bytes / 1e6) for run in runs], "{:,.2f}".format),
        Column("consensus", "consensus distance", final("consensus"), "{:.2g}".format),
        Column("virtual", "virtual seconds", [None if run.now is None else _last(run.virtual) for run in runs], _short),
        Column("waited", "waited", [waited(run) for run in runs], "{:.0%}".format),
        Column("seconds", "seconds", final("seconds"), "{:,.1f}".format),
    ]
    return [column for column in columns if any(value is not None for value in column.values)]


def _last(values: np.ndarray) -> float | None:
    """The last finite value."""
    finite = values[np.isfinite(values)]
    return float(finite[-1]) if len(finite) else None


def _short(value: float) -> str:
    return f"{value:.3f}" if abs(value) >= 0.1 else f"{value:.3g}"
