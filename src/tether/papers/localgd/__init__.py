"""Khaled, Mishchenko & Richtarik, "First analysis of local GD on heterogeneous data" (2019), and its slides."""

from tether.papers.localgd import periods  # noqa: F401  registers its experiment
