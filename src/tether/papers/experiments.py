"""What an experiment of a paper is: a function that runs it and says which of the paper's claims hold.

    @experiment("leader/sinc", shows="table 1, figure 7")
    def sinc(setting):
        '''Elastic averaging and a leader on a surface of rings.'''
        ...
        return Outcome(claims=[...], figures={...}, tables={...})

Nothing that an outcome holds is typed in but what the paper prints.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from decimal import Decimal
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeAlias

from tether.checks import nearest
from tether.config import ConfigError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Verdict = Literal["holds", "does not hold", "not testable on this data"]

Table: TypeAlias = Sequence[Mapping[str, Any]]
"""Rows with the same columns."""

PAPERS = {
    "leader": "Teng et al., Leader stochastic gradient descent for distributed training of deep learning models (2019)",
    "cooperative": "Wang & Joshi, Cooperative SGD (2021)",
    "relu": "Deng et al., Local SGD optimizes overparameterized neural networks in polynomial time (2022)",
    "second-order": "Pan & Song, Local SGD accelerates convergence by exploiting second order information (2023)",
    "localgd": "Khaled et al., First analysis of local GD on heterogeneous data (2019)",
}
"""The papers by the first part of an experiment's name."""


@dataclass(frozen=True)
class Setting:
    """How an experiment is to be run.

    Attributes:
        folder: where its runs may leave what they need to go on, and where the outcome will be.
        paper: the paper's own setting, rather than one that takes minutes.
        data: the folder of the paper's data, if there is one; or the file.
        seed: of all that is drawn.
        progress: told what is being done, and which share of the experiment has been.
    """

    folder: Path
    paper: bool = False
    data: Path | None = None
    seed: int = 0
    progress: Callable[[str, float], None] = lambda what, share: None

    def part(self, begin: float, end: float) -> Setting:
        """The same for a part of the experiment, by the shares of it that come before and are done after it."""
        return replace(self, progress=lambda what, share: self.progress(what, begin + (end - begin) * share))


@dataclass(frozen=True)
class Claim:
    """Something that a paper says, and what was measured of it.

    Attributes:
        says: the claim, in a sentence.
        holds: whether what was measured supports it; None where it is not testable on this data.
        ours: the number that was measured, if it was.
        paper: the number that the paper prints, as it prints it, if it does.
        remark: what the number is, by which rule it was judged, or why it is not testable.
    """

    says: str
    holds: bool | None
    ours: float | None = None
    paper: str | None = None
    remark: str = ""

    @classmethod
    def number(cls, says: str, paper: str, ours: float, remark: str = "") -> Claim:
        """A claim that holds if our number, rounded as the paper rounds its own, is the paper's.

        Args:
            says: the claim.
            paper: the number as printed, such as "-0.0912".
            ours: what was measured.
            remark: what else is to be said.
        """
        digits = -int(Decimal(paper).as_tuple().exponent)
        return cls(says, round(Decimal(ours), digits) == Decimal(paper), ours, paper, remark)

    @property
    def ratio(self) -> float | None:
        """Our number over the paper's."""
        return None if self.ours is None or self.paper is None else self.ours / float(self.paper)

    @property
    def measured(self) -> str:
        """In a line: what was measured, what the paper prints, and what ours is."""
        ours, ratio = ("" if value is None else f"{value:.6g}" for value in (self.ours, self.ratio))
        known = (("ours", ours), ("the paper's", self.paper), ("ratio", ratio))
        numbers = ", ".join(f"{name} {value}" for name, value in known if value)
        return "; ".join(filter(None, (numbers, self.remark)))

    @property
    def verdict(self) -> Verdict:
        """In words."""
        return "not testable on this data" if self.holds is None else "holds" if self.holds else "does not hold"


@dataclass(frozen=True)
class Outcome:
    """What an experiment has found.

    Attributes:
        claims: of the paper, with what was measured.
        figures: matplotlib's, by the names of their files.
        tables: by the names of their files.
        notes: what else was measured, and what is not as in the paper.
    """

    claims: Sequence[Claim]
    figures: Mapping[str, Figure]
    tables: Mapping[str, Table]
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Experiment:
    """An experiment of a paper.

    Attributes:
        name: the paper's short name and the experiment's, such as "leader/sinc".
        shows: which figures and tables of the paper it is.
        about: what it is, in a sentence.
        perform: runs it.
        data: what `Setting.data` is the folder of; "" if the experiment needs no data.
        stand_in: what is taken where that folder is not given; "" if nothing can be, in any setting.
        file: whether `Setting.data` is a file rather than a folder.
    """

    name: str
    shows: str
    about: str
    perform: Callable[[Setting], Outcome]
    data: str = ""
    stand_in: str = ""
    file: bool = False

    @property
    def source(self) -> str:
        """The paper."""
        return PAPERS[self.name.split("/")[0]]

    def check(self, setting: Setting) -> None:
        """Raise `ConfigError` unless the setting has what the experiment needs, and nothing that it would ignore."""
        kind = "file" if self.file else "folder"
        if setting.data is not None and not self.data:
            raise ConfigError(f"--data {setting.data}: {self.name} needs no data; leave it away")
        if setting.data is None and self.data and (setting.paper or not self.stand_in):
            asked = f"{self.name} --paper" if self.stand_in else self.name
            raise ConfigError(f"{asked} needs {self.data}: give the {kind} by --data {kind.upper()}")
        if setting.data is not None and not (setting.data.is_file() if self.file else setting.data.is_dir()):
            needed = self.data if self.file else f"that of {self.data}"
            raise ConfigError(f"--data {setting.data}: there is no such {kind}; {self.name} needs {needed}")


EXPERIMENTS: dict[str, Experiment] = {}
"""All there are, by name, in the order of the papers."""


def experiment(
    name: str, *, shows: str, data: str = "", stand_in: str = "", file: bool = False
) -> Callable[[Callable[[Setting], Outcome]], Callable[[Setting], Outcome]]:
    """Make a function an experiment: the first line of its docstring says what it is about.

    Args:
        name: the paper's short name and the experiment's.
        shows: which figures and tables of the paper it is.
        data: what `--data` is the folder of, if the experiment needs data.
        stand_in: what its default setting takes in place of that.
        file: whether `--data` is a file rather than a folder.
    """

    def register(perform: Callable[[Setting], Outcome]) -> Callable[[Setting], Outcome]:
        about = (perform.__doc__ or "").split("\n")[0].rstrip(".")
        EXPERIMENTS[name] = Experiment(name, shows, about, perform, data, stand_in, file)
        return perform

    return register


def find(name: str) -> Experiment:
    """The experiment of this name.

    Raises:
        ConfigError: if there is none; the message has the nearest.
    """
    if name not in EXPERIMENTS:
        raise ConfigError(f"no experiment is called {name!r}; {nearest(name, EXPERIMENTS)}")
    return EXPERIMENTS[name]
