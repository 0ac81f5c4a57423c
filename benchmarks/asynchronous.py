"""How fast asynchronous workers simulate, against as many synchronous ones: `python benchmarks/asynchronous.py`.

The same model, data and local steps; rounds or visits, and what they cost on virtual time, included. Turns alternate,
and the median is printed with its range.
"""

from __future__ import annotations

import argparse
import statistics
from dataclasses import dataclass, replace

import torch
from rich.console import Console
from rich.table import Table
from simulator_workloads import LR, WORKLOADS, objective

import tether

EQUAL = tether.Clock(step=0.01)
UNEVEN = tether.Clock(step=0.01, noise="lognormal", spread=0.5, latency=0.001, bandwidth=1e9)


@dataclass(frozen=True)
class Contestant:
    name: str
    method: tether.Method
    clock: tether.Clock
    trigger: tether.TotalSteps | None = None


def contestants(period: int) -> list[Contestant]:
    return [
        Contestant("local SGD", tether.LocalSGD(period), EQUAL),
        Contestant("Downpour, equal speeds", tether.Downpour(period), EQUAL),
        Contestant("asynchronous EASGD, equal speeds", tether.AsynchronousEASGD(period), EQUAL),
        Contestant("leader SGD by total steps, equal speeds", tether.LSGD(period), EQUAL, tether.TotalSteps()),
        Contestant("asynchronous EASGD, uneven", tether.AsynchronousEASGD(period), UNEVEN),
        Contestant("leader SGD by total steps, uneven", tether.LSGD(period), UNEVEN, tether.TotalSteps()),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--workload", default="W1", choices=WORKLOADS)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--repeat", type=int, default=3)
    parser.add_argument("--stepping", default="stacked")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    workload = WORKLOADS[arguments.workload]
    shared = workload.held * workload.workers  # samples for as many workers as it has; more share them
    data = replace(workload, workers=arguments.workers, samples=shared).make_data()
    steps = workload.period * arguments.rounds
    speeds: dict[str, list[float]] = {}
    for _ in range(arguments.repeat):
        for each in contestants(workload.period):
            result = tether.simulate(
                workload.make_model(),
                each.method,
                data,
                workers=arguments.workers,
                objective=objective,
                optimizer=lambda p: torch.optim.SGD(p, lr=LR),
                steps=steps,
                batch_size=workload.batch,
                clock=each.clock,
                trigger=each.trigger,
                stepping=arguments.stepping,
            )
            speeds.setdefault(each.name, []).append(arguments.workers * steps / result.seconds)
    table = Table("run", "steps/s", "range", "of local SGD's", box=None)
    base = speeds["local SGD"]
    for name, mine in speeds.items():
        ratios = [a / b for a, b in zip(mine, base, strict=True)]
        table.add_row(
            name,
            f"{statistics.median(mine):,.0f}",
            f"{min(mine):,.0f}-{max(mine):,.0f}",
            f"{statistics.median(ratios):.2f}",
        )
    console = Console()
    console.print(f"{arguments.workload}, {arguments.workers} workers, {steps} steps each: {workload.about}")
    console.print(table)


if __name__ == "__main__":
    main()
