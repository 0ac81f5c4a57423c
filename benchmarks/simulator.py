"""The simulator's speed and memory, measured beside a plain loop over PyTorch models and JAX.

    .venv/bin/python benchmarks/simulator.py W1 W2 W3
    .venv/bin/python benchmarks/simulator.py --curve 100,1000,10000

Everyone trains the same model on the same batches and must have the same mean model after a round. They take turns, a
few rounds each, so that what else the machine does falls on all alike; the figure is the median over the turns of local
steps (workers x steps) a second, rounds included. The first turn, in which what is compiled is compiled, is not in it,
and stands in a column of its own. JAX is in the extra `benchmark`.
"""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import resource
import statistics
import sys
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich import box
from rich.console import Console
from rich.table import Table
from simulator_contestants import contestants, simulated
from simulator_workloads import WORKLOADS, Workload

AGREE = 2e-2
"""Mean models may differ by so much after one round, relative to how far it has moved them.

Rounding that takes a hidden unit across zero changes a gradient: after the 50 local steps of W2's round, JAX and
PyTorch are 0.2 % apart, after the 10 of W1's 0.001 %. Many rounds later it proves nothing: the plain loop of W1 was
0.6 % apart after 4 and 7 % after 24, between one thread and two.
"""

app = typer.Typer(add_completion=False)
console = Console(width=110)


def take_part(name: str, key: str, turns: int, cores: int, pipe: Connection) -> None:
    """A contestant in its own process: sends the seconds that each turn took, waits to be told to take the next."""
    workload = WORKLOADS[key]
    passed, began = 0, 0.0

    def gate() -> None:
        nonlocal passed, began
        passed += 1
        if passed % workload.rounds == 0:
            pipe.send(time.perf_counter() - began)
            pipe.recv()
            began = time.perf_counter()

    try:
        pipe.recv()
        began = time.perf_counter()
        contestant = contestants(cores)[name]
        contestant(workload, turns * workload.rounds, gate)
        pipe.send(contestant(workload, 1, lambda: None))
    except Exception:
        pipe.send(traceback.format_exc())


def matmul_rate(threads: int, size: int = 1024) -> float:
    """Floating-point operations a second of a large matrix product, in 1e9."""
    torch.set_num_threads(threads)
    a = torch.randn(size, size)
    took = []
    for _ in range(20):
        began = time.perf_counter()
        a @ a
        took.append(time.perf_counter() - began)
    return 2 * size**3 / statistics.median(took) / 1e9


def turns_of(key: str, names: Sequence[str], turns: int, cores: int) -> dict[str, list[float]]:
    """The seconds of every turn, by contestant, the first one's (with compiling) included."""
    context = multiprocessing.get_context("spawn")
    running = {}
    for name in names:
        mine, theirs = context.Pipe()
        process = context.Process(target=take_part, args=(name, key, turns + 1, cores, theirs))
        process.start()
        theirs.close()
        running[name] = (process, mine)
    taken: dict[str, list[float]] = {name: [] for name in names}
    for turn in range(turns + 1):
        for name, (_, pipe) in running.items():
            pipe.send("go")
            answer = pipe.recv()
            if not isinstance(answer, float):
                raise SystemExit(f"{key}: {name} failed in turn {turn}:\n{answer}")
            taken[name].append(answer)
            print(f"{key}, turn {turn}: {name} {answer:.2f} s", file=sys.stderr, flush=True)
    centers: dict[str, Any] = {}
    for name, (process, pipe) in running.items():
        pipe.send("go")
        centers[name] = pipe.recv()
        process.join()
    start = torch.nn.utils.parameters_to_vector(WORKLOADS[key].make_model().parameters()).detach().numpy()
    (first, expected), *others = centers.items()
    for name, center in others:
        apart = np.linalg.norm(center - expected) / np.linalg.norm(expected - start)
        if not apart < AGREE:
            raise SystemExit(f"{key}: after a round {name} and {first} are {apart:.1e} of the way from the start apart")
    return taken


