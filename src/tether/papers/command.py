"""What `tether reproduce` prints."""

from __future__ import annotations

import json
import traceback
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from tether.config import ConfigError
from tether.papers import EXPERIMENTS, Experiment, Outcome, Setting, find
from tether.papers.gallery import write_gallery
from tether.papers.reproduce import OUTCOME, current_commit, default_folder, reproduce, slug


def list_experiments(console: Console) -> None:
    """Of every paper the experiments: name, figure or table, what it is about, the data that it needs."""
    width = max(map(len, EXPERIMENTS))
    for source in dict.fromkeys(each.source for each in EXPERIMENTS.values()):
        table = Table(title=source, title_justify="left", title_style="bold", box=None, show_header=False)
        table.padding = (0, 2, 0, 0)
        table.add_column(no_wrap=True, min_width=width)
        table.add_column()
        for each in EXPERIMENTS.values():
            if each.source == source:
                needs = f" Data: {each.data}{f'; else {each.stand_in}' if each.stand_in else ''}." if each.data else ""
                table.add_row(each.name, f"{each.shows}. {each.about}.{needs}")
        console.print(table)
        console.print()


def carry_out(name: str, paper: bool, data: Path | None, seed: int, out: Path | None, console: Console) -> None:
    """Carry out an experiment and print its claims."""
    experiment = find(name)
    folder = out or default_folder(experiment, paper, seed)
    _carry_out(experiment, folder, paper, data, seed, console)


def carry_out_all(paper: bool, seed: int, out: Path | None, console: Console) -> None:
    """Carry out all experiments that need no data, each in a folder of its name, unless it stands there already.

    One that fails does not keep the others from being carried out; which have failed is said at the end.
    """
    failed = []
    for experiment in EXPERIMENTS.values():
        folder = (out or Path("runs")) / slug(experiment.name, paper, seed)
        try:
            experiment.check(Setting(folder, paper, seed=seed))
        except ConfigError as error:
            console.print(f"left out: {error}", highlight=False, markup=False, soft_wrap=True)
            continue
        if _stands(folder):
            console.print(f"{experiment.name} stands in {folder}, of this commit", highlight=False, soft_wrap=True)
            continue
        try:
            _carry_out(experiment, folder, paper, None, seed, console)
        except Exception:  # hours of others' results are worth more than to stop at once
            failed.append(experiment.name)
            console.print(traceback.format_exc(), highlight=False, markup=False, soft_wrap=True)
    if failed:
        raise SystemExit(f"tether: {len(failed)} failed: {', '.join(failed)}; what they said stands above")


def _stands(folder: Path) -> bool:
    """Whether an outcome is there that this code, unchanged, has come to."""
    try:
        commit = json.loads((folder / OUTCOME).read_text())["commit"]
    except (OSError, ValueError, KeyError):
        return False
    return commit is not None and "changed" not in commit and commit == current_commit()


def make_gallery(outcomes: Path | None, page: Path, console: Console) -> None:
    """Write the page about what experiments have found."""
    names = write_gallery(outcomes, page)
    console.print(f"{page}: experiments: {len(names)}", highlight=False, markup=False, soft_wrap=True)


def _carry_out(
    experiment: Experiment, folder: Path, paper: bool, data: Path | None, seed: int, console: Console
) -> None:
    columns = (TextColumn("{task.description:>24}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(experiment.name, total=1.0)

        def tell(what: str, share: float) -> None:
            progress.update(bar, description=what, completed=share)

        outcome = reproduce(experiment, Setting(folder, paper, data, seed, tell))
    console.print(f"{experiment.name}, {experiment.shows}: {experiment.source}", highlight=False)
    console.print(_claims(outcome))
    for note in outcome.notes:
        console.print(f"- {note}", highlight=False, markup=False)
    console.print(f"\nwritten: {folder}", highlight=False, markup=False, soft_wrap=True)


VERDICTS = {"holds": "green", "does not hold": "red", "not testable on this data": "yellow"}


def _claims(outcome: Outcome) -> Table:
    """Each claim, its verdict before it, and under it the numbers and what they are."""
    table = Table("verdict", "the paper says", box=box.SIMPLE_HEAD)
    table.columns[0].no_wrap = True
    for claim in outcome.claims:
        verdict = f"[{VERDICTS[claim.verdict]}]{claim.verdict.replace(' on ', chr(10) + 'on ')}[/]"
        table.add_row(verdict, f"{escape(claim.says)}\n[dim]{escape(claim.measured)}[/]")
    return table
