"""The Fisher information as an instrument."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from observatory.looking.likelihood import likelihood_loss
from observatory.looking.look import Look, Loss
from observatory.looking.probe import ProbeRequest
from observatory.looking.ranks import rank, world_size
from observatory.ntk import fisher_figures, fisher_findings
from observatory.ntk.fisher import fisher_trace_by_layer
from observatory.ntk.fisher_estimators import OF_WHOLE_BATCHES, Estimator, FisherTraces
from observatory.ntk.fisher_gram import gradient_noise
from observatory.ntk.fisher_likelihoods import Likelihood, OutputLikelihood, output_likelihood
from observatory.observing import Instrument
from observatory.records import Quantity

if TYPE_CHECKING:
    from observatory.records import Finding, Panel, Run

UNIT = "‖∇ln p‖²"
QUANTITIES = {
    "trace": (
        UNIT,
        "Tr F = (1/N) Σ Tr(H_i Θ_ii): mean squared score with labels of the model's own",
    ),
    "trace_error": (UNIT, "standard error of the estimator of Tr F, for the examples of the probe"),
    "sampling_error": (UNIT, "standard error of Tr F as a mean over examples like those of the probe"),
    "log_slope": ("1", "d ln Tr F/d ln(1 + step) since the look before"),
    "empirical_trace": (UNIT, "Tr F_e = (1/N) Σ ‖∇ln p(y_i|x_i)‖² with the labels of the data"),
    "signal": (UNIT, "‖∇L‖², L = -(1/N) Σ ln p(y_i|x_i)"),
    "noise": (UNIT, "Tr Cov(∇ln p) = Tr F_e - ‖∇L‖² over the examples of the probe"),
    "noise_scale": ("examples", "Tr Cov/‖∇L‖²: batch size at which signal and noise of a step are equal"),
    "loss": ("nat", "mean loss on the probe"),
}
WITH_LABELS = ("empirical_trace", "signal", "noise", "noise_scale", "loss")


class FisherInformation(Instrument):
    """Trace of the Fisher information on the probe, whole and by layer, and signal and noise of the gradient.

    With several processes each takes its share of the probe for the trace, and the sums are added.

    Args:
        likelihood: see `fisher_trace`; default categorical for integer targets and Gaussian for others.
        estimator: of the trace; with "auto" exact up to 16 outputs, else sampled labels.
        draws: of random estimators, per example.
        sigma2, match_loss: of the Gaussian.
        with_labels: also measure what needs the targets: one more backward pass for the empirical trace, and
            one for the signal.
        seed: of the draws, which differ from look to look.
        options: see `Instrument`.

    Raises:
        ValueError: if the estimator has no parts by layer.
    """

    default_name = "fisher"
    default_probe = ProbeRequest(size=64)

    def __init__(
        self,
        *,
        likelihood: Likelihood | None = None,
        estimator: Estimator = "auto",
        draws: int = 1,
        sigma2: float = 1.0,
        match_loss: bool = False,
        with_labels: bool = True,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if estimator in OF_WHOLE_BATCHES:
            raise ValueError(
                f"{estimator!r} has no parts by layer; use 'exact', 'sampled', 'rademacher' or 'auto'"
            )
        self.likelihood, self.estimator, self.draws = likelihood, estimator, draws
        self.sigma2, self.match_loss = sigma2, match_loss
        self.with_labels, self.seed = with_labels, seed
        self._layers: list[str] = []
        self._before: tuple[float, int] | None = None  # ln Tr F and step of the look before

    def quantities(self) -> dict[str, Quantity]:
        quantities = {name: Quantity((), unit, text) for name, (unit, text) in QUANTITIES.items()}
        quantities["layers"] = Quantity(("layer",), UNIT, "parts of Tr F by layer, whose sum it is")
        return quantities

    def coordinates(self) -> dict[str, list[str]]:
        return {"layer": self._layers} if self._layers else {}

    def settings(self) -> dict[str, Any]:
        names = ("likelihood", "estimator", "draws", "sigma2", "match_loss", "seed")
        return {name: getattr(self, name) for name in names}

    def observe(self, look: Look) -> Mapping[str, Tensor]:
        x, y = look.probe.inputs, look.probe.targets
        y = y if isinstance(y, Tensor) else None
        traces = self._trace(look, x, y)
        whole = traces.whole
        self._layers = [name or "network" for name in traces.layers]  # "" is that of a single layer
        values = {
            "trace": whole.value,
            "trace_error": whole.standard_error,
            "sampling_error": whole.sampling_error,
            "log_slope": whole.value.new_tensor(self._slope(float(whole.value), look.step)),
            "layers": torch.stack([part.value for part in traces.layers.values()]),
        }
        labelled = dict.fromkeys(WITH_LABELS, torch.full_like(whole.value, torch.nan))
        if y is not None and self.with_labels:
            found = gradient_noise(look.model, x, y, loss=self._minus_log_likelihood(look, y))
            labelled["empirical_trace"] = found.mean_square
            labelled |= {name: getattr(found, name) for name in ("signal", "noise", "noise_scale")}
            with torch.no_grad():
                labelled["loss"] = (look.loss or likelihood_loss)(look.model(x), y).double()
        return values | labelled

    def _trace(self, look: Look, x: Any, y: Tensor | None) -> FisherTraces:
        ranks = world_size() if world_size() <= len(look.probe) else 1
        mine = rank() if ranks > 1 else 0
        seed = (self.seed * 2**20 + look.step) * 2**10 + mine
        return fisher_trace_by_layer(
            look.model,
            tree_map(lambda leaf: leaf[mine::ranks] if isinstance(leaf, Tensor) else leaf, x),
            None if y is None else y[mine::ranks],
            likelihood=self.likelihood,
            estimator=self.estimator,
            sigma2=self.sigma2,
            match_loss=self.match_loss,
            draws=self.draws,
            generator=torch.Generator().manual_seed(seed % 2**63),
            over_ranks=ranks > 1,
            allow_nonfinite=True,
        )

    def _minus_log_likelihood(self, look: Look, y: Tensor) -> Loss:
        """A loss whose gradient with respect to the outputs is that of -ln p."""

        def loss(f: Tensor, targets: Tensor) -> Tensor:
            model: OutputLikelihood = output_likelihood(
                self.likelihood, y, f[0].numel(), sigma2=self.sigma2, match_loss=self.match_loss
            )
            score = model.score(f.detach(), model.fitted(f, targets))
            return (f * score).sum() / len(f)

        return loss

    def _slope(self, trace: float, step: int) -> float:
        now = math.log(trace) if trace > 0 else math.nan
        before, self._before = self._before, (now, step)
        if before is None or step <= before[1]:
            return math.nan
        return (now - before[0]) / (math.log1p(step) - math.log1p(before[1]))

    def state_dict(self) -> dict[str, Any]:
        return {"before": None if self._before is None else list(self._before)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        before = state["before"]
        self._before = None if before is None else (before[0], before[1])

    def charts(self) -> dict[str, list[str]]:
        return {
            "Trace": ["trace", "empirical_trace"],
            "Gradient": ["signal", "noise"],
            "Noise scale": ["noise_scale"],
        }

    @staticmethod
    def figures(run: Run) -> list[Panel]:
        return fisher_figures.panels(run)

    @staticmethod
    def findings(run: Run) -> list[Finding]:
        return fisher_findings.sentences(run)
