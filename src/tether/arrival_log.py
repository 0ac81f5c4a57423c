"""The arrival log of real workers: what reached the center, or which rounds there were, in the order it happened.

A file of JSON lines. The first says of what run it is, each of the others what happened next:

    {"workers": 4, "method": "Downpour", "overlap": 0}
    {"worker": 2, "step": 10, "staleness": 3, "seconds": 0.52}
                                                a message that the center has served
    {"round": 0, "steps": [10, 12, 4, 11], "ended": [2], "seconds": 0.52}
                                                a round, how far everyone was when it began, and who takes part in no
                                                later one, because its data has ended
    {"resumed": 120, "workers": 4}              the run went on from a checkpoint, not in everyone's state of then

A worker computes by itself between these lines, so they are all of a run's order that depends on how fast machines are.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, TextIO

from tether.workers.center import Visit


class ArrivalLog:
    """Writes an arrival log, line by line.

    Args:
        path: the file; there is a new one once the first line is written.
        workers: number of workers m.
        method: the method's name.
        overlap: local steps between a message's departure and its landing.
    """

    def __init__(self, path: str | Path, workers: int, method: str, overlap: int):
        self.path = Path(path)
        self._header = {"workers": workers, "method": method, "overlap": overlap}
        self._file: TextIO | None = None
        self._began = time.monotonic()

    @property
    def seconds(self) -> float:
        """Time since the start."""
        return time.monotonic() - self._began

    def visit(self, visit: Visit) -> None:
        """The center has served a message."""
        self._write(
            {"worker": visit.worker, "step": visit.step, "staleness": visit.staleness, "seconds": visit.seconds}
        )

    def round(self, part: int, steps: list[int], ended: list[int], seconds: float) -> None:
        """A round of a part of the method: each worker's local steps when it began, whose data had ended, and when."""
        self._write({"round": part, "steps": steps, "ended": ended, "seconds": seconds})

    def resume(self, events: int, *, exact: bool) -> None:
        """Go on with the log of a run that goes on from a checkpoint: what came after that is forgotten.

        Args:
            events: how many messages or rounds the checkpoint had seen.
            exact: whether everyone goes on from just this moment, so that the log is that of a run never interrupted.
        """
        lines = self.path.read_text().splitlines()[1:] if self.path.exists() else []
        kept: list[str] = []
        left = events
        for line in lines:
            if not line.endswith("}"):  # cut short
                break
            left -= "resumed" not in json.loads(line)
            if left < 0:
                break
            kept.append(line)
        if not exact or left > 0:
            kept.append(json.dumps({"resumed": events, "workers": self._header["workers"]}))
        self._file = self._opened(kept)

    def close(self) -> None:
        """Nothing more will happen."""
        if self._file:
            self._file.close()

    def _write(self, event: dict[str, Any]) -> None:
        self._file = self._file or self._opened([])
        print(json.dumps(event), file=self._file, flush=True)

    def _opened(self, lines: list[str]) -> TextIO:
        """The file, with these lines in it after the first; there as a whole or as it was before."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        unfinished = self.path.with_name(f"{self.path.name}.unfinished")
        unfinished.write_text("".join(f"{line}\n" for line in [json.dumps(self._header), *lines]))
        unfinished.replace(self.path)
        return self.path.open("a")
