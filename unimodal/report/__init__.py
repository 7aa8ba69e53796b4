"""The report of a run: one self-contained page."""

from unimodal.report.page import write_report

__all__ = ["write_report"]
