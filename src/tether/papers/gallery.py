"""What experiments have found, as a page: every claim with its verdict, every figure with what it came by.

The page is made of a folder beside it, which has of each experiment the figures, the tables and its `outcome.json`, and
of nothing else: so whoever has the repository can make it again.
"""

from __future__ import annotations

import csv
import html
import json
import re
import shutil
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_args

from tether.config import ConfigError
from tether.papers.experiments import EXPERIMENTS, Claim, Experiment, Verdict
from tether.papers.reproduce import OUTCOME, slug
from tether.run_folder import write_json

ROWS = 16
"""A table with more rows is a link only."""

LARGE = 300_000
"""Bytes; a figure whose SVG has more is shown, and kept, as a PNG."""

BEGIN = """# Results

What `tether reproduce` has measured of each experiment of the papers, claim by claim. This page is written by
`tether gallery` from what the experiments left; nothing on it is typed by hand. Where a paper prints a number of the
same data, a claim *holds* if ours rounds to it; otherwise the line under it says what was compared, and from where on
it holds. A claim that our runs do not support stands here as such.
"""

COUNTS = "| experiment | {} | seconds |"


def write_gallery(outcomes: Path | None, page: Path) -> list[str]:
    """Write a page about experiments, and what it shows to a folder of its name beside it.

    Args:
        outcomes: a folder in which experiments have been carried out, at whatever depth; None: make the page again.
        page: a Markdown file, such as `docs/results.md`.

    Returns:
        The names of the experiments on the page.

    Raises:
        ConfigError: if there is no outcome, or one is damaged.
    """
    place = page.with_suffix("")
    for path in sorted(outcomes.rglob(OUTCOME)) if outcomes else ():
        _keep(path, place)
    found = [(path.parent, _read(path)) for path in place.rglob(OUTCOME)]
    if not found:
        raise ConfigError(f"{outcomes or place}: no experiment has an outcome there; tether reproduce --all makes some")
    order = list(EXPERIMENTS)
    found.sort(key=lambda each: (order.index(each[1]["experiment"]), each[1]["setting"], each[1]["seed"]))
    sections = ["\n".join(_section(folder, outcome, page.parent)) for folder, outcome in found]
    names = [outcome["experiment"] for _, outcome in found]
    missing = "\n".join(_missing([each for each in EXPERIMENTS.values() if each.name not in names]))
    text = "\n\n".join([BEGIN.strip(), "\n".join(_counts([outcome for _, outcome in found])), *sections, missing])
    page.write_text(text.rstrip() + "\n")
    return names


def _keep(path: Path, place: Path) -> None:
    """Copy what the page shows of an experiment; where it was carried out is nobody's business."""
    outcome = _read(path)
    outcome["command"] = outcome["command"].partition(" --out ")[0]
    outcome["machine"].pop("command", None)
    folder = place / _title(outcome)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    vector = [name for name in outcome["figures"] if name.endswith(".svg")]
    outcome["figures"] = [
        name if (path.parent / name).stat().st_size <= LARGE else name.removesuffix("svg") + "png" for name in vector
    ]
    for name in outcome["figures"] + outcome["tables"]:
        shutil.copyfile(path.parent / name, folder / name)
    write_json(folder / OUTCOME, outcome)


def _read(path: Path) -> dict[str, Any]:
    try:
        outcome = json.loads(path.read_text())
        known = outcome["experiment"] in EXPERIMENTS
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}): carry out the experiment again") from error
    if not known:
        raise ConfigError(f"{path} is of {outcome['experiment']}, which is no experiment any more: remove its folder")
    return outcome


