"""Dimension of the representations in hidden layers, and how strongly the weights focus on few nodes."""

from observatory.dimension.blocks import BlockDimension, block_analysis
from observatory.dimension.correlation import (
    CorrelationIntegral,
    correlation_dimension,
    correlation_integral,
    neighbours_within,
)
from observatory.dimension.focusing import lorenz_curve
from observatory.dimension.instrument import LayerDimensionality
from observatory.dimension.local import combined, inverse_dimensions, levina_bickel
from observatory.dimension.neighbourhoods import class_purity, local_pca_dimension
from observatory.dimension.neighbours import Neighbours, nearest_neighbours
from observatory.dimension.oscillation import (
    Oscillation,
    PhaseOverSeeds,
    null_staggered,
    oscillation,
    phase_over_seeds,
)
from observatory.dimension.paths import PathWeights, path_weights
from observatory.dimension.profiles import LayerProfile, ProfileOptions, profile
from observatory.dimension.ratios import gride, gride_of, log_ratios, rate_of, two_nn
from observatory.dimension.result import Dimension
from observatory.dimension.shares import NodeShares, effective_nodes_at_initialisation, node_shares
from observatory.dimension.spectrum import LinearDimension, linear_dimension, participation_ratio
from observatory.dimension.strengths import in_strengths, node_differences, out_strengths, weight_strengths
from observatory.dimension.structure import Structure, WeightLayer, find_structure
from observatory.dimension.tails import TailFit, WeightSpectrum, fit_tail, weight_spectrum

__all__ = [
    "BlockDimension",
    "CorrelationIntegral",
    "Dimension",
    "LayerDimensionality",
    "LayerProfile",
    "LinearDimension",
    "Neighbours",
    "NodeShares",
    "Oscillation",
    "PathWeights",
    "PhaseOverSeeds",
    "ProfileOptions",
    "Structure",
    "TailFit",
    "WeightLayer",
    "WeightSpectrum",
    "block_analysis",
    "class_purity",
    "combined",
    "correlation_dimension",
    "correlation_integral",
    "effective_nodes_at_initialisation",
    "find_structure",
    "fit_tail",
    "gride",
    "gride_of",
    "in_strengths",
    "inverse_dimensions",
    "levina_bickel",
    "linear_dimension",
    "local_pca_dimension",
    "log_ratios",
    "lorenz_curve",
    "nearest_neighbours",
    "neighbours_within",
    "node_differences",
    "node_shares",
    "null_staggered",
    "oscillation",
    "out_strengths",
    "participation_ratio",
    "path_weights",
    "phase_over_seeds",
    "profile",
    "rate_of",
    "two_nn",
    "weight_spectrum",
    "weight_strengths",
]
