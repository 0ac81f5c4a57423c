"""Training over slow links, measured: hosts with real, shaped networks on this one machine.

    sudo .venv/bin/python benchmarks/cluster.py --mbit 25,100,1000

Each host is a Linux network namespace (`cluster_network.py`) with one process in it (`cluster_worker.py`) training by
one strategy (`cluster_strategies.py`). Traffic is what the hosts' interfaces have counted. Whatever happens, the
namespaces are taken down at the end; what a killed benchmark has left behind, `--clean` removes.

Needs root, and `ip`, `tc`, `setpriv` and `unshare` (Debian: iproute2, util-linux).
"""

from __future__ import annotations

import importlib.util
import json
import statistics
import sys
import sysconfig
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import typer
from cluster_network import Cluster, clean
from cluster_processes import HostFailedError, environment, prepare, processes, wait
from cluster_strategies import STRATEGIES, Settings, Task
from cluster_worker import Report
from rich import box
from rich.console import Console
from rich.table import Table

LIGHTHOUSE_PORT = 29510
Data = Literal["fashion_mnist", "digits"]


def run_hosts(cluster: Cluster, tasks: Sequence[Task], timeout: float) -> list[Report]:
    """One process a host, from start to end.

    Raises:
        HostFailedError: if one of them fails, or time is up.
    """
    with tempfile.TemporaryDirectory() as folder:
        logs = Path(folder)
        reports = [logs / f"{task.host}.json" for task in tasks]
        worker = Path(__file__).with_name("cluster_worker.py")
        lines, environments = {}, {}
        for task, report in zip(tasks, reports, strict=True):
            words = (sys.executable, worker, task.to_json(), report)
            lines[f"host{task.host}"] = cluster.on(task.host, *words)
            environments[f"host{task.host}"] = environment(cluster, task.host) | {
                "TORCHFT_LIGHTHOUSE": f"http://{cluster.address(0)}:{LIGHTHOUSE_PORT}"
            }
        if STRATEGIES[tasks[0].strategy].lighthouse:
            bind = f"{cluster.address(0)}:{LIGHTHOUSE_PORT}"
            lighthouse = Path(sysconfig.get_path("scripts"), "torchft_lighthouse")
            lines["lighthouse"] = cluster.on(0, lighthouse, "--bind", bind, "--min_replicas", len(tasks))
        with processes(lines, environments, logs) as running:
            running.pop("lighthouse", None)
            wait(running, logs, timeout)
        return [Report(**json.loads(report.read_text())) for report in reports]


@dataclass(frozen=True)
class Goal:
    """The training loss to reach: each host's own, averaged over its last steps, and then over hosts.

    Attributes:
        loss: the loss.
        window: over how many steps a host it is averaged.
    """

    loss: float
    window: int

    def course(self, ends: Sequence[Sequence[float]], losses: Sequence[Sequence[float]]) -> list[tuple[float, float]]:
        """The moment of each step, once every host has taken a window of them, and the averaged loss then.

        Args:
            ends: of each host, when its steps ended.
            losses: of each host, their losses.
        """
        steps = []
        for host, (moments, own) in enumerate(zip(ends, losses, strict=True)):
            smoothed = np.convolve(own, np.ones(self.window) / self.window, "valid")
            steps += [(end, host, loss) for end, loss in zip(moments[self.window - 1 :], smoothed, strict=True)]
        latest: dict[int, float] = {}
        found = []
        for end, host, loss in sorted(steps):
            latest[host] = loss
            if len(latest) == len(ends):
                found.append((end, statistics.mean(latest.values())))
        return found

    def reached(self, course: Sequence[tuple[float, float]]) -> float | None:
        """When the loss was reached first; None if it never was."""
        return next((moment for moment, loss in course if loss <= self.loss), None)


@dataclass(frozen=True)
class Measurement:
    """What a strategy took on links of one speed. Bytes and seconds waited are means over hosts.

    Attributes:
        mbit: what a link carries, in Mbit/s.
        parameters: d.
        seconds: wall clock for all steps, and until what was sent by then had arrived.
        seconds_to_loss: until the goal was reached; None if it never was.
        waited: seconds in communication.
        sent: bytes that left an interface.
        payload: the same without headers.
        formula: bytes that a host should send.
        loss: the averaged training loss at the end.
    """

    strategy: str
    mbit: float
    parameters: int
    seconds: float
    seconds_to_loss: float | None
    waited: float
    sent: float
    payload: float
    formula: float
    loss: float


