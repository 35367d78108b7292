"""Fits of differential equations to observed trajectories."""

from observatory.physics.assimilation.assimilation import Assimilation, Coordinates, Residuals
from observatory.physics.assimilation.confidence import Estimates, estimates
from observatory.physics.assimilation.levenberg_marquardt import LevenbergMarquardt
from observatory.physics.assimilation.shooting import Query, Shots
from observatory.physics.assimilation.unknowns import Unknown

__all__ = [
    "Assimilation",
    "Coordinates",
    "Estimates",
    "LevenbergMarquardt",
    "Query",
    "Residuals",
    "Shots",
    "Unknown",
    "estimates",
]
