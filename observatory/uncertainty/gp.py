"""Error bars for a trained regression network: its last layer read as a Gaussian process."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from observatory.looking.ranks import all_gather_rows, all_reduce_sum, warn
from observatory.uncertainty.accumulators import NotFinite
from observatory.uncertainty.calibration import Method, additive_noise, joint_covariance, scale
from observatory.uncertainty.conformal import conformal_quantile
from observatory.uncertainty.ensemble import ShallowEnsemble, draw_weights
from observatory.uncertainty.metrics import regression_metrics
from observatory.uncertainty.posterior import LastLayerPosterior, Rows, evaluating
from observatory.uncertainty.regulariser import RegProfile, log_evidence, profile_reg, reg_grid

Noise = Literal["none", "additive", "constant"]
NOISES = ("none", "additive", "constant")
REGS = ("auto", "profile", "evidence")
FITTED = ("alpha", "sigma_n", "constant", "covariance_of_outputs", "quantile")  # buffers, empty before


@dataclass(frozen=True)
class Prediction:
    """What the network says, and how far it may be off. All in units of the target."""

    mean: Tensor  # as the network returns it
    std: Tensor  # σ, of the shape of `mean`
    epistemic: Tensor  # α s, the part that depends on the input
    aleatoric: Tensor  # σ_n, the same for all inputs
    interval: tuple[Tensor, Tensor] | None = None  # lower and upper end; after `conformalise`


class LastLayerGP(LastLayerPosterior):
    """σ²(x) = α² f(x)ᵀ(C + ς² I)⁻¹f(x) for a network ŷ(x) = W f(x) + b, C = Σ f fᵀ over the training rows.

    One pass over the training data (`fit`), one over validation data (`calibrate`); a prediction then costs
    one more d × d product. (Bigi, Chong, Ceriotti & Grasselli 2024, doi:10.1088/2632-2153/ad805f.)

    Args:
        model: the network.
        reg: ς², the number added to the diagonal; "auto" is 10⁻⁶ trace(C)/d; "profile" takes the best
            validation likelihood in `calibrate`; "evidence" the best evidence of the training targets in
            `fit`.
        noise: "none": σ² = α² s²; "additive": α² s² + σ_n²; "constant": the mean squared residual, the
            baseline that the others must beat.
        options: see `LastLayerPosterior`.
    """

    def __init__(
        self, model: nn.Module, *, reg: float | str = "auto", noise: Noise = "none", **options: Any
    ) -> None:
        super().__init__(model, reg=reg, **options)
        if isinstance(reg, str) and reg not in REGS:
            raise ValueError(f"reg is a number ς² or one of {', '.join(REGS)}, got {reg!r}")
        if noise not in NOISES:
            raise ValueError(f"noise must be one of {', '.join(NOISES)}, got {noise!r}")
        self.noise: Noise = noise
        self.profile: RegProfile | None = None
        self._moments: list[Tensor] = []  # FᵀY (d, O) and Σ y² (O,)
        for name in FITTED:
            self.register_buffer(name, torch.zeros(0, dtype=torch.float64))

    alpha: Tensor  # α, (O,) float64; empty before `calibrate`
    sigma_n: Tensor  # σ_n, (O,) float64
    constant: Tensor  # √mean r², (O,) float64: the baseline
    covariance_of_outputs: Tensor  # Σ̂, (O, O) float64
    quantile: Tensor  # q of the conformal interval, () float64; empty before `conformalise`

    # Fitting

    def fit(self, loader: Any, **options: Any) -> LastLayerGP:
        self._moments = []
        for name in FITTED:  # a scale fitted to other features would be wrong without a word
            setattr(self, name, getattr(self, name).new_zeros(0))
        super().fit(loader, **options)
        return self

    def _take(self, rows: Rows, gram: Any, weights: Tensor | None) -> None:
        super()._take(rows, gram, weights)
        if self.requested_reg == "evidence":
            y = self._target(rows).double()
            f = rows.features.double()
            w = f.new_ones(len(f)) if weights is None else weights.double()
            moments = [f.mT @ (w[:, None] * y), (w[:, None] * y * y).sum(0)]
            before = self._moments or [torch.zeros_like(moment) for moment in moments]
            self._moments = [a + b for a, b in zip(before, moments, strict=True)]

    def _all_reduce(self) -> None:
        super()._all_reduce()
        self._moments = [all_reduce_sum(moment) for moment in self._moments]

    def _chosen_reg(self) -> float:
        assert self.gram is not None
        if self.requested_reg == "evidence" and self._moments:
            values, vectors = self.gram.spectrum()
            grid = reg_grid(values)
            projections, squares = vectors.mT @ self._moments[0], self._moments[1]
            evidence, _ = log_evidence(values, projections, squares, int(self.gram.rows), grid)
            return float(grid[evidence.argmax()])
        return super()._chosen_reg()

    # Calibration

    def calibrate(self, loader: Any, method: Method = "nll") -> LastLayerGP:
        """Fit α (and σ_n, the baseline, and with reg="profile" ς²) to the errors on a loader.

        Args:
            loader: validation data; the training data for method="loo".
            method: see `observatory.uncertainty.scale`.

        Raises:
            RuntimeError: before `fit`.
            ValueError: if there are no rows, residuals are NaN or infinite, or all are zero.
        """
        return self.calibrate_on(*self.residuals(loader), method)

    def calibrate_on(self, residuals: Tensor, features: Tensor, method: Method = "nll") -> LastLayerGP:
        """The same from y - ŷ (n, O) and features (n, d)."""
        if self.requested_reg == "profile" and method != "loo":
            assert self.gram is not None
            self.profile = profile_reg(residuals, features, *self.gram.spectrum())
            self.factorise(self.profile.best)
        raw = self.fitted.exact(features)
        self.alpha = scale(residuals, raw, method)
        self.constant = residuals.double().square().mean(0).sqrt()
        self.sigma_n = torch.zeros_like(self.alpha)
        self.covariance_of_outputs = joint_covariance(residuals, raw)
        if self.noise == "additive":
            self.alpha, self.sigma_n = additive_noise(residuals, raw)
        elif self.noise == "constant":
            self.alpha, self.sigma_n = torch.zeros_like(self.alpha), self.constant
        return self

    def residuals(self, loader: Any) -> tuple[Tensor, Tensor]:
        """y - ŷ (n, O) and features (n, d) of a loader, of all ranks together.

        Raises:
            RuntimeError: before `fit`.
            ValueError: if the loader is empty, has no targets, or targets do not fit the outputs.
        """
        residuals, features = self.own_residuals(loader)
        return all_gather_rows(residuals), all_gather_rows(features)

    def own_residuals(self, loader: Any) -> tuple[Tensor, Tensor]:
        """The same of this rank alone."""
        self.fitted  # noqa: B018  (says what to do first)
        seen = [(self._residual(rows, k), rows.features) for k, rows in enumerate(self._passing(loader))]
        if not seen:
            raise ValueError("the loader is empty: there is nothing to calibrate with")
        residuals, features = (torch.cat(part) for part in zip(*seen, strict=True))
        return residuals, features

    def own_deviations(self, loader: Any) -> Tensor:
        """s (n,) of a loader without targets, of this rank alone."""
        return torch.cat([self.fitted(rows.features) for rows in self._passing(loader)])

    def _residual(self, rows: Rows, number: int) -> Tensor:
        r = self._target(rows) - self._flat(rows.output)
        if not torch.isfinite(r).all():
            bad = int((~torch.isfinite(r)).sum())
            raise NotFinite(f"batch {number}: {bad} residuals are NaN or infinite")
        return r

    def _target(self, rows: Rows) -> Tensor:
        y = rows.targets
        if not isinstance(y, Tensor):
            raise ValueError("the batches have no targets; say which part they are with targets=")
        if not y.is_floating_point():
            raise TypeError(
                f"targets of type {y.dtype} are classes: use LastLayerClassifier, or convert numbers to float"
            )
        if y.numel() != rows.output.numel():
            raise ValueError(
                f"targets of shape {tuple(y.shape)} for outputs of shape {tuple(rows.output.shape)}"
            )
        return self._flat(y)

    def _flat(self, y: Tensor) -> Tensor:
        assert self.layer is not None
        return y.reshape(-1, self.layer.outputs)

    def conformalise(self, loader: Any, coverage: float = 0.9) -> LastLayerGP:
        """Give every prediction an interval ŷ ± qσ that holds the target with probability `coverage`.

        Split conformal prediction: exact for exchangeable rows, whatever σ is. Take rows that fitted neither
        α nor ς². With several outputs the interval holds for each of them on the average over outputs.

        Raises:
            ValueError: if there are too few rows for that coverage.
        """
        residuals, features = self.residuals(loader)
        sigma = self.deviations(features)
        self.quantile = conformal_quantile(residuals.double() / sigma, coverage)
        return self

    # Prediction

    def forward(self, x: Any) -> tuple[Tensor, Tensor]:
        """ŷ and σ of equal shape, both differentiable; the network is evaluated in the mode it is in."""
        mean, raw = self._deviation(x)
        return mean, self._bars(raw, mean)[0]

    def _deviation(self, x: Any) -> tuple[Tensor, Tensor]:
        """ŷ as returned, and s (n,)."""
        mean, inputs = self._heard(x)
        assert self.layer is not None
        return mean, self.fitted(self.layer.short(inputs))

    def predict(self, x: Any) -> Prediction:
        """The network's output with its standard deviation, without gradients.

        Raises:
            RuntimeError: before `fit` and `calibrate`.
        """
        with torch.no_grad(), evaluating(self.model, remind=True):
            mean, raw = self._deviation(x)
            std, epistemic, aleatoric = self._bars(raw, mean)
            interval = None
            if self.quantile.numel():
                width = self.quantile.to(mean.dtype) * std
                interval = (mean - width, mean + width)
            return Prediction(mean, std, epistemic, aleatoric, interval)

    def _bars(self, deviation: Tensor, like: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """σ, α s and σ_n from s (n,), all of the shape and precision of `like`."""
        self._check_scale()
        epistemic = torch.outer(deviation, self.alpha.to(deviation.dtype)).to(like.dtype).reshape(like.shape)
        if self.noise == "none":
            return epistemic, epistemic, torch.zeros_like(epistemic)
        aleatoric = self.sigma_n.to(like.dtype).expand(len(deviation), -1).reshape(like.shape)
        return torch.hypot(epistemic, aleatoric), epistemic, aleatoric

    def _check_scale(self) -> None:
        if self.alpha.numel() == 0:
            raise RuntimeError("the scale α is not known: call calibrate(validation_loader) first")

    def deviations(self, features: Tensor) -> Tensor:
        """σ (n, O) float64 from features (n, d)."""
        deviation = self.fitted.exact(features).sqrt()
        return self._bars(deviation, deviation.new_empty(len(deviation), len(self.alpha)))[0]

    def deployed(self) -> Deployed:
        """A copy of network and error bars as one module, for torch.compile, torch.export and serving."""
        self._check_scale()
        return Deployed(self)

    def covariance(self, x: Any, other: Any) -> Tensor:
        """Cov[y_o(x_i), y_o(x'_j)] = α_o² f(x_i)ᵀA⁻¹f(x'_j), without σ_n: (n, m, O) float64.

        Its sum over i and j is the variance of a sum, such as an energy over atoms or a mean over a batch.
        """
        with torch.no_grad(), evaluating(self.model, remind=True):
            raw = self.fitted.covariance(self._watch(x)[1], self._watch(other)[1])
        self._check_scale()
        return raw[..., None] * self.alpha.square()

    def sample(
        self, members: int, *, joint: bool = False, generator: torch.Generator | None = None
    ) -> ShallowEnsemble:
        """Draw a shallow ensemble of last layers, for the error of anything computed from the outputs.

        Args:
            members: M ≥ 2.
            joint: outputs with the covariance Σ̂ s² that validation errors have, instead of independent ones.
            generator: of the draws, on the CPU.
        """
        self._check_scale()
        assert self.layer is not None
        covariance = self.covariance_of_outputs if joint else self.alpha.square().diag()
        weight = self.layer.weight()
        drawn = draw_weights(weight, self.fitted.root, covariance, members, generator=generator)
        return ShallowEnsemble(drawn.to(weight.dtype))

    def features(self, x: Any) -> Tensor:
        """The rows (n, d) that a `ShallowEnsemble` takes, attached to the graph of x."""
        with evaluating(self.model, remind=True):
            return self._watch(x)[1]

    # Scores

    def score(self, loader: Any, *, unit: float = 1.0, **options: Any) -> dict[str, float]:
        """Metrics of the predictions on a loader, and of the constant σ beside them as "constant/...".

        Args:
            loader: test data.
            unit: size of one unit of the network's target, such as the standard deviation that targets were
                divided by: metrics are then in the target's own units.
            options: see `regression_metrics`.
        """
        residuals, features = self.residuals(loader)
        found = self.score_on(residuals, features, unit=unit, **options)
        if found["nll"] > found["constant/nll"]:
            warn(
                f"a constant error bar is better here: its negative log-likelihood is "
                f"{found['constant/nll']:.4g}, that of σ(x) {found['nll']:.4g}; noise dominates, consider "
                "noise='additive'"
            )
        return found

    def score_on(
        self, residuals: Tensor, features: Tensor, *, unit: float = 1.0, **options: Any
    ) -> dict[str, float]:
        """The same from y - ŷ (n, O) and features (n, d)."""
        r, std = residuals.double() * unit, self.deviations(features) * unit
        constant = (self.constant * unit).expand_as(std)
        found = regression_metrics(r.flatten(), std.flatten(), **options)
        baseline = regression_metrics(r.flatten(), constant.flatten(), **options)
        return found | {f"constant/{name}": value for name, value in baseline.items()}

    # State

    def get_extra_state(self) -> dict[str, Any]:
        return super().get_extra_state() | {"noise": self.noise}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self.noise = state["noise"]

    def _make_room(self, state_dict: Any, prefix: str, device: torch.device) -> None:
        for name in FITTED:
            setattr(self, name, torch.zeros_like(state_dict[f"{prefix}{name}"], device=device))


class Deployed(nn.Module):
    """x to (ŷ, σ), both of the shape of ŷ: a copy that keeps a hook on its last layer.

    Compilers cannot trace how a hook is registered, which `LastLayerGP` does at every call to leave the
    network as it was.
    """

    def __init__(self, gp: LastLayerGP) -> None:
        super().__init__()
        self.gp = copy.deepcopy(gp).eval()
        assert self.gp.layer is not None
        self.gp.gram = None
        self._heard: list[Tensor] = []
        self.gp.layer.module.register_forward_pre_hook(self._hear)

    def _hear(self, _: nn.Module, args: tuple[Any, ...]) -> None:
        self._heard.append(args[0])

    def forward(self, x: Any) -> tuple[Tensor, Tensor]:
        gp = self.gp
        assert gp.layer is not None and gp.rigidity is not None
        self._heard.clear()
        mean = gp._call(x)
        return mean, gp._bars(gp.rigidity(gp.layer.short(self._heard.pop())), mean)[0]
