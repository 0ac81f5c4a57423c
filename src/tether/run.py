"""The one function that carries out a run that a config describes, and what it is made of."""

from __future__ import annotations

import atexit
import dataclasses
import os
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch import nn

from tether.checks import nearest
from tether.clock import Clock
from tether.config import Config, ConfigError, choose, maker
from tether.data import DATASETS, PARTITIONS, Dataset, holdings
from tether.engines import Evaluate, check_pace
from tether.history import Record
from tether.methods import METHODS, CenterMethod, Method
from tether.models import LOSSES, MODELS, OBJECTIVES
from tether.periods import PERIODS
from tether.result import NonFiniteLossError, Result
from tether.rounds import Rounds
from tether.run_folder import RunFolder
from tether.simulation import simulate
from tether.tensorboard import TensorBoard
from tether.topology import TOPOLOGIES
from tether.triggers import TRIGGERS, Trigger
from tether.workers import Ranks, Stacked


def run(
    config: Config,
    name: str | None = None,
    *,
    data: Dataset | None = None,
    folder: RunFolder | None = None,
    tensorboard: bool = False,
    simulated: bool = False,
    evaluate: Evaluate | None = None,
    on_record: Callable[[Record], None] = lambda record: None,
    on_progress: Callable[[int, float], None] = lambda count, loss: None,
) -> Result:
    """Train as a config says: all workers here, or, in a process that torchrun started, this process's part of them.

    Args:
        config: the run.
        name: which method; default: the config's own.
        data: the data, if it has been loaded already.
        folder: where to write what the run measures, and to go on from if a run of this config was interrupted there.
        tensorboard: whether the folder gets scalars for TensorBoard too; a run that has some goes on with them.
        simulated: whether all workers are here even in a process that torchrun started.
        evaluate: what evaluations measure. Default: loss, and accuracy of classes, on held-out samples.
        on_record: called with each new record of the history.
        on_progress: called with the number of local steps so far and the training loss.

    Raises:
        ConfigError: if the config names what does not exist or does not fit, or the folder holds another run.
    """
    data = data or load_data(config)
    config = config.model_copy(update={"method": name or config.method})
    workers = config.workers if simulated else workers_of(config)
    method = load_method(config, config.method)
    first = processes()[0] == 0
    board = TensorBoard(folder) if folder and first and (tensorboard or folder.logs_scalars) else None
    if folder and first:
        folder.begin(config, dataclasses.asdict(holdings(data, config.workers, config.seed)))
    given = ingredients(config, data)
    given["evaluate"] = evaluate or given["evaluate"]
    if given["evaluate"] is None and config.evaluate_every:
        raise ConfigError(f"evaluate_every = {config.evaluate_every}: {data.name} has no held-out samples")

    def record(record: Record) -> None:
        if folder and first:
            folder.record(record)
        if board:
            board.record(record)
        on_record(record)

    try:
        result = simulate(
            method=method,
            workers=workers,
            **given,
            checkpoints=folder.checkpoints if folder else None,
            checkpoint_every=config.checkpoint_every if folder else None,
            on_record=record,
            on_progress=on_progress,
        )
    except ConfigError:
        raise
    except (ValueError, ArithmeticError) as error:
        raise ConfigError(f"{config.method}: {error}") from error
    except NonFiniteLossError as error:
        if folder and first:
            folder.diverged(error)
        raise
    finally:
        if folder:
            folder.close()
        if board:
            board.close()
    if folder:
        folder.end(result)
    return result


def ingredients(config: Config, data: Dataset) -> dict[str, Any]:
    """What the config says of a run, as `tether.simulate` takes it: all but method, workers and where it is kept."""
    objective = config.objective or ("cross-entropy" if data.classes else "squared-error")
    return {
        "model": load_model(config, data),
        "data": data,
        "objective": OBJECTIVES[objective],
        "optimizer": _factory(config.optimizer, _OPTIMIZERS, "optimizer", "params"),
        "scheduler": _factory(config.scheduler, _SCHEDULERS, "scheduler", "optimizer") if config.scheduler else None,
        "steps": config.steps,
        "batch_size": None if config.batch_size == "full" else config.batch_size,
        "seed": config.seed,
        "overlap": config.overlap,
        "order": config.order,
        "accumulate": config.accumulate,
        "buffers": config.buffers,
        "optimizer_state": config.optimizer_state,
        "evaluate": data.evaluation(LOSSES[objective]),
        "evaluate_every": config.evaluate_every,
        "on_nonfinite": config.on_nonfinite,
        "allreduce": config.allreduce,
        "clock": load_clock(config),
        "trigger": load_trigger(config),
        "stepping": config.stepping,
        "processes": config.processes,
    }


