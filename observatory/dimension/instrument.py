"""Dimension of the hidden layers and focusing of the weights, as an instrument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, fields
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from observatory.dimension import figures, findings
from observatory.dimension.estimates import SCALES
from observatory.dimension.orders import PROFILES, order_parameters
from observatory.dimension.profiles import LayerProfile, ProfileOptions, measured
from observatory.dimension.quantities import declared
from observatory.looking.look import Look
from observatory.looking.probe import ProbeRequest
from observatory.looking.ranks import rank
from observatory.observing import Histogram, Instrument
from observatory.records import Quantity

if TYPE_CHECKING:
    from observatory.records import Finding, Panel, Run

_OPTIONS = {field.name for field in fields(ProfileOptions)}


class LayerDimensionality(Instrument):
    """Dimension of the representation and focusing of the weights in every hidden layer.

    Whether a profile over the layers oscillates is measured against noise; one network gives one sample.
    (de Jong, Meigel, Rulands, DPG Spring Meeting 2024, SOE 8.11; dimension along layers: Ansuini et al. 2019,
    arXiv:1905.12784.)

    Args:
        options: what is measured, see `ProfileOptions`, and how it is looked at, see `Instrument`. The probe
            must have more examples than k.
    """

    default_name = "dimension"
    default_probe = ProbeRequest(size=2000)

    def __init__(self, **options: Any) -> None:
        self.options = ProfileOptions(**{k: v for k, v in options.items() if k in _OPTIONS})
        super().__init__(**{k: v for k, v in options.items() if k not in _OPTIONS})
        self._layers: list[str] = []
        self._weights: list[str] = []
        self._scales = 0  # of Gride, as many as the probe has examples for
        self._first: list[Tensor] | None = None  # differences of the nodes' strengths at the first look
        self._past: dict[int, dict[str, Tensor]] = {}  # what the map of layers against time shows, by step

    def quantities(self) -> dict[str, Quantity]:
        return declared(self.options)

    def coordinates(self) -> dict[str, list[str]]:
        if not self._layers:
            return {}
        scales = [str(n) for n in SCALES[: self._scales]]
        named = {"layer": self._layers, "weight": self._weights, "profile": list(PROFILES)}
        return named | ({"scale": scales} if scales else {})

    def settings(self) -> dict[str, Any]:
        return asdict(self.options) | {"estimators": list(self.options.estimators)}

    def observe(self, look: Look) -> Mapping[str, Tensor]:
        if rank() != 0:
            return {}
        y = look.probe.targets
        classes = y if isinstance(y, Tensor) and y.ndim == 1 and not y.is_floating_point() else None
        found = measured(look.model, look.probe.inputs, self.options, classes)
        self._layers, self._weights = found.layers, found.weights
        self._scales = found["gride"].shape[1] if "gride" in found.values else 0
        values = dict(found.values) | {"log_path_total": found.log_total}
        self._past[look.step] = {name: values[name].detach().cpu() for name in figures.mapped(values)}
        return values | {"imbalance_drift": self._drift(found)} | order_parameters(values)

    def _drift(self, found: LayerProfile) -> Tensor:
        now = found.differences
        self._first = now if self._first is None else self._first
        strength = found["strength"]
        moved = [
            (a - b.to(a)).norm() if len(a) else strength.new_full((), torch.nan)
            for a, b in zip(now, self._first, strict=True)
        ]
        return torch.stack(moved) / strength

    def state_dict(self) -> dict[str, Any]:
        return {"first": self._first, "past": dict(self._past)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._first, self._past = state["first"], dict(state.get("past", {}))

    def dashboard(self, values: Mapping[str, Tensor]) -> Sequence[Panel | Histogram]:
        look = {name: value.detach().cpu().numpy() for name, value in values.items()}
        past = {step: {k: v.numpy() for k, v in row.items()} for step, row in self._past.items()}
        return figures.of_one_look(look, self._layers, past)

    @staticmethod
    def figures(run: Run) -> list[Panel]:
        return figures.panels(run)

    @staticmethod
    def findings(run: Run) -> list[Finding]:
        return findings.sentences(run)
