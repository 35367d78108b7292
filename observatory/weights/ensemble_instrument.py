"""Ensembles of linear networks as they run, beside what theory says of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from observatory.looking.look import Look
from observatory.looking.probe import ProbeRequest
from observatory.observing import Instrument
from observatory.records import Quantity
from observatory.weights import ensemble_figures

if TYPE_CHECKING:
    from observatory.records import Finding, Panel, Run

KINDS = {
    "online": (("curvature",), "σ_i² of regression on fresh data", ("exact", "naive")),
    "finite": (("row", "column"), "Σ of regression on a few examples", ("exact", "additive", "continuum")),
    "coupled": (("output", "hidden"), "Var A_ik of layer 2, in units of ηs²/(2S)", ("exact",)),
    "frozen": (("output", "hidden"), "the same above a frozen layer 1", ("exact",)),
}


class LinearEnsembleVariances(Instrument):
    """Moments of `solvable.ensembles.LinearEnsembles` so far, their standard errors and closed forms."""

    default_name = "ensembles"
    default_probe = ProbeRequest(size=1)

    def quantities(self) -> dict[str, Quantity]:
        found = {
            "age": Quantity((), "step", "updates of every run"),
            "gauge": Quantity((), "1", "⟨u² - v²⟩ over the runs, in units of its start"),
            "gauge_error": Quantity((), "1", "its standard error"),
            "gauge_theory": Quantity((), "1", "exp(-η²(s²/S)(1 + η(u² + v²)/2) t)"),
            "curvature": Quantity(("curvature",), "1", "h of the regression on fresh data"),
            "layer_curvature": Quantity(("hidden",), "1", "s₁k², curvature that layer 2 alone feels"),
            "strengths": Quantity(("hidden",), "1", "s₂, singular values of layer 2"),
        }
        for name, (dims, text, theories) in KINDS.items():
            found[name] = Quantity(dims, "1", f"{text}: mean over runs and time so far")
            found[f"{name}_error"] = Quantity(dims, "1", "its standard error, from the scatter of the runs")
            found |= {f"{name}_{theory}": Quantity(dims, "1", f"{text}: {theory}") for theory in theories}
        return found

    def observe(self, look: Look) -> Mapping[str, Tensor]:
        buffers = _below(look.model.buffers)
        age = buffers["age"]
        averaged = (age - buffers["discarded"]).clamp_min(0)
        values = {
            "age": age.double(),
            "curvature": buffers["online.curvature"],
            "layer_curvature": buffers["coupled.curvature"],
            "strengths": buffers["coupled.strengths"],
            "gauge_theory": torch.exp(-buffers["gauge.theory_rate"] * age),
        }
        values["gauge"], values["gauge_error"] = _mean(buffers["gauge.sums"])
        for name, (_, _, theories) in KINDS.items():
            values[name], values[f"{name}_error"] = _mean(buffers[f"{name}.sums"] / averaged)  # 0/0 is NaN
            values |= {f"{name}_{theory}": buffers[f"{name}.theory_{theory}"] for theory in theories}
        return values

    def charts(self) -> dict[str, list[str]]:
        return {"Gauge": ["gauge", "gauge_theory"]}

    @staticmethod
    def figures(run: Run) -> list[Panel]:
        return ensemble_figures.panels(run)

    @staticmethod
    def findings(run: Run) -> list[Finding]:
        return ensemble_figures.sentences(run)


def _mean(runs: Tensor) -> tuple[Tensor, Tensor]:
    """Mean over independent runs (R, ...) and its standard error."""
    return runs.mean(0), runs.std(0) / len(runs) ** 0.5


def _below(buffers: Mapping[str, Any]) -> dict[str, Tensor]:
    """The buffers of the ensembles, wherever they are in the module.

    Raises:
        ValueError: if there are none.
    """
    place = next((name.removesuffix("gauge.sums") for name in buffers if name.endswith("gauge.sums")), None)
    if place is None:
        raise ValueError(
            "this instrument looks at observatory.solvable.ensembles.LinearEnsembles; there is none here"
        )
    return {name.removeprefix(place): value for name, value in buffers.items() if name.startswith(place)}
