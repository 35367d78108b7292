"""Which rule accounts for which parameter: each selected one is claimed exactly once."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from observatory.looking.calls import LeafCall, RecordedForward
from observatory.looking.model import ModelFunction
from observatory.ntk.factors import ConvolutionFactors, Factors, SiteFactors, rule_of

_log = logging.getLogger("observatory.ntk")


@dataclass(frozen=True)
class Claim:
    """How one contribution is computed, for any examples: by position of the calls in the forward pass."""

    calls: tuple[int, ...]  # several where a parameter is used several times
    own: tuple[str, ...]  # names of the parameters in those modules, one per call if there are several calls
    names: tuple[str, ...]  # of the model's parameters that are accounted for
    axes: tuple[int, ...]  # which axis of each call's tensors runs over examples


@dataclass(frozen=True)
class Claims:
    """All claims of a model, and the parameters that are treated by the definition."""

    claims: tuple[Claim, ...]
    fallback: tuple[str, ...]


def claims_of(function: ModelFunction, record: RecordedForward, n: int) -> Claims:
    """Assign every selected parameter to recorded calls, or to the fallback. Kept on the twin once found.

    A parameter is left to the fallback if the graph uses it more often than its calls were recorded (it is used
    by code that no hook sees), if a call has no rule, or if no axis of a call runs over examples.

    Raises:
        RuntimeError: if a parameter would be counted twice or not at all.
    """
    key = (function.selected, n, tuple((call.name, call.shape) for call in record.calls))
    known = function.twin.__dict__.setdefault("_observatory_claims", {})
    if key not in known:
        known[key] = _assign(function, record, n)
    return known[key]


def _assign(function: ModelFunction, record: RecordedForward, n: int) -> Claims:
    users: dict[str, list[tuple[int, str]]] = defaultdict(list)  # parameter to (call, own name)
    for k, call in enumerate(record.calls):
        for own, name in call.parameters.items():
            users[name].append((k, own))
    axes = _example_axes(record, n)
    covered: dict[str, list[tuple[int, str]]] = {}
    for name in function.selected:
        ruled = [rule_of(record.calls[k].module) is not None and axes[k] is not None for k, _ in users[name]]
        if users[name] and all(ruled) and record.uses[name] == len(users[name]):
            covered[name] = users[name]
    fallback = tuple(name for name in function.selected if name not in covered and record.uses[name])
    if fallback:
        _log.info("no rule for %s: their part of the kernel is computed by the definition", ", ".join(fallback))
    claims = []
    for k, call in enumerate(record.calls):  # parameters of one call, used nowhere else, together
        own = tuple(o for o, name in call.parameters.items() if covered.get(name) == [(k, o)])
        if own:
            claims.append(Claim((k,), own, tuple(call.parameters[o] for o in own), (axes[k] or 0,)))
    for name, uses in covered.items():
        if len(uses) > 1:
            calls, owns = zip(*uses, strict=True)
            claims.append(Claim(calls, owns, (name,), tuple(axes[k] or 0 for k in calls)))
    counted = [name for claim in claims for name in claim.names] + list(fallback)
    missing = {name for name in function.selected if record.uses[name]} - set(counted)
    if missing or len(set(counted)) != len(counted):
        raise RuntimeError(f"parameters claimed twice or not at all: {sorted(missing) or sorted(counted)}")
    return Claims(tuple(claims), fallback)


def _example_axes(record: RecordedForward, n: int) -> list[int | None]:
    """For each call the axis of its tensors that runs over examples, found by experiment.

    With an output direction that vanishes on some examples, their part of B must vanish exactly, and nobody
    else's. Layouts such as (time, example, feature) or (example·window, token, feature) are told apart so.
    """
    mask = torch.arange(n, device=record.output.device) % 3 == 1 if n > 1 else torch.zeros(1, dtype=torch.bool)
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(record.output.shape, generator=generator).to(record.output)
    direction[mask] = 0
    found = []
    for call, gradient in zip(record.calls, record.gradients(direction, record.calls), strict=True):
        found.append(_axis(call, gradient, mask, n))
    return found


def _axis(call: LeafCall, gradient: Tensor, mask: Tensor, n: int) -> int | None:
    rule = rule_of(call.module)
    if rule is None or not call.inputs or not isinstance(call.inputs[0], Tensor):
        return None
    if rule is ConvolutionFactors and gradient.ndim != len(call.module.kernel_size) + 2:  # type: ignore[arg-type]
        return None
    for axis in (0, 1) if issubclass_of_sites(rule) else (0,):
        if gradient.ndim <= axis or gradient.shape[axis] % n or call.inputs[0].ndim <= axis:
            continue
        if axis == 1 and (rule is ConvolutionFactors or gradient.ndim < 3):
            continue
        by_example = gradient.movedim(axis, 0).reshape(n, -1)
        if not by_example[mask.to(gradient.device)].any():
            return axis
    return None


def issubclass_of_sites(rule: Any) -> bool:
    return isinstance(rule, type) and issubclass(rule, Factors)


def factors_of(claim: Claim, record: RecordedForward, n: int) -> list[Factors]:
    """The factors of a claim's calls for these examples."""
    own = [claim.own] if len(claim.calls) == 1 else [(o,) for o in claim.own]
    made = []
    for k, names, axis in zip(claim.calls, own, claim.axes, strict=True):
        rule = rule_of(record.calls[k].module)
        assert rule is not None  # or it would not be claimed
        made.append(rule(record.calls[k], names, n, axis))
    return made


__all__ = ["Claim", "Claims", "SiteFactors", "claims_of", "factors_of"]
