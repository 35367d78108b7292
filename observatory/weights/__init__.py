"""Fluctuations of the weights late in training, and the loss landscape below them.

`analyze` does everything for one window of snapshots; `WeightFluctuations` records the window while a network
trains. The parts (components, landscape, flatness, noise, stationarity, drift, balance, relation) are
functions of tensors that can be used on their own.
"""

from observatory.weights.analysis import Fluctuations, analyze, landscape_of
from observatory.weights.balance import (
    circulation,
    commutator_ratio,
    entropy_production,
    observed_circulation,
    rotation_frequency,
)
from observatory.weights.components import Components, principal_components
from observatory.weights.drift import cosine_match, random_walk_fractions, sampling_band
from observatory.weights.flatness import Flatness, flatness, quadratic_flatness
from observatory.weights.landscape import Landscape
from observatory.weights.lines import Lines
from observatory.weights.noise import (
    SgdSetting,
    batch_sampling,
    lyapunov_residual,
    noise_covariance,
    temperature,
)
from observatory.weights.relation import InverseRelation, fit_relation
from observatory.weights.scatter import Scatter
from observatory.weights.sketches import CountSketch, FrequentDirections, StreamingCovariance
from observatory.weights.stationarity import StationarityMonitor, dissipation_of_snapshots, dissipation_ratio
from observatory.weights.trajectory import Trajectory, load_trajectory

__all__ = [
    "Components",
    "CountSketch",
    "Flatness",
    "Fluctuations",
    "FrequentDirections",
    "InverseRelation",
    "Landscape",
    "Lines",
    "Scatter",
    "SgdSetting",
    "StationarityMonitor",
    "StreamingCovariance",
    "Trajectory",
    "analyze",
    "batch_sampling",
    "circulation",
    "commutator_ratio",
    "cosine_match",
    "dissipation_of_snapshots",
    "dissipation_ratio",
    "entropy_production",
    "fit_relation",
    "flatness",
    "landscape_of",
    "load_trajectory",
    "lyapunov_residual",
    "noise_covariance",
    "observed_circulation",
    "principal_components",
    "quadratic_flatness",
    "random_walk_fractions",
    "rotation_frequency",
    "sampling_band",
    "temperature",
]
