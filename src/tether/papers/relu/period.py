"""Rarer rounds (figure 2)."""

from __future__ import annotations

from tether.papers.experiments import Claim, Outcome, Setting, experiment
from tether.papers.mnist import MNIST, STAND_IN
from tether.papers.relu.training import DISTRIBUTIONS, PAPER, SMALL, Found, Network, Size

PERIODS = (1, 5, 10, 20, 50)


@experiment("relu/period", shows="figure 2", data=MNIST, stand_in=STAND_IN)
def period(setting: Setting) -> Outcome:
    """Rounds every step to every fiftieth, on 50 clients, IID and with two classes each."""
    return study(PERIODS, PAPER if setting.paper else SMALL, setting)


def study(periods: tuple[int, ...], size: Size, setting: Setting) -> Outcome:
    """The experiment at a size."""
    found = Found({"sync" if each == 1 else f"τ = {each}": Network(period=each) for each in periods}, size, setting)
    often, *_, rarely = found.networks
    slower = {how: found.sooner(often, rarely, how) for how in DISTRIBUTIONS}
    claims = [
        *(
            Claim(
                f"{how}: convergence becomes slower as τ increases",
                slower[how] > 1,
                slower[how],
                remark=f"median over test losses of {rarely}'s local steps to them over {often}'s; holds above 1",
            )
            for how in DISTRIBUTIONS
        ),
        Claim(
            "in the heterogeneous setting τ decreases the speed more",
            slower["non-IID"] > slower["IID"],
            slower["non-IID"] / slower["IID"],
            remark="how many times slower, non-IID over IID; holds above 1",
        ),
    ]
    return found.outcome(claims, "figure-2", setting)
