"""What `tether plan` does with a config: measures, simulates, prints, and tries it out."""

from __future__ import annotations

import dataclasses
import functools
import logging
import math
import re
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console

from tether.clock import Clock
from tether.config import Config, ConfigError, choose
from tether.data import PARTITIONS, Dataset
from tether.methods import CenterMethod, Method
from tether.planner import printing
from tether.planner.bounds import Constants, probe
from tether.planner.candidates import Candidate, Conditions, standard_candidates
from tether.planner.forecast import Forecast, course_of, training_loss
from tether.planner.machine import conditions_between, step_seconds
from tether.planner.picture import picture
from tether.planner.plan import Plan, Verified, as_json, make_plan, verified
from tether.result import Result
from tether.run import check, ingredients, load_clock, load_data, load_method, processes, run, workers_of
from tether.run_folder import RunFolder, write_json
from tether.simulation import simulate
from tether.workers import Ranks

log = logging.getLogger(__name__)

POINTS = 50
"""Looks at the mean model's training loss in a simulated run."""


@dataclass(frozen=True)
class Cluster:
    """What is said of the cluster rather than measured.

    Attributes:
        latency: seconds until the first byte of a message arrives.
        bandwidth: bits a second of each worker's link.
        step: seconds a local step takes.
    """

    latency: float | None = None
    bandwidth: float | None = None
    step: float | None = None


def carry_out(
    config: Config,
    cluster: Cluster,
    names: Sequence[str],
    periods: Sequence[int],
    *,
    target: float | None,
    bounds: bool,
    top: int,
    out: Path | None,
    console: Console,
) -> None:
    """Plan, print, and with `top` > 0 run so many of the best for real, every process of a torchrun together.

    Raises:
        ConfigError: if something is not possible, or not said.
    """
    data = load_data(config)
    for name in names:
        check(config.model_copy(update={"overlap": 0}), name)
    ranks = workers_of(config)
    planner = _Planner(config, data, ranks if isinstance(ranks, Ranks) else None)
    if top and planner.ranks is None:
        raise ConfigError("--verify runs on real workers: start it with torchrun, a process a worker")
    methods = {name: functools.partial(planner.method, name) for name in names}
    conditions = planner.conditions(cluster, methods)
    try:
        candidates = standard_candidates(methods, conditions, periods, config.steps)
    except ValueError as error:
        raise ConfigError(f"--periods: {error}") from error
    console.print(printing.heading(config, data, conditions), highlight=False)
    plan = planner.plan(candidates, conditions, target, bounds, out, console) if processes()[0] == 0 else None
    if plan is not None:
        console.print(printing.candidates(plan))
        if plan.bounds:
            console.print(printing.on_bounds(plan), highlight=False)
        console.print(f"Recommended: [bold]{plan.recommended.name}[/]. {plan.reason}", highlight=False)
    checked = planner.verify(candidates, plan, top) if top else []
    if plan is None:
        return
    if checked:
        console.print(printing.compared(checked, plan.target))
        console.print(printing.lesson(checked, plan), highlight=False)
    if out is not None:
        write_json(out / "plan.json", as_json(plan) | {"verified": [dataclasses.asdict(each) for each in checked]})
        picture(plan).savefig(out / "error-runtime.png", dpi=200)
        console.print(
            f"\nwritten: {out}; `tether report {out}` draws every run", highlight=False, markup=False, soft_wrap=True
        )


