"""Virtual time: durations, arrivals against their formulas, and whole runs against times worked out by hand."""

import dataclasses
import re
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import tether
from problems import Point, Quadratics, quadratic
from reports import config, metrics, train
from tether import cli
from tether.clock import PIECES, Clock, Cluster
from tether.config import ConfigError
from tether.run import run
from tether.traffic import AllReduce, Broadcast, Exchange, Gather

MBIT = 1e6
ROOT = Path(__file__).parent.parent


def simulate(method, clock, workers=4, steps=24, **changes):
    torch.manual_seed(0)
    return tether.simulate(
        Point(6),
        method,
        Quadratics.random(workers, 6).data,
        workers=workers,
        objective=quadratic,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.05),
        steps=steps,
        batch_size=None,
        seed=3,
        clock=clock,
        **changes,
    )


BYTES = 6 * 8
"""Of a row."""


# ---- steps


@pytest.mark.parametrize(("noise", "spread"), [("lognormal", 0.5), ("exponential", 1.0), ("exponential", 0.3)])
def test_noise_has_mean_and_spread(noise, spread):
    cluster = Cluster(Clock(0.2, speeds=(1.0, 0.5), noise=noise, spread=spread), 2, seed=0)
    for worker, mean in ((0, 0.2), (1, 0.4)):
        seconds = cluster.steps(worker, 0, 200_000)
        assert seconds.mean() == pytest.approx(mean, rel=0.01)
        assert seconds.std() == pytest.approx(mean * spread, rel=0.03)
        assert seconds.min() > 0
        assert noise == "lognormal" or seconds.min() >= mean * (1 - spread)


def test_durations_are_a_function_of_seed_worker_and_step():
    def all_of(seed=0):
        return Cluster(Clock(1.0, noise="lognormal", spread=0.4), 3, seed)

    whole = all_of().steps(1, 0, 1000)
    asked = all_of()
    pieces = [(700, 300), (0, 10), (10, 246), (256, 1), (257, 443)]
    found = {first: asked.steps(1, first, count) for first, count in pieces}
    assert np.array_equal(np.concatenate([found[first] for first in sorted(found)]), whole)
    assert not np.array_equal(all_of(1).steps(1, 0, 1000), whole)
    assert not np.array_equal(all_of().steps(2, 0, 1000), whole)
    assert all_of().steps(0, 5, 0).shape == (0,)


def test_a_pause():
    cluster = Cluster(Clock(1.0, pauses=((1, 3, 10.0),)), 2, seed=0)
    assert cluster.steps(0, 0, 5).tolist() == [1, 1, 1, 1, 1]
    assert cluster.steps(1, 0, 5).tolist() == [1, 1, 1, 11, 1]
    assert cluster.steps(1, 3, 1).tolist() == [11]
    assert cluster.steps(1, 4, 1).tolist() == [1]


# ---- messages


def arrivals(traffic, ready=None, workers=4, **network):
    ready = np.zeros(workers) if ready is None else np.array(ready, dtype=float)
    return Cluster(Clock(0.0, **network), workers, 0).arrivals(traffic, ready).tolist()


EVERYONE = np.arange(4)


def test_a_ring():
    """2 (n-1) hops of 1/n of the value, from when the last is there."""
    seconds = 6 * (0.01 + 8 * 1000 / 4 / MBIT)
    ring = AllReduce(EVERYONE, 1000, "ring")
    assert arrivals(ring, latency=0.01, bandwidth=MBIT) == pytest.approx([seconds] * 4)
    assert arrivals(ring, [0, 5, 1, 2], latency=0.01, bandwidth=MBIT) == pytest.approx([5 + seconds] * 4)


def test_a_ring_of_some():
    found = arrivals(AllReduce(np.array([0, 2]), 1000, "ring"), [0, 9, 1, 3], latency=0.01, bandwidth=MBIT)
    assert found == pytest.approx([1 + 2 * (0.01 + 8 * 500 / MBIT), 9, 1 + 2 * (0.01 + 8 * 500 / MBIT), 3])
    assert arrivals(AllReduce(np.array([2]), 1000, "ring"), latency=0.01, bandwidth=MBIT) == [0, 0, 0, 0]


