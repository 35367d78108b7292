"""What the profiles of a network hold, with units and definitions."""

from __future__ import annotations

from observatory.dimension.estimates import NAMES, EstimateOptions
from observatory.dimension.orders import ORDERS
from observatory.records import Quantity

_DIMENSIONS = {
    "participation_ratio": "(tr S)²/tr S², S the covariance of the representation",
    "participation_ratio_debiased": "the same from moments corrected for the number of samples",
    "components_90": "principal components that hold 90 % of the variance",
    "spectral_rank": "exp H of the normalised spectrum of S",
    "two_nn": "intrinsic dimension, TwoNN by regression on the smallest 90 % of ln(r₂/r₁)",
    "two_nn_error": "standard error of two_nn, from random halves",
    "levina_bickel": "intrinsic dimension, harmonic mean over points of the maximum likelihood about each",
    "levina_bickel_error": "standard error of levina_bickel, from random halves",
    "correlation_dimension": "ln(C(r₂)/C(r₁))/ln(r₂/r₁), r the median distances to neighbours 10 and 20",
    "correlation_dimension_error": "standard error of correlation_dimension",
    "local_pca": "principal components for 95 % of the variance among 50 neighbours, mean over points",
    "class_two_nn": "two_nn among the points of one class, mean over classes",
    "class_purity": "share of the 10 nearest neighbours that are of a point's own class",
}
_SCALED = {
    "gride": ("1", "intrinsic dimension from the ratio of the distances to the n₁-th and 2n₁-th neighbour"),
    "gride_error": ("1", "standard error of gride"),
    "gride_scale": ("‖h‖", "mean distance to the n₁-th neighbour"),
}
_LAYER = {
    "depth": ("1", "weight layers up to this one over all, on the longest way"),
    "units": ("1", "units of the representation that were used"),
    "points": ("1", "different points among the representations of the probe"),
    "dropped": ("1", "points that are duplicates of another"),
    "nodes": ("1", "width n: units, or channels of a convolution"),
    "path_focusing": ("1", "(n/PR - 1)/(n - 1), PR = 1/Σp², p the nodes' shares in all weights of paths"),
    "path_effective_nodes": ("1", "PR = 1/Σp² of the shares in paths: much means little focusing"),
    "path_entropy_nodes": ("1", "exp(-Σ p ln p) of the shares in paths"),
    "path_gini": ("1", "Gini coefficient of the shares in paths"),
    "path_nodes_for_90": ("1", "share of the nodes that carry 90 % of the paths"),
    "path_dead": ("1", "nodes with less than 1e-12 of the largest share"),
    "active_path_focusing": ("1", "path_focusing with every node's weights times how often it is active"),
    "in_focusing": ("1", "focusing of the in-strengths Σ_j |W_ij|^q"),
    "in_effective_nodes": ("1", "1/Σp² of the in-strengths"),
    "in_nodes_at_random": ("1", "in_effective_nodes expected of Gaussian weights, n/(1 + 2/fan-in), q = 2"),
    "out_focusing": ("1", "focusing of the out-strengths Σ_k |V_ki|^q"),
    "out_effective_nodes": ("1", "1/Σp² of the out-strengths"),
    "out_nodes_at_random": (
        "1",
        "out_effective_nodes expected of Gaussian weights, n/(1 + 2/fan-out), q = 2",
    ),
    "product_focusing": ("1", "focusing of in-strength times out-strength"),
    "strength": ("‖W‖²", "‖s‖ over nodes, s = Σ W² + b² + Σ V²"),
    "imbalance": ("1", "‖Δ‖/‖s‖, Δ = Σ W² + b² - Σ V² of each node, which gradient flow conserves"),
    "imbalance_drift": ("1", "‖Δ - Δ₀‖/‖s‖, Δ₀ at the first look"),
}
_SPECTRA = {
    "alpha": ("1", "exponent α of the tail ρ(λ) ∝ λ^(-α), λ the eigenvalues of WᵀW"),
    "tail_points": ("1", "eigenvalues in the tail; below 20 the exponent means little"),
    "tail_distance": ("1", "Kolmogorov-Smirnov distance of the tail; above 0.1 the exponent means little"),
    "weighted_alpha": ("1", "α log₁₀ λ_max"),
    "log_norm": ("1", "log₁₀ Σλ"),
    "spectral_norm": ("‖W‖²", "λ_max"),
    "stable_rank": ("1", "Σλ/λ_max"),
    "matrix_entropy": ("1", "-Σ p ln p/ln(rank), p = λ/Σλ"),
    "beyond_edge": ("1", "eigenvalues above the Marchenko-Pastur edge of as large independent entries"),
}
_ORDERS = {
    "staggered": "m = |Σ(-1)^l z_l|/Σ|z_l| of a profile over layers without its trend: 1 for period two",
    "signed_staggered": "the same with its sign: + if even layers lie higher",
    "oscillation_p": "share of the permutations of the layers with as large an m",
    "turning_z": "turning points less those expected of noise, in standard deviations",
    "period": "layers, of the largest peak of the periodogram",
}


def declared(options: EstimateOptions) -> dict[str, Quantity]:
    """Every quantity of a look, with dims after the step."""
    measured = [name for estimator in options.estimators for name in NAMES[estimator]]
    quantities = {n: Quantity(("layer",), "1", _DIMENSIONS[n]) for n in measured if n in _DIMENSIONS}
    quantities |= {n: Quantity(("layer", "scale"), *_SCALED[n]) for n in measured if n in _SCALED}
    quantities |= {name: Quantity(("layer",), *said) for name, said in _LAYER.items()}
    quantities["share_curve"] = Quantity(
        ("layer", "strongest"), "1", "share in paths carried by the strongest nodes, at 0 ... 1 of the nodes"
    )
    quantities["log_path_total"] = Quantity((), "1", "ln Φ, Φ the sum of the weights of all paths")
    quantities |= {name: Quantity(("weight",), *said) for name, said in _SPECTRA.items()}
    return quantities | {name: Quantity(("profile",), "1", _ORDERS[name]) for name in ORDERS}