def processes() -> tuple[int, int]:
    """Which process this is, and of how many, as torchrun says; the first of one otherwise."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def workers_of(config: Config) -> int | Ranks:
    """The number of workers to simulate here; or, under torchrun, how to reach those of the other processes."""
    _, count = processes()
    if count == 1:
        return config.workers
    rows, rest = divmod(config.workers, count)
    if rest or not rows:
        raise ConfigError(f"workers = {config.workers}: {count} processes need a multiple of {count}")
    if not dist.is_initialized():
        store, rank, size = next(dist.rendezvous("env://"))
        # torchrun keeps one store for all restarts; processes must not find the addresses of those before them.
        store = dist.PrefixStore(f"start-{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", store)
        backend = "nccl" if _device(config).startswith("cuda") else "gloo"
        dist.init_process_group(backend, store=store, rank=rank, world_size=size)
        atexit.register(_leave)  # before what Ranks registers, so that it comes after that
    _made.append(Ranks(rows=rows))
    return _made[-1]


_made: list[Ranks] = []
"""The workers of all runs of this process: their results may communicate until it ends."""


def _leave() -> None:
    """Let go of the process group before the interpreter ends, which its threads could abort."""
    for ranks in _made:
        ranks.close()
    dist.destroy_process_group()


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
    with torch.random.fork_rng([]):
        torch.manual_seed(config.seed)
        model = choose(config.model, MODELS, "model", shape=data.shape, classes=data.outputs)
    try:
        model = model.to(device=_device(config), dtype=_dtype(config))
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device: {config.device!r} cannot be used here: {error}") from error
    return _checked(model, data, config.model["name"])


def _checked(model: nn.Module, data: Dataset, name: str) -> nn.Module:
    """The model, if it takes the samples and has an answer for each target."""
    device = next(model.parameters()).device
    inputs = torch.zeros_like(data.example, device=device)
    answers = data.train[-1].shape[1:] if data.classes else ()
    try:
        with torch.no_grad():
            outputs = model.eval()(inputs)
    except (RuntimeError, ValueError) as error:
        raise ConfigError(
            f"model: {name} does not take samples such as {data.name}'s, {inputs.dtype} of shape {data.shape}: {error}"
        ) from error
    if outputs.shape[:-1] != (1, *answers):
        raise ConfigError(
            f"model: {name} gives outputs of shape {tuple(outputs.shape[1:])} a sample; the targets of {data.name} "
            f"have shape {tuple(data.train[-1].shape[1:])}"
        )
    return model.train()


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
    for key in ("period", "global_period"):
        if isinstance(table.get(key), dict):
            table[key] = choose(table[key], PERIODS, f"{place}.{key}")
    return choose(table, METHODS, place)


def load_clock(config: Config) -> Clock | None:
    """The clock that the config describes, if it has one."""
    if config.clock is None:
        return None
    clock: Clock = choose({"name": "clock", **config.clock}, {"clock": Clock}, "clock")
    try:
        clock.check(config.workers)
    except ValueError as error:
        raise ConfigError(f"clock: {error}") from error
    return clock


def load_trigger(config: Config) -> Trigger | None:
    """The trigger that the config describes, if it has one."""
    return None if config.trigger is None else choose(config.trigger, TRIGGERS, "trigger")


def check(config: Config, name: str) -> None:
    """Raise `ConfigError` if a method does not suit the config's workers or overlap; before anything is run."""
    workers, x = Stacked(config.workers), torch.zeros(config.workers, 1)
    method = load_method(config, name)
    try:
        Rounds(method, workers, x, overlap=config.overlap)
        if isinstance(method, CenterMethod):
            method.init_center(x[:1], workers.size)
        check_pace(method, load_trigger(config), config.optimizer_state, config.clock, config.processes)
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
