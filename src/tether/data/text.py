"""Texts as bytes, for language models: the source of the installed Python's standard library, or files of one's own."""

from __future__ import annotations

import platform
import sys
import sysconfig
import zlib
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tether.checks import whole
from tether.data.dataset import Dataset

HELD_OUT = 10
"""One file in so many is held out: those whose path, summed by CRC-32, is divisible by it."""


def python_source(length: int = 128, size: int | None = None, test_size: int | None = 100_000) -> Dataset:
    """The Python source of the standard library that this Python came with, about 11 MB, as bytes.

    The text differs from one version of Python to the next: the data set says which it is (`about`). The library's own
    tests are left out.

    Args:
        length: bytes a sample.
        size: bytes of training text at most, from files all over the library; None: all.
        test_size: bytes of held-out text at most; None: all of it, which takes a while to evaluate on.

    Raises:
        FileNotFoundError: if this Python has no source files.
        ValueError: if there is too little text for one sample.
    """
    folder = Path(sysconfig.get_path("stdlib"))

    def wanted(path: Path) -> bool:
        first, *others = path.relative_to(folder).with_suffix("").parts
        return first in sys.stdlib_module_names and not {"test", "tests", "idle_test"} & {first, *others}

    files = [path for path in sorted(folder.rglob("*.py")) if wanted(path)]
    if not files:
        raise FileNotFoundError(f"no source of the standard library in {folder}: this Python came without it")
    about = f"{platform.python_implementation()} {platform.python_version()}"
    return _read(folder, files, length, size, test_size, "python-source", about)


def text(
    folder: str | Path,
    pattern: str = "**/*.txt",
    length: int = 128,
    size: int | None = None,
    test_size: int | None = 100_000,
) -> Dataset:
    """Files of one's own, as bytes.

    Args:
        folder: where they are; what lies in one folder or file there is one group.
        pattern: which of them, such as `**/*.md`.
        length: bytes a sample.
        size: bytes of training text at most, from all over the files; None: all.
        test_size: bytes of held-out text at most; None: all.

    Raises:
        FileNotFoundError: if there are no such files.
        ValueError: if there is too little text for one sample.
    """
    folder = Path(folder)
    files = [path for path in sorted(folder.glob(pattern)) if path.is_file()]
    if not files:
        raise FileNotFoundError(f"no files {pattern} in {folder}: give another `folder` or `pattern`")
    return _read(folder, files, length, size, test_size, folder.name or "text", f"{len(files)} files")


def _read(
    folder: Path, files: list[Path], length: int, size: int | None, test_size: int | None, name: str, about: str
) -> Dataset:
    """Samples `[n, length]` of bytes, and of each place in them the byte that follows; a group a top-level name."""
    length = whole("length", length, least=1)
    sums = {path: zlib.crc32(path.relative_to(folder).as_posix().encode()) for path in files}
    held_out = [path for path in files if sums[path] % HELD_OUT == 0]
    train = _some([path for path in files if sums[path] % HELD_OUT], "size", size, sums)
    groups: dict[str, bytearray] = {}
    for path, content in train:
        groups.setdefault(path.relative_to(folder).with_suffix("").parts[0], bytearray()).extend(content)
    windows = {group: _windows(content, length) for group, content in groups.items()}
    windows = {group: mine for group, mine in windows.items() if len(mine)}
    if not windows:
        total = sum(map(len, groups.values()))
        raise ValueError(f"{name}: {total} bytes of text for training hold no sample of length={length} and one more")
    samples = torch.cat(list(windows.values()))
    test = _windows(b"".join(content for _, content in _some(held_out, "test_size", test_size, sums)), length)
    return Dataset(
        (samples[:, :-1], samples[:, 1:]),
        (test[:, :-1], test[:, 1:]) if len(test) else None,
        name=name,
        about=about,
        classes=256,
        groups=torch.from_numpy(np.repeat(np.arange(len(windows)), [len(mine) for mine in windows.values()])),
        names=tuple(windows),
    )


def _some(files: list[Path], key: str, size: int | None, sums: dict[Path, int]) -> Iterable[tuple[Path, bytes]]:
    """So many bytes of files, chosen all over the place and the last one cut, in the order of their paths."""
    left = sum(path.stat().st_size for path in files) if size is None else whole(key, size, least=1)
    chosen = {}
    for path in sorted(files, key=lambda path: sums[path]):
        if left > 0:
            chosen[path] = path.read_bytes()[:left]
            left -= len(chosen[path])
    return sorted(chosen.items())


def _windows(content: bytes | bytearray, length: int) -> Tensor:
    """The text cut into samples of `length` bytes and the one after, which is the next sample's first."""
    count = max(0, (len(content) - 1) // length)
    if not count:
        return torch.empty(0, length + 1, dtype=torch.uint8)
    return torch.from_numpy(np.frombuffer(content, np.uint8)[: count * length + 1].copy()).unfold(0, length + 1, length)
