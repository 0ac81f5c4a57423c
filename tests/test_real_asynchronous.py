"""A center and rounds that triggers start, in four processes: done again from their logs, everything is the same."""

import numpy as np
import pytest
import torch

import replay
import tether
from problems import Point, Quadratics, quadratic
from real import launch
from scenarios_center import LR, METHODS, PERIOD, STEPS, D, M, local_step

pytestmark = pytest.mark.xdist_group("real")

EQUATIONS = {
    "downpour": replay.Downpour,
    "easgd": lambda z, overlap: replay.EASGD(z, overlap, alpha=0.3),
    "eamsgd": lambda z, overlap: replay.EASGD(z, overlap, alpha=0.9 / M),
    "diloco": lambda z, overlap: replay.DiLoCo(z, overlap, lr=0.4, momentum=0.5, exponent=0.5, bound=5),
}


@pytest.fixture(scope="module")
def real():
    processes = launch("scenarios_center", M, timeout=240)

    def of(name):
        results = [process[name] for process in processes]
        errors = [result for result in results if isinstance(result, str)]
        assert not errors or name.startswith(("refuses", "a center that fails")), errors[0]
        return results

    return of


def workers(optimizer=None):
    return [replay.Worker(torch.zeros(1, D).double(), local_step(rank, optimizer or {})) for rank in range(M)]


def center_of_log(text, equations, optimizer=None):
    header, events = replay.read(text)
    return replay.center(equations(torch.zeros(1, D).double(), header["overlap"]), workers(optimizer), events)


@pytest.mark.parametrize("overlap", [0, 3])
@pytest.mark.parametrize("name", METHODS)
def test_the_log_gives_the_same_center(real, name, overlap):
    method, optimizer = METHODS[name]
    processes = real(f"{name} {overlap}")
    header, events = replay.read(processes[0]["log"])
    assert header == {"workers": M, "method": type(method).__name__, "overlap": overlap}
    for rank, process in enumerate(processes):
        mine = [event["step"] for event in events if event["worker"] == rank]
        assert mine == list(range(PERIOD, STEPS + 1, PERIOD))
        assert process["messages"] == (2 * len(mine) if rank else 0)  # the first has the center
        assert torch.equal(process["row"], processes[0]["row"])
    assert [event["seconds"] for event in events] == sorted(event["seconds"] for event in events)
    assert max(event["staleness"] for event in events) > M - 1  # fast ones do not wait for slow ones
    z = center_of_log(processes[0]["log"], EQUATIONS[name], optimizer)
    assert torch.equal(processes[0]["row"], z[0])
    assert not torch.equal(z[0], torch.zeros(D).double())


def simulated(text, method, folder, optimizer=None, **more):
    """The run of a log done again by the simulator."""
    log = folder / "arrivals.jsonl"
    log.write_text(text)
    return tether.replay(
        log,
        Point(D),
        method,
        Quadratics.random(M, D).data,
        objective=quadratic,
        optimizer=lambda p: torch.optim.SGD(p, lr=LR, **(optimizer or {})),
        batch_size=None,
        **more,
    )


@pytest.mark.parametrize("overlap", [0, 3])
@pytest.mark.parametrize("name", METHODS)
def test_the_simulator_comes_to_the_same_center(real, name, overlap, tmp_path):
    method, optimizer = METHODS[name]
    processes = real(f"{name} {overlap}")
    result = simulated(processes[0]["log"], method, tmp_path, optimizer)
    assert torch.equal(result.anchor[0], processes[0]["row"])
    _, events = replay.read(processes[0]["log"])
    staleness = [trip.staleness for record in result.history for trip in record.trips]
    assert staleness == [event["staleness"] for event in events]


