"""The record of a run: growing arrays on disk, and how to read them."""

from observatory.records.growing import GrowingArray, read_growing
from observatory.records.labelled import LabelledArray
from observatory.records.panel import Finding, Panel
from observatory.records.quantity import Quantity
from observatory.records.record import InstrumentRecord, RunRecord
from observatory.records.run import Run, Runs, open_run, open_runs

__all__ = [
    "Finding",
    "GrowingArray",
    "InstrumentRecord",
    "LabelledArray",
    "Panel",
    "Quantity",
    "Run",
    "RunRecord",
    "Runs",
    "open_run",
    "open_runs",
    "read_growing",
]
