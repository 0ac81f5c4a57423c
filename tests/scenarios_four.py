"""What four processes do: users' loops with everything that goes wrong in them, and several workers a process."""

import contextlib
import io
from functools import partial
from types import SimpleNamespace

import numpy as np
import torch
import torch.distributed as dist
from torch import nn

import augmented
import tether
from methods_table import CASES, M
from problems import Point, Quadratics, quadratic

D = 5


def start(m=M):
    return torch.tensor(np.random.default_rng(1).normal(size=(m, D)))


def thousand(workers):
    """A thousand workers on a ring of them."""
    return tether.simulate(
        Point(D),
        tether.DecentralizedSGD(2),
        Quadratics.random(1000, D).data,
        workers=workers,
        **ROWS_SETTINGS | {"start": start(1000), "steps": 6},
    ).rows


def several_rows(method, order, overlap):
    """Eight workers, two in each process."""

    def scenario():
        result = tether.simulate(
            Point(D),
            method,
            Quadratics.random(M, D).data,
            workers=tether.Ranks(rows=2),
            **ROWS_SETTINGS,
            order=order,
            overlap=overlap,
        )
        return {"rows": result.rows, "losses": result.losses, "bytes": result.bytes, "consensus": result.consensus}

    return scenario


ROWS_SETTINGS = {
    "objective": quadratic,
    "optimizer": lambda p: torch.optim.Adam(p, lr=0.02),
    "steps": 200,
    "batch_size": None,
    "start": start(),
}


def row_settings():
    for case in CASES:
        for overlap, order in ((0, "step-then-mix"), (2, "mix-then-step")):
            period = 1 if case.fixed_period else 4
            yield f"{case}-{order}-{overlap}", case.make(period), order, min(overlap, period)


def long_messages(workers):
    """Rows that travel in pieces, many on their way at once: by each leader to all, to its group, and mixtures."""
    ring = (torch.eye(4) + torch.eye(4).roll(1, 0) + torch.eye(4).roll(-1, 0)) / 3
    x, messages = (torch.arange(4.0)[:, None] + torch.arange(70_000) / 70_000)[workers.rows], []
    for leader in range(4):
        losses = torch.where(torch.arange(4) == leader, 0.0, 1.0)[workers.rows]
        messages.append(workers.best(x, losses)["row"])
        messages.append(workers.mix(x, ring))
        messages.append(workers.best(x, losses, within=2)["row"])
    # The last sent is waited for first, which must not matter.
    landed = [message.wait() for message in reversed(messages)]
    return torch.stack([rows.expand(len(x), -1) for rows in landed], dim=1)


