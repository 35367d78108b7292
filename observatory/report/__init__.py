"""The page of a run: what was found, drawn and explained, in one file that needs no network."""

from observatory.report.metrics import read_metrics
from observatory.report.page import Section, write_page
from observatory.report.run import write_report

__all__ = ["Section", "read_metrics", "write_page", "write_report"]
