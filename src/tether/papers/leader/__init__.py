"""Teng et al., "Leader stochastic gradient descent for distributed training of deep learning models" (2019)."""

from tether.papers.leader import imagenet, matrix_completion, networks, sinc, symmetry  # noqa: F401  each registers its experiments
