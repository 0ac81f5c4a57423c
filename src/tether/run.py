"""The one function that carries out a run that a config describes, and what it is made of."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tether.checks import nearest
from tether.config import Config, ConfigError, choose, maker
from tether.data import PARTITIONS, Dataset, classification, digits, fashion_mnist, mnist
from tether.history import Record
from tether.methods import METHODS, Method
from tether.models import MODELS, cross_entropy
from tether.result import Result
from tether.rounds import Rounds
from tether.simulation import simulate
from tether.topology import TOPOLOGIES
from tether.workers import Ranks, Stacked

DATASETS: dict[str, Callable[..., Dataset]] = {"digits": digits, "fashion-mnist": fashion_mnist, "mnist": mnist}
"""The data sets that have a name."""


def run(
    config: Config,
    name: str | None = None,
    *,
    data: Dataset | None = None,
    on_record: Callable[[Record], None] = lambda record: None,
    on_progress: Callable[[int, float], None] = lambda count, loss: None,
) -> Result:
    """Train as a config says: all workers here, or, in a process that torchrun started, this process's part of them.

    Args:
        config: the run.
        name: which method; default: the config's own.
        data: the data, if it has been loaded already.
        on_record: called with each new record of the history.
        on_progress: called with the number of local steps so far and the training loss.

    Raises:
        ConfigError: if the config names what does not exist or does not fit.
    """
    data = data or load_data(config)
    workers = _workers(config)
    method = load_method(config, name or config.method)
    optimizer = _factory(config.optimizer, _OPTIMIZERS, "optimizer", "params")
    scheduler = _factory(config.scheduler, _SCHEDULERS, "scheduler", "optimizer") if config.scheduler else None
    try:
        return simulate(
            load_model(config, data),
            method,
            data,
            workers=workers,
            objective=cross_entropy,
            optimizer=optimizer,
            scheduler=scheduler,
            steps=config.steps,
            batch_size=None if config.batch_size == "full" else config.batch_size,
            seed=config.seed,
            overlap=config.overlap,
            order=config.order,
            accumulate=config.accumulate,
            buffers=config.buffers,
            optimizer_state=config.optimizer_state,
            evaluate=classification(data.test) if data.test else None,
            evaluate_every=config.evaluate_every,
            on_nonfinite=config.on_nonfinite,
            allreduce=config.allreduce,
            stepping=config.stepping,
            on_record=on_record,
            on_progress=on_progress,
        )
    except ConfigError:
        raise
    except (ValueError, ArithmeticError) as error:
        raise ConfigError(f"{name or config.method}: {error}") from error


def processes() -> tuple[int, int]:
    """Which process this is, and of how many, as torchrun says; the first of one otherwise."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def _workers(config: Config) -> int | Ranks:
    """The number of workers to simulate here; or, under torchrun, how to reach those of the other processes."""
    _, count = processes()
    if count == 1:
        return config.workers
    rows, rest = divmod(config.workers, count)
    if rest or not rows:
        raise ConfigError(f"workers = {config.workers}: {count} processes need a multiple of {count}")
    if not dist.is_initialized():
        dist.init_process_group("nccl" if _device(config).startswith("cuda") else "gloo")
    return Ranks(rows=rows)


def _device(config: Config) -> str:
    """The device to train on; under torchrun each process of a machine has a GPU of its own."""
    if config.device != "auto":
        return config.device
    return f"cuda:{os.environ.get('LOCAL_RANK', 0)}" if torch.cuda.is_available() else "cpu"


def load_data(config: Config) -> Dataset:
    """The data set that the config names, divided as it says; of several names the first that is there."""
    table = dict(config.data)
    partition = table.pop("partition", "iid")
    names = table.get("name")
    missing = []
    for name in names if isinstance(names, list) and names else [names]:
        try:
            data = choose(table | {"name": name}, DATASETS, "data")
            break
        except (FileNotFoundError, ModuleNotFoundError) as error:
            missing.append(f"data: {name}: {error}")
    else:
        raise ConfigError("\n".join(missing))
    chosen = choose(partition, PARTITIONS, "data.partition")
    return dataclasses.replace(data.to(_dtype(config)), partition=chosen)


def load_model(config: Config, data: Dataset) -> nn.Module:
    """The model that the config names, sized to the data, initialised from the config's seed."""
    shape = tuple(data.train[0].shape[1:])
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        model = choose(config.model, MODELS, "model", shape=shape, classes=data.classes)
    try:
        return model.to(device=_device(config), dtype=_dtype(config))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device: {config.device!r} cannot be used here: {error}") from error


def load_method(config: Config, name: str) -> Method:
    """A method by the config's name for it, by its own, or by that of a topology: decentralized SGD over it."""
    table: dict[str, Any]
    if name in config.methods:
        table, place = {"name": name} | config.methods[name], f"methods.{name}"
    elif name in METHODS or name in TOPOLOGIES:
        table, place = {"name": name}, "method"
    else:
        raise ConfigError(f"no method is called {name!r}; {nearest(name, [*config.methods, *METHODS, *TOPOLOGIES])}")
    kind = table["name"]
    if isinstance(kind, str) and kind in TOPOLOGIES:
        theirs = {field.name for field in dataclasses.fields(TOPOLOGIES[kind])}
        graph = {"name": kind} | {key: value for key, value in table.items() if key in theirs}
        table = {key: value for key, value in table.items() if key not in theirs}
        table |= {"name": "decentralized", "topology": graph}
    if isinstance(table.get("topology"), dict):
        table["topology"] = choose(table["topology"], TOPOLOGIES, f"{place}.topology")
    if table["name"] != "sync":
        table = {"period": config.period} | table
    return choose(table, METHODS, place)


def check(config: Config, name: str) -> None:
    """Raise `ConfigError` if a method does not suit the config's workers or overlap; before anything is run."""
    workers = Stacked(config.workers)
    try:
        Rounds(load_method(config, name), workers, torch.zeros(workers.size, 1), overlap=config.overlap)
    except ConfigError:
        raise
    except ValueError as error:
        raise ConfigError(f"{name}: {error}") from error


_OPTIMIZERS = {
    name: kind
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
}

_SCHEDULERS = {
    name: kind
    for name, kind in vars(torch.optim.lr_scheduler).items()
    if isinstance(kind, type)
    and issubclass(kind, torch.optim.lr_scheduler.LRScheduler)
    and not name.startswith("_")
    and kind is not torch.optim.lr_scheduler.LRScheduler
}


def _factory(table: dict[str, Any], known: dict[str, Any], place: str, argument: str) -> Callable[[Any], Any]:
    """Makes the optimizer or scheduler that a table names, from the parameters or the optimizer."""
    make = maker(table, known, place, argument)
    return lambda value: make(**{argument: value})


def _dtype(config: Config) -> torch.dtype:
    return torch.float64 if config.dtype == "float64" else torch.float32
