"""The empirical neural tangent kernel and its collective variables."""

from observatory.ntk.collective import KernelVariables, collective_variables, kernel_distance, to_matrix
from observatory.ntk.directions import loss_gradients
from observatory.ntk.empirical import empirical_ntk, empirical_ntk_by_layer
from observatory.ntk.instrument import CollectiveVariables
from observatory.ntk.lanczos import (
    EstimatedVariables,
    estimated_spectrum,
    estimated_variables,
    kernel_product,
)
from observatory.ntk.norms import gradient_products, squared_gradient_norms, squared_gradient_norms_by_layer
from observatory.ntk.position import LossDecay, SpectralPosition, loss_decay, spectral_position

__all__ = [
    "CollectiveVariables",
    "EstimatedVariables",
    "KernelVariables",
    "LossDecay",
    "SpectralPosition",
    "collective_variables",
    "empirical_ntk",
    "empirical_ntk_by_layer",
    "estimated_spectrum",
    "estimated_variables",
    "gradient_products",
    "kernel_distance",
    "kernel_product",
    "loss_decay",
    "loss_gradients",
    "spectral_position",
    "squared_gradient_norms",
    "squared_gradient_norms_by_layer",
    "to_matrix",
]
