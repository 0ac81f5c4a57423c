"""What the paper says of networks that were compared, and whether it holds of ours (section 4.2)."""

from __future__ import annotations

from collections.abc import Mapping

from tether.papers.experiments import Claim, Outcome
from tether.papers.leader import switching
from tether.papers.leader.comparison import CLUSTER, Comparison, Found

MUCH = 1.25
"""Above this ratio of times a method is much faster than another, between it and its inverse as fast."""

SAME_ERROR = 0.01
"""Up to this difference of test errors, they are the same."""


def faster(found: Found, workers: int, over: str, says: str, paper: str | None = None, beyond: float = 1.0) -> Claim:
    """Whether LSGD comes to the same test errors sooner than another method, more than so many times."""
    speedup = found.speedup("LSGD", over, workers)
    remark = f"median over test errors of {over}'s virtual time to them over LSGD's; holds above {beyond:g}"
    return Claim(f"{workers} workers: {says}", speedup > beyond, speedup, paper, remark)


def as_fast(found: Found, workers: int, says: str) -> Claim:
    """Whether LSGD takes about as long as EASGD."""
    speedup = found.speedup("LSGD", "EASGD", workers)
    remark = f"median over test errors of EASGD's virtual time to them over LSGD's; holds between {1 / MUCH} and {MUCH}"
    return Claim(f"{workers} workers: {says}", 1 / MUCH <= speedup <= MUCH, speedup, remark=remark)


def smaller_error(found: Found, workers: int, other: str, says: str) -> Claim:
    """Whether LSGD ends at a smaller test error than another method."""
    difference = _error(found, "LSGD", workers) - _error(found, other, workers)
    remark = f"test error at the end of LSGD less that of {other}; holds below 0"
    return Claim(f"{workers} workers: {says}", difference < 0, difference, remark=remark)


def same_error(found: Found, workers: int, says: str) -> Claim:
    """Whether LSGD ends at about EASGD's test error."""
    difference = _error(found, "LSGD", workers) - _error(found, "EASGD", workers)
    remark = f"test error at the end of LSGD less that of EASGD; holds up to {SAME_ERROR} either way"
    return Claim(f"{workers} workers: {says}", abs(difference) <= SAME_ERROR, difference, remark=remark)


def better_than(found: Found, workers: int, other: str) -> Claim:
    """Whether both LSGD and EASGD end at smaller test errors than another method."""
    difference = max(_error(found, name, workers) for name in ("LSGD", "EASGD")) - _error(found, other, workers)
    remark = f"the larger test error at the end of the two less that of {other}; holds below 0"
    says = f"{workers} workers: LSGD and EASGD are consistently better than {other}"
    return Claim(says, difference < 0, difference, remark=remark)


def _error(found: Found, method: str, workers: int) -> float:
    return found.error(found.best(method, 1 if method == "SGD" else workers))


def outcome(found: Found, claims: list[Claim], figures: Mapping[str, str], notes: list[str]) -> Outcome:
    """What a comparison has found.

    Args:
        found: the runs.
        claims: of the paper.
        figures: what each shows against time, "error" or "loss", by name.
        notes: what is not as in the paper.
    """
    drawn = {name: found.draw(measure) for name, measure in figures.items()}
    drawn |= {f"leaders-{n}": switching.draw(found.runs[found.best("LSGD", n).name]) for n in found.comparison.workers}
    shown = "; ".join(
        f"{entry.method} with {entry.workers}: learning rate {entry.rate:g}"
        + ("" if entry.pull is None else f", λ = {entry.pull:g}")
        for entry in found.compared()
    )
    rule = (
        f"Compared, of the tries of a method, is the one with the least test error at the end: {shown}. At the end "
        f"means: in the last third of the first {found.end:.4g} virtual seconds, when the first run has ended."
    )
    return Outcome(claims, drawn, found.tables(), [rule, *notes, about_time(found.comparison)])


def about_time(comparison: Comparison) -> str:
    """What the virtual time of a comparison is."""
    between, within = CLUSTER["bandwidth"] / 1e9, CLUSTER["node_bandwidth"] / 1e9
    slower = comparison.slower_links
    links = f", all of it {slower:.3g} times slower, for the network is smaller" if slower != 1 else ""
    return (
        f"Time is virtual: {comparison.step_seconds:g} s a local step, {between:g} Gbit/s between nodes of four GPUs, "
        f"{within:g} within{links}. The paper names the GPUs, and Ethernet."
    )
