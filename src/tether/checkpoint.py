"""Checkpoints: what a run needs to go on, in files that are whole or not there.

    FOLDER/step-120/rows-0-2-of-8.safetensors   all that the process that holds rows 0 and 1 of 8 needs: tensors, and in
                                                the file's metadata their places among numbers and texts
    FOLDER/step-120/rows-0-2-of-8.json          written last: the former's checksum, and which save it belongs to
    FOLDER/step-120/center.safetensors          the mean model, for use elsewhere; nothing goes on from it

Each process writes its own part, to a disk that it shares with others or has for itself. A file is written under
another name, forced to the disk and renamed. A part without its JSON is not there; one that does not agree with it is
refused. Nothing in a checkpoint can run code.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from tether.checks import whole
from tether.errors import CheckpointError
from tether.trees import Tree, put_together, take_apart
from tether.workers import Workers

FORMAT = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was found.

    Attributes:
        step: local steps that had been taken.
        parts: what this process saved; or, if workers were divided otherwise then, what each process saved, in order.
        same: whether there were as many workers on as many processes as now.
    """

    step: int
    parts: list[Tree]
    same: bool

    def check_is_of(self, kind: Sequence[str | int]) -> None:
        """Raise `ValueError` unless this is the checkpoint of such a run: what it saved under "kind"."""
        if self.parts[0]["kind"] != list(kind):
            raise ValueError(
                f"the checkpoint is of another run ({', '.join(map(str, self.parts[0]['kind']))}) than this one "
                f"({', '.join(map(str, kind))}): give another folder"
            )


