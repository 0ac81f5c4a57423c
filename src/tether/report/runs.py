"""Runs as they are read for a report: their records as columns, their names, what tells them apart."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tether.config import ConfigError
from tether.run_folder import RunFolder

KEYS_IN_A_NAME = 3
"""Runs of one method are named by what differs between them, if it is no more than so many keys."""


TIMELINE_ROUNDS = 20
"""So many rounds from the start are drawn on a timeline: they are alike, and more could not be told apart."""


@dataclass(frozen=True, eq=False)
class Run:
    """A run, its n records as columns.

    Attributes:
        folder: where it is.
        name: what the report calls it; different for all runs of a report.
        group: what it has in common with runs of other methods, or "" where runs differ in nothing but the method.
        config: every key, by its dotted name, with its value.
        about: versions, machine, when it was begun.
        result: the final measures, or where it diverged; None if it has not ended.
        holdings: who holds what; None if that is not known.
        steps: `[n]`, local steps so far.
        rounds: `[n]`, rounds so far.
        messages: `[n]`, messages sent so far, a worker.
        bytes: `[n]`, bytes sent so far, a worker.
        seconds: `[n]`, seconds of training so far, evaluations left out.
        losses: `[n, m]`, mean training loss since the record before.
        drift: `[n, m]`, how far each worker has moved since the round before.
        consensus: `[n]`, consensus distance.
        evaluated: `[n]`, whether the record is an evaluation rather than a round.
        leaders: n times who led: a worker, one of each group, or None.
        now: `[n, m]`, virtual seconds of each worker; None for a run without a clock, as the three that follow.
        computed: `[n, m]`, virtual seconds that each worker has computed.
        waited: `[n, m]`, virtual seconds that each worker has waited.
        arrivals: `[n, m]`, virtual seconds at which each worker has what the last round sends it.
        trips: of each of the first records, what has gone to a center and back since the one before, as `Trip` has it.
        center: `[n]` by measure, the mean model on held-out data; NaN where it was not evaluated.
        best: `[n]` by measure, the worker with the least training loss, likewise.
    """

    folder: Path
    name: str
    group: str
    config: dict[str, Any]
    about: dict[str, Any]
    result: dict[str, Any] | None
    holdings: dict[str, Any] | None
    steps: np.ndarray
    rounds: np.ndarray
    messages: np.ndarray
    bytes: np.ndarray
    seconds: np.ndarray
    losses: np.ndarray
    drift: np.ndarray
    consensus: np.ndarray
    evaluated: np.ndarray
    leaders: list[int | list[int] | None]
    now: np.ndarray | None
    computed: np.ndarray | None
    waited: np.ndarray | None
    arrivals: np.ndarray | None
    trips: list[list[dict[str, Any]]]
    center: dict[str, np.ndarray]
    best: dict[str, np.ndarray]

    def against(self, axis: str) -> np.ndarray:
        """`[n]`, what a page's axis shows: "steps", "rounds", "seconds", "virtual" seconds, or "bytes", in MB."""
        values = self.virtual if axis == "virtual" else getattr(self, axis)
        return values / 1e6 if axis == "bytes" else values

    @property
    def virtual(self) -> np.ndarray:
        """`[n]`, virtual seconds by which the last of the workers has come to a record."""
        assert self.now is not None
        return np.nanmax(self.now, axis=1) if len(self.now) else np.empty(0)

    @property
    def method(self) -> str:
        """The config's name for what a round does."""
        return self.config["method"]

    @property
    def workers(self) -> int:
        """The number of workers m."""
        return self.config["workers"]

    @property
    def ended(self) -> bool:
        """Whether the run has come to the end that its config asks for."""
        # A result of fewer steps is from before the run went on.
        return self.result is not None and self.result.get("steps") == self.config["steps"]

    @property
    def status(self) -> str:
        """What is to be said of a run that has not simply come to its end."""
        said = []
        if self.result and "diverged" in self.result:
            said.append("diverged: worker {worker}, local step {step}".format_map(self.result["diverged"]))
        elif not len(self.steps):
            said.append("no records yet")
        elif not self.ended:
            said.append(f"unfinished: at local step {self.steps[-1]:,} of {self.config['steps']:,}")
        excluded = len(self.result.get("excluded", ())) if self.result else 0
        if excluded:
            said.append(f"{excluded} of {self.workers} workers diverged and were left out")
        return "; ".join(said)


def read(places: Sequence[str | Path]) -> list[Run]:
    """The runs in these folders, each a run or with runs somewhere in it, in the order in which they were begun.

    Raises:
        ConfigError: if there is no run, or if one is damaged.
    """
    folders = [folder for place in places for folder in _find(Path(place))]
    runs = [_read(RunFolder(folder)) for folder in dict.fromkeys(folder.resolve() for folder in folders)]
    names = _names(runs)
    return [Run(**run, name=name, group=group) for run, (name, group) in zip(runs, names, strict=True)]


def common_folder(places: Sequence[str | Path]) -> Path:
    """The folder in which all these are; a single one itself."""
    folders = [Path(place) for place in places]
    return folders[0] if len(folders) == 1 else Path(os.path.commonpath([folder.resolve() for folder in folders]))


def differences(runs: Sequence[Run]) -> dict[str, list[Any]]:
    """The keys of the config that differ, each with the runs' values; None where a run has no such key."""
    return _differences([run.config for run in runs])


def _find(place: Path) -> list[Path]:
    """The folders of runs in a folder, itself included."""
    if not place.is_dir():
        raise ConfigError(f"{place}: there is no such folder")
    found = sorted({path.parent for path in place.rglob("about.json") if (path.parent / "config.json").exists()})
    if not found:
        raise ConfigError(f"{place} is not a run's folder, nor has it any in it: give that of `tether train --out`")
    begun = {folder: RunFolder(folder).about.get("begun", "") for folder in found}
    return sorted(found, key=lambda folder: begun[folder])


