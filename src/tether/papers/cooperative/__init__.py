"""Wang & Joshi, "Cooperative SGD: a unified framework for ... local-update SGD algorithms" (2021)."""

from tether.papers.cooperative import decentralized, elasticity, network_error, overlap, period  # noqa: F401  each registers its experiment
