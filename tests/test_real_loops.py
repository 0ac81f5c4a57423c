"""Users' training loops in four processes on Gloo, with everything that goes wrong in them."""

import pytest
import torch

import augmented
import tether
from methods_table import M
from problems import Point, Quadratics
from real import launch
from scenarios_four import LOOPS, OPTIMIZERS, ORDERS, ROWS_SETTINGS, D, long_messages, row_settings, thousand
from tether.workers import Stacked

pytestmark = pytest.mark.xdist_group("real")


@pytest.fixture(scope="module")
def real():
    processes = launch("scenarios_four", 4)

    def of(name):
        results = [process[name] for process in processes]
        errors = [result for result in results if isinstance(result, str)]
        assert not errors or name.startswith("refuses"), errors[0]
        return results

    return of


@pytest.mark.parametrize(
    ("name", "method", "order", "overlap"), [pytest.param(*setting, id=setting[0]) for setting in row_settings()]
)
def test_several_workers_a_process(real, name, method, order, overlap):
    simulated = tether.simulate(
        Point(D),
        method,
        Quadratics.random(M, D).data,
        workers=M,
        order=order,
        overlap=overlap,
        **ROWS_SETTINGS,
    )
    processes = real(f"rows {name}")
    torch.testing.assert_close(torch.cat([p["rows"] for p in processes]), simulated.rows, rtol=1e-10, atol=1e-12)
    for process in processes:
        torch.testing.assert_close(process["losses"], simulated.losses, rtol=1e-10, atol=1e-12)
        assert process["bytes"] == simulated.bytes
        assert process["consensus"] == pytest.approx(simulated.consensus, rel=1e-6, abs=1e-20)


def test_augmented_batches_are_the_same_on_real_workers(real):
    torch.testing.assert_close(torch.cat(real("augmented")), augmented.train(workers=8), rtol=1e-12, atol=1e-12)


def test_long_messages(real):
    torch.testing.assert_close(torch.cat(real("long messages")), long_messages(Stacked(4)))


def agree(processes, name="row"):
    """Whether all processes hold the same to the bit, and it is finite."""
    first = processes[0][name]
    return first.isfinite().all() and all(torch.equal(process[name], first) for process in processes)


EVERYONE_AGREES = [
    *LOOPS,
    *("local 2", "average 2", "reset 2", "unused on one, averaged", "no moments on one, averaged"),
    *("skipped", "skipped overlap", "interrupted", "evaluated"),
    *("uneven", "uneven overlap", "uneven ring", "uneven leader", "uneven multi-leader"),
]


@pytest.mark.parametrize("name", EVERYONE_AGREES)
def test_everyone_ends_with_the_center(real, name):
    processes = real(name)
    assert agree(processes)
    assert agree(processes, "frozen")
    assert all(process["tied"] for process in processes)
    if name not in ("local buffers", "nodes"):  # DistributedDataParallel has others take its first process's
        assert agree(processes, "variance")


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_optimizer(real, name):
    processes = real(f"optimizer {name}")
    assert agree(processes)
    assert {process["count"] for process in processes} == {13}
    assert {process["rounds"] for process in processes} == {3}
    own = torch.stack([process["own"] for process in processes])
    assert not torch.equal(own[0], own[1])  # they did train on their own
    torch.testing.assert_close(processes[0]["row"], own.mean(0))


@pytest.mark.parametrize("name", [name for name in OPTIMIZERS if name != "LBFGS"])
def test_all_of_an_optimizers_state_is_averaged(real, name):
    """The last step is a round's: whatever it moves, everyone has the same of it."""
    processes = real(f"optimizer {name}, averaged")
    assert len(processes[0]["state"]) or name == "SGD"  # which has none without momentum
    assert agree(processes, "state")


@pytest.mark.parametrize(("order", "state"), ORDERS)
def test_a_closure_changes_nothing(real, order, state):
    assert agree(real(f"closure True {order} {state}"))
    assert torch.equal(
        real(f"closure True {order} {state}")[0]["row"], real(f"closure False {order} {state}")[0]["row"]
    )


