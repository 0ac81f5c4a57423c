"""Deeper networks, which need more neurons a layer (figure 3)."""

from __future__ import annotations

from tether.papers.experiments import Claim, Outcome, Setting, experiment
from tether.papers.mnist import MNIST, STAND_IN
from tether.papers.relu.training import DISTRIBUTIONS, PAPER, SMALL, Found, Network, Size

SINGLE = Network(width=50, depth=1)
DEPTH, WIDTHS = 5, (10, 50, 100)

SAME = 0.01
"""Up to this difference of test accuracies, they are the same."""

POOR = 0.02
"""Beyond this difference a network performs poorly."""


@experiment("relu/depth", shows="figure 3", data=MNIST, stand_in=STAND_IN)
def depth(setting: Setting) -> Outcome:
    """Five layers of 10, 50 and 100 neurons beside a single one of 50, on 50 clients."""
    return study(WIDTHS, PAPER if setting.paper else SMALL, setting)


def study(widths: tuple[int, ...], size: Size, setting: Setting) -> Outcome:
    """The experiment at a size; as many neurons in all as the single layer has the first of the widths has."""
    single = f"L = 1, m = {SINGLE.width}"
    deep = {f"L = {DEPTH}, m = {each}": Network(width=each, depth=DEPTH) for each in widths}
    found = Found({single: SINGLE} | deep, size, setting)
    thin, *_, wide = deep
    claims = []
    for how in DISTRIBUTIONS:
        behind = {label: found.end(single, how, "accuracy") - found.end(label, how, "accuracy") for label in deep}
        claims += [
            Claim(
                f"{how}: with the same number of neurons, {thin}, the deep model performs poorly",
                behind[thin] > POOR,
                behind[thin],
                remark=f"test accuracy at the end, of {single} less that of {thin}; holds above {POOR}",
            ),
            Claim(
                f"{how}: with {wide} the deep model performs as well as the single layer",
                behind[wide] <= SAME,
                behind[wide],
                remark=f"test accuracy at the end, of {single} less that of {wide}; holds up to {SAME}",
            ),
        ]
    parameters = deep[wide].parameters / SINGLE.parameters
    neurons = deep[wide].width * DEPTH / SINGLE.width
    counts = f"{deep[wide].parameters:,} weights against {SINGLE.parameters:,}"
    claims += [
        Claim(f"{wide} is more than 3 times bigger", parameters > 3, parameters, "3", f"{counts}; holds above 3"),
        Claim.number(f"{wide} has 10 times more neurons", "10", neurons, "as many times as the single layer"),
    ]
    return found.outcome(claims, "figure-3", setting)
