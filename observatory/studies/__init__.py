"""Conclusions from many runs: one file per study, runs in, findings out.

The study `SeedsAndWidth` is the class of that name in `seeds_and_width.py`, imported when it is asked for.
"""

from __future__ import annotations

import re
from importlib import import_module

from observatory.studies.study import Conclusion, FinishedRun, Study

__all__ = ["Conclusion", "FinishedRun", "Study"]


def __getattr__(name: str) -> type[Study]:
    file = f"{__name__}.{re.sub(r'(?<=[a-z0-9])(?=[A-Z])', '_', name).lower()}"
    try:
        study: type[Study] = getattr(import_module(file), name)
    except ModuleNotFoundError as error:
        if error.name != file:
            raise
        raise AttributeError(f"there is no study {name!r}: no module {file}") from None
    return study
