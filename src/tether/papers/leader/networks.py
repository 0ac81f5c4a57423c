"""CNN7, ResNet20 and VGG16 trained by LSGD and what the paper compares it with (section 4, figures 2 to 5)."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

from tether.papers.experiments import Claim, Outcome, Setting, experiment
from tether.papers.leader import switching
from tether.papers.leader.comparison import CLUSTER, Comparison, Entry, Found, Grid
from tether.papers.runs import carry_out

CIFAR = "CIFAR-10, its binary version (cifar-10-binary.tar.gz, unpacked)"
STAND_IN = "Fashion-MNIST, smaller"

PULLS = (0.5, 0.2, 0.1, 0.05, 0.025)

CNN7_GRIDS = {  # table 2
    "SGD": Grid((0.1, 0.05, 0.01, 0.005, 0.001)),
    "DOWNPOUR": Grid((0.05, 0.01, 0.005, 0.001, 0.0005)),
    "EASGD": Grid((0.1, 0.05, 0.01, 0.005, 0.001)),
    "LSGD": Grid((0.1, 0.05, 0.01, 0.005, 0.001), PULLS),
}

RESNET20_GRIDS = {  # table 3
    "SGD": Grid((0.2, 0.1, 0.05)),
    "DOWNPOUR": Grid((0.2, 0.1, 0.05, 0.01)),
    "EASGD": Grid((0.2, 0.1, 0.05)),
    "LSGD": Grid((0.2, 0.1, 0.05), PULLS),
}

VGG16_GRIDS = {  # table 4
    "SGD": Grid((0.2, 0.1, 0.05)),
    "DOWNPOUR": Grid((0.2, 0.1, 0.05, 0.01)),
    "EASGD": Grid((0.2, 0.1, 0.05)),
    "LSGD": Grid((0.2, 0.1, 0.05), (0.2, 0.1)),
}

SECONDS = 2000
"""Virtual seconds of the paper's runs: it prints none, but drops of the learning rate at 1,500."""

DROP = 1500