def _read(folder: RunFolder) -> dict[str, Any]:
    """All of a run but its name, which depends on the others."""
    config = folder.config.model_dump(mode="json")
    own = config.pop("methods").get(config["method"], {})
    holdings = folder.holdings if (folder.folder / "holdings.json").exists() else None
    return {
        "folder": folder.folder,
        "config": _flat(config) | {f"method.{key}": value for key, value in own.items()},
        "about": folder.about,
        "result": folder.result,
        "holdings": holdings,
    } | _columns(folder)


def _columns(folder: RunFolder) -> dict[str, Any]:
    """The records as columns; each is made small before the next is read, as 1,000 workers have a long line."""
    workers = folder.config.workers
    rows = []
    for number, record in enumerate(folder.records(), start=1):
        try:
            rows.append(_row(record, workers))
        except (KeyError, TypeError, ValueError) as error:
            problem = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ConfigError(f"{folder.folder / 'metrics.jsonl'}: line {number} is no record: {problem}") from error
    columns = {key: [row[key] for row in rows] for key in _ROW}
    numbers = {key: np.array(columns[key], dtype=kind) for key, kind in _ROW.items() if kind is not None}
    times = {key: _times(columns[key], workers) for key in _TIMES}
    return columns | numbers | times | {key: _measures(columns[key]) for key in ("center", "best")}


_ROW = {
    "steps": int,
    "rounds": int,
    "messages": float,
    "bytes": float,
    "seconds": float,
    "losses": float,
    "drift": float,
    "consensus": float,
    "evaluated": bool,
    "leaders": None,
    "trips": None,
    "center": None,
    "best": None,
    "now": None,
    "computed": None,
    "waited": None,
    "arrivals": None,
}
"""The columns, and what their arrays hold."""

_TIMES = ("now", "computed", "waited", "arrivals")


def _row(record: Mapping[str, Any], workers: int) -> dict[str, Any]:
    row = {
        "steps": record["step"],
        "rounds": record["round"],
        "messages": record["messages"] / workers,
        "bytes": record["bytes"] / workers,
        "seconds": record["seconds"],
        "losses": np.array(record["losses"], dtype=float),
        "drift": np.array(record["drift"], dtype=float),
        "consensus": record["consensus"],
        "evaluated": record["best_worker"] is not None,
        "leaders": record["leader"],
        "trips": record["trips"] if record["round"] <= TIMELINE_ROUNDS else [],
        "center": dict(record["center"]),
        "best": dict(record["best"]),
    } | {key: record["virtual"] and record["virtual"][key] for key in _TIMES}
    for key in ("losses", "drift"):
        if row[key].shape != (workers,):
            raise ValueError(f"{key} of shape {row[key].shape} in a run of {workers} workers")
    return row


def _times(records: Sequence[list[float] | None], workers: int) -> np.ndarray | None:
    """`[n, m]`, if the run has a clock."""
    return None if None in records else np.array(records, dtype=float).reshape(len(records), workers)


def _measures(records: Iterable[Mapping[str, float | None]]) -> dict[str, np.ndarray]:
    records = list(records)
    names = dict.fromkeys(name for record in records for name in record)
    return {name: np.array([record.get(name) for record in records], dtype=float) for name in names}


def _flat(table: Mapping[str, Any], place: str = "") -> dict[str, Any]:
    """A config's values by dotted key. A table's name stands for it: `data.partition`, not `data.partition.name`."""
    values: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            values |= _flat(value, f"{place}{key}.")
        else:
            values[place.removesuffix(".") if key == "name" else place + key] = value
    return values


def _differences(configs: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    keys = dict.fromkeys(key for config in configs for key in config)
    values = {key: [config.get(key) for config in configs] for key in keys}
    return {key: each for key, each in values.items() if any(value != each[0] for value in each)}


def _names(runs: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Each run's name and group: the method, what else differs, or the folder where that does not tell them apart."""
    configs = [run["config"] for run in runs]
    folders = [run["folder"] for run in runs]
    methods = [config["method"] for config in configs]
    if len(set(methods)) == len(methods):
        return [(method, "") for method in methods]
    top = common_folder(folders)
    groups = _groups(configs, [run["holdings"] for run in runs])
    groups = groups or [str(folder.parent.relative_to(top)) for folder in folders]
    names = list(zip(methods, groups, strict=True))
    if len(set(names)) < len(names):
        return [(str(folder.relative_to(top)), "") for folder in folders]
    if len(set(methods)) == 1:
        return [(group, "") for group in groups]
    return [(f"{method} ({group})", group) for method, group in names]


def _groups(configs: Sequence[Mapping[str, Any]], holdings: Sequence[Mapping[str, Any] | None]) -> list[str]:
    """What differs between runs of one method, in words; nothing if it is too much for a name, or nothing."""
    same = [[other for other in configs if other["method"] == config["method"]] for config in configs]
    differing = list(dict.fromkeys(key for alike in same for key in _differences(alike)))
    if not 1 <= len(differing) <= KEYS_IN_A_NAME:
        return []
    if all(key.startswith("data.partition") for key in differing) and all(holdings):
        return [held["title"].split(", ", 1)[-1] for held in holdings if held]
    last = {key: key.split(".")[-1] for key in differing}
    said = [[f"{last[key]} {_said(each[key])}" for key in differing if each.get(key) is not None] for each in configs]
    return [", ".join(parts) or f"no {last[differing[0]]}" for parts in said]


def _said(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