class Net(nn.Module):
    """BatchNorm, tied weights, a frozen layer, one that is not always used."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(6, 4)
        self.norm = nn.BatchNorm1d(4)
        self.b = nn.Linear(4, 4, bias=False)
        self.c = nn.Linear(4, 4, bias=False)
        self.c.weight = self.b.weight
        self.frozen = nn.Linear(4, 4).requires_grad_(False)
        self.sometimes = nn.Linear(4, 4)
        self.head = nn.Linear(4, 3)

    def forward(self, x, use=True):
        h = self.frozen(self.c(self.b(self.norm(self.a(x)).relu())))
        return self.head(self.sometimes(h) if use else h)


class ByHand:
    """What `attach` should come to, written out: after every fourth step, the mean of all that is averaged."""

    def __init__(self, model, optimizer, method, *, group, samples=1, buffers="average", optimizer_state="local"):
        self.model, self.optimizer, self.group, self.optimizer_state = model, optimizer, group, optimizer_state
        self.buffers = [b for b in model.buffers() if b.is_floating_point() and buffers == "average"]
        self.weight = samples / self.sum(torch.tensor(float(samples)))
        self.count = 0
        self.rounds, self.workers = SimpleNamespace(rounds=[]), SimpleNamespace(bytes=0)
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, dist.get_process_group_ranks(group or dist.group.WORLD)[0], group=group)
        optimizer.register_step_post_hook(self.step)

    def sum(self, tensor):
        dist.all_reduce(tensor, group=self.group)
        return tensor

    def step(self, *_):
        self.count += 1
        if self.count % 4 == 0:
            self.meet(self.weight)
            states = self.optimizer.state
            if self.optimizer_state == "reset":
                states.clear()
            elif self.optimizer_state == "average":
                for moment in [value for state in states.values() for value in state.values() if value.dim()]:
                    moment.copy_(self.sum(moment / dist.get_world_size(self.group)))

    @torch.no_grad()
    def meet(self, weight):
        for p in [p for p in self.model.parameters() if p.requires_grad]:
            p.copy_(self.sum(p * weight))
        for buffer in self.buffers:
            buffer.copy_(self.sum(buffer / dist.get_world_size(self.group)))

    def report(self, loss):
        pass

    def close(self):
        self.meet(1 / dist.get_world_size(self.group))


def fit(
    optimizer=lambda p: torch.optim.SGD(p, lr=0.05, momentum=0.9),
    method=None,
    steps=13,
    batches=1,
    use=lambda rank: True,
    scheduler=None,
    wrap=lambda model: model,
    autocast=False,
    skip=lambda rank, step: False,
    evaluate=lambda step: False,
    interrupt=lambda step: False,
    group=None,
    make=Net,
    attach=tether.attach,
    **options,
):
    """An ordinary training loop on this process's own data; what it ends with."""
    rank = dist.get_rank()

    def begin():
        torch.manual_seed(rank)  # different starts: attach broadcasts the first
        model = make()
        stepper = optimizer([p for p in model.parameters() if p.requires_grad])
        return model, stepper, attach(model, stepper, method or tether.LocalSGD(4), group=group, **options)

    model, stepper, rounds = begin()
    schedule = scheduler(stepper) if scheduler else None
    net = wrap(model)
    scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    data = torch.Generator().manual_seed(100 + rank)
    centers, own = [], []
    for step in range(steps(rank) if callable(steps) else steps):
        stepper.zero_grad()
        for _ in range(batches):
            x, y = torch.randn(8, 6, generator=data), torch.randint(0, 3, (8,), generator=data)
            with torch.autocast("cpu", torch.bfloat16) if autocast else contextlib.nullcontext():
                loss = nn.functional.cross_entropy(net(x, use=use(rank)), y) / batches
            scaler.scale(loss).backward()
        if skip(rank, step):
            model.a.weight.grad.fill_(torch.inf)
        rounds.report(loss)
        scaler.step(stepper)
        scaler.update()
        if schedule:
            schedule.step()
        if evaluate(step):
            own.append(row(model))
            with rounds.center():
                centers.append(row(model))
            if not skip(rank, 2):  # who is behind takes part in a round first, which moves it
                assert torch.equal(row(model), own[-1])
        if interrupt(step):
            saved = through_a_file([each.state_dict() for each in (model, stepper, rounds)])
            model, stepper, rounds = begin()
            net = wrap(model)
            for each, state in zip((model, stepper, rounds), saved, strict=True):
                each.load_state_dict(state)
    rounds.close()
    moments = [state["exp_avg"].flatten() for state in stepper.state.values() if "exp_avg" in state]
    return {
        "row": row(model),
        "count": rounds.count,
        "rounds": sum(rounds.rounds.rounds),
        "sent": rounds.workers.bytes,
        "variance": model.norm.running_var.clone(),
        "moments": torch.cat(moments) if moments else torch.zeros(0),
        "frozen": model.frozen.weight.detach().clone(),
        "tied": model.c.weight is model.b.weight,
        "centers": centers,
        "own": own,
    }


