"""Conclusions from many runs: one file per study, runs in, findings out."""

from observatory.studies.study import Conclusion, FinishedRun, Study

__all__ = ["Conclusion", "FinishedRun", "Study"]