def measurement(strategy: str, mbit: float, settings: Settings, goal: Goal, reports: Sequence[Report]) -> Measurement:
    """Put together what the hosts have seen."""
    start = min(report.start for report in reports)
    ends = [[end - start for end in report.ends] for report in reports]
    course = goal.course(ends, [report.losses for report in reports])
    parameters = reports[0].parameters
    return Measurement(
        strategy=strategy,
        mbit=mbit,
        parameters=parameters,
        seconds=max(report.finish for report in reports) - start,
        seconds_to_loss=goal.reached(course),
        waited=statistics.mean(report.waited for report in reports),
        sent=statistics.mean(report.sent for report in reports),
        payload=statistics.mean(report.payload for report in reports),
        formula=STRATEGIES[strategy].bytes_sent(list(map(len, ends)), parameters, settings.period),
        loss=course[-1][1],
    )


def measure(cluster: Cluster, strategy: str, settings: Settings, goal: Goal) -> Measurement:
    """Train by one strategy."""
    tasks = [Task(strategy, host, cluster.address(host), settings) for host in cluster.hosts]
    return measurement(strategy, cluster.mbit, settings, goal, run_hosts(cluster, tasks, settings.timeout))


def table(measurements: Sequence[Measurement], settings: Settings, goal: Goal) -> Table:
    """What was measured on links of one speed: medians over repetitions, and the range of what was timed."""
    first = measurements[0]
    title = (
        f"{settings.hosts} hosts at {first.mbit:g} Mbit/s: {settings.data}, d = {first.parameters:,}, batch "
        f"{settings.batch}, {settings.steps} local steps, period {settings.period}, overlap {settings.overlap}"
        + (f"; host {settings.hosts - 1} takes {settings.slow:g} times as long for a step" if settings.slow > 1 else "")
    )
    shown = Table(title=title, title_justify="left", title_style="bold", box=box.SIMPLE_HEAD)
    shown.add_column("\n\nstrategy", no_wrap=True)
    for heading in (
        "\n\nruns",
        "\n\nseconds",
        f"\nseconds to\nloss {goal.loss:g}",
        "\nseconds\nwaited",
        "\nMB sent\na host",
        "\nMB by\nformula",
        "\nratio of\nthese two",
        "\nwithout\nheaders",
        "\nlast\nloss",
    ):
        shown.add_column(heading, justify="right", no_wrap=True)
    for strategy in dict.fromkeys(one.strategy for one in measurements):
        runs = [one for one in measurements if one.strategy == strategy]
        sent, payload = (statistics.median(getattr(one, name) for one in runs) for name in ("sent", "payload"))
        formula = runs[0].formula
        shown.add_row(
            strategy,
            str(len(runs)),
            with_range([one.seconds for one in runs]),
            with_range([one.seconds_to_loss for one in runs]),
            f"{statistics.median(one.waited for one in runs):.2f}",
            f"{sent / 1e6:.2f}",
            f"{formula / 1e6:.2f}",
            f"{sent / formula:.3f}" if formula else "",
            f"{payload / formula:.3f}" if formula else "",
            f"{statistics.median(one.loss for one in runs):.3f}",
        )
    return shown


def with_range(seconds: Sequence[float | None]) -> str:
    """The median, and from where to where the values go; "never" if a run has none."""
    known = [value for value in seconds if value is not None]
    if len(known) < len(seconds):
        return "never" if not known else f"never in {len(seconds) - len(known)}"
    shown = f"{statistics.median(known):.2f}"
    return shown if len(known) == 1 else f"{shown} ({min(known):.2f}-{max(known):.2f})"


def numbers(text: str, kind: type[int] | type[float]) -> list[Any]:
    """Numbers above 0 with commas between them."""
    try:
        found = [kind(word) for word in text.split(",")]
    except ValueError:
        raise typer.BadParameter(f"{text!r} is not a list of numbers such as 25,100") from None
    if min(found) <= 0:
        raise typer.BadParameter(f"{min(found)} is not above 0")
    return found