@pytest.mark.parametrize(
    ("name", "trigger", "method"),
    [
        ("total", tether.TotalSteps(), tether.LocalSGD(PERIOD)),
        ("leaders", tether.TotalSteps(), tether.LSGD(PERIOD, pull=0.3)),
        ("window", tether.TimeWindow(0.01), tether.LocalSGD(PERIOD)),
        ("window alike", tether.TimeWindow(0.01, by_steps=False), tether.LocalSGD(PERIOD)),
    ],
)
def test_the_simulator_comes_to_the_same_rounds(real, name, trigger, method, tmp_path):
    """To the bit where a leader's row is copied; means are added up in another order by Gloo."""
    processes = real(name)
    _, events = replay.read(processes[0]["log"])
    result = simulated(processes[0]["log"], method, tmp_path, trigger=trigger)
    assert [record.leader is None for record in result.history] == [name != "leaders"] * len(events)
    tolerance = {"rtol": 0, "atol": 0} if name == "leaders" else {"rtol": 1e-11, "atol": 1e-13}
    gone = {rank for event in events[:-1] for rank in event["ended"]}
    there = [rank for rank in range(M) if rank not in gone and rank not in events[-1]["ended"]]
    assert there, "of those who end before the last round, nobody knows what it made of them"
    for rank in there:
        row, step = result.rows[rank : rank + 1].clone(), local_step(rank, {})
        for _ in range(processes[rank]["count"] - events[-1]["steps"][rank]):
            step(row)
        torch.testing.assert_close(row[0], processes[rank]["own"], **tolerance)


def test_order_of_step_and_round(real):
    """Exchanged between gradient and update: the message lacks the step that it belongs to."""
    processes = real("mix-then-step")
    _, events = replay.read(processes[0]["log"])
    shifted = [event | {"step": event["step"] - 1} for event in events]
    everyone = [MixThenStep(worker.x, worker.step) for worker in workers()]
    z = replay.center(replay.Downpour(torch.zeros(1, D).double(), 0), everyone, shifted)
    torch.testing.assert_close(processes[0]["row"], z[0], rtol=1e-12, atol=1e-12)


class MixThenStep(replay.Worker):
    """Its gradient is taken before the exchange, and applied after it."""

    def advance(self, to, land):
        if self.count and self.count < to:
            before = self.x.clone()
            at = self.sent_from.clone()
            self.step(at)
            self.x.copy_(before + (at - self.sent_from))
            self.count += 1
        super().advance(to, land)
        self.sent_from = self.x.clone()


def test_one_process_looks_at_the_center_alone(real):
    processes = real("alone at the center")
    z = center_of_log(processes[0]["log"], EQUATIONS["eamsgd"])
    assert torch.equal(processes[0]["row"], z[0])


def test_junk_changes_nothing(real):
    processes = real("junk")
    assert torch.equal(processes[0]["row"], center_of_log(processes[0]["log"], replay.Downpour)[0])


def test_buffers_of_the_center(real):
    processes = real("buffers")
    mean = torch.stack([process["sent"] for process in processes]).mean(0)
    for process in processes:
        torch.testing.assert_close(process["center"], mean, rtol=1e-15, atol=0)
    assert not torch.equal(processes[0]["sent"], processes[1]["sent"])
    assert not torch.equal(processes[3]["sent"], processes[3]["own"])


def test_a_center_that_fails_says_so_to_all(real):
    assert real("a center that fails") == ["the center has failed: ArithmeticError: no more"] * M


@pytest.mark.parametrize("name", ["resumed downpour", "resumed easgd"])
def test_a_worker_by_itself_goes_on_to_the_bit(real, name):
    for process in real(name):
        assert torch.equal(process["whole"], process["again"])
        assert torch.equal(process["own"], process["own again"])


