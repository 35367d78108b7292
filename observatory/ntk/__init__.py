"""The empirical neural tangent kernel and its collective variables."""

from observatory.ntk.collective import KernelVariables, collective_variables, kernel_distance, to_matrix
from observatory.ntk.empirical import empirical_ntk
from observatory.ntk.instrument import CollectiveVariables

__all__ = [
    "CollectiveVariables",
    "KernelVariables",
    "collective_variables",
    "empirical_ntk",
    "kernel_distance",
    "to_matrix",
]
