"""What the snapshots of a window say, as tensors to record."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from observatory.looking.look import Look, Loss
from observatory.weights.analysis import Basis, Fluctuations, describe, directions_and_motion
from observatory.weights.landscape import Landscape
from observatory.weights.noise import SgdSetting
from observatory.weights.quantities import nothing, profiles, scalar, tensors_of, tensors_of_variants
from observatory.weights.recorder import Recorder
from observatory.weights.relation import InverseRelation
from observatory.weights.stationarity import dissipation_of_snapshots
from observatory.weights.terrain import survey
from observatory.weights.variants import exponents_by_choice, exponents_by_range


def conclude_window(
    recorder: Recorder,
    look: Look,
    *,
    loss: Loss,
    basis: Basis,
    directions: int,
    variants: list[str],
    setting: SgdSetting | None,
    coefficients: tuple[float, float, float] | None,
    first: int | None,
    last: int | None,
    seed: int,
) -> dict[str, Tensor]:
    """All quantities of a window; NaN for everything if a snapshot is not finite.

    Args:
        recorder: the snapshots.
        look: gives the function, the other weights, and the probe on which the loss is evaluated.
        setting: of SGD, for temperatures and irreversibility.
        coefficients: (η, β, λ) of plain SGD with a constant learning rate, for r_FDR.
        variants: names of the further exponents, in the order of the record.
    """
    like = recorder.reference
    size = {"weights": scalar(float(like.numel()), like), "kept": scalar(float(recorder.width), like)}
    if not bool(recorder.center().isfinite().all()):
        return nothing(directions, like) | size | {"diverged_at": scalar(recorder.diverged_at(), like)}
    landscape = Landscape(
        replace(look.model, selected=recorder.names),
        (look.probe.inputs, look.probe.targets),
        center=recorder.center(),
        loss=loss,
    )
    generator = torch.Generator().manual_seed(seed)
    vectors: Tensor | None
    if recorder.storage == "full":
        vectors, motion = directions_and_motion(
            recorder.trajectory(), landscape, basis, directions, generator
        )
    else:
        vectors, motion = recorder.principal_motion(directions)
        motion = motion.to(like.device)
        vectors = None if vectors is None else vectors.to(like.device)
    result = describe(
        motion,
        None if vectors is None else survey(landscape, vectors, motion.variance.sqrt()),
        steps=torch.tensor(recorder.steps),
        basis=basis,
        setting=setting,
        dissipation_ratio=_dissipation(recorder, coefficients),
        first=first,
        last=last,
        generator=generator,
    )
    values = tensors_of(result, directions) | size | {"diverged_at": scalar(None, like)}
    if vectors is not None and result.terrain is not None:
        values |= profiles(landscape, vectors, result.terrain.left, result.terrain.right)
    return values | tensors_of_variants(_variants(result, recorder, landscape, directions, seed), variants)


def _dissipation(recorder: Recorder, coefficients: tuple[float, float, float] | None) -> Tensor | None:
    every_step = len(recorder) > 3 and recorder.steps[-1] - recorder.steps[0] == len(recorder) - 1
    if coefficients is None or not every_step or recorder.storage not in ("full", "subset"):
        return None
    rate, momentum, _ = coefficients
    rows = recorder.trajectory().differences
    return dissipation_of_snapshots(rows, learning_rate=rate, momentum=momentum)


def _variants(
    result: Fluctuations, recorder: Recorder, landscape: Landscape, directions: int, seed: int
) -> dict[str, InverseRelation]:
    if result.basis != "components" or result.terrain is None or not bool(result.terrain.loss > 0):
        return {}
    found = exponents_by_range(result, directions)
    if recorder.storage == "full" and len(recorder) >= 8:
        found |= exponents_by_choice(recorder.trajectory(), landscape, directions, seed=seed)
    return found
