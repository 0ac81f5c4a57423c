"""Files in the format of LIBSVM: a line a sample, its label and the features that are not zero."""

from __future__ import annotations

import bz2
import gzip
import io
import zlib
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from tether.data.dataset import Dataset


def libsvm(
    path: str | Path,
    test: str | Path | None = None,
    targets: Literal["classes", "real"] = "classes",
    gigabytes: float = 4.0,
) -> Dataset:
    """Samples from a file of lines such as `-1 3:0.5 17:1`, as dense vectors `[n, features]` of float32.

    Args:
        path: the file; .gz and .bz2 are unpacked.
        test: a file of held-out samples.
        targets: "classes", the labels are whole numbers, of which the smallest becomes class 0; or "real".
        gigabytes: the most memory that the vectors may take.

    Raises:
        FileNotFoundError: naming the file that is missing.
        ModuleNotFoundError: without scikit-learn; the message says what to install.
        ValueError: with the line that is not in the format or has a label that is no class; if the vectors take more
            memory than they may.
    """
    try:
        from sklearn.datasets import load_svmlight_files
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "LIBSVM files are read by scikit-learn, which is not installed: pip install 'tether[data]'"
        ) from error
    paths = [Path(each) for each in (path, test) if each is not None]
    for each in paths:
        if not each.is_file():
            raise FileNotFoundError(f"no file {each}")
    try:
        read = load_svmlight_files([str(each) for each in paths])
    except (OSError, EOFError, zlib.error) as error:
        raise ValueError(f"{' or '.join(map(str, paths))} is truncated or damaged ({error}); fetch it again") from error
    except (ValueError, OverflowError) as error:
        raise ValueError(next(_complaints(paths), f"{paths[0]}: {error}")) from error
    values, labels = read[::2], read[1::2]
    wanted = sum(each.shape[0] * each.shape[1] for each in values) * 4 / 1e9
    if wanted > gigabytes:
        samples, features = sum(each.shape[0] for each in values), values[0].shape[1]
        raise ValueError(
            f"{paths[0]}: {samples:,} samples of {features:,} features take {wanted:,.1f} GB as dense vectors, more "
            f"than gigabytes={gigabytes:g} allows"
        )
    for each, matrix, mine in zip(paths, values, labels, strict=True):
        _check_numbers(each, matrix, mine, targets)
    found = _classes(paths, labels) if targets == "classes" else None
    samples = [
        (
            torch.from_numpy(matrix.astype(np.float32).toarray()),
            torch.from_numpy(mine.astype(np.float32) if found is None else np.searchsorted(found, mine)),
        )
        for matrix, mine in zip(values, labels, strict=True)
    ]
    return Dataset(
        samples[0],
        samples[1] if test is not None else None,
        name=paths[0].name,
        classes=None if found is None else len(found),
        names=None if found is None else tuple(f"{label:g}" for label in found),
    )


def _classes(paths: list[Path], labels: list[np.ndarray]) -> np.ndarray:
    """The labels that there are, in order; of held-out samples none that training samples do not have."""
    found = np.unique(labels[0])
    if len(found) < 2:
        raise ValueError(f"{paths[0]}: every sample has the label {found[0]:g}; there is nothing to tell apart")
    for path, mine in zip(paths[1:], labels[1:], strict=True):
        strange = ~np.isin(mine, found)
        if strange.any():
            row = int(strange.argmax())
            raise ValueError(
                f"{path}, line {_line(path, row)}: no sample of {paths[0].name} has the label {mine[row]:g}"
            )
    return found


def _check_numbers(path: Path, values: Any, labels: np.ndarray, targets: str) -> None:
    if not len(labels):
        raise ValueError(f"{path} has no samples")
    finite = np.isfinite(labels)
    entries = values.tocoo()
    finite[entries.row[~(abs(entries.data) <= np.finfo(np.float32).max)]] = False
    if not finite.all():
        raise ValueError(f"{path}, line {_line(path, int(finite.argmin()))}: a number that float32 cannot hold")
    whole = labels == labels.round()
    if targets == "classes" and not whole.all():
        row = int(whole.argmin())
        raise ValueError(
            f"{path}, line {_line(path, row)}: the label {labels[row]:g} is no class; for real targets say "
            "targets='real'"
        )


def _lines(path: Path) -> Iterator[bytes]:
    opened: dict[str, Any] = {".gz": gzip.open, ".bz2": bz2.open}
    with opened.get(path.suffix, open)(path, "rb") as file:
        yield from file


def _line(path: Path, row: int) -> int:
    """The number, from 1, of the line that a sample stands on: empty ones and comments are none."""
    samples = (number for number, line in enumerate(_lines(path), 1) if line.split(b"#")[0].strip())
    return next(islice(samples, row, None))


def _complaints(paths: list[Path], block: int = 1000) -> Iterator[str]:
    """The lines that are not in the format, and what is wrong with them."""
    from sklearn.datasets import load_svmlight_file

    def wrong(lines: list[bytes]) -> str | None:
        try:
            load_svmlight_file(io.BytesIO(b"".join(lines)))
        except (ValueError, OverflowError) as error:
            return str(error)
        return None

    for path in paths:
        lines = _lines(path)
        first = 1
        while some := list(islice(lines, block)):
            if wrong(some):
                for number, line in enumerate(some, first):
                    if said := wrong([line]):
                        start = line[:60].decode(errors="replace").strip()
                        yield f"{path}, line {number}: {start!r} is not `label index:value index:value ...` ({said})"
            first += block
