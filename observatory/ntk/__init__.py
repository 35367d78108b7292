"""The empirical neural tangent kernel, its collective variables, and the Fisher information."""

from observatory.ntk.collective import KernelVariables, collective_variables, kernel_distance, to_matrix
from observatory.ntk.directions import loss_gradients
from observatory.ntk.empirical import empirical_ntk, empirical_ntk_by_layer
from observatory.ntk.fisher import fisher_trace, fisher_trace_by_layer
from observatory.ntk.fisher_density import DensityFisher, fisher_trace_of_density
from observatory.ntk.fisher_estimators import Estimate, FisherTraces
from observatory.ntk.fisher_gram import FisherSpectrum, GradientNoise, fisher_spectrum, gradient_noise
from observatory.ntk.fisher_instrument import FisherInformation
from observatory.ntk.instrument import CollectiveVariables
from observatory.ntk.lanczos import (
    EstimatedVariables,
    estimated_spectrum,
    estimated_variables,
    kernel_product,
)
from observatory.ntk.norms import gradient_products, squared_gradient_norms, squared_gradient_norms_by_layer
from observatory.ntk.position import LossDecay, SpectralPosition, loss_decay, spectral_position
from observatory.ntk.rates import trace_controlled_learning_rate
from observatory.ntk.selection import Selection, select_by_novelty
from observatory.ntk.stages import Stage, Stages, find_stages
from observatory.ntk.stages_online import StageChange, StageDetector

__all__ = [
    "CollectiveVariables",
    "DensityFisher",
    "Estimate",
    "EstimatedVariables",
    "FisherInformation",
    "FisherSpectrum",
    "FisherTraces",
    "GradientNoise",
    "KernelVariables",
    "LossDecay",
    "Selection",
    "SpectralPosition",
    "Stage",
    "StageChange",
    "StageDetector",
    "Stages",
    "collective_variables",
    "empirical_ntk",
    "empirical_ntk_by_layer",
    "estimated_spectrum",
    "estimated_variables",
    "find_stages",
    "fisher_spectrum",
    "fisher_trace",
    "fisher_trace_by_layer",
    "fisher_trace_of_density",
    "gradient_noise",
    "gradient_products",
    "kernel_distance",
    "kernel_product",
    "loss_decay",
    "loss_gradients",
    "select_by_novelty",
    "spectral_position",
    "squared_gradient_norms",
    "squared_gradient_norms_by_layer",
    "to_matrix",
    "trace_controlled_learning_rate",
]