@pytest.mark.parametrize("name", ["saved downpour", "saved easgd"])
def test_saved_at_different_moments(real, name):
    processes = real(name)
    assert [process["step"] for process in processes] == [10, 15, 20, 25]
    for process in processes:
        assert torch.equal(process["center"], processes[0]["center"])
        assert torch.equal(process["end"], processes[0]["end"])
        if name == "saved easgd":
            assert not torch.equal(process["row"], process["center"])
    if name == "saved downpour":  # the slowest had sent more by its own save than by that of the first
        assert torch.equal(processes[3]["row"], processes[3]["center"])
        assert torch.equal(processes[3]["state"]["received"][0], processes[3]["center"])
    _, events = replay.read(processes[0]["log"])
    assert sum("resumed" in event for event in events) == 1
    assert events[-1]["worker"] in range(M)
    assert [process["count of two"] for process in processes[:2]] == [10, 15]
    assert torch.equal(processes[0]["end of two"], processes[1]["end of two"])


def check_rounds(processes, weights):
    """All took part in the same rounds, whose log gives everyone's rows. Returns what happened."""
    _, events = replay.read(processes[0]["log"])
    assert {process["rounds"] for process in processes} == {len(events)}
    rows, center = replay.rounds(workers(), events, weights, [process["count"] for process in processes])
    for row, process in zip(rows, processes, strict=True):
        torch.testing.assert_close(process["own"], row[0], rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(process["row"], center[0], rtol=1e-10, atol=1e-12)
        assert torch.equal(process["row"], processes[0]["row"])
    return events


def at_their_own_speeds(events):
    """Whether some round found the quickest process ahead of the slowest."""
    return any(event["steps"][0] > event["steps"][3] for event in events if not event["ended"])


def alike(taken):
    return [1.0] * len(taken)


def by_steps(taken):
    return taken


def test_rounds_due_of_total_steps(real):
    """Four workers that end after 100, 60, 30 and 8 steps."""
    processes = real("total")
    events = check_rounds(processes, alike)
    assert [process["count"] for process in processes] == [100, 60, 30, 8]
    totals = [sum(event["steps"]) for event in events]
    assert all(total >= M * PERIOD * number for number, total in enumerate(totals, 1))
    assert totals[-1] < M * PERIOD * (len(events) + 2)
    assert at_their_own_speeds(events)


def test_rounds_due_of_total_steps_on_their_way(real):
    """With overlap, while one is away for a while: whoever is quick does not start a second round meanwhile."""
    processes = real("total overlap")
    _, events = replay.read(processes[0]["log"])
    assert {process["rounds"] for process in processes} == {len(events)}
    assert all(torch.equal(process["row"], processes[0]["row"]) for process in processes)


def test_rounds_of_two_kinds_due_of_total_steps(real):
    processes = real("total parts")
    _, events = replay.read(processes[0]["log"])
    assert {process["rounds"] for process in processes} == {len(events)}
    kinds = [event["round"] for event in events]
    assert kinds[:8] == [0, 0, 0, 1, 0, 0, 0, 1]
    assert all(torch.equal(process["row"], processes[0]["row"]) for process in processes)


@pytest.mark.parametrize(("name", "weights"), [("window", by_steps), ("window alike", alike)])
def test_rounds_due_of_time(real, name, weights):
    processes = real(name)
    events = check_rounds(processes, weights)
    between = np.diff([event["seconds"] for event in events])
    assert between.min() > 0.9 * 0.01 * PERIOD
    assert at_their_own_speeds(events)


def test_rounds_of_own_steps_have_a_log_too(real):
    events = check_rounds(real("steps logged"), alike)
    assert [event["steps"] for event in events] == [[count] * M for count in range(PERIOD, STEPS + 1, PERIOD)]


def test_refuses(real):
    for name, message in {
        "refuses a trigger": "each exchanges with the center by itself, every period=4 local steps",
        "refuses a mean of moments": "optimizer_state='average': with Downpour workers do not meet",
        "refuses another trigger": "trigger='often': give tether.TotalSteps() or",
        "refuses alpha": "alpha=1.125: a worker and the anchor come closer only for 0 < alpha < 1",
    }.items():
        assert all(message in said for said in real(name)), name
