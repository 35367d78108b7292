"""Which rule accounts for which parameter: each selected one is claimed exactly once."""

from __future__ import annotations

import logging
import math
from collections import defaultdict
from dataclasses import dataclass

import torch
from torch import Tensor

from observatory.looking.calls import LayerCall, RecordedForward
from observatory.looking.model import ModelFunction
from observatory.ntk.factors import Factors, Layout, SiteFactors, by_example
from observatory.ntk.pooled_convolutions import PooledConvolutionFactors, sums_chosen_patches
from observatory.ntk.rules import rule_of

_log = logging.getLogger("observatory.ntk")
BASE = 16  # 2^15 times a gradient is finite
_KEPT = "_observatory_claims"  # attribute of the twin


@dataclass(frozen=True)
class Claim:
    """How one contribution is computed, for any examples: by position of the calls in the forward pass."""

    calls: tuple[int, ...]  # several where a parameter is used several times
    own: tuple[str, ...]  # arguments of that call; one per call if there are several calls
    names: tuple[str, ...]  # of the model's parameters that are accounted for
    layouts: tuple[Layout, ...]  # of each call


@dataclass(frozen=True)
class Claims:
    """All claims of a model, and the parameters that are treated by the definition."""

    claims: tuple[Claim, ...]
    fallback: tuple[str, ...]


def claims_of(function: ModelFunction, record: RecordedForward) -> Claims:
    """Assign every selected parameter to recorded calls, or to the fallback. Kept on the twin once found.

    A parameter is left to the fallback if the graph uses it more often than calls were heard, if a call has
    no rule, or if its tensors do not run over the examples.

    Raises:
        ValueError: if an example's output depends on the other examples of the batch.
        RuntimeError: if a parameter would be counted twice or not at all.
    """
    n = len(record.output)
    key = (function.selected, n, tuple((call.layer, call.shape) for call in record.calls))
    known = function.twin.__dict__.setdefault(_KEPT, {})
    if key in known:
        claims: Claims = known[key]
        return claims
    possible = _layouts(record, n)
    claims = _assign(function, record, [layouts[0] if layouts else None for layouts in possible])
    if n == 1 or all(len(layouts) < 2 for layouts in possible):
        known[key] = claims  # otherwise the first is right now, where B vanishes, but perhaps not later
    return claims


def factors_of(claim: Claim, record: RecordedForward, d: int) -> list[Factors]:
    """The factors of a claim's calls, for the examples of this forward pass and d output directions."""
    own = [claim.own] if len(claim.calls) == 1 else [(one,) for one in claim.own]
    made: list[Factors] = []
    for k, names, layout in zip(claim.calls, own, claim.layouts, strict=True):
        call, n = record.calls[k], len(record.output)
        if _is_only_pooled(claim, call, n):
            summing = d > 1 and sums_chosen_patches(call)  # patches are copied first, once for all directions
            if summing or (call.pooled is not None and call.pooled.ends):
                made.append(PooledConvolutionFactors(call, names, n, layout, summing=summing))
                continue
        rule = rule_of(call)
        assert rule is not None  # or it would not be claimed
        made.append(rule(call, names, n, layout))
    return made


def _is_only_pooled(claim: Claim, call: LayerCall, n: int) -> bool:
    """Whether it is a convolution that is only pooled, called once, with one image for each example."""
    alone = len(claim.calls) == 1 and len(claim.own) == len(call.parameters)
    return alone and call.pooled is not None and call.layer == "conv2d" and call.shape[0] == n