def _counts(outcomes: Sequence[dict[str, Any]]) -> Iterator[str]:
    """How many claims of each experiment have which verdict."""
    verdicts = get_args(Verdict)
    yield COUNTS.format(" | ".join(verdicts))
    yield "|---|" + "---:|" * (len(verdicts) + 1)
    rows = [(_under(f"[{_title(each)}](#{_title(each).replace('/', '')})", each["shows"]), [each]) for each in outcomes]
    for name, those in [*rows, ("all", outcomes)]:
        of = [claim["verdict"] for outcome in those for claim in outcome["claims"]]
        numbers = " | ".join(str(of.count(verdict) or "") for verdict in verdicts)
        yield f"| {name} | {numbers} | {sum(outcome['seconds'] for outcome in those):,.0f} |"


def _section(folder: Path, outcome: dict[str, Any], root: Path) -> Iterator[str]:
    """One experiment."""
    yield f"## {_title(outcome)}\n"
    yield f"{_text(outcome['about'])}. {_text(outcome['paper'])}: {_text(outcome['shows'])}.\n"
    came_by = (
        f"`{outcome['command']}`, {_commit(outcome['commit'])}, seed {outcome['seed']}, {_time(outcome['seconds'])}"
    )
    for name in outcome["figures"]:
        title = Path(name).stem
        yield f"![{title} of {outcome['experiment']}]({(folder / name).relative_to(root).as_posix()})\n"
        yield f"*{title}*: {came_by}\n"
    yield "| verdict | the paper says |\n|---|---|"
    for each in outcome["claims"]:
        claim = Claim(each["says"], None, each["ours"], each["paper"], each["remark"])
        yield f"| {each['verdict']} | {_under(_text(claim.says), claim.measured)} |"
    for name in outcome["tables"]:
        yield from _details(folder / name, root)
    yield ""
    yield from (f"- {_text(note)}" for note in outcome["notes"])
    machine = outcome["machine"]
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    yield f"\nAll of it by {came_by}; {versions}, {machine['processors']} processors, {machine['threads']} threads."


def _missing(experiments: Sequence[Experiment]) -> Iterator[str]:
    """What is not on the page, and why."""
    if experiments:
        yield "## Not carried out\n"
    for each in experiments:
        why = f"needs {each.data}" if each.data and not each.stand_in else "has not been carried out for this page"
        yield f"- `{each.name}` ({_text(each.shows)}) {_text(why)}."


def _details(path: Path, root: Path) -> Iterator[str]:
    """A table, folded in; a long one is a link alone."""
    with path.open(newline="") as file:
        heading, *rows = csv.reader(file)
    link = f"[{path.name}]({path.relative_to(root).as_posix()})"
    if len(rows) > ROWS:
        yield f"\n{link}: {len(rows):,} rows"
        return
    yield f"\n{link}\n"
    yield from _table(heading, rows)


def _table(heading: Sequence[str], rows: Iterable[Sequence[Any]]) -> Iterator[str]:
    yield f"| {' | '.join(map(_text, heading))} |"
    yield "|" + "---|" * len(heading)
    yield from (f"| {' | '.join(map(_shown, row))} |" for row in rows)


def _shown(value: Any) -> str:
    """A number to six digits; text as text."""
    try:
        number = float(value)
    except ValueError:
        return _text(value)
    return str(value) if isinstance(value, str) and len(value) < 10 else f"{number:.6g}"


def _text(text: str) -> str:
    """Text in which nothing is Markdown."""
    return re.sub(r"([\\`*_{}\[\]|#~])", r"\\\1", " ".join(html.escape(text, quote=False).split()))


def _under(text: str, more: str) -> str:
    """Something, and under it what is to be said of it."""
    return f"{text}<br><small>{_text(more)}</small>" if more else text


def _title(outcome: dict[str, Any]) -> str:
    return slug(outcome["experiment"], outcome["setting"] == "paper", outcome["seed"])


def _commit(described: str | None) -> str:
    if described is None:
        return "of no commit"
    commit, comma, changed = described.partition(",")
    return f"commit {commit[:10]}{comma}{changed}"


def _time(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds < 100 else f"{seconds:,.0f} s"