def test_a_star_shares_the_link_of_its_hub():
    star = AllReduce(EVERYONE, 1000, "star")
    seconds = 2 * (0.01 + 3 * 8 * 1000 / MBIT)
    assert arrivals(star, latency=0.01, bandwidth=MBIT) == pytest.approx([seconds] * 4)


def test_a_gather_fills_every_link():
    seconds = 0.01 + 3 * 8 * 100 / MBIT
    assert arrivals(Gather(EVERYONE, 100), latency=0.01, bandwidth=MBIT) == pytest.approx([seconds] * 4)


def test_a_broadcast_goes_down_a_chain_in_pieces():
    piece = 8 * 1000 / PIECES / MBIT
    seconds = 3 * (0.01 + piece) + (PIECES - 1) * piece
    assert arrivals(Broadcast(EVERYONE, 1000), latency=0.01, bandwidth=MBIT) == pytest.approx([seconds] * 4)


def test_neighbours_wait_for_neighbours_only():
    """A line 0 - 1 - 2 - 3 with a late worker 3."""
    receivers, senders = np.array([0, 1, 1, 2, 2, 3]), np.array([1, 0, 2, 1, 3, 2])
    row = 8 * 1000 / MBIT
    found = arrivals(Exchange(receivers, senders, 1000), [0, 0, 0, 5], latency=0.01, bandwidth=MBIT)
    # Inner workers send, and hear, two rows over one link.
    assert found == pytest.approx([0.01 + 2 * row, 0.01 + 2 * row, 5.01 + 2 * row, 5])


def test_workers_of_a_node_share_its_link():
    network = {"nodes": 2, "bandwidth": MBIT, "latency": 0.01, "node_bandwidth": 100 * MBIT, "node_latency": 0.001}
    across = Exchange(np.array([2, 3]), np.array([0, 1]), 1000)
    assert arrivals(across, **network) == pytest.approx([0, 0, *[0.01 + 2 * 8 * 1000 / MBIT] * 2])
    within = Exchange(np.array([1, 3]), np.array([0, 2]), 1000)
    assert arrivals(within, **network) == pytest.approx([0, *[0.001 + 8 * 1000 / (100 * MBIT)], 0, 0.001 + 8e-5])


def test_a_link_that_is_different():
    network = {"bandwidth": MBIT, "latency": 0.01, "links": ((0, 3, 0.5, MBIT / 10),)}
    slow = 0.5 + 8 * 1000 / (MBIT / 10)
    assert arrivals(Exchange(np.array([3, 2]), np.array([0, 1]), 1000), **network) == pytest.approx(
        [0, 0, 0.01 + 8 * 1000 / MBIT, slow]
    )
    assert arrivals(Exchange(np.array([0]), np.array([3]), 1000), **network)[0] == pytest.approx(slow)


# ---- runs

NETWORK = {"latency": 0.02, "bandwidth": 0.05 * MBIT}
RING = 6 * (0.02 + 8 * BYTES / 4 / (0.05 * MBIT))
SLOW = Clock(0.03, speeds=(1.0, 0.5, 2.0, 1.0), noise="lognormal", spread=0.6, **NETWORK)


def durations(clock, steps, workers=4):
    cluster = Cluster(clock, workers, 3)
    return np.stack([cluster.steps(worker, 0, steps) for worker in range(workers)])


@pytest.mark.parametrize("overlap", [0, 2, 4])
def test_averaging_waits_for_the_slowest(overlap):
    seconds, now, waited = durations(SLOW, 24), np.zeros(4), np.zeros(4)
    result = simulate(tether.LocalSGD(4), SLOW, overlap=overlap)
    for record in result.history:
        start = record.step - 4
        # What was sent a period ago lands within this one, after `overlap` of its steps.
        if start and overlap:
            now = now + seconds[:, start : start + overlap].sum(1)
            waited += np.maximum(0, arrival - now)
            now = np.maximum(now, arrival)
            now = now + seconds[:, start + overlap : record.step].sum(1)
        else:
            now = now + seconds[:, start : record.step].sum(1)
        arrival = np.full(4, now.max() + RING)
        if not overlap:
            waited += arrival - now
            now = arrival
        assert record.virtual.arrivals == pytest.approx(arrival)
        assert record.virtual.now == pytest.approx(now)
        assert record.virtual.waited == pytest.approx(waited)
        assert record.virtual.computed == pytest.approx(seconds[:, : record.step].sum(1))
    assert len(result.history) == 6


