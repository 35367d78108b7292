"""Ordinary differential equations: steps, gradients, and whether they hold."""

from observatory.numerics.ode.adaptive import adaptive_grid
from observatory.numerics.ode.checking import GradientCheck, check_gradients
from observatory.numerics.ode.diffusion import crank_nicolson, laplacian
from observatory.numerics.ode.field import VectorField
from observatory.numerics.ode.grid import Grid, uniform_grid
from observatory.numerics.ode.integration import integrate
from observatory.numerics.ode.splitting import SPLITTINGS
from observatory.numerics.ode.tableaux import TABLEAUX, Tableau

__all__ = [
    "SPLITTINGS",
    "TABLEAUX",
    "GradientCheck",
    "Grid",
    "Tableau",
    "VectorField",
    "adaptive_grid",
    "check_gradients",
    "crank_nicolson",
    "integrate",
    "laplacian",
    "uniform_grid",
]
