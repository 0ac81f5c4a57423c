"""Tables for other programs: a row an observation, a column a variable; numbers as they were measured."""

from __future__ import annotations

import csv
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tether.report.curves import SPREAD
from tether.report.runs import Run
from tether.report.summary import summary


def tables(runs: Sequence[Run], folder: Path) -> list[Path]:
    """Write `summary.csv`, `history.csv` (a row a record), `workers.csv` (a row a record and worker), `holdings.csv`.

    Args:
        runs: of which.
        folder: where; it is there.

    Returns:
        The files.
    """
    contents = {"summary": _summary(runs), "history": _history(runs), "workers": _workers(runs)}
    if any(run.holdings for run in runs):
        contents["holdings"] = _holdings(runs)
    return [write_table(folder / f"{name}.csv", rows) for name, rows in contents.items()]


def _summary(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    columns = summary(runs)
    for row, run in enumerate(runs):
        numbers = {column.key.replace("-", "_"): column.values[row] for column in columns}
        yield _which(run) | {"workers": run.workers, "seed": run.config["seed"], "status": run.status} | numbers


def _history(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    measures = list(dict.fromkeys(name for run in runs for name in run.center))
    for run in runs:
        low, high = _percentiles(run.losses)
        for at in range(len(run.steps)):
            who = run.leaders[at]
            yield (
                _record(run, at)
                | {"evaluation": bool(run.evaluated[at])}
                | {"loss": _mean(run.losses[at]), "loss_p10": low[at], "loss_p90": high[at]}
                | {"consensus": run.consensus[at], "drift": _mean(run.drift[at])}
                | {"leader": " ".join(map(str, who)) if isinstance(who, list) else who}
                | {f"center_{name}": run.center[name][at] if name in run.center else None for name in measures}
                | {f"best_{name}": run.best[name][at] if name in run.best else None for name in measures}
            )


def _workers(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    for run in runs:
        for at in range(len(run.steps)):
            record = _record(run, at)
            for worker in range(run.workers):
                times = {key: None if each is None else each[at, worker] for key, each in _times(run).items()}
                yield (
                    record | {"worker": worker, "loss": run.losses[at, worker], "drift": run.drift[at, worker]} | times
                )


def _holdings(runs: Sequence[Run]) -> Iterator[dict[str, Any]]:
    for run in runs:
        if run.holdings:
            for worker, counts in enumerate(run.holdings["counts"]):
                for name, count in zip(run.holdings["names"], counts, strict=True):
                    yield _which(run) | {"worker": worker, "group": name, "samples": count}


def _which(run: Run) -> dict[str, Any]:
    return {"run": run.name, "method": run.method}


def _record(run: Run, at: int) -> dict[str, Any]:
    return _which(run) | {
        "record": at,
        "step": run.steps[at],
        "round": run.rounds[at],
        "messages_a_worker": run.messages[at],
        "bytes_a_worker": run.bytes[at],
        "seconds": run.seconds[at],
        "virtual_seconds": None if run.now is None else run.virtual[at],
    }


def _times(run: Run) -> dict[str, np.ndarray | None]:
    return {"virtual_seconds_here": run.now, "virtual_computed": run.computed, "virtual_waited": run.waited}


def _percentiles(values: np.ndarray) -> np.ndarray:
    """`[2, n]`; NaN where nobody has a value."""
    found = np.full((2, len(values)), np.nan)
    some = np.isfinite(values).any(axis=1) if len(values) else np.zeros(0, bool)
    if some.any():
        found[:, some] = np.nanpercentile(values[some], SPREAD, axis=1)
    return found


def _mean(values: np.ndarray) -> float:
    finite = values[np.isfinite(values)]
    return float(finite.mean()) if len(finite) else float("nan")


def write_table(path: Path, rows: Iterable[Mapping[str, Any]]) -> Path:
    """Write rows with the same columns as CSV; empty where there is no number."""
    with path.open("w", newline="") as file:
        writer = None
        for row in rows:
            if writer is None:
                writer = csv.DictWriter(file, list(row), lineterminator="\n")
                writer.writeheader()
            writer.writerow({key: _plain(value) for key, value in row.items()})
    return path


def _plain(value: Any) -> Any:
    """Empty for what is no number."""
    if isinstance(value, float):
        return "" if np.isnan(value) else float(value)
    return value
