"""When to look, what it may cost, what happens when it fails, and where the numbers go."""

from observatory.observing.instrument import Histogram, History, Instrument

__all__ = ["Histogram", "History", "Instrument"]