class Checkpoints:
    """The checkpoints of a run, in a folder.

    Args:
        folder: where; made when needed. Processes may share it, or have one each on disks of their own.
        keep: how many to keep. The newest may turn out to be damaged, so 2 or more are safer than 1.
    """

    def __init__(self, folder: str | Path, keep: int = 2):
        self.folder = Path(folder)
        self.keep = whole("keep", keep, least=1)

    def save(
        self,
        step: int,
        state: Tree,
        workers: Workers,
        device: torch.device,
        center: Mapping[str, Tensor] | None = None,
    ) -> None:
        """Write this process's part of a checkpoint; remove old ones once everyone has written theirs.

        Every process calls it at the same point of its run. If one of them fails, the checkpoints before stay.

        Args:
            step: local steps taken so far, the same everywhere.
            state: all that this process needs to go on.
            workers: how to reach the others.
            device: where the few numbers live that are exchanged.
            center: the mean model's tensors, which the process of the first worker writes beside its part.

        Raises:
            CheckpointError: if some process could not write its part.
            ValueError: if the state holds something that a checkpoint cannot.
        """
        # A crash may leave parts of one save of a step beside parts of another: never to be taken for one checkpoint.
        save, *_ = _tell(workers, device, random.SystemRandom().randrange(2**52))
        mine = _Part.of(self.folder, step, workers)
        failure: OSError | None = None
        try:
            mine.write(state, int(save))
            if center is not None and mine.start == 0:
                write_tensors(mine.center, center)
        except OSError as error:
            failure = error
        failed = [worker for worker, missing in enumerate(_tell(workers, device, failure is not None)) if missing]
        if failure:
            raise CheckpointError(f"{mine} could not be written: {failure.strerror or failure}") from failure
        if failed:
            raise CheckpointError(f"{mine.folder}: the process of worker {failed[0]} could not write its part")
        self._prune(mine)

    def load(self, workers: Workers, device: torch.device) -> Saved | None:
        """The newest checkpoint that is whole everywhere; None if no save was ever finished.

        Every process calls it at the same point of its run. What cannot be used is named in the log, with the reason.

        Raises:
            CheckpointError: if there are finished checkpoints, and none can be gone on from.
        """
        refused: list[_UnusableError] = []
        candidates = self._candidates(workers, refused)
        mine = next(candidates, None)
        # Everyone says what they have, and looks below the oldest of it, until all have the same save of a step.
        while (bound := min(found := _tell(workers, device, mine.step if mine else -1))) >= 0:
            assert mine is not None
            if bound == max(found):
                if len(set(_tell(workers, device, mine.save))) == 1:
                    return Saved(mine.step, [part.read() for part in mine.parts], mine.same)
                log.warning("%s is not used: its parts are of different saves", self.folder / f"step-{mine.step}")
                mine = next(candidates, None)
            while mine is not None and mine.step > bound:
                log.warning("%s is not used: not every process has it", self.folder / f"step-{mine.step}")
                mine = next(candidates, None)
        for _ in candidates:
            pass  # what others have not is nothing to go on from, but what is damaged is to be named
        # The first save may have been cut short. With two, the first of them was finished everywhere.
        finished = sum(any(folder.glob("*.json")) for folder in self.folder.glob("step-*"))
        if any(_tell(workers, device, finished > 1 or any(reason.damaged for reason in refused))):
            raise CheckpointError(
                f"there are checkpoints in {self.folder}, but none that all {workers.size} workers can go on from; the "
                "log says why. Remove them to start from the beginning"
            )
        return None

    def _candidates(self, workers: Workers, refused: list[_UnusableError]) -> Iterator[_Usable]:
        """What this process can go on from, newest first; what it cannot is said in the log and added to `refused`."""
        for step in self._steps():
            try:
                yield self._usable(step, workers)
            except _UnusableError as reason:
                log.warning("%s is not used: %s", self.folder / f"step-{step}", reason)
                refused.append(reason)

    def _usable(self, step: int, workers: Workers) -> _Usable:
        """This process's own part of a step, or else all parts of another division of workers."""
        mine = _Part.of(self.folder, step, workers)
        if mine.record.exists():
            return _Usable(step, mine.verify(), [mine], same=True)
        parts = _Part.all(self.folder, step)
        for workers_then in sorted({part.workers for part in parts}):
            division = [part for part in parts if part.workers == workers_then]
            starts, stops = [part.start for part in division], [part.stop for part in division]
            if [*starts, workers_then] == [0, *stops]:
                saves = {part.verify() for part in division}
                if len(saves) > 1:
                    raise _UnusableError("its parts are of different saves", damaged=False)
                return _Usable(step, saves.pop(), division, same=False)
        raise _UnusableError(f"{mine.stem} is not there: the save was not finished, or not here", damaged=False)

    def _prune(self, newest: _Part) -> None:
        """Remove all parts older than the newest ones of this division, as many as are kept."""
        mine = [step for step in self._steps() if step <= newest.step and newest.at(step).record.exists()]
        for step in [step for step in self._steps() if step < mine[: self.keep][-1]]:
            for part in {newest.at(step), *_Part.all(self.folder, step)}:
                # Others of this division remove their own, when they are done with it.
                if part.start == newest.start or part.division != newest.division:
                    part.remove()

    def _steps(self) -> list[int]:
        """The steps of which there is anything here, newest first."""
        names = (re.fullmatch(r"step-(\d+)", folder.name) for folder in self.folder.glob("step-*"))
        return sorted((int(name[1]) for name in names if name), reverse=True)


class _UnusableError(Exception):
    """Why a checkpoint is not used, and whether it once was whole."""

    def __init__(self, reason: str, *, damaged: bool = True):
        super().__init__(reason)
        self.damaged = damaged


@dataclass(frozen=True)
class _Usable:
    step: int
    save: int
    parts: list[_Part]
    same: bool


