"""Ways to simulate local SGD, each in a process of its own: `gate()` after every round, the mean model at the end.

All of them train the same model on the same batches, from the same start.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import torch
from simulator_workloads import LR, Workload, objective
from torch import nn

import tether
from tether.data import Dataset
from tether.data.shards import Batches

Gate = Callable[[], None]
Contestant = Callable[[Workload, int, Gate], np.ndarray]


def indices(workload: Workload, data: Dataset, rounds: int) -> Iterator[np.ndarray]:
    """`[period, workers, batch]`, the samples of every local step of a round."""
    batches = Batches(data.shards(workload.workers, 0), workload.batch)
    steps = range(workload.period * rounds)
    everyone = range(workload.workers)
    for first in steps[:: workload.period]:
        yield np.stack([batches.indices(everyone, step) for step in range(first, first + workload.period)])


def loop(workload: Workload, rounds: int, gate: Gate, threads: int) -> np.ndarray:
    """Ordinary modules and optimizers, one worker after the other; batches are indexed from tensors."""
    torch.set_num_threads(threads)
    data = workload.make_data()
    models = [workload.make_model() for _ in range(workload.workers)]
    optimizers = [torch.optim.SGD(model.parameters(), lr=LR) for model in models]
    for chosen in indices(workload, data, rounds):
        for worker, (model, optimizer) in enumerate(zip(models, optimizers, strict=True)):
            for batch in torch.from_numpy(chosen[:, worker]):
                optimizer.zero_grad()
                objective(model, tuple(part[batch] for part in data.train)).backward()
                optimizer.step()
        with torch.no_grad():
            for parameters in zip(*(model.parameters() for model in models), strict=True):
                mean = torch.stack(parameters).mean(0)
                for parameter in parameters:
                    parameter.copy_(mean)
        gate()
    return nn.utils.parameters_to_vector(models[0].parameters()).detach().numpy()


def simulated(workload: Workload, rounds: int, gate: Gate, **ways: Any) -> np.ndarray:
    """`tether.simulate`; one process with one thread, or several with one each."""
    torch.set_num_threads(1)
    result = tether.simulate(
        workload.make_model(),
        tether.LocalSGD(workload.period),
        workload.make_data(),
        workers=workload.workers,
        objective=objective,
        optimizer=lambda p: torch.optim.SGD(p, lr=LR),
        steps=workload.period * rounds,
        batch_size=workload.batch,
        on_record=lambda record: gate(),
        **ways,
    )
    return result.rows.mean(0).numpy()


def jax(workload: Workload, rounds: int, gate: Gate, stacked: bool) -> np.ndarray:
    """Local steps under `lax.scan`, workers by `vmap` or one after the other by `lax.map`; one compiled round."""
    import jax
    from jax import lax

    data, model = workload.make_data(), workload.make_model()
    inputs, targets = (jax.numpy.asarray(part.numpy()) for part in data.train)
    row = {name: p.detach().numpy() for name, p in copy.deepcopy(model).named_parameters()}
    x = {name: jax.numpy.repeat(p[None], workload.workers, 0) for name, p in row.items()}

    def step(parameters: Any, batch: Any) -> Any:
        gradients = jax.grad(workload.jax)(parameters, inputs[batch], targets[batch])
        return jax.tree.map(lambda p, g: p - LR * g, parameters, gradients), None

    def worker(parameters: Any, batches: Any) -> Any:
        return lax.scan(step, parameters, batches)[0]

    @partial(jax.jit, donate_argnums=0)
    def round(x: Any, chosen: Any) -> Any:
        moved = jax.vmap(worker)(x, chosen) if stacked else lax.map(lambda each: worker(*each), (x, chosen))
        return jax.tree.map(lambda rows: jax.numpy.broadcast_to(rows.mean(0), rows.shape), moved)

    for chosen in indices(workload, data, rounds):
        x = jax.block_until_ready(round(x, chosen.swapaxes(0, 1)))
        gate()
    return np.concatenate([np.asarray(x[name][0]).ravel() for name in row])  # JAX sorts the names


def contestants(cores: int) -> dict[str, Contestant]:
    """Everyone, by name."""
    return {
        f"loop, {cores} threads": partial(loop, threads=cores),
        "loop, 1 thread": partial(loop, threads=1),
        "tether, stacked": partial(simulated, stepping="stacked"),
        "tether, compiled": partial(simulated, stepping="compiled"),
        f"tether, rows, {cores} processes": partial(simulated, stepping="rows", processes=cores),
        f"tether, stacked, {cores} processes": partial(simulated, stepping="stacked", processes=cores),
        f"tether, compiled, {cores} processes": partial(simulated, stepping="compiled", processes=cores),
        "jax, vmap": partial(jax, stacked=True),
        "jax, one by one": partial(jax, stacked=False),
    }
