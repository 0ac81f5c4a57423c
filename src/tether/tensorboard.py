"""A run's records as TensorBoard's scalars, by local steps."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from tether.config import ConfigError
from tether.history import Record
from tether.run_folder import RunFolder

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class TensorBoard:
    """Writes scalars to a run's folder `tensorboard`; a run that goes on replaces what it wrote after its checkpoint.

    At rounds `workers/loss`, `workers/drift`, `workers/consensus_distance`, `workers/leader`, `sent/rounds` and
    `sent/MB_a_worker`; at evaluations the measures of `center/` and `best/`, and `center/consensus_distance`.

    Args:
        run: whose records these are.

    Raises:
        ConfigError: without the package tensorboard; the message says what to install.
    """

    def __init__(self, run: RunFolder):
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ModuleNotFoundError as error:
            raise ConfigError(
                f"--tensorboard needs {error.name}, which is not installed: pip install 'tether[tensorboard]'"
            ) from error
        self._run = run
        self._folder = run.folder / "tensorboard"
        self._make = SummaryWriter
        self._writer: SummaryWriter | None = None

    def record(self, record: Record) -> None:
        """Write a record."""
        if self._writer is None:
            self._writer = self._begin(record)
        self._write(self._writer, dataclasses.asdict(record))

    def close(self) -> None:
        """No more records."""
        if self._writer is not None:
            self._writer.close()

    def _begin(self, record: Record) -> SummaryWriter:
        """A writer to a log that has the records before this one, and no others."""
        earlier = list(islice(self._run.records(), record.index))
        again = earlier[-1]["step"] if earlier and self._folder.exists() else 0
        self._wait_for_a_later_name()
        # TensorBoard forgets whole steps, and a step may have records on both sides of a checkpoint.
        writer = self._make(self._folder, purge_step=again)
        for each in earlier:
            if each["step"] >= again:
                self._write(writer, each)
        return writer

    def _wait_for_a_later_name(self) -> None:
        """TensorBoard reads logs in the order of their names, which hold the second in which each was begun."""
        begun = max((int(log.name.split(".")[3]) for log in self._folder.glob("events.out.tfevents.*")), default=0)
        while time.time() < begun + 1:
            time.sleep(0.01)

    @staticmethod
    def _write(writer: SummaryWriter, record: Mapping[str, Any]) -> None:
        for tag, value in _scalars(record):
            if value is not None and np.isfinite(value):
                writer.add_scalar(tag, value, record["step"])


def _scalars(record: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Tags and values; an evaluation has losses and drift of a part of a period, which would not compare."""
    if record["best_worker"] is not None:
        for of in ("center", "best"):
            yield from ((f"{of}/{name}", value) for name, value in record[of].items())
        yield "best/worker", record["best_worker"]
        yield "center/consensus_distance", record["consensus"]
        return
    losses, drift = (np.array(record[name], dtype=float) for name in ("losses", "drift"))
    yield "workers/loss", losses[np.isfinite(losses)].mean() if np.isfinite(losses).any() else None
    yield "workers/drift", np.median(drift)
    yield "workers/consensus_distance", record["consensus"]
    if isinstance(record["leader"], int):
        yield "workers/leader", record["leader"]
    yield "sent/rounds", record["round"]
    yield "sent/MB_a_worker", record["bytes"] / len(losses) / 1e6