@dataclass(frozen=True)
class _Part:
    """What one process saved: the rows from `start` to before `stop` of so many workers."""

    folder: Path
    step: int
    start: int
    stop: int
    workers: int

    @classmethod
    def of(cls, folder: Path, step: int, workers: Workers) -> _Part:
        return cls(folder / f"step-{step}", step, workers.rows.start, workers.rows.stop, workers.size)

    @classmethod
    def all(cls, folder: Path, step: int) -> list[_Part]:
        """The finished parts that are here, of any division, in order of rows."""
        files = (folder / f"step-{step}").glob("*.json")
        names = (re.fullmatch(r"rows-(\d+)-(\d+)-of-(\d+)\.json", file.name) for file in files)
        parts = [cls(folder / f"step-{step}", step, *map(int, name.groups())) for name in names if name]
        return sorted(parts, key=lambda part: (part.workers, part.start, part.stop))

    def at(self, step: int) -> _Part:
        """The same rows at another step."""
        return _Part(self.folder.with_name(f"step-{step}"), step, self.start, self.stop, self.workers)

    def __str__(self) -> str:
        return str(self.folder / self.stem)

    @property
    def stem(self) -> str:
        return f"rows-{self.start}-{self.stop}-of-{self.workers}"

    @property
    def division(self) -> tuple[int, int]:
        return self.workers, self.stop - self.start

    @property
    def tensors(self) -> Path:
        return self.folder / f"{self.stem}.safetensors"

    @property
    def record(self) -> Path:
        return self.folder / f"{self.stem}.json"

    @property
    def center(self) -> Path:
        return self.folder / "center.safetensors"

    @property
    def unfinished(self) -> Path:
        return self.folder / f"{self.stem}.unfinished"

    def write(self, state: Tree, save: int) -> None:
        structure, tensors = take_apart(state)
        self.folder.mkdir(parents=True, exist_ok=True)
        try:
            save_file(tensors, self.unfinished, metadata={"structure": json.dumps(structure)})
            digest = _digest(self.unfinished)
            _to_disk(self.unfinished)
            self.record.unlink(missing_ok=True)  # from here until the new one stands, this part is not there
            self.unfinished.replace(self.tensors)
            record = self._about() | {"save": save, "sha256": digest}
            versions = {"tether": version("tether"), "torch": torch.__version__}
            self.unfinished.write_text(json.dumps(record | versions) + "\n")
            _to_disk(self.unfinished)
            self.unfinished.replace(self.record)
        except SafetensorError as error:  # a full disk, for one
            raise OSError(str(error)) from error
        finally:
            self.unfinished.unlink(missing_ok=True)
        _to_disk(self.folder)
        _to_disk(self.folder.parent)

    def verify(self) -> int:
        """The save that this part belongs to; raises if it is not as it was written."""
        try:
            record = json.loads(self.record.read_text())
            about = {key: record[key] for key in self._about()}
            save, digest = int(record["save"]), record["sha256"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise _UnusableError(f"{self.record.name} cannot be read: {error!r}") from error
        if about != self._about():
            raise _UnusableError(f"{self.record.name} is of another format or of something else: {about}")
        try:
            found = _digest(self.tensors)
        except OSError as error:
            raise _UnusableError(f"{self.tensors.name} cannot be read: {error.strerror}") from error
        if found != digest:
            raise _UnusableError(f"{self.tensors.name} is damaged: it is not what was written (checksum)")
        return save

    def read(self) -> Tree:
        with safe_open(self.tensors, framework="pt") as file:
            return put_together(json.loads(file.metadata()["structure"]), file.get_tensor)

    def remove(self) -> None:
        for file in (self.record, self.tensors, self.unfinished, *([self.center] if self.start == 0 else [])):
            file.unlink(missing_ok=True)
        with suppress(OSError):  # not empty yet, or gone already
            self.folder.rmdir()

    def _about(self) -> dict[str, object]:
        return {"format": FORMAT, "step": self.step, "rows": [self.start, self.stop], "workers": self.workers}


def write_tensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """A safetensors file of copies of tensors, there as a whole or not at all."""
    unfinished = path.with_suffix(".unfinished")
    copies = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in tensors.items()}
    try:
        save_file(copies, unfinished)
        _to_disk(unfinished)
        unfinished.replace(path)
    except SafetensorError as error:
        raise OSError(str(error)) from error
    finally:
        unfinished.unlink(missing_ok=True)


def _tell(workers: Workers, device: torch.device, number: float) -> list[float]:
    """A number of this process, and those of the others; one a worker."""
    rows = workers.rows.stop - workers.rows.start
    return workers.gather(torch.full((rows,), float(number), dtype=torch.float64, device=device)).tolist()


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _to_disk(path: Path) -> None:
    """Have a file, or the names in a folder, survive the machine."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
