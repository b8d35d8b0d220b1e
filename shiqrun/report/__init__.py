"""Runs and sweeps as one HTML page: figures, tables, completions and token views."""

from shiqrun.report.writing import write

__all__ = ["write"]
