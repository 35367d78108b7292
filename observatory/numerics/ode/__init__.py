"""Ordinary differential equations: steps, gradients, and whether they hold."""

from observatory.numerics.ode.adaptive import adaptive_grid
from observatory.numerics.ode.checking import GradientCheck, check_gradients
from observatory.numerics.ode.field import VectorField
from observatory.numerics.ode.grid import Grid, uniform_grid
from observatory.numerics.ode.integration import integrate
from observatory.numerics.ode.tableaux import TABLEAUX, Tableau

__all__ = [
    "TABLEAUX",
    "GradientCheck",
    "Grid",
    "Tableau",
    "VectorField",
    "adaptive_grid",
    "check_gradients",
    "integrate",
    "uniform_grid",
]
