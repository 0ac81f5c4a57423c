"""`tether` on a host of `planning.py`, where a local step takes a while longer than it computes.

The hosts share the few cores of one machine. So that none waits for another's cores, as hosts of a real cluster do not,
each sleeps in every step for as long as its first argument says, in seconds; the others are the command's.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from tether import cli
from tether.gradients import Objective
from tether.models import OBJECTIVES
from tether.planner import Plan, command

resting = True
"""Whether steps are real ones, not simulated."""


def lasting(objective: Objective, seconds: float, model: nn.Module, batch: Any) -> Tensor:
    """The objective, and a rest."""
    if resting:
        time.sleep(seconds)
    return objective(model, batch)


def without_rest(make_plan: Callable[..., Plan], *arguments: Any, **options: Any) -> Plan:
    """Make the plan, in which steps are simulated."""
    global resting
    resting = False
    plan = make_plan(*arguments, **options)
    resting = True
    return plan


if __name__ == "__main__":
    rest = float(sys.argv.pop(1))
    for name, each in OBJECTIVES.items():
        OBJECTIVES[name] = partial(lasting, each, rest)
    command.make_plan = partial(without_rest, command.make_plan)
    cli.main()