def _assign(function: ModelFunction, record: RecordedForward, layouts: list[Layout | None]) -> Claims:
    users: dict[str, list[tuple[int, str]]] = defaultdict(list)  # parameter to (call, argument)
    for k, call in enumerate(record.calls):
        for own, name in call.parameters.items():
            users[name].append((k, own))
    used = [name for name in function.selected if record.uses[name]]
    covered = {
        name: users[name]
        for name in used
        if len(users[name]) == record.uses[name] and all(layouts[k] is not None for k, _ in users[name])
    }
    claims = []
    for k, call in enumerate(record.calls):  # parameters of one call, used nowhere else, together
        together = tuple(o for o, name in call.parameters.items() if covered.get(name) == [(k, o)])
        if together:
            names = tuple(call.parameters[o] for o in together)
            claims.append(Claim((k,), together, names, (layouts[k] or "outer",)))
    for name, uses in covered.items():
        if len(uses) > 1:
            calls, owns = zip(*uses, strict=True)
            claims.append(Claim(calls, owns, (name,), tuple(layouts[k] or "outer" for k in calls)))
    fallback = tuple(name for name in used if name not in covered)
    counted = [name for claim in claims for name in claim.names] + list(fallback)
    if sorted(counted) != sorted(used):
        raise RuntimeError(
            f"parameters claimed twice or not at all: {sorted(set(used) ^ set(counted)) or counted}"
        )
    if fallback:
        _log.info(
            "no rule for %s: their part of the kernel is computed by the definition", ", ".join(fallback)
        )
    return Claims(tuple(claims), fallback)


def _layouts(record: RecordedForward, n: int) -> list[tuple[Layout, ...]]:
    """Where each call can have its examples, found by experiment; nothing where nowhere, or there is no rule.

    If the output direction of example i is multiplied by 2^kᵢ, so must be B on its part of the call, and
    powers of two commute with rounding. Layouts such as (time, example, feature) or (example·window, token,
    feature) are told apart so, unless B vanishes where they differ.
    """
    generator = torch.Generator().manual_seed(0)
    direction = torch.randn(record.output.shape, generator=generator).to(record.output)
    examples = torch.arange(n, device=record.output.device)
    possible = [_candidates(call, n) for call in record.calls]
    plain = _magnitudes(record, direction)
    for place in range(math.ceil(math.log(n, BASE) - 1e-9)):
        factors = 2.0 ** (examples // BASE**place % BASE).to(direction)
        scaled = _magnitudes(record, direction * factors.view(-1, *[1] * (direction.ndim - 1)))
        possible = [
            tuple(layout for layout in layouts if _proportional(one, other, factors, layout))
            for layouts, one, other in zip(possible, plain, scaled, strict=True)
        ]
    return possible


def _magnitudes(record: RecordedForward, direction: Tensor) -> list[Tensor]:
    """Largest |B| over all but the first two axes of each call."""
    return [
        b.abs().flatten(2).amax(2) if b.ndim > 2 else b.abs()
        for b in record.gradients(direction, record.calls)
    ]


def _proportional(plain: Tensor, scaled: Tensor, factors: Tensor, layout: Layout) -> bool:
    """Whether every example's part has grown by its factor."""
    one, other = (by_example(b[None], len(factors), layout)[0] for b in (plain, scaled))
    expected = one * factors.view(-1, *[1] * (one.ndim - 1))
    return bool(((other - expected).abs() <= 0.1 * expected).all())  # on a GPU sums may change their order


def _candidates(call: LayerCall, n: int) -> tuple[Layout, ...]:
    rule, shape = rule_of(call), call.shape
    if rule is None:
        return ()
    candidates: list[Layout] = []
    if shape[0] % n == 0:
        candidates += ["outer"] if shape[0] == n else ["outer", "inner"]
    if issubclass(rule, SiteFactors) and not call.layer.startswith("conv") and len(shape) > 2:
        candidates += ["second"] if shape[1] == n else []
    return tuple(layout for layout in candidates if _fits(call, layout))


def _fits(call: LayerCall, layout: Layout) -> bool:
    """Whether the input has its examples where the output has."""
    axis = 1 if layout == "second" else 0
    return call.input.ndim > axis and call.input.shape[axis] == call.shape[axis]