def table_of(key: str, workload: Workload, taken: dict[str, list[float]]) -> Table:
    table = Table(title=f"{key}: {workload.about}", box=box.HORIZONTALS, title_justify="left", min_width=80)
    for column in ("", "local steps/s", "of the loop", "least to most", "first turn, s"):
        table.add_column(column, justify="right" if column else "left")
    steps = workload.workers * workload.period * workload.rounds
    rates = {name: [steps / seconds for seconds in times[1:]] for name, times in taken.items()}
    base = max(statistics.median(rate) for name, rate in rates.items() if name.startswith("loop"))
    for name, rate in rates.items():
        middle = statistics.median(rate)
        digits = 1 if middle < 100 else 0
        table.add_row(
            name,
            f"{middle:,.{digits}f}",
            f"{middle / base:.2f}",
            f"{min(rate):,.{digits}f} – {max(rate):,.{digits}f}",
            f"{taken[name][0]:.1f}",
        )
    return table


def grow(workers: int, processes: int, pipe: Connection) -> None:
    """One round of W1's model with so many workers, in a process of its own; sends seconds and peak memory."""
    import dataclasses

    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    workload = WORKLOADS["W1"]
    larger = dataclasses.replace(workload, workers=workers)
    data = workload.make_data(workers)
    stamps = [time.perf_counter()]
    object.__setattr__(larger, "make_data", lambda: data)
    simulated(larger, 2, lambda: stamps.append(time.perf_counter()), stepping="compiled", processes=processes)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    others = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    pipe.send((stamps[-1] - stamps[-2], peak / 2**20, others / 2**20, before / 2**20))


def curve(sizes: Sequence[int], processes: int) -> Table:
    table = Table(title="W1 with more workers, one round of 10 steps", box=box.HORIZONTALS, title_justify="left")
    for column in ("workers", "seconds a round", "local steps/s", "peak GiB", "X, GiB"):
        table.add_column(column, justify="right")
    context = multiprocessing.get_context("spawn")
    parameters = sum(p.numel() for p in WORKLOADS["W1"].make_model().parameters())
    for workers in sizes:
        mine, theirs = context.Pipe()
        process = context.Process(target=grow, args=(workers, processes, theirs))
        process.start()
        seconds, peak, _others, _ = mine.recv()
        process.join()
        x = workers * parameters * 4 / 2**30
        table.add_row(f"{workers:,}", f"{seconds:.2f}", f"{workers * 10 / seconds:,.0f}", f"{peak:.2f}", f"{x:.2f}")
    return table


@app.command()
def main(
    workloads: Annotated[list[str] | None, typer.Argument(help=f"of {', '.join(WORKLOADS)}")] = None,
    turns: Annotated[int, typer.Option(help="turns of each contestant, after its first")] = 5,
    only: Annotated[str, typer.Option(help="contestants, by parts of their names, between semicolons")] = "",
    sizes: Annotated[str, typer.Option("--curve", help="numbers of workers, between commas")] = "",
    processes: Annotated[int, typer.Option(help="processes of the curve")] = 1,
    output: Annotated[str, typer.Option(help="a JSON file for the seconds of every turn")] = "",
) -> None:
    """Measure."""
    cores = os.cpu_count() or 1
    one, all_ = matmul_rate(1), matmul_rate(cores)
    load = os.getloadavg()[0]
    console.print(
        f"{cores} cores, load {load:.1f} before; matrix products of 1,024: {one:.0f} GFLOP/s on one thread, {all_:.0f} "
        f"on {cores}; torch {torch.__version__}, Python {sys.version.split()[0]}"
    )
    if sizes:
        console.print(curve([int(size) for size in sizes.split(",")], processes))
    names = [n for n in contestants(cores) if not only or any(part.strip() in n for part in only.split(";"))]
    if importlib.util.find_spec("jax") is None:
        console.print("JAX is not installed: pip install '.[benchmark]'")
        names = [name for name in names if not name.startswith("jax")]
    seconds = {}
    for key in workloads or []:
        seconds[key] = turns_of(key, names, turns, cores)
        console.print(table_of(key, WORKLOADS[key], seconds[key]))
    if output:
        with open(output, "w") as file:
            json.dump(seconds, file, indent=1)


if __name__ == "__main__":
    app()
