"""The page: one HTML file that needs nothing else."""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import Any

import numpy as np

from tether.config import ConfigError
from tether.report import style
from tether.report.curves import Curve, Figure, axes_of, figures
from tether.report.holdings import pictures
from tether.report.leaders import Trace, led, trace
from tether.report.runs import Run, common_folder, differences
from tether.report.summary import summary
from tether.report.timelines import Timeline, timeline


def page(runs: Sequence[Run]) -> str:
    """A self-contained HTML page about these runs.

    Raises:
        ConfigError: if what draws it is not installed.
    """
    try:
        from jinja2 import Environment, StrictUndefined
        from plotly.offline import get_plotlyjs
    except ModuleNotFoundError as error:
        raise ConfigError(f"a page needs {error.name}, which is not installed: pip install 'tether[report]'") from error
    drawn, pictured = figures(runs), pictures(runs)
    traces = [(number, found) for number, run in enumerate(runs) if (found := trace(run))]
    timelines = [(number, times) for number, run in enumerate(runs) if (times := timeline(run))]
    different = differences(runs)
    environment = Environment(autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    return environment.from_string(_file("page.html")).render(
        title=_title(runs),
        subtitle=_subtitle(runs),
        runs=runs,
        looks=style.looks(runs),
        groups=list(dict.fromkeys(run.group for run in runs)),
        axes=axes_of(runs),
        columns=summary(runs),
        figures=drawn,
        leaders=[(number, led(runs[number])) for number, _ in traces],
        timelines=timelines,
        pictures=pictured,
        different={key: [_said(value) for value in values] for key, values in different.items()},
        common={key: _said(value) for key, value in runs[0].config.items() if key not in different},
        made_with=_made_with(runs),
        style=_file("page.css"),
        colours=list(zip(style.LIGHT, style.DARK, strict=True)),
        script=_file("page.js"),
        plotly=get_plotlyjs(),
        data=_data(runs, drawn, traces, timelines, pictured),
    )


def _data(
    runs: Sequence[Run],
    drawn: Sequence[Figure],
    traces: Sequence[tuple[int, Trace]],
    timelines: Sequence[tuple[int, Timeline]],
    pictured: list[dict[str, Any]],
) -> str:
    """What the page's script draws, as JSON that may stand in a script element."""
    axes = axes_of(runs)
    content = {
        "axes": axes,
        "dashes": style.DASHES,
        "runs": [
            {"name": run.name, "colour": colour, "dash": style.DASHES[dash], "workers": run.workers}
            for run, (colour, dash) in zip(runs, style.looks(runs), strict=True)
        ],
        "figures": [
            {
                "key": figure.key,
                "unit": figure.unit,
                "log": figure.log,
                "curves": [_points(*each, axes) for each in zip(figure.curves, runs, strict=True)],
                "best": [_points(*each, axes) for each in zip(figure.best, runs, strict=True)] if figure.best else None,
            }
            for figure in drawn
        ],
        "leaders": [
            {
                "run": number,
                "since": {axis: _short(found.against(axis, runs[number])[0]) for axis in axes},
                "until": {axis: _short(found.against(axis, runs[number])[1]) for axis in axes},
                "worker": found.worker.tolist(),
                "of_all": found.of_all.tolist(),
            }
            for number, found in traces
        ],
        "timelines": [
            {"run": number, "workers": found.workers}
            | {
                kind: {key: _short(getattr(spans, key)) for key in ("worker", "since", "until")}
                for kind, spans in found.spans.items()
            }
            for number, found in timelines
        ],
        "holdings": pictured,
    }
    return json.dumps(content, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")


def _points(curve: Curve | None, run: Run, axes: Iterable[str]) -> dict[str, Any] | None:
    if curve is None:
        return None
    values = {"y": curve.y, "low": curve.low, "high": curve.high}
    x = {axis: _short(run.against(axis)[curve.at]) for axis in axes}
    return {"x": x} | {key: _short(each) for key, each in values.items() if each is not None}


def _short(values: np.ndarray) -> list[float | None]:
    """As JSON: whole numbers as they are, others with the digits that can be seen, null for what is no number."""
    if np.issubdtype(values.dtype, np.integer):
        return values.tolist()
    return [float(f"{value:.6g}") if np.isfinite(value) else None for value in values.tolist()]


def _file(name: str) -> str:
    return (files("tether.report") / name).read_text()


def _title(runs: Sequence[Run]) -> str:
    methods = list(dict.fromkeys(run.method for run in runs))
    data = list(dict.fromkeys(_data_name(run) for run in runs))
    if len(methods) > 6:
        return f"{len(runs)} runs on {_listed(data)}"
    return f"{_listed(methods)} on {_listed(data)}"


def _subtitle(runs: Sequence[Run]) -> str:
    """What all runs have in common, in words."""
    divided = _common(run.holdings["title"].split(", ", 1)[-1] if run.holdings else "" for run in runs)
    workers, steps = _common(run.workers for run in runs), _common(run.config["steps"] for run in runs)
    parts = [divided, f"{workers:,} workers" if workers else "", f"{steps:,} local steps each" if steps else ""]
    return ", ".join(part for part in parts if part)


def _common(values: Any) -> Any:
    found = set(values)
    return found.pop() if len(found) == 1 else None


def _data_name(run: Run) -> str:
    if run.holdings:
        return run.holdings["title"].split(", ")[0]
    name = run.config["data"]
    return name if isinstance(name, str) else " or ".join(name)


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"


def _said(value: Any) -> str:
    return value if isinstance(value, str) else "–" if value is None else json.dumps(value)


def _made_with(runs: Sequence[Run]) -> dict[str, list[str]]:
    """Versions, machines and commands, each with all that differ among the runs."""
    abouts = [run.about for run in runs]
    begun = [about["begun"].replace("T", " ") for about in abouts]
    said = {
        "versions": [", ".join(f"{name} {number}" for name, number in about["versions"].items()) for about in abouts],
        "seed": [str(run.config["seed"]) for run in runs],
        "machine": [
            f"{about['platform']}, {_count(about['processors'], 'processor')}, {_count(about['processes'], 'process')}"
            for about in abouts
        ],
        "begun": begun if len(begun) < 3 else [f"{begun[0]} to {begun[-1]}"],
        "command": [shlex.join(["tether", *about["command"][1:]]) for about in abouts],
        "folder": [str(common_folder([run.folder for run in runs]))],
    }
    return {key: list(dict.fromkeys(values)) for key, values in said.items()}


def _count(number: int, what: str) -> str:
    plural = "es" if what.endswith("s") else "s"
    return f"{number} {what}{'' if number == 1 else plural}"
