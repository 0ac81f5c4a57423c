"""The experiments of the papers, each carried out by one command: `tether reproduce`."""

from tether.papers import cooperative, leader, localgd, relu, second_order  # noqa: F401  each registers its experiments
from tether.papers.experiments import EXPERIMENTS, Claim, Experiment, Outcome, Setting, experiment, find

__all__ = ["EXPERIMENTS", "Claim", "Experiment", "Outcome", "Setting", "experiment", "find"]
