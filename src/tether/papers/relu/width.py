"""Wider networks (figure 1)."""

from __future__ import annotations

import dataclasses

from tether.papers.experiments import Claim, Outcome, Setting, experiment
from tether.papers.mnist import MNIST, STAND_IN
from tether.papers.relu.training import DISTRIBUTIONS, PAPER, SMALL, Found, Network, Size

WIDTHS = (50, 100, 200, 500, 1000)
"""The paper names the ends, 50 and 1000."""


@experiment("relu/width", shows="figure 1", data=MNIST, stand_in=STAND_IN)
def width(setting: Setting) -> Outcome:
    """Networks of 50 to 1,000 neurons on 50 clients, IID and with two classes each."""
    widths = WIDTHS if setting.paper else (WIDTHS[0], 200, WIDTHS[-1])
    # The widest takes most of the time.
    small = dataclasses.replace(SMALL, steps=150, rates=SMALL.rates[1:])
    return study(widths, PAPER if setting.paper else small, setting)


def study(widths: tuple[int, ...], size: Size, setting: Setting) -> Outcome:
    """The experiment at a size."""
    found = Found({f"m = {each}": Network(width=each) for each in widths}, size, setting)
    narrow, *_, wide = found.networks
    gains = {how: found.end(wide, how, "accuracy") - found.end(narrow, how, "accuracy") for how in DISTRIBUTIONS}
    sooner = {how: found.sooner(wide, narrow, how) for how in DISTRIBUTIONS}
    claims = [
        *(
            Claim(
                f"{how}: the wider model reaches better final accuracy",
                gains[how] > 0,
                gains[how],
                remark=f"test accuracy at the end, {wide} less {narrow}; holds above 0",
            )
            for how in DISTRIBUTIONS
        ),
        Claim(
            "this has more impact on accuracy in the heterogeneous setting",
            gains["non-IID"] > gains["IID"],
            gains["non-IID"] - gains["IID"],
            remark="what non-IID gains less what IID does; holds above 0",
        ),
        *(
            Claim(
                f"{how}: the wider model converges faster",
                sooner[how] > 1,
                sooner[how],
                remark=f"median over test losses of {narrow}'s local steps to them over {wide}'s; holds above 1",
            )
            for how in DISTRIBUTIONS
        ),
        Claim(
            "in the heterogeneous setting width has more impact on the rate",
            sooner["non-IID"] > sooner["IID"],
            sooner["non-IID"] / sooner["IID"],
            remark="how many times faster, non-IID over IID; holds above 1",
        ),
    ]
    return found.outcome(claims, "figure-1", setting)
