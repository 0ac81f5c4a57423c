"""Deng et al., "Local SGD optimizes overparameterized neural networks in polynomial time" (2022)."""

from tether.papers.relu import depth, period, width  # noqa: F401  each registers its experiments
