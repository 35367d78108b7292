"""The instrument: how well a network knows what it does not know, while it learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from observatory.looking.probe import Probe, ProbeRequest, draw_probe
from observatory.observing.instrument import Histogram, Instrument, Look
from observatory.records import Quantity
from observatory.uncertainty import figures, findings
from observatory.uncertainty.accumulators import NotFinite
from observatory.uncertainty.calibration import METHODS, scale
from observatory.uncertainty.classifier import LastLayerClassifier
from observatory.uncertainty.examples import Examples
from observatory.uncertainty.gp import LastLayerGP, Noise
from observatory.uncertainty.quantities import CLASSES, ELSEWHERE, NUMBERS, SPECTRUM, declared
from observatory.uncertainty.ranking import auroc

if TYPE_CHECKING:
    from observatory.records import Finding, Panel, Run

Posterior = LastLayerGP | LastLayerClassifier


class LastLayerUncertainty(Instrument):
    """Error bars from the last layer's features, calibrated on half of the probe, judged on the other half.

    Each look passes over the training examples in evaluation mode. Targets of integer type make it a
    classifier, others a regression. (Bigi et al. 2024, doi:10.1088/2632-2153/ad805f.)

    Args:
        rows: number of training examples that C is made of, then scaled to all; default all of them.
        reg: ς², or "auto": 10⁻⁶ trace(C)/d.
        noise: of a regression, "none", "additive" or "constant".
        last_layer: name of the layer; default the nn.Linear that is executed last.
        examples: the training examples, where there is no loader to take them from.
        elsewhere: inputs from another distribution, which the scores are asked to tell apart; or a function
            that returns the loader to draw them from, as many as there are in the probe.
        seed: of the drawn training examples.
        options: see `Instrument`; the probe is of the validation split.
    """

    default_name = "uncertainty"
    default_probe = ProbeRequest(size=1000, split="val")

    def __init__(
        self,
        *,
        rows: int | None = None,
        reg: float | Literal["auto"] = "auto",
        noise: Noise = "none",
        last_layer: str | None = None,
        examples: Probe | None = None,
        elsewhere: Probe | Callable[[], Any] | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        self.rows, self.reg, self.noise, self.last_layer, self.seed = rows, reg, noise, last_layer, seed
        self.examples, self.elsewhere = examples, elsewhere
        self._training: Examples | None = None
        self._width = 0

    def quantities(self) -> dict[str, Quantity]:
        return declared()

    def settings(self) -> dict[str, Any]:
        return {name: getattr(self, name) for name in ("rows", "reg", "noise", "last_layer", "seed")}

    def trains_on(self, loader: Any) -> None:
        if self.examples is None and loader is not None:
            self._training = Examples(
                loader, self.rows, seed=self.seed, inputs=self.inputs, targets=self.targets
            )

    # Looking

    def observe(self, look: Look) -> Mapping[str, Tensor]:
        targets = look.probe.targets
        if not isinstance(targets, Tensor) or len(targets) < 4:
            raise ValueError("calibration needs at least four examples with targets; see probe= and targets=")
        posterior = self.posterior(look.model.module(), look, targets)
        try:
            self._fit(posterior, look)
            return self._judged(posterior, look)
        except NotFinite:
            return self._nothing(posterior, targets)

    def posterior(self, module: nn.Module, look: Look, targets: Tensor) -> Posterior:
        """Nothing accumulated yet, for a module of the look's tensors."""
        shared: dict[str, Any] = {
            "reg": self.reg,
            "last_layer": self.last_layer,
            "forward": look.model.forward,
            "output": look.model.output,
        }
        if targets.is_floating_point():
            return LastLayerGP(module, noise=self.noise, **shared)
        return LastLayerClassifier(module, **shared)

    def _fit(self, posterior: Posterior, look: Look) -> None:
        if self._training is not None:
            batches = self._training.batches(look.model.device, _dtype(look))
            posterior.fit(batches, total=self._training.total)
        elif self.examples is not None:
            examples = self.examples.to(look.model.device, _dtype(look))
            posterior.fit([(examples.inputs, examples.targets)])
        else:
            raise ValueError("no training examples are known here: give examples=Probe(x, y)")

    def _judged(self, posterior: Posterior, look: Look) -> dict[str, Tensor]:
        """α from the rows at even places, scores from those at odd places."""
        batch, foreign = [(look.probe.inputs, look.probe.targets)], self._foreign(look)
        assert posterior.gram is not None and posterior.rigidity is not None
        self._width = posterior.gram.width
        spectrum = posterior.rigidity.spectrum
        values = {
            "effective_dimension": spectrum.effective_dimension,
            "rank": spectrum.rank.double(),
            "participation_ratio": spectrum.participation_ratio,
            "largest_eigenvalue": spectrum.largest,
            "reg": posterior.rigidity.reg,
            "spectrum": spectrum.eigenvalues,
        }
        if isinstance(posterior, LastLayerGP):
            scores = _numbers(posterior, *posterior.own_residuals(batch))
        else:
            there = None if foreign is None else posterior.own_outputs(foreign)
            scores = _classes(posterior, posterior.own_rows(batch), there)
        if isinstance(posterior, LastLayerGP) and foreign is not None:
            scores["ood_raw"] = auroc(posterior.own_deviations(batch), posterior.own_deviations(foreign))
        return values | {name: torch.as_tensor(v, dtype=torch.float64) for name, v in scores.items()}

    def _foreign(self, look: Look) -> list[tuple[Any, None]] | None:
        """The batch from elsewhere, if there is one."""
        if self.elsewhere is None:
            return None
        if not isinstance(self.elsewhere, Probe):
            request = ProbeRequest(len(look.probe))
            self.elsewhere = draw_probe(self.elsewhere(), request, inputs=self.inputs)
        return [(self.elsewhere.to(look.model.device, _dtype(look)).inputs, None)]

    def _nothing(self, posterior: Posterior, targets: Tensor) -> dict[str, Tensor]:
        """NaN for all that would have been said, of the same shapes."""
        names = [*SPECTRUM, *(NUMBERS if targets.is_floating_point() else CLASSES)]
        if self.elsewhere is not None:
            names += ["ood_raw"] if targets.is_floating_point() else ELSEWHERE
        nan = torch.full((), torch.nan, dtype=torch.float64)
        width = self._width or (posterior.layer.width if posterior.layer is not None else 1)
        return {name: nan for name in names} | {"spectrum": nan.expand(width)}

    # Showing

    def charts(self) -> dict[str, list[str]]:
        return {
            "Negative log-likelihood": ["nll", "constant_nll", "plain_nll", "temperature_nll"],
            "Effective dimension": ["effective_dimension", "participation_ratio", "rank"],
            "Told apart": list(ELSEWHERE),
            "Calibration error": ["ece", "plain_ece"],
        }

    def dashboard(self, values: Mapping[str, Tensor]) -> Sequence[Panel | Histogram]:
        spectrum = values["spectrum"].cpu()
        positive = spectrum[spectrum > 0]
        if not len(positive):
            return []
        panel = figures.spectrum_panel(spectrum.numpy()[None], [0], float(values["reg"]))
        return [Histogram("log10_eigenvalues", positive.log10()), panel]

    @staticmethod
    def figures(run: Run) -> list[Panel]:
        return figures.panels(run)

    @staticmethod
    def findings(run: Run) -> list[Finding]:
        return findings.sentences(run)