def _papers(setting: Setting, model: str, grids: dict[str, Grid], step_seconds: float, **changes: Any) -> Comparison:
    """A comparison in the paper's setting."""
    steps = int(SECONDS / step_seconds)
    return dataclasses.replace(
        Comparison(
            data=_data(setting, crop=28),
            model={"name": model},
            grids=grids,
            step_seconds=step_seconds,
            steps=steps,
            evaluate_every=max(1, steps // 100),
            drops=(int(DROP / step_seconds),),
        ),
        **changes,
    )


def _small(setting: Setting, model: dict[str, Any], rate: float, step_seconds: float, **changes: Any) -> Comparison:
    """A comparison that takes minutes: a smaller network on smaller crops, smaller batches, one try a method.

    Args:
        setting: of the experiment.
        model: the network.
        rate: the learning rate: of a few that were tried one with which SGD learns, and workers stay near one another.
        step_seconds: virtual seconds of a step.
        changes: what else is different.
    """
    return dataclasses.replace(
        Comparison(
            data=_data(setting, crop=24, held_out=500),
            model=model,
            grids={
                "SGD": Grid((rate,)),
                # Its center takes the steps of all workers, one after the other.
                "DOWNPOUR": Grid((rate / 10,)),
                "EASGD": Grid((rate,)),
                "LSGD": Grid((rate,), (0.1,)),
            },
            step_seconds=step_seconds,
            steps=320,
            evaluate_every=20,
            batch_size=16,
            period=16,
            global_period=32,
        ),
        **changes,
    )


def _data(setting: Setting, crop: int, padding: int = 0, held_out: int | None = None) -> dict[str, Any]:
    """CIFAR-10, or what stands in for it, cropped and mirrored (section 9.1), dealt out anew each epoch (9.2)."""
    which = {"name": "cifar10", "folder": str(setting.data)} if setting.data else {"name": "fashion-mnist"}
    return which | {"partition": "reshuffled", "crop": crop, "padding": padding, "flip": True, "held_out": held_out}


# Seconds of a step of 128 images on a GTX 1080: the multiplications of a forward and a backward pass (12, 24 and 240
# GFLOP), at the third of the card's 8.9 TFLOP/s that such small convolutions reach, a tenth for ResNet20's thin ones.
STEP_SECONDS = {"cnn7": 0.01, "resnet20": 0.025, "vgg16": 0.08}


@experiment("leader/cnn7", shows="figures 2 and 9, table 2", data=CIFAR, stand_in=STAND_IN)
def cnn7(setting: Setting) -> Outcome:
    """CNN7 on 4 and 16 workers: test error of the center against virtual wall-clock time."""
    seconds = STEP_SECONDS["cnn7"]
    if setting.paper:
        # The learning rate of CNN7 is constant.
        found = Found(_papers(setting, "cnn7", CNN7_GRIDS, seconds, drops=()), setting)
    else:
        found = Found(_small(setting, {"name": "cnn7", "width": 32}, 0.01, seconds), setting)
    claims = [
        _faster(found, 4, says="LSGD consistently outperforms EASGD in convergence speed"),
        _faster(found, 16, "1.5", "LSGD is roughly 1.5 times faster than EASGD"),
        _smaller_error(found, 16, "EASGD", "LSGD obtains smaller error than EASGD"),
        *_better_than(found, ("SGD", "DOWNPOUR")),
    ]
    return _outcome(found, claims, setting, figures={"figure-2": "error", "figure-9": "loss"})


@experiment("leader/resnet20", shows="figures 4 and 10, table 3", data=CIFAR, stand_in=STAND_IN)
def resnet20(setting: Setting) -> Outcome:
    """ResNet20 on 4 and 16 workers: test error of the center against virtual wall-clock time."""
    seconds = STEP_SECONDS["resnet20"]
    if setting.paper:
        found = Found(_papers(setting, "resnet20", RESNET20_GRIDS, seconds), setting)
    else:
        model = {"name": "resnet20", "blocks": 1, "width": 8}
        found = Found(_small(setting, model, 0.02, seconds), setting)
    claims = [
        _as_fast(found, 4, "LSGD converges comparably fast to EASGD"),
        _smaller_error(found, 4, "EASGD", "LSGD recovers better test error than EASGD"),
        _faster(found, 16, "2", "LSGD converges roughly 2 times faster than EASGD"),
        _smaller_error(found, 16, "EASGD", "LSGD obtains significantly smaller error than EASGD"),
        *_better_than(found, ("SGD", "DOWNPOUR")),
    ]
    return _outcome(found, claims, setting, figures={"figure-4": "error", "figure-10": "loss"})


@experiment("leader/vgg16", shows="figures 3 and 11, table 4", data=CIFAR, stand_in=STAND_IN)
def vgg16(setting: Setting) -> Outcome:
    """VGG16 on 4 workers: test error of the center against virtual wall-clock time."""
    seconds = STEP_SECONDS["vgg16"]
    if setting.paper:
        data = _data(setting, crop=32, padding=4)
        found = Found(_papers(setting, "vgg16", VGG16_GRIDS, seconds, data=data, workers=(4,)), setting)
    else:
        model = {"name": "vgg16", "channels": [[16, 16], [32, 32], [64, 64, 64]], "hidden": [64, 64]}
        found = Found(_small(setting, model, 0.01, seconds, workers=(4,)), setting)
    claims = [
        _faster(found, 4, says="LSGD converges marginally faster than EASGD"),
        _same_error(found, 4, "LSGD recovers the same error as EASGD"),
        *_better_than(found, ("DOWNPOUR",)),
    ]
    return _outcome(found, claims, setting, figures={"figure-3": "error", "figure-11": "loss"})


@experiment("leader/switching", shows="figure 5", data=CIFAR, stand_in=STAND_IN)
def leader_switching(setting: Setting) -> Outcome:
    """Which worker is the leader over the iterations: of 4 workers, and of 16 in 4 groups that have leaders too."""
    if setting.paper:
        comparison = _papers(setting, "resnet20", RESNET20_GRIDS, STEP_SECONDS["resnet20"])
    else:
        model = {"name": "cnn7", "width": 32}
        comparison = _small(setting, model, 0.01, STEP_SECONDS["cnn7"], period=4, global_period=8, evaluate_every=None)
    rate = 0.05 if setting.paper else comparison.grids["LSGD"].rates[0]
    entries = [Entry("LSGD", workers, rate, pull=0.1) for workers in comparison.workers]
    configs = {entry.name: comparison.config(entry, setting.seed) for entry in entries}
    one, groups = carry_out(configs, setting).values()
    figures = {"figure-5": switching.draw(one), "figure-5-groups": switching.draw(groups)}
    table = [
        {"workers": run.workers, "worker": worker, "led_all": int(all_), "led_its_group": int(group)}
        for run in (one, groups)
        for worker, (all_, group) in enumerate(zip(switching.led(run, True), switching.led(run, False), strict=True))
    ]
    notes = [f"Learning rate {rate:g}, λ = {entries[0].pull:g}; the paper does not say which of its grid are shown."]
    return Outcome(
        switching.all_lead([one, groups]), figures, {"leaders": table}, notes + _differs(comparison, setting)
    )


def _faster(found: Found, workers: int, paper: str | None = None, says: str = "") -> Claim:
    speedup = found.speedup("LSGD", "EASGD", workers)
    remark = "median over test errors of EASGD's virtual time to them over LSGD's; holds above 1"
    return Claim(f"{workers} workers: {says}", speedup > 1, speedup, paper, remark)


def _as_fast(found: Found, workers: int, says: str) -> Claim:
    speedup = found.speedup("LSGD", "EASGD", workers)
    remark = "median over test errors of EASGD's virtual time to them over LSGD's; holds between 0.8 and 1.25"
    return Claim(f"{workers} workers: {says}", 0.8 <= speedup <= 1.25, speedup, remark=remark)


def _smaller_error(found: Found, workers: int, other: str, says: str) -> Claim:
    difference = _difference(found, workers, other)
    remark = f"test error at the end of LSGD less that of {other}; holds below 0"
    return Claim(f"{workers} workers: {says}", difference < 0, difference, remark=remark)


def _same_error(found: Found, workers: int, says: str) -> Claim:
    difference = _difference(found, workers, "EASGD")
    remark = "test error at the end of LSGD less that of EASGD; holds between -0.01 and 0.01"
    return Claim(f"{workers} workers: {says}", abs(difference) <= 0.01, difference, remark=remark)


def _difference(found: Found, workers: int, other: str) -> float:
    return found.error(found.best("LSGD", workers)) - found.error(found.best(other, workers))


def _better_than(found: Found, others: Sequence[str]) -> list[Claim]:
    """LSGD and EASGD against methods that are compared too, at each number of workers."""
    claims = []
    for other in others:
        for workers in found.comparison.workers:
            theirs = found.error(found.best(other, 1 if other == "SGD" else workers))
            worse = max(found.error(found.best(name, workers)) for name in ("LSGD", "EASGD"))
            remark = f"the larger test error at the end of the two less that of {other}; holds below 0"
            says = f"{workers} workers: LSGD and EASGD are consistently better than {other}"
            claims.append(Claim(says, worse < theirs, worse - theirs, remark=remark))
    return claims


def _outcome(found: Found, claims: list[Claim], setting: Setting, figures: dict[str, str]) -> Outcome:
    drawn = {name: found.draw(measure) for name, measure in figures.items()}
    drawn |= {f"leaders-{n}": switching.draw(found.runs[found.best("LSGD", n).name]) for n in found.comparison.workers}
    shown = "; ".join(
        f"{entry.method} with {entry.workers}: learning rate {entry.rate:g}"
        + ("" if entry.pull is None else f", λ = {entry.pull:g}")
        for entry in found.compared()
    )
    tried = (
        f"Shown, of the tries of a method, is the one with the least test error at the end: {shown}. At the end "
        f"means: in the last third of the first {found.end:.4g} virtual seconds, when the first run has ended."
    )
    return Outcome(claims, drawn, found.tables(), [tried, *_differs(found.comparison, setting)])


def _differs(comparison: Comparison, setting: Setting) -> list[str]:
    """What is not as in the paper, or not in the paper."""
    between, within = CLUSTER["bandwidth"] / 1e9, CLUSTER["node_bandwidth"] / 1e9
    notes = [
        f"Time is virtual: {comparison.step_seconds:g} s a local step, {between:g} Gbit/s between nodes of four GPUs, "
        f"{within:g} within. The paper names the GPUs, and Ethernet.",
        "DOWNPOUR is asynchronous. EASGD and LSGD have synchronous rounds here, the paper's are asynchronous; and "
        "their center is the mean of the workers, for EASGD too, of which the paper evaluates the variable that pulls.",
    ]
    if not setting.paper:
        data = "CIFAR-10" if setting.data else "Fashion-MNIST instead of CIFAR-10: the claims are about the shape only"
        model = ", ".join(f"{key} {value}" for key, value in comparison.model.items())
        notes.append(
            f"On {data}. {model}; crops of {comparison.data['crop']} pixels; batches of {comparison.batch_size} "
            f"instead of 128; rounds every {comparison.period} steps instead of 64, among all nodes "
            f"{comparison.global_period} instead of 128; {comparison.steps} steps; {comparison.data['held_out']} test "
            "images, so that errors are uncertain by about 0.02."
        )
    return notes