def test_same_run_same_bits(real):
    assert torch.equal(real("plain")[0]["row"], real("again")[0]["row"])


@pytest.mark.parametrize("name", LOOPS)
def test_what_a_loop_by_hand_does(real, name):
    """Parameters, BatchNorm's statistics and Adam's moments are those of means written into the loop."""
    # Numbers of 8 bits, and sums in another order, cannot be the same for long.
    tolerance = {"autocast": 2e-3, "compiled": 1e-5}.get(name, 1e-10)
    for mine, theirs in zip(real(name), real(f"{name}, by hand"), strict=True):
        assert mine["count"] == theirs["count"] == 13
        for value in ("row", "variance", "moments"):
            torch.testing.assert_close(mine[value], theirs[value], rtol=tolerance, atol=tolerance)


def test_interrupted_in_the_middle_of_a_round(real):
    """The state dicts of model, optimizer and rounds are all it takes to go on, bit for bit."""
    for mine, theirs in zip(real("interrupted"), real("average 2"), strict=True):
        assert torch.equal(mine["row"], theirs["row"])
        assert torch.equal(mine["moments"], theirs["moments"])
        assert torch.equal(mine["variance"], theirs["variance"])
        assert (mine["count"], mine["rounds"], mine["sent"]) == (theirs["count"], theirs["rounds"], theirs["sent"])


def test_evaluating_changes_nothing(real):
    processes = real("evaluated")
    assert torch.equal(processes[0]["row"], real("local 2")[0]["row"])
    assert len(processes[0]["centers"]) == 2
    for evaluation, center in enumerate(processes[0]["centers"]):
        own = torch.stack([process["own"][evaluation] for process in processes])
        assert not torch.equal(own[0], own[1])
        torch.testing.assert_close(center, own.mean(0))


def test_a_thousand_workers(real):
    torch.testing.assert_close(torch.cat(real("a thousand workers")), thousand(1000), rtol=1e-12, atol=1e-12)


def test_a_skipped_step_is_not_counted_and_shifts_nobody(real):
    for name in ("skipped", "skipped overlap"):
        processes = real(name)
        assert [process["count"] for process in processes] == [13, 11, 13, 13]
        assert {process["rounds"] for process in processes} == {3}
        for centers in zip(*(process["centers"] for process in processes), strict=True):
            assert all(torch.equal(center, centers[0]) for center in centers)
        assert len(processes[0]["centers"]) == 3


def test_whoever_ends_early_goes_on_taking_part(real):
    for name in ("uneven", "uneven overlap"):
        processes = real(name)
        assert [process["count"] for process in processes] == [9, 16, 23, 30]
        assert {process["rounds"] for process in processes} == {7}


def test_buffers(real):
    assert agree(real("plain"), "variance")
    variances = [process["variance"] for process in real("local buffers")]
    assert not any(torch.equal(mine, variances[0]) for mine in variances[1:])


def test_nodes_of_two(real):
    """Processes that share a rank within their nodes met; those of one node hold the same by DDP."""
    assert agree(real("nodes"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("refuses what should be the same and is not", "the anchor of EASGD is not the same for workers 0 and 2"),
        ("refuses another model", "8 trainable parameters on process 0 and 10 on process 2"),
        ("refuses a foreign optimizer", "the optimizer does not hold 'a.weight' and"),
        ("refuses a partial optimizer", "the optimizer does not hold 'weight' and 1 other"),
        ("refuses a wrapped optimizer", "Wrapped wraps an optimizer; give that one"),
        ("refuses LBFGS between gradients and update", "take order='step-then-mix'"),
        ("refuses to average LBFGS", "take optimizer_state='local' or 'reset'"),
        ("refuses no loss", "call rounds.report(loss) before every optimizer.step()"),
    ],
)
def test_refuses(real, name, message):
    assert all(message in said for said in real(name))


def test_no_process_group():
    model = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="start the script with torchrun"):
        tether.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tether.LocalSGD(2))


def test_losses_of_the_last_round_are_finite(real):
    assert all(process["losses"].isfinite().all() for process in real("rows leader-step-then-mix-0"))
