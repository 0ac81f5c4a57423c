"""The folder of a run: what was run, with what, what it measured, and where to go on from.

config.json          the config, every key with its value, and the method
about.json           versions, machine, when it was begun
metrics.jsonl        a record a line: `pandas.read_json("metrics.jsonl", lines=True)`
holdings.json        how many samples of each class every worker holds
checkpoints/         see `tether.checkpoint`
tensorboard/         scalars for TensorBoard, if they are asked for
center.safetensors   the mean model at the end
result.json          what the command's table says of the run, or where it diverged; there once it has ended
"""

from __future__ import annotations

import dataclasses
import json
import logging
import math
import os
import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import IO, Any

import numpy as np

from tether.checkpoint import Checkpoints, write_tensors
from tether.config import Config, ConfigError, validate
from tether.errors import RunFolderError
from tether.history import Record
from tether.result import NonFiniteLossError, Result

log = logging.getLogger(__name__)

CHANGEABLE = {"steps", "checkpoint_every"}
"""What may be another when a run goes on."""


class RunFolder:
    """The folder of a run that is made, gone on with, or looked at.

    What writes in it raises `RunFolderError` with the file's name if the system refuses, such as on a full disk.

    Args:
        folder: where.

    Raises:
        ConfigError: by whatever reads, if this is not a run's folder.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        self.checkpoints = Checkpoints(self.folder / "checkpoints")
        self._metrics: IO[str] | None = None

    @property
    def config(self) -> Config:
        """What was run."""
        return validate(Config, self._read("config.json"), str(self.folder / "config.json"))

    @property
    def about(self) -> dict[str, Any]:
        """Versions, machine, and when the run was begun."""
        return self._read("about.json")

    @property
    def holdings(self) -> dict[str, Any]:
        """`counts`, `[m][groups]`; the groups' `names`; a `title`."""
        return self._read("holdings.json")

    @property
    def result(self) -> dict[str, Any] | None:
        """The final measures if the run has ended, or where it diverged."""
        return self._read("result.json") if (self.folder / "result.json").exists() else None

    @property
    def logs_scalars(self) -> bool:
        """Whether the run writes scalars for TensorBoard."""
        return (self.folder / "tensorboard").exists()

    @property
    def history(self) -> list[dict[str, Any]]:
        """The records so far, with the fields of `Record`."""
        return list(self.records())

    def records(self) -> Iterator[dict[str, Any]]:
        """The records so far, one after the other."""
        path = self.folder / "metrics.jsonl"
        if not path.exists():
            return
        with path.open("rb") as lines:
            for number, line in enumerate(lines, start=1):
                if not line.endswith(b"\n"):
                    return  # the process was stopped while it wrote: no record yet
                try:
                    yield json.loads(line)
                except ValueError as error:
                    raise ConfigError(f"{path}: line {number} is damaged: {error}") from error

    def begin(self, config: Config, holdings: Mapping[str, Any] | None = None) -> None:
        """Make the folder, or go on with the run in it.

        Raises:
            ConfigError: if another run is there.
        """
        if (self.folder / "config.json").exists():
            self._check_same(config)
        elif self.folder.is_dir() and any(self.folder.iterdir()):
            raise ConfigError(f"{self.folder} is there, is not empty and is not a run's folder: give another")
        self._write("config.json", config.model_dump(mode="json"))
        if not (self.folder / "about.json").exists():
            now = datetime.now().astimezone().isoformat(timespec="milliseconds")
            self._write("about.json", here() | {"begun": now})
        if holdings is not None:
            self._write("holdings.json", holdings)

    def record(self, record: Record) -> None:
        """Add a record; what an interrupted run has written after its last checkpoint goes first."""
        path = self.folder / "metrics.jsonl"
        with _writing(path):
            if self._metrics is None:
                lines = path.read_bytes().splitlines(keepends=True) if path.exists() else []
                _replace(path, b"".join(lines[: record.index]))
                self._metrics = path.open("a")
            self._metrics.write(json.dumps(_plain(dataclasses.asdict(record))) + "\n")
            self._metrics.flush()

    def end(self, result: Result) -> None:
        """Write what is left of the run, and the mean model. Every process calls it."""
        center, consensus = result.center().state_dict(), result.consensus
        if result.is_first:
            last = result.history[-1] if result.history else None
            measures = {"center": last.center, "best": last.best, "best_worker": last.best_worker} if last else {}
            names = ("rounds", "messages", "bytes", "seconds", "excluded")
            path = self.folder / "center.safetensors"
            with _writing(path):
                write_tensors(path, center)
            summary = {name: getattr(result, name) for name in names} | measures
            summary |= {"workers": result.workers, "steps": self.config.steps, "consensus": consensus}
            self._write("result.json", summary)

    def diverged(self, error: NonFiniteLossError) -> None:
        """Write why the run could not go on."""
        self._write("result.json", {"diverged": {"worker": error.worker, "step": error.step}})

    def close(self) -> None:
        """No more records."""
        if self._metrics is not None:
            with suppress(OSError):  # it tries once more to write what could not be written
                self._metrics.close()

    def _check_same(self, config: Config) -> None:
        then, now = self.config.model_dump(mode="json"), config.model_dump(mode="json")
        changed = [key for key in now if now[key] != then.get(key) and key not in CHANGEABLE]
        if changed:
            key = changed[0]
            raise ConfigError(
                f"{self.folder} holds a run with {key} = {json.dumps(then.get(key))}, this one has "
                f"{json.dumps(now[key])}: give another folder, or go on with that one by --resume {self.folder}"
            )

    def _read(self, name: str) -> Any:
        path = self.folder / name
        try:
            return json.loads(path.read_text())
        except OSError as error:
            raise ConfigError(f"{self.folder} is not a run's folder: {name}: {error.strerror}") from error
        except ValueError as error:
            raise ConfigError(f"{path} is damaged: {error}") from error

    def _write(self, name: str, content: Any) -> None:
        path = self.folder / name
        with _writing(path):
            self.folder.mkdir(parents=True, exist_ok=True)
            write_json(path, content)


def write_json(path: Path, content: Any) -> None:
    """Write a file as a whole or not at all; arrays become lists, and what is no finite number null."""
    _replace(path, (json.dumps(_plain(content), indent=1) + "\n").encode())


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Name the file if the system refuses to write it."""
    try:
        yield
    except OSError as error:
        raise RunFolderError(f"{path} could not be written: {error.strerror or error}") from error


def _replace(path: Path, content: bytes) -> None:
    """Write a file as a whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    try:
        unfinished.write_bytes(content)
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _plain(value: Any) -> Any:
    """As JSON has it: arrays as lists, what is no finite number as null."""
    if isinstance(value, np.ndarray):
        return [_plain(each) for each in value.tolist()]
    if isinstance(value, Mapping):
        return {str(key): _plain(each) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    if isinstance(value, float):
        return float(f"{value:.9g}") if math.isfinite(value) else None
    return value


def here() -> dict[str, Any]:
    """Versions, machine, and the command that runs."""
    import torch

    packages = ("tether", "torch", "numpy")
    return {
        "versions": {name: version(name) for name in packages} | {"python": platform.python_version()},
        "platform": platform.platform(),
        "processors": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "processes": int(os.environ.get("WORLD_SIZE", 1)),
        "command": sys.argv,
    }
