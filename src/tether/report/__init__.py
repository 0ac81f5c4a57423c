"""Runs that people look at: a page of interactive plots, figures for papers, tables for other programs."""

from tether.report.page import page
from tether.report.runs import Run, read
from tether.report.write import FORMATS, write

__all__ = ["FORMATS", "Run", "page", "read", "write"]