class _Planner:
    """A config's plan: what to train is the config's, by which method is the candidates'."""

    def __init__(self, config: Config, data: Dataset, ranks: Ranks | None):
        self.config, self.data, self.ranks = config, data, ranks
        self._given = ingredients(config, data)
        self._model = self._given["model"]
        try:
            self._loss = training_loss(data, self._given["objective"], config.workers, config.seed)
        except ValueError as error:
            raise ConfigError(f"data.partition: {error}") from error

    def method(self, name: str, period: int) -> Method:
        """A method of the config, with this period if it does not say its own."""
        return load_method(self.config.model_copy(update={"period": period}), name)

    def conditions(self, cluster: Cluster, methods: Mapping[str, Callable[[int], Method]]) -> Conditions:
        """What all candidates have in common."""
        parameters = torch.cat([p.detach().flatten() for p in self._model.parameters() if p.requires_grad])
        given: dict[str, Any] = {key: value for key, value in dataclasses.asdict(cluster).items() if value is not None}
        if self.ranks is not None and cluster.bandwidth is None:
            together = functools.partial(self._train, {"workers": self.ranks})
            rounds = {kind: method for kind, make in methods.items() if not isinstance(method := make(1), CenterMethod)}
            measured = conditions_between(self.ranks, self._alone, together, rounds, parameters)
            return dataclasses.replace(measured, clock=dataclasses.replace(measured.clock, **given))
        return Conditions(self.config.workers, len(parameters), self._clock(cluster, given), parameters.dtype)

    def _clock(self, cluster: Cluster, given: dict[str, Any]) -> Clock:
        """The clock that was given, or what of it the config has."""
        base = load_clock(self.config)
        if base is None and cluster.bandwidth is None:
            raise ConfigError(
                "what do the links do? Give --bandwidth 100Mbit and --latency 30ms, or a [clock] in the config, or "
                "start it on the workers with torchrun, which measures them"
            )
        if base is None:
            base = Clock(step=cluster.step or step_seconds(self._alone))
        return dataclasses.replace(base, **given)

    def _alone(self, method: Method, steps: int) -> Result:
        """Train the workers of this process, as if there were no others."""
        first, last = (self.ranks.rows.start, self.ranks.rows.stop) if self.ranks else (0, 1)
        shards = self.data.shards(self.config.workers, self.config.seed)
        held = torch.cat([torch.from_numpy(shards.whole(worker, 0)) for worker in range(first, last)])
        iid = choose("iid", PARTITIONS, "data.partition")
        own = dataclasses.replace(self.data, train=tuple(part[held] for part in self.data.train), partition=iid)
        return self._train({"data": own, "workers": last - first}, method, steps)

    def _train(self, changes: dict[str, Any], method: Method, steps: int) -> Result:
        plain = {"overlap": 0, "evaluate": None, "evaluate_every": None, "clock": None, "trigger": None}
        return simulate(**self._given | plain | changes | {"method": method, "steps": steps})

    def plan(
        self,
        candidates: Sequence[Candidate],
        conditions: Conditions,
        target: float | None,
        bounds: bool,
        out: Path | None,
        console: Console,
    ) -> Plan:
        """Simulate all candidates here."""
        if out is not None and out.is_dir() and any(out.iterdir()) and not (out / "plan.json").exists():
            raise ConfigError(f"--out {out}: is there, is not empty and is no plan's folder: give another")
        lr = _plain_sgd(self.config)
        constants = self._constants() if bounds and lr is not None else None
        with console.status("") as status:

            def train(candidate: Candidate, steps: int) -> Result:
                folder = None if out is None else out / "runs" / candidate.name.replace(" ", "")
                if folder is not None:
                    shutil.rmtree(folder, ignore_errors=True)  # of a plan before, or of fewer steps
                every = max(1, self.config.steps // POINTS)
                clock = _table_of(conditions.clock_of(candidate))
                config = self._config_of(candidate, steps, clock=clock, evaluate_every=every)
                place = None if folder is None else RunFolder(folder)
                return run(config, data=self.data, folder=place, simulated=True, evaluate=self._loss)

            try:
                return make_plan(
                    candidates,
                    conditions,
                    train,
                    steps=self.config.steps,
                    target=target,
                    constants=constants,
                    lr=lr,
                    tell=lambda name: status.update(f"simulating {name}"),
                )
            except ConfigError:
                raise
            except ValueError as error:
                raise ConfigError(f"plan: {error}") from error

    def verify(self, candidates: Sequence[Candidate], plan: Plan | None, top: int) -> list[Verified]:
        """Run the best for real, every process together; the first one, which has the plan, compares."""
        assert self.ranks is not None
        device = next(self._model.parameters()).device
        # Which candidates, and for how many steps: the first process, which has the plan, says it.
        chosen = torch.full((top, 2), -1, dtype=torch.int64, device=device)
        forecasts: list[Forecast] = []
        if plan is not None:
            forecasts = [each for each in plan.forecasts if each.course is not None][:top]
            names = [candidate.name for candidate in candidates]
            for row, each in zip(chosen, forecasts, strict=False):
                assert each.course is not None
                row[0], row[1] = names.index(each.candidate.name), each.course.ends
        dist.broadcast(chosen, dist.get_global_rank(self.ranks.group, 0), group=self.ranks.group)
        found = []
        for number, (index, steps) in enumerate(row for row in chosen.tolist() if row[0] >= 0):
            config = self._config_of(candidates[index], steps, clock=None, evaluate_every=None)
            result = run(config, data=self.data, evaluate=self._loss)
            if plan is not None:
                found.append(verified(forecasts[number], course_of(result.history), plan.target))
        return found

    def _config_of(self, candidate: Candidate, steps: int, **more: Any) -> Config:
        """The config of a run by a candidate."""
        methods = dict(self.config.methods)
        if candidate.name != candidate.kind:
            methods[candidate.name] = {"name": candidate.kind} | methods.get(candidate.kind, {})
            methods[candidate.name].setdefault("period", candidate.period)
        own = {"method": candidate.name, "methods": methods, "overlap": candidate.overlap, "steps": steps}
        return self.config.model_copy(update=own | {"period": candidate.period} | more)

    def _constants(self) -> Constants | None:
        given = self._given
        try:
            return probe(
                given["model"],
                given["objective"],
                self.data,
                self.config.workers,
                given["batch_size"],
                self.config.seed,
            )
        except (ValueError, RuntimeError, NotImplementedError) as error:
            log.warning("no bounds, as the constants could not be estimated: %s", str(error).splitlines()[0])
            return None


def seconds(text: str) -> float:
    """A time such as "30ms".

    Raises:
        ConfigError: if it is none.
    """
    return _number(text, {"s": 1.0, "ms": 1e-3, "us": 1e-6, "µs": 1e-6, "": 1.0}, "a time, such as 30ms or 0.5s")


def bits(text: str) -> float:
    """Bits a second such as "100Mbit".

    Raises:
        ConfigError: if they are none.
    """
    units = {f"{prefix}bit": factor for prefix, factor in (("", 1.0), ("k", 1e3), ("m", 1e6), ("g", 1e9))}
    named = {f"{unit}{end}": factor for unit, factor in units.items() for end in ("", "/s", "s", "ps")}
    found = _number(text, named | {"": 1.0}, "bits a second, such as 100Mbit or 1Gbit")
    if not found:
        raise ConfigError(f"{text}: no message would ever arrive; give bits a second, such as 100Mbit")
    return found


def _number(text: str, units: Mapping[str, float], wanted: str) -> float:
    match = re.fullmatch(r"\s*([0-9.]+(?:e[+-]?\d+)?)\s*([^\d\s]*)\s*", text, re.IGNORECASE)
    try:
        number = float(match[1]) if match else math.nan
    except ValueError:
        number = math.nan
    if match is None or not math.isfinite(number) or match[2].lower() not in units:
        raise ConfigError(f"{text}: give {wanted}")
    return number * units[match[2].lower()]


def _plain_sgd(config: Config) -> float | None:
    """The learning rate, if the optimizer is SGD as the theorems have it."""
    optimizer = config.optimizer
    plain = optimizer.get("name") == "SGD" and not any(optimizer.get(key) for key in ("momentum", "weight_decay"))
    return float(optimizer["lr"]) if plain and "lr" in optimizer and config.scheduler is None else None


def _table_of(clock: Clock | None) -> dict[str, Any] | None:
    """A clock as a config has it."""
    if clock is None:
        return None
    changed = {
        field.name: getattr(clock, field.name)
        for field in dataclasses.fields(clock)
        if field.default is dataclasses.MISSING or getattr(clock, field.name) != field.default
    }
    return {
        key: [list(v) if isinstance(v, tuple) else v for v in value] if isinstance(value, tuple) else value
        for key, value in changed.items()
    }
