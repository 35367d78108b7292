"""The empirical neural tangent kernel and its collective variables."""

from observatory.ntk.collective import KernelVariables, collective_variables, kernel_distance, to_matrix
from observatory.ntk.empirical import empirical_ntk, empirical_ntk_by_layer
from observatory.ntk.instrument import CollectiveVariables

__all__ = [
    "CollectiveVariables",
    "KernelVariables",
    "collective_variables",
    "empirical_ntk",
    "empirical_ntk_by_layer",
    "kernel_distance",
    "to_matrix",
]