def through_a_file(states):
    """What is left of states once they have been in a file."""
    file = io.BytesIO()
    torch.save(states, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def row(model):
    return nn.utils.parameters_to_vector(p for p in model.parameters() if p.requires_grad).detach().clone()


def in_double(loop, *arguments, **options):
    """A loop in float64."""
    torch.set_default_dtype(torch.float64)
    try:
        return loop(*arguments, **options)
    finally:
        torch.set_default_dtype(torch.float32)


def nodes_of_two(**options):
    """DistributedDataParallel within two nodes of two processes; rounds between the nodes."""
    within, _ = dist.new_subgroups_by_enumeration([[0, 1], [2, 3]])
    between, _ = dist.new_subgroups_by_enumeration([[0, 2], [1, 3]])

    def wrap(model):
        return nn.parallel.DistributedDataParallel(model, process_group=within, find_unused_parameters=False)

    return fit(group=between, wrap=wrap, **options)


def refusal(action):
    try:
        action()
    except (ValueError, RuntimeError) as error:
        return str(error)
    return "nothing was refused"


def other_model():
    return nn.Linear(3 + (dist.get_rank() == 2), 2)


def attach_to(model, parameters=None):
    tether.attach(model, torch.optim.SGD(parameters or model.parameters(), lr=0.1), tether.LocalSGD(2))


class Words(nn.Module):
    """Matrices alone, as Muon asks for; sparse gradients, if asked for."""

    def __init__(self, sparse=False):
        super().__init__()
        self.words = nn.Embedding(10, 4, sparse=sparse)
        self.head = nn.Linear(4, 3, bias=False).requires_grad_(not sparse)

    def forward(self, x):
        return self.head(self.words(x))


def closures(name, steps=13, **options):
    """A loop that gives the optimizer a closure, by which LBFGS computes the loss several times a step."""
    kind = getattr(torch.optim, name)
    rank = dist.get_rank()
    torch.manual_seed(rank)
    model = Words(sparse=name == "SparseAdam")
    optimizer = kind([p for p in model.parameters() if p.requires_grad], lr=0.01)
    rounds = tether.attach(model, optimizer, tether.LocalSGD(4), **options)
    data = torch.Generator().manual_seed(100 + rank)
    losses = []
    for _ in range(steps):
        x, y = torch.randint(0, 10, (16,), generator=data), torch.randint(0, 3, (16,), generator=data)

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x), y)
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).detach())
    before = row(model)
    rounds.close()
    states = [value for state in optimizer.state.values() for value in state.values()]
    return {
        "row": row(model),
        "own": before,
        "state": torch.cat([torch.zeros(0), *(v.flatten() for v in states if torch.is_tensor(v) and v.dim())]),
        "count": rounds.count,
        "rounds": sum(rounds.rounds.rounds),
    }


def by_closure(closures, order, state):
    """Adam with or without a closure; some of the model's layers have a gradient on one process alone."""
    rank = dist.get_rank()
    model = Net()
    torch.manual_seed(5)
    for p in model.parameters():
        nn.init.normal_(p.data)
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=0.01)
    rounds = tether.attach(model, optimizer, tether.LocalSGD(4), order=order, optimizer_state=state)
    data = torch.Generator().manual_seed(100 + rank)
    for _ in range(9):
        x, y = torch.randn(8, 6, generator=data), torch.randint(0, 3, (8,), generator=data)

        def closure(x=x, y=y):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(x, use=rank != 1), y)
            loss.backward()
            return loss

        if closures:
            assert optimizer.step(closure).isfinite()
        else:
            closure()
            optimizer.step()
    rounds.close()
    return {"row": row(model)}


ORDERS = [(order, state) for order in ("step-then-mix", "mix-then-step") for state in ("local", "average")]

OPTIMIZERS = sorted(
    name
    for name, kind in vars(torch.optim).items()
    if isinstance(kind, type) and issubclass(kind, torch.optim.Optimizer) and kind is not torch.optim.Optimizer
)


def adam(parameters):
    return torch.optim.Adam(parameters, lr=0.01)


def compiled_on_one(**options):
    """One process compiles its model, unless it is done by hand: compiling takes a while."""
    compiles = dist.get_rank() == 0 and "attach" not in options
    torch._inductor.config.compile_threads = 1
    return fit(wrap=torch.compile if compiles else lambda model: model, **options)


LOOPS = {
    "plain": partial(in_double, fit),
    "accumulated": partial(in_double, fit, batches=3),
    "fused": partial(in_double, fit, lambda p: torch.optim.AdamW(p, lr=0.01, fused=True)),
    "one cycle": partial(
        in_double, fit, scheduler=lambda o: torch.optim.lr_scheduler.OneCycleLR(o, max_lr=0.1, total_steps=13)
    ),
    "unused on one": partial(in_double, fit, use=lambda rank: rank != 1),
    "local buffers": partial(in_double, fit, buffers="local"),
    "weighted": partial(in_double, lambda **o: fit(method=tether.FedAvg(4), samples=dist.get_rank() + 1, **o)),
    "nodes": partial(in_double, nodes_of_two),
    "autocast": partial(fit, autocast=True),
    "compiled": compiled_on_one,
}
LOOPS |= {f"{state} 0": partial(in_double, fit, adam, optimizer_state=state) for state in ("local", "average", "reset")}
"""Loops that are also run by hand."""


def no_step_at_first(rank, step):
    return rank == 1 and step < 5


