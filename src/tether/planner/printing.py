"""What `tether plan` prints: the cluster, the candidates, and what became of those that were tried."""

from __future__ import annotations

from collections.abc import Sequence

from rich import box
from rich.table import Table

from tether.config import Config
from tether.data import Dataset
from tether.planner.candidates import Conditions
from tether.planner.plan import Plan, Verified


def heading(config: Config, data: Dataset, conditions: Conditions) -> str:
    """What is trained, by whom, and how fast steps and links are."""
    clock = conditions.clock
    speeds = clock.speeds or (1.0,)
    step = _range([clock.step / speed for speed in speeds], "ms", 1e3)
    unlike = f", {len(clock.links)} links unlike these" if clock.links else ""
    return (
        f"{data}, {data.partition}, {config.workers} workers, d = {conditions.parameters:,}, {config.steps} local "
        "steps each\n"
        f"a local step takes {step}; links of {clock.bandwidth / 1e6:.4g} Mbit/s, latency "
        f"{1000 * clock.latency:.3g} ms{unlike}"
    )


def _range(values: Sequence[float], unit: str, factor: float) -> str:
    low, high = factor * min(values), factor * max(values)
    return f"{low:.3g} {unit}" if high < 1.05 * low else f"{low:.3g} to {high:.3g} {unit}"


def candidates(plan: Plan) -> Table:
    """A row for each candidate, the soonest at the target first."""
    table = Table(box=box.SIMPLE_HEAD, padding=0)  # fits a terminal of 80 columns
    headings = (
        "method, period\n+ overlap",
        "MB a\nround",
        "s a\nmessage",
        "s a\nperiod",
        "\nwaits",
        f"steps to\nloss {plan.target:.3g}",
        "\nseconds",
        "loss at\nthe end",
    )
    for heading in headings:
        table.add_column(heading, justify="left" if heading is headings[0] else "right", no_wrap=True)
    if plan.bounds:
        table.add_column("bound on\n|∇F|²", justify="right", no_wrap=True)
    for each in plan.forecasts:
        course = each.course
        step, when = (None, None) if course is None else (course.reaches(plan.target), each.to_target(plan.target))
        cells = [
            each.candidate.name,
            f"{each.megabytes:.2g}",
            f"{each.message:.2g}",
            *(
                ("diverged", "", "", "", "")
                if course is None
                else (
                    f"{each.period:.2g}",
                    f"{each.waiting:.0%}",
                    f"> {course.ends:,}" if step is None else f"{step:,}",
                    f"> {each.seconds:.3g}" if when is None else f"{when:.3g}",
                    f"{each.loss:.3g}",
                )
            ),
        ]
        if plan.bounds:
            bound = plan.bounds.get(each.candidate.name)
            cells.append("" if bound is None else "-" if bound.value is None else f"{bound.value:.3g}")
        table.add_row(*cells, style="bold" if each.candidate == plan.recommended else None)
    return table


def on_bounds(plan: Plan) -> str:
    """What the column of bounds means."""
    rates = {bound.largest_lr for bound in plan.bounds.values() if bound.value is None}
    said = "The bound is Cooperative SGD's, on the mean of |∇F|² over the steps in the time of the first row."
    if rates:
        said += f" It is proved for learning rates up to {min(rates):.2g} to {max(rates):.2g} where there is a dash."
    return said + "\n"


def compared(checked: Sequence[Verified], target: float) -> Table:
    """Predicted beside measured."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("measured on\nthese workers", no_wrap=True)
    for heading in (
        "a period:\npredicted",
        "\nmeasured",
        "\nratio",
        f"to loss {target:.3g}:\npredicted",
        "\nmeasured",
        "\nratio",
        "loss at the end:\npredicted",
        "\nmeasured",
    ):
        table.add_column(heading, justify="right", no_wrap=True)
    for each in checked:
        table.add_row(
            each.name, *_ratio(*each.period), *_ratio(*each.to_target), *(f"{value:.4g}" for value in each.loss)
        )
    return table


def _ratio(predicted: float | None, measured: float | None) -> tuple[str, str, str]:
    shown = ["never" if value is None else f"{value:.4g}" for value in (predicted, measured)]
    return shown[0], shown[1], f"{predicted / measured:.2f}" if predicted and measured else ""


def lesson(checked: Sequence[Verified], plan: Plan) -> str:
    """Whether what was recommended is what was soonest."""
    times = {each.name: each.to_target[1] for each in checked if each.to_target[1] is not None}
    if plan.recommended.name not in times:
        return ""
    soonest = min(times, key=lambda name: times[name])
    mine, best = times[plan.recommended.name], times[soonest]
    if mine <= best:
        return f"Measured, too, {plan.recommended.name} is the soonest of these {len(checked)}."
    return f"Measured, {soonest} is {mine / best:.2f} times sooner than {plan.recommended.name}."
