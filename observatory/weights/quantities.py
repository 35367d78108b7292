"""What is recorded of a window, and how a result becomes tensors of fixed shapes."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from observatory.records import Quantity
from observatory.weights.analysis import Fluctuations
from observatory.weights.landscape import Landscape
from observatory.weights.lines import Lines
from observatory.weights.relation import InverseRelation

PROFILES, POINTS = 4, 41  # loss profiles that are drawn, and points of each

SCALARS = {
    "loss_at_mean": ("1", "L₀, loss at the mean weights of the window, on the probe"),
    "total_variance": ("weight²", "Tr Σ over the recorded weights"),
    "top_variance": ("weight²", "σ₁², largest eigenvalue of Σ"),
    "participation_ratio": ("1", "(Tr Σ)²/Tr Σ²"),
    "effective_samples": ("1", "T_eff = T/(2τ), τ the mean of τ_int weighted by the variances"),
    "band_low": ("weight²", "σ²(1 - √(P/T_eff))² of an isotropic Σ of the same trace, drift left out"),
    "band_high": ("weight²", "σ²(1 + √(P/T_eff))²: larger eigenvalues are no accident of sampling"),
    "dissipation_ratio": ("1", "r_FDR = ⟨θ·g⟩/((η/2)(1 + β)⟨‖v‖²⟩), 1 at rest"),
    "exponent": ("1", "ψ in σ² ∝ F^(-ψ), least squares of ln σ² on ln F"),
    "exponent_error": ("1", "standard error of ψ from the scatter of the components about the line"),
    "exponent_low": ("1", "lower end of the 95 % interval of ψ over resampled blocks of time"),
    "exponent_high": ("1", "upper end of that interval"),
    "correlation": ("1", "r of ln σ² and ln F"),
    "first_rank": ("1", "first component in the fit"),
    "last_rank": ("1", "last component in the fit"),
    "lyapunov_residual": ("1", "‖HΣ + ΣH - ηHΣH - ηC_S‖/‖ηC_S‖ in the directions"),
    "commutator": ("1", "‖HC - CH‖/‖HC‖ in the directions"),
    "entropy_production": ("1/(ηt)", "Π of the linear process with the measured H and C"),
    "rotation": ("rad/(ηt)", "fastest rotation max |Im eig(QΣ⁻¹)| of that process"),
    "learning_rate": ("1", "η during the window, NaN if it changed"),
    "weights": ("1", "P, number of recorded weights"),
    "kept": ("1", "numbers stored of each snapshot; less than P for a subset or a sketch"),
    "first_step": ("step", "step of the first snapshot"),
    "last_step": ("step", "step of the last snapshot"),
    "every": ("step", "steps between snapshots"),
    "diverged_at": ("step", "step of the first snapshot that is not finite, NaN if all are"),
}

BY_RANK = {
    "variance": ("weight²", "σ_i², variance along direction i"),
    "integrated_time": ("step", "τ_int,i, integrated correlation time"),
    "decay_time": ("step", "first 1/e crossing of the autocorrelation"),
    "cosine": ("1", "|correlation| with i half cosines over the window; above 0.95 for i = 1 a drift"),
    "half_ratio": ("1", "variance in the second half of the window over that in the first"),
    "geweke": ("1", "difference of the means of the early and late window in standard errors"),
    "curvature": ("1/weight²", "κ_i = p_iᵀHp_i at the mean weights"),
    "slope": ("1/weight", "p_i·∇L at the mean weights"),
    "flatness": ("weight", "F_i, width of the loss profile at e·L₀"),
    "left": ("weight", "crossing of e·L₀ with s < 0"),
    "right": ("weight", "crossing of e·L₀ with s > 0"),
    "noise": ("1/weight²", "c_i = p_iᵀCp_i, variance of the slope over single examples"),
    "temperature": ("1", "T_i = ηc_if/(2S), η/(1 - β) for η under momentum"),
}


def declared(variants: list[str]) -> dict[str, Quantity]:
    """Everything that `WeightFluctuations` may record."""
    found = {name: Quantity((), unit, text) for name, (unit, text) in SCALARS.items()}
    found |= {name: Quantity(("rank",), unit, text) for name, (unit, text) in BY_RANK.items()}
    return found | {
        "loss": Quantity((), "1", "loss on the probe"),
        "norm": Quantity((), "weight", "‖θ‖ of the recorded weights"),
        "spectrum": Quantity(
            ("component",), "weight²", "the leading eigenvalues of Σ, all where they cost little memory"
        ),
        "projections": Quantity(("snapshot", "rank"), "weight", "θ_i(t) about its mean"),
        "profile_distance": Quantity(("profile", "point"), "weight", "s along the leading directions"),
        "profile_loss": Quantity(("profile", "point"), "1", "L(θ₀ + s p_i)"),
        "storage": Quantity(("storage",), "1", "1 for the way in which snapshots were kept"),
        "variant_exponent": Quantity(("variant",), "1", f"ψ again: {', '.join(variants)}"),
        "variant_error": Quantity(("variant",), "1", "its standard error"),
        "variant_correlation": Quantity(("variant",), "1", "its r"),
    }


def tensors_of(result: Fluctuations, directions: int) -> dict[str, Tensor]:
    """Scalars and quantities by rank, padded with NaN where there are fewer directions."""
    motion, terrain, relation = result.motion, result.terrain, result.relation
    like = motion.variance
    band = motion.band()
    ends = (relation.ranks[0], relation.ranks[-1]) if relation.ranks else (math.nan, math.nan)
    irreversible = result.irreversibility
    scalars: dict[str, Tensor | float | None] = {
        "loss_at_mean": None if terrain is None else terrain.loss,
        "total_variance": motion.total,
        "top_variance": motion.variance[0],
        "participation_ratio": motion.participation_ratio,
        "effective_samples": motion.effective_samples,
        "band_low": band.low,
        "band_high": band.high,
        "dissipation_ratio": result.dissipation_ratio,
        "exponent": relation.exponent,
        "exponent_error": relation.error,
        "exponent_low": relation.low,
        "exponent_high": relation.high,
        "correlation": relation.correlation,
        "first_rank": ends[0],
        "last_rank": ends[1],
        "lyapunov_residual": result.residual,
        "commutator": None if irreversible is None else irreversible.commutator,
        "entropy_production": None if irreversible is None else irreversible.entropy_production,
        "rotation": None if irreversible is None else irreversible.rotation,
        "first_step": float(result.steps[0]),
        "last_step": float(result.steps[-1]),
        "every": float(result.steps[1] - result.steps[0]),
    }
    values = {name: scalar(value, like) for name, value in scalars.items()}
    vectors = {name: getattr(motion, name, None) for name in BY_RANK}
    if terrain is not None:
        vectors |= {
            name: getattr(terrain, name) for name in ("curvature", "slope", "flatness", "left", "right")
        }
        vectors["noise"] = terrain.noise.diagonal()
    vectors["temperature"] = result.temperature
    values |= {name: padded(value, directions, like) for name, value in vectors.items()}
    values["spectrum"] = motion.spectrum
    if len(motion.projections):
        values["projections"] = padded(motion.projections, directions, like)
    return values


def nothing(directions: int, like: Tensor) -> dict[str, Tensor]:
    """NaN for everything, of a run that diverged."""
    values = {name: scalar(None, like) for name in SCALARS}
    return values | {name: padded(None, directions, like) for name in BY_RANK}


def profiles(landscape: Landscape, directions: Tensor, left: Tensor, right: Tensor) -> dict[str, Tensor]:
    """Loss along the leading directions, a little beyond the crossings."""
    count = min(PROFILES, len(directions))
    ends = torch.stack([left, right], 1)[:count].double()
    ends = torch.where(ends.isfinite(), ends, ends.sign().nan_to_num(1.0))
    steps = torch.linspace(0, 1, POINTS, dtype=torch.float64, device=ends.device)
    s = 1.2 * (ends[:, :1] + (ends[:, 1:] - ends[:, :1]) * steps)
    values = Lines(landscape, directions[:count]).values(s)
    return {
        "profile_distance": padded(s.mT, PROFILES, s).mT,
        "profile_loss": padded(values.mT, PROFILES, s).mT,
    }


def tensors_of_variants(variants: Mapping[str, InverseRelation], names: list[str]) -> dict[str, Tensor]:
    """ψ, its error and r of the variants that were computed, NaN for the others."""
    found = [variants.get(name) for name in names]

    def column(field: str) -> Tensor:
        return torch.tensor([math.nan if one is None else getattr(one, field) for one in found])

    return {
        "variant_exponent": column("exponent"),
        "variant_error": column("error"),
        "variant_correlation": column("correlation"),
    }


def scalar(value: Tensor | float | None, like: Tensor) -> Tensor:
    """A float64 scalar, NaN for None."""
    return torch.as_tensor(math.nan if value is None else value, dtype=torch.float64).to(like.device)


def padded(values: Tensor | None, size: int, like: Tensor) -> Tensor:
    """The last axis filled up to `size` with NaN, float64."""
    if values is None:
        return torch.full((size,), torch.nan, dtype=torch.float64, device=like.device)
    missing = size - values.shape[-1]
    return torch.nn.functional.pad(values.double(), (0, max(missing, 0)), value=math.nan)[..., :size]
