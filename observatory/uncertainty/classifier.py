"""Class probabilities that know how far an input is from the training data."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from observatory.looking.ranks import all_gather_rows
from observatory.uncertainty.accumulators import Accumulator, NotFinite
from observatory.uncertainty.averaging import entropy, fit_scale, fit_temperature, monte_carlo, probit
from observatory.uncertainty.classification_metrics import both_classes, classification_metrics
from observatory.uncertainty.curvature import FullCurvature, KronCurvature, probabilities_of
from observatory.uncertainty.posterior import LastLayerPosterior, Rows, evaluating
from observatory.uncertainty.ranking import auroc

Covariance = Literal["shared", "ggn", "kron"]
COVARIANCES = ("shared", "ggn", "kron")
PRIOR = 1.0  # δ of "ggn" and "kron" with reg="auto"


@dataclass(frozen=True)
class ClassPrediction:
    """Averaged probabilities and scores of doubt; leading axes as the network returns them."""

    probabilities: Tensor  # p̄, (..., K), or (..., 1) of class 1
    logits: Tensor  # z, as the network returns them
    raw: Tensor  # s², (...,): large far from the training data, "shared" only; else the mean of V_kk
    confidence: Tensor  # max p̄, (...,): ranks errors inside the distribution
    entropy: Tensor  # of p̄, (...,) nat: ranks inputs from elsewhere
    mutual_information: Tensor | None = None  # (...,) nat; with samples


class LastLayerClassifier(LastLayerPosterior):
    """Gaussian logits z + N(0, V(x)) of a trained classifier, from its last layer alone.

    Covariances:
    - "shared": V = α² s²(x) 1 with s² of the plain Gram matrix: any K, and a score of the features' density.
    - "ggn": V_kj = α² fᵀ[(Σ Λ ⊗ f fᵀ + δ)⁻¹]_kj f, the exact Laplace approximation of the layer; it keeps
      (K d)² numbers.
    - "kron": the same with (mean Λ) ⊗ C.

    `fit` once over the training data; `calibrate` sets α by the log loss of validation data (α = 1 before,
    for "ggn" and "kron"). (Bigi et al. 2024, doi:10.1088/2632-2153/ad805f; Daxberger et al. 2021,
    arXiv:2106.14806.)

    Args:
        model: the network; its output are logits, one per class, or one for two classes.
        reg: ς² of "shared", or the prior precision δ > 0; "auto" is 10⁻⁶ trace(C)/d, or 1.
        covariance: see above.
        memory: bytes that "ggn" may take.
        options: see `LastLayerPosterior`.
    """

    scale: Tensor  # α², () float64; NaN if unknown
    temperature: Tensor  # of the baseline softmax(z/T), () float64

    def __init__(
        self,
        model: nn.Module,
        *,
        reg: float | Literal["auto"] = "auto",
        covariance: Covariance = "shared",
        memory: float = 4e9,
        **options: Any,
    ) -> None:
        super().__init__(model, reg=reg, **options)
        if covariance not in COVARIANCES:
            raise ValueError(f"covariance must be one of {', '.join(COVARIANCES)}, got {covariance!r}")
        self.covariance, self.memory = covariance, memory
        self.curvature: FullCurvature | KronCurvature | None = None
        start = torch.nan if covariance == "shared" else 1.0
        self.register_buffer("scale", torch.tensor(start, dtype=torch.float64))
        self.register_buffer("temperature", torch.ones((), dtype=torch.float64))

    # Fitting

    def fit(self, loader: Any, **options: Any) -> LastLayerClassifier:
        self.curvature = None
        self.scale.fill_(torch.nan if self.covariance == "shared" else 1.0)
        super().fit(loader, **options)
        return self

    def _take(self, rows: Rows, gram: Accumulator, weights: Tensor | None) -> None:
        super()._take(rows, gram, weights)
        if self.covariance == "shared":
            return
        if self.curvature is None:
            self.curvature = self._empty(
                self.layer.outputs if self.layer else 1, gram.width, gram.matrix.device
            )
        self.curvature.update(rows.features, probabilities_of(self._logits(rows.output)), weights)

    def _empty(self, classes: int, width: int, device: torch.device) -> FullCurvature | KronCurvature:
        if self.covariance == "kron":
            return KronCurvature(classes, width, device=device)
        return FullCurvature(classes, width, device=device, memory=self.memory)

    def _all_reduce(self) -> None:
        super()._all_reduce()
        if self.curvature is not None:
            self.curvature.all_reduce()

    def factorise(self, reg: float | None = None) -> None:
        """With ς² (or δ) = `reg`; default what was asked for."""
        if self.covariance == "shared":
            super().factorise(reg)
            return
        if self.gram is None or self.curvature is None:
            raise RuntimeError("nothing was accumulated: call fit first")
        prior = (
            reg if reg is not None else PRIOR if self.requested_reg == "auto" else float(self.requested_reg)
        )
        if isinstance(self.curvature, KronCurvature):
            self.curvature.factorise(prior, self.gram)
        else:
            self.curvature.factorise(prior)

    def _logits(self, output: Tensor) -> Tensor:
        assert self.layer is not None
        z = output.reshape(-1, self.layer.outputs)
        return z.to(torch.promote_types(z.dtype, torch.float32))

    # Covariance of the logits

    def variance(self, features: Tensor) -> Tensor:
        """V_kk before the scale α²: (n, K), or (n, 1) where all classes share it."""
        if self.covariance == "shared":
            return self.fitted(features).square()[:, None]
        if self.curvature is None:
            raise RuntimeError("nothing is known yet: call fit(training_loader) first")
        if isinstance(self.curvature, KronCurvature):
            return self.curvature.diagonal(features)
        return self.curvature(features).diagonal(dim1=1, dim2=2).to(features)

    def logit_covariance(self, x: Any) -> Tensor:
        """V(x) with its scale, (n, K, K) float64."""
        with torch.no_grad(), evaluating(self.model, remind=True):
            return self._covariance(self._watch(x)[1])

    def _covariance(self, features: Tensor) -> Tensor:
        assert self.layer is not None
        if self.curvature is not None:
            return self._scale() * self.curvature(features)
        eye = torch.eye(self.layer.outputs, dtype=torch.float64, device=features.device)
        return self._scale() * self.fitted.exact(features)[:, None, None] * eye

    def _scale(self) -> Tensor:
        if bool(self.scale.isnan()):
            raise RuntimeError("the scale α is not known: call calibrate(validation_loader) first")
        return self.scale

    # Calibration

    def calibrate(self, loader: Any) -> LastLayerClassifier:
        """Fit α² to the log loss of validation data, 0 if nothing improves on the network; and a temperature.

        Raises:
            RuntimeError: before `fit`.
            ValueError: if the loader is empty or has no targets.
            TypeError: if targets are not integers.
        """
        return self.calibrate_on(*self.collect(loader))

    def calibrate_on(self, logits: Tensor, variance: Tensor, targets: Tensor) -> LastLayerClassifier:
        """The same from rows, see `collect`."""
        self.scale.fill_(fit_scale(logits, variance, targets))
        self.temperature.fill_(fit_temperature(logits, targets))
        return self

    def collect(self, loader: Any) -> tuple[Tensor, Tensor, Tensor]:
        """Logits (n, K), V_kk before scaling, and targets (n,) of a loader, of all ranks together."""
        logits, variance, targets = (all_gather_rows(part) for part in self.own_rows(loader))
        return logits, variance, targets

    def own_rows(self, loader: Any) -> tuple[Tensor, Tensor, Tensor]:
        """The same of this rank alone."""
        seen = [
            (self._logits(rows.output), self.variance(rows.features), self._classes(rows))
            for rows in self._passing(loader)
        ]
        if not seen:
            raise ValueError("the loader is empty: there is nothing to calibrate with")
        logits, variance, targets = (torch.cat(part) for part in zip(*seen, strict=True))
        if not torch.isfinite(logits).all():
            raise NotFinite(
                f"{int((~torch.isfinite(logits)).any(1).sum())} rows of logits are NaN or infinite"
            )
        return logits, variance, targets

    def _classes(self, rows: Rows) -> Tensor:
        y = rows.targets
        if not isinstance(y, Tensor):
            raise ValueError("the batches have no targets; say which part they are with targets=")
        single = self.layer is not None and self.layer.outputs == 1
        if y.is_floating_point() and not (single and bool(((y == 0) | (y == 1)).all())):
            raise TypeError(
                f"targets of type {y.dtype} are numbers: use LastLayerGP, or convert classes to int64"
            )
        return y.reshape(-1).long()

    # Prediction

    def forward(self, x: Any) -> Tensor:
        """p̄ by `probit`, of the shape of the logits; differentiable."""
        output, features = self._watch(x)
        variance = self._scale().to(features) * self.variance(features)
        return probit(self._logits(output), variance).reshape(output.shape)

    def predict(
        self, x: Any, *, samples: int = 0, generator: torch.Generator | None = None
    ) -> ClassPrediction:
        """Averaged probabilities, without gradients: by `probit`, or over `samples` draws of the logits.

        Raises:
            RuntimeError: before `fit` and, for "shared", `calibrate`.
        """
        with torch.no_grad(), evaluating(self.model, remind=True):
            output, inputs = self._heard(x)
            assert self.layer is not None
            short = self.covariance == "shared"
            features = self.layer.short(inputs) if short and not samples else self.layer.rows(inputs)
            logits, raw = self._logits(output), self.variance(features)
            doubt = None
            if samples > 0:
                root = torch.linalg.cholesky_ex(self._covariance(features))[0].to(logits)
                p, doubt = monte_carlo(logits, root, samples, generator=generator)
            else:
                p = probit(logits, self._scale().to(raw) * raw)
            leading = output.shape[:-1] if output.shape[-1:] == logits.shape[1:] else output.shape
            return ClassPrediction(
                p.reshape(output.shape),
                output,
                raw.mean(1).reshape(leading),
                both_classes(p).amax(1).reshape(leading),
                entropy(p).reshape(leading),
                None if doubt is None else doubt.reshape(leading),
            )

    # Scores

    def score(self, loader: Any, *, elsewhere: Any = None) -> dict[str, float]:
        """Metrics of p̄, and beside them those of the plain network ("plain/...") and of one temperature.

        Args:
            loader: test data.
            elsewhere: inputs from another distribution; adds how well scores tell them apart, "ood/<score>".
        """
        there = None if elsewhere is None else tuple(map(all_gather_rows, self.own_outputs(elsewhere)))
        return self.score_on(*self.collect(loader), elsewhere=there)

    def own_outputs(self, loader: Any) -> tuple[Tensor, Tensor]:
        """Logits (n, K) and V_kk of a loader without targets, of this rank alone."""
        seen = [(self._logits(rows.output), self.variance(rows.features)) for rows in self._passing(loader)]
        logits, variance = (torch.cat(part) for part in zip(*seen, strict=True))
        return logits, variance

    def score_on(
        self,
        logits: Tensor,
        variance: Tensor,
        targets: Tensor,
        *,
        elsewhere: tuple[Tensor, ...] | None = None,
    ) -> dict[str, float]:
        """The same from rows, see `collect`; `elsewhere` are logits and V_kk."""
        found = classification_metrics(self._averaged(logits, variance), targets)
        found["raw_error_auroc"] = self._raw_errors(logits, variance, targets)
        for name, scaled in (("plain", logits), ("temperature", logits / self.temperature)):
            metrics = classification_metrics(probabilities_of(scaled.double()), targets)
            found |= {f"{name}/{key}": value for key, value in metrics.items()}
        if elsewhere is not None:
            inside, outside = self.scores(logits, variance), self.scores(*elsewhere)
            found |= {f"ood/{name}": float(auroc(inside[name], outside[name])) for name in inside}
        return found

    def _averaged(self, logits: Tensor, variance: Tensor) -> Tensor:
        return probit(logits.double(), self._scale() * variance.double())

    def _raw_errors(self, logits: Tensor, variance: Tensor, targets: Tensor) -> float:
        right = both_classes(probabilities_of(logits)).argmax(1) == targets
        raw = variance.mean(1)
        return float(auroc(raw[right], raw[~right]))

    def scores(self, logits: Tensor, variance: Tensor) -> dict[str, Tensor]:
        """What may tell inputs from elsewhere, each (n,), larger meaning stranger."""
        averaged, plain = self._averaged(logits, variance), probabilities_of(logits.double())
        pair = logits if logits.shape[1] > 1 else torch.cat([torch.zeros_like(logits), logits], 1)
        return {
            "max_softmax": -both_classes(plain).amax(1),
            "energy": -torch.logsumexp(pair.double(), 1),
            "raw_variance": variance.double().mean(1),
            "max_averaged": -both_classes(averaged).amax(1),
            "entropy": entropy(averaged),
        }

    # State

    def get_extra_state(self) -> dict[str, Any]:
        return super().get_extra_state() | {"covariance": self.covariance}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        super().set_extra_state(state)
        self.covariance = state["covariance"]

    def _make_room(self, state_dict: Any, prefix: str, device: torch.device) -> None:
        matrix = state_dict.get(f"{prefix}curvature.matrix")
        if matrix is None:
            return
        self.covariance = state_dict[f"{prefix}_extra_state"]["covariance"]
        width = len(state_dict[f"{prefix}gram.matrix"])
        classes = len(matrix) if self.covariance == "kron" else len(matrix) // width
        self.curvature = self._empty(classes, width, device)
