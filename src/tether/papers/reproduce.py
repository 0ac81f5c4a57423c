"""Carrying out an experiment, and what it leaves in its folder.

outcome.json     every claim with its verdict; by which command, of which code, with what, in how many seconds
*.png, *.svg     the figures
*.csv            the tables
runs/            the runs that can go on if the experiment is stopped, each a folder that `tether report` reads
"""

from __future__ import annotations

import dataclasses
import json
import shlex
import subprocess
import time
from pathlib import Path
from typing import Any

from tether.config import ConfigError
from tether.papers.experiments import Experiment, Outcome, Setting
from tether.report.papers import FORMATS, look, save
from tether.report.tables import write_table
from tether.run_folder import here, write_json


def reproduce(experiment: Experiment, setting: Setting) -> Outcome:
    """Run an experiment, and write what it has found to its folder.

    Args:
        experiment: which.
        setting: how, and where.

    Returns:
        The claims, figures and tables.

    Raises:
        ConfigError: if something that it needs is not there, or the folder is not one that it can write to.
    """
    experiment.check(setting)
    folder = setting.folder
    _check_is_ours(folder, experiment)
    with look():  # without matplotlib this says so now rather than at the end
        began = time.perf_counter()
        outcome = experiment.perform(setting)
        seconds = time.perf_counter() - began
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, figure in outcome.figures.items():
                for format in FORMATS:
                    save(figure, folder / f"{name}.{format}")
            for name, table in outcome.tables.items():
                write_table(folder / f"{name}.csv", table)
            write_json(folder / OUTCOME, _described(experiment, setting, outcome, seconds))
        except OSError as error:
            raise ConfigError(f"{error.filename or folder}: {error.strerror}; give another folder by --out") from error
    return outcome


OUTCOME = "outcome.json"


def default_folder(experiment: Experiment, paper: bool, seed: int) -> Path:
    """Where an experiment is carried out unless another place is given."""
    return Path("runs") / slug(experiment.name, paper, seed)


def slug(name: str, paper: bool, seed: int) -> str:
    """What tells an experiment carried out in one way from others, as a path."""
    return "-".join([name, *(["paper"] if paper else []), *([f"seed-{seed}"] if seed else [])])


def _check_is_ours(folder: Path, experiment: Experiment) -> None:
    """Raise `ConfigError` if something else is in the folder."""
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"{folder} is a file: give another place by --out")
    if not folder.exists() or not any(folder.iterdir()):
        return
    path = folder / OUTCOME
    try:
        there = json.loads(path.read_text())["experiment"] if path.exists() else None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is damaged ({error!r}): give another folder by --out") from error
    if there not in (None, experiment.name) or (there is None and not (folder / "runs").is_dir()):
        what = f"holds {there}" if there else "is not empty, and nothing there is of an experiment"
        raise ConfigError(f"{folder} {what}: give another folder by --out")


def _described(experiment: Experiment, setting: Setting, outcome: Outcome, seconds: float) -> dict[str, Any]:
    """What is to be known of an outcome, as JSON has it."""
    claims = [dataclasses.asdict(claim) | {"ratio": claim.ratio, "verdict": claim.verdict} for claim in outcome.claims]
    return {
        "experiment": experiment.name,
        "paper": experiment.source,
        "shows": experiment.shows,
        "about": experiment.about,
        "command": _command(experiment, setting),
        "setting": "paper" if setting.paper else "default",
        "seed": setting.seed,
        "seconds": seconds,
        "commit": current_commit(),
        "machine": here(),
        "claims": claims,
        "notes": list(outcome.notes),
        "figures": [f"{name}.{format}" for name in outcome.figures for format in FORMATS],
        "tables": [f"{name}.csv" for name in outcome.tables],
    }


def _command(experiment: Experiment, setting: Setting) -> str:
    """The command that does this again."""
    words = ["tether", "reproduce", experiment.name, *(["--paper"] if setting.paper else [])]
    words += ["--data", str(setting.data)] if setting.data else []
    return shlex.join([*words, "--seed", str(setting.seed), "--out", str(setting.folder)])


def current_commit() -> str | None:
    """The commit of this code, and whether it has been changed since; None where it is in no repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        # A package installed somewhere inside another project's repository is not of that project's commit.
        subprocess.run([*git, "ls-files", "--error-unmatch", __file__], check=True, capture_output=True)
        described = [*git, "describe", "--always", "--abbrev=40", "--exclude=*", "--dirty=, changed since"]
        return subprocess.run(described, check=True, capture_output=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None