def test_neighbours_drift_apart_in_time():
    """In a ring a pause reaches a neighbour further with every round."""
    clock = Clock(0.1, pauses=((0, 0, 5.0),), **NETWORK)
    topology = tether.topology.Ring()
    late = [r.virtual.now > 5 for r in simulate(tether.DecentralizedSGD(1, topology), clock, 8, 4).history]
    assert [sorted(np.flatnonzero(each).tolist()) for each in late] == [
        [0, 1, 7],
        [0, 1, 2, 6, 7],
        [0, 1, 2, 3, 5, 6, 7],
        list(range(8)),
    ]


def test_enough_overlap_hides_the_message():
    step = RING / 3
    clock = Clock(step, **NETWORK)
    for overlap, waits in ((0, RING), (1, RING - step), (2, RING - 2 * step), (3, 0), (4, 0)):
        last = simulate(tether.LocalSGD(4), clock, overlap=overlap).history[-1]
        # The last round lands after its record, unless there is no overlap.
        rounds = 6 if not overlap else 5
        assert last.virtual.waited == pytest.approx(np.full(4, rounds * waits), abs=1e-12)


def test_a_leader_sends_losses_and_a_row():
    clock = Clock(0.1, **NETWORK)
    gather, row = Gather(EVERYONE, 8), Broadcast(EVERYONE, BYTES)
    cluster = Cluster(clock, 4, 0)
    round_ = cluster.arrivals(row, cluster.arrivals(gather, np.zeros(4)))
    record = simulate(tether.LSGD(5), clock, steps=5).history[0]
    assert record.virtual.now == pytest.approx(0.5 + round_)


@pytest.mark.parametrize("method", [tether.LocalSGD(4), tether.EASGD(4), tether.LSGD(4)], ids=str)
@pytest.mark.parametrize("order", ["step-then-mix", "mix-then-step"])
def test_a_clock_changes_nothing_of_what_is_trained(method, order):
    with_clock, without = (simulate(method, clock, order=order, overlap=2) for clock in (SLOW, None))
    assert torch.equal(with_clock.rows, without.rows)
    assert without.history[0].virtual is None
    again = simulate(method, SLOW, order=order, overlap=2)
    for first, second in zip(with_clock.history, again.history, strict=True):
        for name, values in vars(first.virtual).items():
            assert np.array_equal(getattr(second.virtual, name), values), name


@pytest.mark.parametrize("steps", [10, 13, 16])
def test_time_goes_on_where_a_run_was_saved(tmp_path, steps):
    whole = simulate(tether.LocalSGD(4), SLOW, overlap=3).history[-1]
    simulate(tether.LocalSGD(4), SLOW, overlap=3, steps=steps, checkpoints=tether.Checkpoints(tmp_path))
    last = simulate(tether.LocalSGD(4), SLOW, overlap=3, checkpoints=tether.Checkpoints(tmp_path)).history[-1]
    for name, values in vars(whole.virtual).items():
        assert np.array_equal(getattr(last.virtual, name), values), name


def test_time_goes_on_with_other_workers(tmp_path):
    before = simulate(tether.LocalSGD(4), Clock(0.1), steps=8, checkpoints=tether.Checkpoints(tmp_path))
    after = simulate(tether.LocalSGD(4), Clock(0.1), 2, steps=16, checkpoints=tether.Checkpoints(tmp_path))
    assert before.history[-1].virtual.now == pytest.approx(np.full(4, 0.8))
    assert after.history[-1].virtual.now == pytest.approx(np.full(2, 1.6))
    assert after.history[-1].virtual.computed == pytest.approx(np.full(2, 1.6))


