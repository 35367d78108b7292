"""An observatory for training dynamics."""

__version__ = "0.1.0"
