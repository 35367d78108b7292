"""What the fit of a dynamical system has found, during the fit."""

from observatory.assimilated.instrument import RecoveredParameters

__all__ = ["RecoveredParameters"]
