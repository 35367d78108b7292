"""The Training Observatory: watch a neural network learn as a physical system.

Everything public is imported when it is first used; importing the package itself imports nothing heavy.
"""

from __future__ import annotations

TYPE_CHECKING = False  # importing `typing` for it would take longer than everything else here

__version__ = "0.1.0"

_WHERE = {
    "ModelFunction": "observatory.looking",
    "Probe": "observatory.looking",
    "ProbeRequest": "observatory.looking",
    "weightless_twin": "observatory.looking",
    "Instrument": "observatory.observing",
    "replay": "observatory.observing",
    "watch": "observatory.observing",
    "open_run": "observatory.records",
    "open_runs": "observatory.records",
    "write_report": "observatory.report",
}

__all__ = ["__version__", *sorted(_WHERE)]

if TYPE_CHECKING:
    from observatory.looking import ModelFunction as ModelFunction
    from observatory.looking import Probe as Probe
    from observatory.looking import ProbeRequest as ProbeRequest
    from observatory.looking import weightless_twin as weightless_twin
    from observatory.observing import Instrument as Instrument
    from observatory.observing import replay as replay
    from observatory.observing import watch as watch
    from observatory.records import open_run as open_run
    from observatory.records import open_runs as open_runs
    from observatory.report import write_report as write_report


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _WHERE:
        raise AttributeError(f"module 'observatory' has no attribute {name!r}")
    value = getattr(import_module(_WHERE[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
