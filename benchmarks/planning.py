"""Plans against real runs: `tether plan --verify` on hosts with real slow links, link by link and model by model.

    sudo .venv/bin/python benchmarks/planning.py

In each case the hosts of `cluster_network.py` run the command itself, started as torchrun would start it: they measure
their steps and links, the first of them simulates every candidate, and then all of them train by each for real. What
is printed: seconds from round to round and to a training loss, predicted and measured, and whether what was
recommended is what was soonest. A step computes, and sleeps for a time (`planning_host.py`): the few cores of one
machine stand in for those of many.

Needs what `cluster.py` needs.
"""

from __future__ import annotations

import json
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import typer
from cluster_network import Cluster
from cluster_processes import environment, prepare, processes, wait
from rich import box
from rich.console import Console
from rich.table import Table

MODELS = {
    "cnn": 'model = "second-order-cnn"',
    "mlp": 'model = { name = "mlp", hidden = [200] }',
    "wide": 'model = { name = "mlp", hidden = [1024, 256] }',
}
"""On Fashion-MNIST: d = 14,700, 159,010 and 1,068,810."""

HOST = Path(__file__).with_name("planning_host.py")

CONFIG = """
workers = {hosts}
steps = {steps}
batch_size = {batch}
data = {{ name = "fashion-mnist", partition = "iid" }}
{model}
optimizer = {{ name = "SGD", lr = {lr} }}
"""

LEVEL = 0.10
"""A recommendation within this share of the soonest is right."""


@dataclass(frozen=True)
class Case:
    """A link and a model, and the plan for them with what was measured."""

    mbit: float
    model: str
    plan: dict[str, Any]

    @property
    def measured(self) -> dict[str, float]:
        """Seconds to the loss, by candidate."""
        return {each["name"]: each["to_target"][1] for each in self.plan["verified"] if each["to_target"][1]}

    @property
    def excess(self) -> float:
        """How much longer the recommended candidate took than the soonest."""
        times = self.measured
        return times[self.plan["recommended"]] / min(times.values()) - 1


def planned(mbit: float, model: str, config: str, methods: str, periods: str, rest: float, timeout: float) -> Case:
    """Plan and verify on hosts of their own."""
    with tempfile.TemporaryDirectory() as place, Cluster(hosts_of(config), mbit) as cluster:
        folder = Path(place)
        (folder / "config.toml").write_text(config)
        words = [HOST, rest, "plan", folder / "config.toml", "--methods", methods, "--periods", periods]
        words += ["--verify", "--top", 99, "--no-bounds", "--out", folder / "plan"]
        lines = {f"host{host}": cluster.on(host, sys.executable, *words) for host in cluster.hosts}
        environments = {f"host{host}": environment(cluster, host) for host in cluster.hosts}
        with processes(lines, environments, folder) as running:
            wait(running, folder, timeout)
        return Case(mbit, model, json.loads((folder / "plan" / "plan.json").read_text()))


def hosts_of(config: str) -> int:
    """A worker a host."""
    return int(config.split("workers = ")[1].split()[0])


def table(case: Case) -> Table:
    """Every candidate of a case, predicted and measured."""
    clock = case.plan["clock"]
    title = (
        f"{case.mbit:g} Mbit/s, {case.model}: measured {1000 * clock['step']:.3g} ms a step, "
        f"{clock['bandwidth'] / 1e6:.4g} Mbit/s, latency {1000 * clock['latency']:.2g} ms; "
        f"loss {case.plan['target']:.3g}"
    )
    shown = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    shown.add_column("candidate", no_wrap=True)
    besides = {each["name"]: float(f"{1000 * each['seconds a round besides']:.2g}") for each in case.plan["candidates"]}
    for heading in (
        "a round\nbesides, ms",
        "a period, s:\npredicted",
        "\nmeasured",
        "\nratio",
        "to loss, s:\npredicted",
        "\nmeasured",
        "\nratio",
    ):
        shown.add_column(heading, justify="right", no_wrap=True)
    for each in case.plan["verified"]:
        recommended = each["name"] == case.plan["recommended"]
        cells = [cell for pair in (each["period"], each["to_target"]) for cell in compared(*pair)]
        shown.add_row(each["name"] + (" *" if recommended else ""), f"{besides[each['name']]:g}", *cells)
    return shown


def compared(predicted: float | None, measured: float | None) -> tuple[str, str, str]:
    """The two, and the first over the second."""
    shown = ["never" if value is None else f"{value:.3g}" for value in (predicted, measured)]
    return shown[0], shown[1], f"{predicted / measured:.2f}" if predicted and measured else ""


def summary(cases: list[Case]) -> Table:
    """Of each case: how far predictions were off, and what the recommendation cost."""
    shown = Table(box=box.SIMPLE_HEAD)
    for heading in ("Mbit/s", "model", "a period:\npredicted / measured", "to the loss:\npredicted / measured"):
        shown.add_column(heading, justify="left" if heading == "model" else "right")
    for heading in ("recommended", "soonest, measured", "recommended\ntook more"):
        shown.add_column(heading, justify="right" if "took" in heading else "left")
    for case in cases:
        ratios = []
        for key in ("period", "to_target"):
            each = [one[key][0] / one[key][1] for one in case.plan["verified"] if one[key][0] and one[key][1]]
            ratios.append(f"{min(each):.2f} to {max(each):.2f}")
        times = case.measured
        soonest = min(times, key=lambda name: times[name])
        shown.add_row(f"{case.mbit:g}", case.model, *ratios, case.plan["recommended"], soonest, f"{case.excess:.0%}")
    return shown


def main(
    hosts: Annotated[int, typer.Option(min=2, help="Number of hosts, a worker each.")] = 4,
    mbit: Annotated[str, typer.Option(help="Speeds of the links in Mbit/s.")] = "25,100,1000",
    models: Annotated[str, typer.Option(help="Which models.")] = ",".join(MODELS),
    methods: Annotated[str, typer.Option(help="Which methods.")] = "sync,local,easgd,ring,leader",
    periods: Annotated[str, typer.Option(help="Local steps between rounds.")] = "16",
    steps: Annotated[int, typer.Option(min=1, help="Local steps of each host.")] = 80,
    batch: Annotated[int, typer.Option(min=1, help="Samples a step and host.")] = 64,
    lr: Annotated[float, typer.Option(help="Learning rate.")] = 0.1,
    rest: Annotated[float, typer.Option(min=0, help="Seconds that a host sleeps in a step.")] = 0.04,
    timeout: Annotated[float, typer.Option(help="Seconds that one case may take.")] = 900,
    results: Annotated[Path | None, typer.Option("--json", help="Where to write all plans.")] = None,
) -> None:
    """Plan for each link and model, and see how well that was."""
    prepare()
    console = Console(width=None if sys.stdout.isatty() else 150)
    cases = []
    for speed in mbit.split(","):
        for model in models.split(","):
            config = CONFIG.format(hosts=hosts, steps=steps, batch=batch, lr=lr, model=MODELS[model])
            with console.status(f"{speed} Mbit/s, {model}"):
                cases.append(planned(float(speed), model, config, methods, periods, rest, timeout))
            console.print(table(cases[-1]))
    console.print(summary(cases))
    right = sum(case.excess <= LEVEL for case in cases)
    console.print(f"The recommendation was the soonest, or within {LEVEL:.0%} of it, in {right} of {len(cases)} cases.")
    if results:
        results.write_text(json.dumps([{"mbit": c.mbit, "model": c.model} | c.plan for c in cases], indent=1) + "\n")


if __name__ == "__main__":
    typer.run(main)