def test_several_processes_have_the_same_time():
    one, two = (simulate(tether.LocalSGD(4), SLOW, overlap=1, processes=n).history for n in (1, 2))
    for mine, theirs in zip(one, two, strict=True):
        assert np.array_equal(mine.virtual.now, theirs.virtual.now)
        assert np.array_equal(mine.virtual.waited, theirs.virtual.waited)


def test_nobody_waits_for_who_was_excluded():
    start = torch.zeros(4, 6, dtype=torch.float64)
    start[2] = torch.nan
    clock = Clock(0.1, speeds=(1.0, 1.0, 0.1, 1.0))
    result = simulate(tether.LocalSGD(4), clock, start=start, on_nonfinite="exclude")
    assert result.excluded
    now = result.history[-1].virtual.now
    assert np.isnan(now[2])
    assert now[[0, 1, 3]] == pytest.approx(2.4)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"step": -1.0}, "step=-1.0"),
        ({"spread": 0.5}, "only noise has"),
        ({"noise": "lognormal"}, "noise has a spread"),
        ({"noise": "exponential", "spread": 1.5}, "at most 1"),
        ({"bandwidth": 0.0}, "bandwidth=0.0: bits a second"),
        ({"latency": float("nan")}, "latency=nan"),
        ({"speeds": (1.0, 0.0, 1.0, 1.0)}, "each must be more than 0"),
        ({"speeds": (1.0, 2.0)}, "2 speeds for 4 workers"),
        ({"nodes": 3}, "4 workers do not divide"),
        ({"pauses": ((4, 0, 1.0),)}, "there is no worker 4 among 4"),
        ({"pauses": ((0, 0, -1.0),)}, "at least 0"),
        ({"links": ((0, 4, 0.1, MBIT),)}, "no two nodes 0 and 4 among 4"),
        ({"links": ((0, 1, 0.1, 0.0),)}, "the last more than 0"),
    ],
)
def test_clocks_that_cannot_be(changes, says):
    with pytest.raises(ValueError, match=says):
        simulate(tether.LocalSGD(4), dataclasses.replace(Clock(0.1), **changes))


@pytest.mark.parametrize(
    ("clock", "says"),
    [
        ({"stap": 1.0}, "clock: there is no key 'stap'; did you mean 'step'?"),
        ({"step": 1.0, "noise": "lognormale"}, "did you mean 'lognormal'?"),
        ({"step": 1.0, "speeds": [1.0, 2.0]}, "clock: 2 speeds for 4 workers"),
        ({"step": 1.0, "bandwidth": -1.0}, "clock: bandwidth=-1.0"),
        ({}, "clock: the key 'step' is missing"),
    ],
)
def test_clocks_that_a_config_cannot_have(clock, says):
    with pytest.raises(ConfigError, match=re.escape(says)):
        run(config(clock=clock))


def test_a_config_has_a_clock(tmp_path):
    train(tmp_path, clock={"step": 0.5, "links": [[0, 1, 0.1, 1e6]], "pauses": [[2, 1, 3.0]]})
    records = metrics(tmp_path)
    round_ = 6 * (0.1 + 8 * records.bytes[0] / 24 / 1e6)  # which moves 2 (m-1) = 6 rows, in hops of a fourth
    ends = [4 + round_, 5 + 2 * round_, 5 + 2 * round_]
    assert [max(each["now"]) for each in records.virtual] == pytest.approx(ends)
    assert records.virtual[1]["computed"] == pytest.approx([2.0, 2.0, 5.0, 2.0])


def test_the_command_says_when_it_would_have_ended(tmp_path, monkeypatch, capsys):
    changes = ["--set", "clock={step=0.1, speeds=[1.0, 1.0, 1.0, 0.5]}", "--set", "workers=4", "--set", "steps=20"]
    monkeypatch.setattr(sys, "argv", ["tether", "train", str(ROOT / "examples" / "digits.toml"), *changes])
    with pytest.raises(SystemExit):
        cli.main()
    printed = capsys.readouterr().out
    assert re.search(r"virtual seconds\s+4\s", printed)
    assert re.search(r"waited\s+38%\s", printed)
