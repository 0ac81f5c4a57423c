"""How rows reach each other."""

from tether.workers.base import (
    Arrived,
    CenterWorkers,
    Message,
    Pending,
    Received,
    Weighted,
    Workers,
    check_groups,
    contest,
    land,
)
from tether.workers.center import Center, Visit, Visitor
from tether.workers.meter import Metered, MeteredCenter
from tether.workers.ranks import Ranks
from tether.workers.stacked import Stacked

__all__ = [
    "Arrived",
    "Center",
    "CenterWorkers",
    "Message",
    "Metered",
    "MeteredCenter",
    "Pending",
    "Ranks",
    "Received",
    "Stacked",
    "Visit",
    "Visitor",
    "Weighted",
    "Workers",
    "check_groups",
    "contest",
    "land",
]
