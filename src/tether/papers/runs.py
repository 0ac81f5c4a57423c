"""Runs that configs describe: carried out in folders of their own, and read as the report reads them."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Mapping
from typing import Any

import torch

from tether.config import Config, choose
from tether.data import Dataset
from tether.models import MODELS
from tether.papers.experiments import Setting
from tether.report.runs import Run, read
from tether.result import NonFiniteLossError
from tether.run import check, load_data, run
from tether.run_folder import RunFolder

CIFAR = "CIFAR-10, its binary version (cifar-10-binary.tar.gz, unpacked)"
STAND_IN = "Fashion-MNIST, smaller"
"""What experiments on images need, and what they take instead."""


def carry_out(configs: Mapping[str, Config], setting: Setting) -> dict[str, Run]:
    """Carry out runs, or go on with those that have been begun, each in a folder of its name.

    Args:
        configs: the runs, by name.
        setting: where, and who is told how far they are.

    Returns:
        What they have recorded, by name. A run that diverged has what it recorded before; its `status` says so.

    Raises:
        ConfigError: if a config is not possible, or another run is in its folder.
    """
    for config in configs.values():
        check(config, config.method)  # a mistake shows before the first run, not after the last
    work = {name: config.steps * config.workers for name, config in configs.items()}
    done = 0
    found = {}
    data: dict[str, Dataset] = {}
    for name, config in configs.items():
        # Most experiments train on the same data in all their runs.
        key = repr((config.data, config.dtype))
        loaded = data[key] if key in data else load_data(config)
        data = {key: loaded}

        def tell(count: int, loss: float, name: str = name, done: int = done, steps: int = config.steps) -> None:
            share = done + work[name] * count / max(steps, 1)
            setting.progress(name, share / max(sum(work.values()), 1))

        folder = RunFolder(setting.folder / "runs" / name)
        with contextlib.suppress(NonFiniteLossError):  # the folder says where
            run(config, data=loaded, folder=folder, on_progress=tell)
        (read_run,) = read([folder.folder])
        found[name] = dataclasses.replace(read_run, name=name)
        done += work[name]
    return found


def cifar(setting: Setting, **changes: Any) -> dict[str, Any]:
    """CIFAR-10, or its stand-in, dealt out anew each epoch, as a config has it; `changes` go to the data set."""
    which = {"name": "cifar10", "folder": str(setting.data)} if setting.data else {"name": "fashion-mnist"}
    return which | {"partition": "reshuffled"} | changes


def parameters(model: Mapping[str, Any], shape: tuple[int, ...]) -> int:
    """How many a model of ten classes has."""
    with torch.device("meta"):
        made = choose(dict(model), MODELS, "model", shape=shape, classes=10)
    return sum(parameter.numel() for parameter in made.parameters())
