"""How rows reach each other."""

from tether.workers.base import Arrived, Message, Pending, Received, Workers, check_groups, contest, land
from tether.workers.meter import Metered
from tether.workers.ranks import Ranks
from tether.workers.stacked import Stacked

__all__ = [
    "Arrived",
    "Message",
    "Metered",
    "Pending",
    "Ranks",
    "Received",
    "Stacked",
    "Workers",
    "check_groups",
    "contest",
    "land",
]
