"""What a round costs: what a simulation of it sends, and how long that takes on its clock."""

import math
from dataclasses import dataclass

import networkx as nx
import numpy as np
import pytest
import torch

import tether
from methods_table import CASES, Case, M
from problems import Point, Quadratics, quadratic
from tether import theory
from tether.topology import TOPOLOGIES, as_topology

CLOCK = tether.Clock(step=0, latency=0.03, bandwidth=1e6, nodes=4, node_latency=1e-3, node_bandwidth=1e8)


def run(method, d, rounds, period, allreduce="ring", clock=CLOCK):
    return tether.simulate(
        Point(d),
        method,
        Quadratics.random(M, d).data,
        workers=M,
        objective=quadratic,
        optimizer=lambda p: torch.optim.SGD(p, lr=0.01),
        steps=rounds * period,
        batch_size=None,
        allreduce=allreduce,
        clock=clock,
    )


@pytest.mark.parametrize("case", CASES, ids=str)
@pytest.mark.parametrize("allreduce", ["ring", "star"])
def test_costs_are_what_the_simulator_counts(case: Case, allreduce):
    method, d = case.make(3), 37
    costs = theory.round_costs(method, M, d, dtype=torch.float64, allreduce=allreduce, round=1)
    assert [cost.period for cost in costs] == [part.period for part in method.parts]
    cycle = math.lcm(*(cost.period for cost in costs))
    one, two = (run(method, d, rounds, cycle, allreduce) for rounds in (1, 2))
    times = [cycle // cost.period for cost in costs]
    assert two.messages - one.messages == sum(n * cost.messages for n, cost in zip(times, costs, strict=True))
    assert two.bytes - one.bytes == sum(n * cost.bytes for n, cost in zip(times, costs, strict=True))
    waited = two.history[-1].virtual.now.max() - one.history[-1].virtual.now.max()
    assert waited == pytest.approx(sum(n * cost.seconds(CLOCK) for n, cost in zip(times, costs, strict=True)))


def test_table_3_of_cooperative_sgd():
    """A worker's messages and numbers, up to the paper's rounding of m - 1 to m."""
    d, m = 1000, 8
    (ring,) = theory.round_costs(tether.LocalSGD(1), m, d)
    assert ring.bytes / 4 / m == pytest.approx(2 * d * (m - 1) / m)  # "2d" each
    (star,) = theory.round_costs(tether.LocalSGD(1), m, d, allreduce="star")
    assert (star.messages, star.bytes / 4) == (2 * (m - 1), 2 * (m - 1) * d)  # "2dm" at the hub
    for name in ("ring", "hypercube", "star", "complete"):
        (cost,) = theory.round_costs(tether.DecentralizedSGD(1, name), m, d)
        (traffic,) = cost.traffic
        busiest = np.bincount(np.concatenate([traffic.senders, traffic.receivers])).max()
        degree = max(dict(as_topology(name).graph(m).degree()).values())
        assert busiest * traffic.size / 4 == 2 * d * degree


@pytest.mark.parametrize("name", [name for name in TOPOLOGIES if name not in ("one-peer-exponential",)])
def test_neighbours_send_a_row_along_every_edge_both_ways(name):
    (cost,) = theory.round_costs(tether.DecentralizedSGD(1, name), 16, 10)
    assert cost.messages == 2 * nx.number_of_edges(as_topology(name).graph(16))
    assert cost.bytes == cost.messages * 40


def test_seconds_of_a_link():
    """By hand: on equal links a ring takes 2 (m-1) hops of 1/m, a star's hub takes and gives m - 1 values."""
    clock, m, size = tether.Clock(step=1, latency=0.02, bandwidth=8e6), 5, 1_000_000
    (ring,) = theory.round_costs(tether.LocalSGD(1), m, size)
    assert ring.seconds(clock) == pytest.approx(2 * (m - 1) * (0.02 + 4 / m))
    (star,) = theory.round_costs(tether.LocalSGD(1), m, size, allreduce="star")
    assert star.seconds(clock) == pytest.approx(2 * (0.02 + (m - 1) * 4))
    (neighbours,) = theory.round_costs(tether.DecentralizedSGD(1, "ring"), m, size)
    assert neighbours.seconds(clock) == pytest.approx(0.02 + 2 * 4)
    assert theory.round_costs(tether.LocalSGD(1), 1, size)[0].seconds(clock) == 0


ASYNCHRONOUS = [tether.Downpour(3), tether.AsynchronousEASGD(3), tether.AsynchronousDiLoCo(3, lr=0.1)]


@pytest.mark.parametrize("method", ASYNCHRONOUS, ids=lambda method: type(method).__name__)
def test_visits_to_a_center(method):
    """One of each worker, all at once: their messages share the center's link, and so do the replies."""
    clock, d = tether.Clock(step=1, latency=0.02, bandwidth=1e6), 37
    (cost,) = theory.round_costs(method, M, d, dtype=torch.float64)
    one = run(method, d, 1, 3, clock=clock)
    assert (cost.messages, cost.bytes) == (one.messages, one.bytes) == (2 * (M - 1), 2 * (M - 1) * d * 8)
    assert cost.seconds(clock) == pytest.approx(2 * (0.02 + (M - 1) * 8 * d * 8 / 1e6))
    assert one.history[-1].virtual.now.max() == pytest.approx(3 + cost.seconds(clock))


@dataclass(frozen=True)
class Squared(tether.Method):
    def send(self, x, state, workers, step):
        return workers.mean(torch.zeros(len(x), x.shape[1] ** 2))


def test_what_is_not_linear_is_refused():
    with pytest.raises(ValueError, match=r"Squared sends .* not linear"):
        theory.round_costs(Squared(1), 4, 100)
    with pytest.raises(ValueError, match=r"alpha=2"):
        theory.round_costs(tether.AsynchronousEASGD(1, alpha=2.0), 8, 100)
    with pytest.raises(ValueError, match=r"alpha=0\.5"):
        theory.round_costs(tether.EASGD(1, alpha=0.5), 8, 100)
    with pytest.raises(ValueError, match="parameters=0"):
        theory.round_costs(tether.LocalSGD(1), 8, 0)
