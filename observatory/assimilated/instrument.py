"""Parameters recovered from trajectories, as an instrument."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from observatory.assimilated import figures, findings
from observatory.looking.look import Look
from observatory.looking.model import ModelFunction
from observatory.looking.probe import ProbeRequest
from observatory.observing.instrument import History, Instrument
from observatory.physics.assimilation import Assimilation, estimates
from observatory.records import Quantity

if TYPE_CHECKING:
    from observatory.records import Finding, Panel, Run

SHOWN = 4  # trajectories whose prediction is recorded at the end


class RecoveredParameters(Instrument):
    """Parameters and misfit of a fit of trajectories, and at its end the standard errors.

    The probe is all trajectories by default; standard errors, which need all of them, are left out for fewer.
    """

    default_name = "fit"
    default_probe = ProbeRequest(10_000)

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self._names: list[str] = []
        self._components: list[str] = []

    def quantities(self) -> dict[str, Quantity]:
        own = ("parameter",)
        return {
            "value": Quantity(own, "own", "θ, mean over the trajectories where each has its own"),
            "spread": Quantity(own, "own", "standard deviation of θ over the trajectories; 0 where shared"),
            "misfit": Quantity((), "1", "χ²/N = Σ ((prediction - observation)/σ)² / number of observations"),
            "gap": Quantity((), "σ", "largest jump between segments; 0 for a single one"),
            "estimate": Quantity(("system", *own), "own", "θ at the end, of each trajectory"),
            "error": Quantity(("system", *own), "own", "standard error √ diag (JᵀJ)⁻¹ of θ at the end"),
            "correlation": Quantity((*own, "other"), "1", "of the estimates, of the first trajectory if each "
                                    "has its own parameters"),
            "bounded": Quantity(own, "1", "1 for a parameter that has run into a bound at the end"),
            "condition": Quantity((), "1", "largest condition number of the scaled Fisher matrix"),
            "time": Quantity(("time",), "own", "times of the first trajectories"),
            "observation": Quantity(("system", "time", "component"), "own", "of the first trajectories"),
            "prediction": Quantity(("system", "time", "component"), "own", "for the first trajectories"),
        }  # fmt: skip

    def coordinates(self) -> dict[str, list[str]]:
        return {"parameter": self._names, "other": self._names, "component": self._components}

    def observe(self, look: Look) -> Mapping[str, Tensor]:
        """θ and χ²/N."""
        query, values = _batch(look)

        def found(fit: Assimilation) -> dict[str, Tensor]:
            self._names, self._components = list(fit.unknowns), list(fit.observed)
            now, seen = fit.begin((query, values))
            theta = list(fit.estimates().values())
            data, gaps = fit.residuals(now, seen)
            jump = gaps.abs().max() / fit.matching**0.5 if gaps.numel() else gaps.new_zeros(())
            return {
                "value": torch.stack([t.mean() for t in theta]),
                "spread": torch.stack([t.std() if t.numel() > 1 else 0 * t.sum() for t in theta]),
                "misfit": data.square().sum() / values.isfinite().sum(),
                "gap": jump,
            }

        with torch.no_grad():
            return _asked(look.model, found)

    def conclude(self, history: History) -> Mapping[str, Tensor]:
        """Standard errors, correlations, and predictions beside observations."""
        query, values = _batch(history.look)

        def found(fit: Assimilation) -> dict[str, Tensor]:
            now, seen = fit.begin((query, values))
            few = type(now)(now.which[:SHOWN], now.times[:SHOWN])
            beside = {"time": now.times[0], "observation": seen[:SHOWN], "prediction": fit(few)}
            beside["bounded"] = values.new_tensor([float(n in fit.at_bounds()) for n in fit.unknowns])
            if len(values) < fit.systems or any(t.ndim and not fit.unknowns[n].individual
                                                for n, t in fit.estimates().items()):  # fmt: skip
                return beside
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of what is recorded
                end = estimates(fit, (query, values))
            systems = max(t.numel() for t in end.values.values())
            return beside | {
                "estimate": torch.stack([t.expand(systems) for t in end.values.values()], -1),
                "error": torch.stack([t.expand(systems) for t in end.standard_errors.values()], -1),
                "correlation": end.correlation[0],
                "condition": end.condition.max(),
            }

        with torch.no_grad():
            return _asked(history.look.model, found)

    @staticmethod
    def figures(run: Run) -> list[Panel]:
        return figures.panels(run)

    @staticmethod
    def findings(run: Run) -> list[Finding]:
        return findings.sentences(run)


def _batch(look: Look) -> tuple[Any, Tensor]:
    """The probe as a batch of an assimilation, each trajectory once and in order."""
    which, times = look.probe.inputs
    order = which.argsort(stable=True)
    first = torch.cat([order.new_ones(1, dtype=torch.bool), which[order].diff() > 0])
    order = order[first]
    return (which[order], times[order]), look.probe.targets[order]


def _asked(model: ModelFunction, question: Callable[[Assimilation], dict[str, Tensor]]) -> dict[str, Tensor]:
    """What a question to the fit inside the model returns; the fit is a copy that may be changed."""
    answers: list[dict[str, Tensor]] = []

    def forward(module: nn.Module, _: Any) -> Tensor:
        fits = [part for part in module.modules() if isinstance(part, Assimilation)]
        if not fits:
            raise TypeError(f"{type(module).__name__} holds no Assimilation whose parameters are recovered")
        answers.append(question(fits[0]))
        return torch.zeros(())

    ModelFunction.of(model, forward=forward, output=torch.as_tensor)(None)
    return {name: value.detach() for name, value in answers[0].items()}