def _numbers(gp: LastLayerGP, residuals: Tensor, features: Tensor) -> dict[str, Any]:
    """Scores of a regression."""
    gp.calibrate_on(residuals[::2], features[::2])
    raw = gp.fitted.exact(features[::2])
    found = gp.score_on(residuals[1::2], features[1::2])
    alphas = {f"alpha_{method}": scale(residuals[::2], raw, method).mean() for method in METHODS}
    baseline = {"constant_nll": found["constant/nll"], "constant_crps": found["constant/crps"]}
    return alphas | {"sigma_n": gp.sigma_n.mean()} | baseline | {k: found[k] for k in NUMBERS if k in found}


def _classes(
    classifier: LastLayerClassifier, rows: tuple[Tensor, ...], elsewhere: tuple[Tensor, Tensor] | None
) -> dict[str, Any]:
    """Scores of a classifier."""
    classifier.calibrate_on(*(part[::2] for part in rows))
    logits, variance, targets = (part[1::2] for part in rows)
    found = classifier.score_on(logits, variance, targets, elsewhere=elsewhere)
    named = {name.replace("ood/raw_variance", "ood_raw").replace("/", "_"): v for name, v in found.items()}
    own = {"alpha_squared": classifier.scale, "temperature": classifier.temperature}
    return own | {k: v for k, v in named.items() if k in (*CLASSES, *ELSEWHERE)}


def _dtype(look: Look) -> torch.dtype | None:
    """Of the floating parameters; None if there are several."""
    seen = {p.dtype for p in look.model.parameters.values() if p.is_floating_point()}
    return seen.pop() if len(seen) == 1 else None
