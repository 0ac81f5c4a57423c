"""The simulator's speed and memory, measured beside a plain loop over PyTorch models and JAX.

    .venv/bin/python benchmarks/simulator.py W1 W2 W3
    .venv/bin/python benchmarks/simulator.py --curve 100,2000,4000,6000,8000,10000 --figure docs/simulator.png

Everyone trains the same model on the same batches and must have the same mean model after a round. They take turns, a
few rounds each, so that what else the machine does falls on all alike; the figure is the median over the turns of local
steps (workers x steps) a second, rounds included. The first turn, in which what is compiled is compiled, is not in it,
and stands in a column of its own. JAX is in the extra `benchmark`.
"""

from __future__ import annotations

import dataclasses
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


def jax_matmul_rate(size: int = 1024) -> float:
    """The same of JAX, whose kernels are others, on all cores; in a process of its own, like every contestant."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return 2 * size**3 / pool.apply(jax_matmul_seconds, (size,)) / 1e9


def jax_matmul_seconds(size: int) -> float:
    import jax

    product = jax.jit(lambda a: a @ a)
    a = jax.random.normal(jax.random.key(0), (size, size))
    took = []
    for _ in range(21):
        began = time.perf_counter()
        product(a).block_until_ready()
        took.append(time.perf_counter() - began)
    return statistics.median(took[1:])


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


def grow(workers: int, pipe: Connection) -> None:
    """Two rounds of W1's model with so many workers; sends what `Grown` has."""
    workload = WORKLOADS["W1"]
    larger = dataclasses.replace(workload, workers=workers, samples=workload.held * workload.workers)
    stamps = [time.perf_counter()]
    simulated(larger, 2, lambda: stamps.append(time.perf_counter()), stepping="compiled")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    pipe.send(Grown(workers, stamps[-1] - stamps[-2], peak / 2**20))


@dataclasses.dataclass(frozen=True)
class Grown:
    """A run of W1's model by so many workers: seconds of its second round, peak memory of its process in GiB."""

    workers: int
    seconds: float
    peak: float


def curve(sizes: Sequence[int]) -> list[Grown]:
    """Every size in a process of its own."""
    context = multiprocessing.get_context("spawn")
    grown = []
    for workers in sizes:
        mine, theirs = context.Pipe()
        process = context.Process(target=grow, args=(workers, theirs))
        process.start()
        theirs.close()
        grown.append(mine.recv())
        process.join()
    return grown


def table_of_curve(grown: Sequence[Grown]) -> Table:
    table = Table(title="W1 with more workers, one process", box=box.HORIZONTALS, title_justify="left", min_width=80)
    for column in ("workers", "seconds a round", "local steps/s", "peak resident, GiB", "X, GiB"):
        table.add_column(column, justify="right")
    workload = WORKLOADS["W1"]
    parameters = sum(p.numel() for p in workload.make_model().parameters())
    for each in grown:
        table.add_row(
            f"{each.workers:,}",
            f"{each.seconds:.2f}",
            f"{each.workers * workload.period / each.seconds:,.0f}",
            f"{each.peak:.2f}",
            f"{each.workers * parameters * 4 / 2**30:.2f}",
        )
    return table


def draw(grown: Sequence[Grown], path: str) -> None:
    """Seconds and memory over workers, and the straight lines through the first and the last of them."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import FuncFormatter

    workers = np.array([each.workers for each in grown])
    figure = Figure((8, 3), layout="constrained", dpi=150)
    labels = ("seconds a round of 10 steps", "peak resident memory, GiB")
    for axes, label, values in zip(
        figure.subplots(1, 2), labels, np.array([(each.seconds, each.peak) for each in grown]).T, strict=True
    ):
        slope = (values[-1] - values[0]) / (workers[-1] - workers[0])
        line = np.linspace(workers[0], workers[-1])
        axes.plot(line, values[0] + slope * (line - workers[0]), color="#b9bfc6", linewidth=1)
        axes.plot(workers, values, "o", color="#2f4fb5", markersize=5)
        axes.set(xlabel="workers", ylabel=label, ylim=(0, None), xlim=(0, None))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda count, _: f"{count:,.0f}"))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#eceef1", linewidth=0.6)
        axes.set_axisbelow(True)
    figure.savefig(path)


@app.command()
def main(
    workloads: Annotated[list[str] | None, typer.Argument(help=f"of {', '.join(WORKLOADS)}")] = None,
    turns: Annotated[int, typer.Option(help="turns of each contestant, after its first")] = 5,
    only: Annotated[str, typer.Option(help="contestants, by parts of their names, between semicolons")] = "",
    sizes: Annotated[str, typer.Option("--curve", help="numbers of workers, between commas")] = "",
    figure: Annotated[str, typer.Option(help="a PNG file for that curve")] = "",
    output: Annotated[str, typer.Option(help="a JSON file for the seconds of every turn")] = "",
) -> None:
    """Measure."""
    cores = os.cpu_count() or 1
    load = os.getloadavg()[0]
    with_jax = importlib.util.find_spec("jax") is not None
    rates = f"{matmul_rate(1):.0f} GFLOP/s on one thread, {matmul_rate(cores):.0f} on {cores}"
    if with_jax:
        rates += f", {jax_matmul_rate():.0f} by JAX"
    console.print(f"{cores} cores, load {load:.1f} before; torch {torch.__version__}, Python {sys.version.split()[0]}")
    console.print(f"matrix products of 1,024: {rates}")
    if sizes:
        grown = curve([int(size) for size in sizes.split(",")])
        console.print(table_of_curve(grown))
        if figure:
            draw(grown, figure)
    names = [n for n in contestants(cores) if not only or any(part.strip() in n for part in only.split(";"))]
    if not with_jax:
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