def chosen(text: str, console: Console) -> list[str]:
    """The strategies with these names that can run here; says which cannot."""
    names = text.split(",")
    for name in names:
        if name not in STRATEGIES:
            raise typer.BadParameter(f"there is no strategy {name!r}; there are {', '.join(STRATEGIES)}")
    missing = {name: [p for p in STRATEGIES[name].packages if not installed(p)] for name in names}
    for name, packages in missing.items():
        if packages:
            console.print(f"{name} is left out, for want of {', '.join(packages)}")
    return [name for name in names if not missing[name]]


def installed(package: str) -> bool:
    """Whether a package, or one that is part of another, can be imported."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # what it is part of
        return False


def main(
    hosts: Annotated[int, typer.Option(min=2, max=200, help="Number of hosts.")] = 4,
    mbit: Annotated[str, typer.Option(help="Speeds of the links in Mbit/s, with commas between them.")] = "25,100,1000",
    strategies: Annotated[str, typer.Option(help="Which, with commas between them.")] = ",".join(STRATEGIES),
    steps: Annotated[int, typer.Option(min=1, help="Local steps of each host.")] = 130,
    period: Annotated[int, typer.Option(min=2, help="Local steps between rounds.")] = 20,
    overlap: Annotated[int, typer.Option(min=1, help="Local steps a message may travel where it overlaps.")] = 10,
    batch: Annotated[int, typer.Option(min=1, help="Samples a step and host.")] = 64,
    hidden: Annotated[str, typer.Option(help="Widths of hidden layers. For d = 10 million: 4096,1664.")] = "1024,256",
    lr: Annotated[float, typer.Option(help="Learning rate of the local SGD.")] = 0.1,
    data: Annotated[Data, typer.Option(help="What to train on.")] = "fashion_mnist",
    loss: Annotated[float, typer.Option(help="The training loss to reach.")] = 0.6,
    window: Annotated[int, typer.Option(min=1, help="Over how many steps that loss is averaged.")] = 10,
    seed: Annotated[int, typer.Option(help="Of the model and the batches.")] = 0,
    slow: Annotated[
        float, typer.Option(min=1, help="Times as long as others that the last host takes for a step.")
    ] = 1,
    lasting: Annotated[
        float, typer.Option(min=0, help="Seconds that a local step lasts at least; what computing leaves is slept.")
    ] = 0,
    repeat: Annotated[int, typer.Option(min=1, help="How often to run each strategy, in turns.")] = 1,
    once: Annotated[str, typer.Option(help="Strategies to run only once, with commas between them.")] = "",
    timeout: Annotated[float, typer.Option(help="Seconds that one strategy may take, its start included.")] = 900,
    results: Annotated[Path | None, typer.Option("--json", help="Where to write everything measured.")] = None,
    only_clean: Annotated[bool, typer.Option("--clean", help="Only remove what killed runs have left.")] = False,
) -> None:
    """Train by several strategies on hosts with slow links, and print what each took."""
    prepare()
    console = Console(width=None if sys.stdout.isatty() else 150)
    if only_clean:
        for owner in clean():
            console.print(f"{owner} belongs to a process that runs; it is left alone")
        return
    if window > steps:
        raise typer.BadParameter(f"--window {window} is more than --steps {steps}")
    speeds, widths, names = numbers(mbit, float), numbers(hidden, int), chosen(strategies, console)
    single = chosen(once, console) if once else []
    settings = Settings(hosts, steps, period, overlap, batch, widths, lr, data, seed, timeout, slow, lasting)
    goal = Goal(loss, window)
    measured: list[Measurement] = []
    failures: list[dict[str, Any]] = []
    for speed in speeds:
        here: list[Measurement] = []
        with Cluster(hosts, speed) as cluster, console.status("") as status:
            for name in [name for turn in range(repeat) for name in names if turn == 0 or name not in single]:
                status.update(f"{name} at {speed:g} Mbit/s")
                try:
                    here.append(measure(cluster, name, settings, goal))
                except HostFailedError as error:
                    failures.append({"strategy": name, "mbit": speed, "error": str(error)})
                    console.print(f"{name} failed at {speed:g} Mbit/s: {error}", markup=False)
        if here:
            console.print(table(here, settings, goal))
        measured += here
    if results:
        contents = {"settings": asdict(settings), "goal": asdict(goal), "measured": [asdict(one) for one in measured]}
        results.write_text(json.dumps(contents | {"failed": failures}, indent=2) + "\n")
    if failures:
        sys.exit(1)


if __name__ == "__main__":
    typer.run(main)
