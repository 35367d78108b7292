"""When to look, what it may cost, what happens when it fails, and where the numbers go."""

from observatory.observing.checkpoints import replay
from observatory.observing.instrument import Histogram, History, Instrument
from observatory.observing.watching import watch

__all__ = ["Histogram", "History", "Instrument", "replay", "watch"]
