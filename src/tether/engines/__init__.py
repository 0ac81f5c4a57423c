"""What carries a run out: who takes steps when, and meets whom."""

from tether.engines.base import Engine, Evaluate
from tether.engines.build import Buffers, Ingredients, OptimizerState, check_pace, equal_batches

__all__ = ["Buffers", "Engine", "Evaluate", "Ingredients", "OptimizerState", "check_pace", "equal_batches"]