SCENARIOS = {f"rows {name}": several_rows(*rest) for name, *rest in row_settings()}
SCENARIOS |= {"long messages": lambda: long_messages(tether.Ranks())}
SCENARIOS |= {f"optimizer {name}": partial(closures, name, overlap=2) for name in OPTIMIZERS}
SCENARIOS |= {
    f"optimizer {name}, averaged": partial(closures, name, steps=12, optimizer_state="average")
    for name in OPTIMIZERS
    if name != "LBFGS"
}
SCENARIOS |= {
    f"closure {closures} {order} {state}": (
        lambda closures=closures, order=order, state=state: by_closure(closures, order, state)
    )
    for closures in (True, False)
    for order, state in ORDERS
}
SCENARIOS |= {
    f"{state} 2": (lambda state=state: fit(adam, optimizer_state=state, overlap=2))
    for state in ("local", "average", "reset")
}
SCENARIOS |= LOOPS | {f"{name}, by hand": partial(loop, attach=ByHand) for name, loop in LOOPS.items()}
SCENARIOS |= {
    "no moments on one, averaged": lambda: fit(adam, skip=no_step_at_first, optimizer_state="average", steps=20),
    "again": LOOPS["plain"],
    "unused on one, averaged": lambda: fit(adam, use=lambda rank: rank != 1, optimizer_state="average"),
    "interrupted": lambda: fit(adam, optimizer_state="average", overlap=2, interrupt=lambda step: step in (4, 10)),
    "evaluated": lambda: fit(adam, overlap=2, evaluate=lambda step: step % 5 == 4),
    "skipped": lambda: fit(skip=lambda rank, step: rank == 1 and step in (2, 5), evaluate=lambda step: step % 4 == 3),
    "skipped overlap": lambda: fit(
        skip=lambda rank, step: rank == 1 and step in (2, 5), evaluate=lambda step: step % 4 == 3, overlap=3
    ),
    "uneven": lambda: fit(steps=lambda rank: 9 + 7 * rank),
    "uneven overlap": lambda: fit(steps=lambda rank: 9 + 7 * rank, overlap=3),
    "uneven ring": lambda: fit(steps=lambda rank: 9 + 7 * rank, method=tether.DecentralizedSGD(3, "complete")),
    "uneven leader": lambda: fit(steps=lambda rank: 9 + 7 * rank, method=tether.LSGD(3, pull=0.5)),
    "uneven multi-leader": lambda: fit(
        steps=lambda rank: 9 + 7 * rank, method=tether.MultiLeaderLSGD(3, 6, groups=2), overlap=1
    ),
    "augmented": lambda: augmented.train(tether.Ranks(rows=2)),
    "a thousand workers": lambda: thousand(tether.Ranks(rows=250)),
    "refuses what should be the same and is not": lambda: refusal(another_anchor),
    "refuses another model": lambda: refusal(lambda: attach_to(other_model())),
    "refuses a foreign optimizer": lambda: refusal(lambda: attach_to(Net(), Net().parameters())),
    "refuses a partial optimizer": lambda: refusal(lambda: attach_to(nn.Linear(2, 2), [nn.Linear(2, 2).weight])),
    "refuses a wrapped optimizer": lambda: refusal(wrapped_optimizer),
    "refuses LBFGS between gradients and update": lambda: refusal(gradients_again),
    "refuses to average LBFGS": lambda: refusal(lambda: closures("LBFGS", optimizer_state="average")),
    "refuses no loss": lambda: refusal(no_loss),
}


class Wrapped(torch.optim.Optimizer):
    """As frameworks wrap one, such as Accelerate's."""

    def __init__(self, optimizer):
        self.optimizer = optimizer


def wrapped_optimizer():
    model = nn.Linear(2, 2)
    tether.attach(model, Wrapped(torch.optim.SGD(model.parameters(), lr=0.1)), tether.LocalSGD(2))


def gradients_again():
    model = nn.Linear(2, 2)
    tether.attach(model, torch.optim.LBFGS(model.parameters()), tether.LocalSGD(2), order="mix-then-step")


def another_anchor():
    """One process's anchor is not the others'."""
    model = nn.Linear(2, 2)
    rounds = tether.attach(model, torch.optim.SGD(model.parameters(), lr=0.1), tether.EASGD(2))
    if dist.get_rank() == 2:
        rounds.rounds.states[0]["anchor"][0, 0] += 1e-6
    rounds.close()


def no_loss():
    model = nn.Linear(2, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    tether.attach(model, optimizer, tether.LSGD(2))
    model(torch.ones(1, 2)).sum().backward()
    optimizer.step()
