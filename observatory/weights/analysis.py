"""Everything about one window: the fluctuations, the landscape below them, and how they are related."""

from __future__ import annotations

from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from observatory.looking import Loss, ModelFunction
from observatory.numerics.curvature import leading_eigenvectors
from observatory.weights.components import principal_components, project
from observatory.weights.landscape import Batches, Landscape
from observatory.weights.motion import Motion, motion_along
from observatory.weights.noise import SgdSetting, lyapunov_residual, temperature
from observatory.weights.relation import InverseRelation, fit_relation
from observatory.weights.stationarity import dissipation_of_snapshots
from observatory.weights.terrain import Irreversibility, Terrain, irreversibility, survey
from observatory.weights.trajectory import Trajectory

Basis = Literal["components", "hessian", "random"]


@dataclass(frozen=True, eq=False)
class Fluctuations:
    """The result of `analyze`."""

    basis: Basis  # which directions
    steps: Tensor  # of the snapshots, (T,)
    motion: Motion
    terrain: Terrain | None  # None where directions are unknown (a sketch)
    relation: InverseRelation
    temperature: Tensor | None  # T_i = ηc_if/(2S), (k,); None without the setting of SGD
    residual: Tensor | None  # of the Lyapunov equation in these directions, scalar
    irreversibility: Irreversibility | None  # from the measured H and C
    dissipation_ratio: Tensor | None  # r_FDR, scalar; None unless every step was recorded

    def save(self, path: str | Path) -> None:
        """Write all arrays and the window as .npz, without pickles."""
        arrays: dict[str, Any] = {"basis": self.basis, "steps": self.steps.cpu().numpy()}
        for name in ("motion", "terrain", "relation", "irreversibility"):
            part = getattr(self, name)
            if part is not None:
                arrays |= {f"{name}.{f.name}": _array(getattr(part, f.name)) for f in fields(part)}
        for name in ("temperature", "residual", "dissipation_ratio"):
            if getattr(self, name) is not None:
                arrays[name] = _array(getattr(self, name))
        np.savez(path, allow_pickle=False, **arrays)


def _array(value: Any) -> np.ndarray:
    return value.cpu().numpy() if isinstance(value, Tensor) else np.asarray(value)


def analyze(
    trajectory: Trajectory,
    model: nn.Module | ModelFunction,
    data: tuple[Any, Any] | Batches,
    *,
    basis: Basis = "components",
    directions: int = 20,
    setting: SgdSetting | None = None,
    loss: Loss | None = None,
    batch_size: int | None = None,
    first: int | None = None,
    last: int | None = None,
    s_max: float = 1e3,
    seed: int = 0,
) -> Fluctuations:
    """Fluctuations of a trajectory and the landscape at its mean, offline or at the end of a recorded window.

    Args:
        trajectory: snapshots of some of the model's parameters (`load_trajectory` reads checkpoints).
        model: gives the function, and the values of all other parameters and buffers.
        data: fixed examples of the training set, (inputs, targets) or batches of such pairs.
        basis: "components" of the trajectory (Feng, Tu 2021), leading eigenvectors of the "hessian" (Kühn,
            Rosenow 2023), or "random" directions. Conclusions differ.
        directions: number of them, k.
        setting: of SGD; without it temperatures, r_FDR and irreversibility are None.
        loss: loss(output, targets), a mean over the examples; default the likelihood of the targets' type.
        batch_size: examples at once, for large `data`.
        first, last: range of components in the fit of ψ, counted from 1; default all, without the first
            one if it is a drift.
        s_max: where to give up looking for the crossing of a loss profile, in weight units.
        seed: of random directions and resampling.

    Raises:
        ValueError: if a snapshot is not finite, or the model does not have the parameters of the trajectory.
    """
    trajectory.check_finite()
    landscape = landscape_of(trajectory, model, data, loss=loss, batch_size=batch_size)
    generator = torch.Generator().manual_seed(seed)
    vectors, motion = directions_and_motion(trajectory, landscape, basis, directions, generator)
    ratio = None
    if setting is not None and trajectory.every == 1 and len(trajectory) > 3:
        ratio = dissipation_of_snapshots(
            trajectory.differences, learning_rate=setting.learning_rate, momentum=setting.momentum
        )
    return describe(
        motion,
        survey(landscape, vectors, motion.variance.sqrt(), s_max=s_max),
        steps=trajectory.steps,
        basis=basis,
        setting=setting,
        dissipation_ratio=ratio,
        first=first,
        last=last,
        generator=generator,
    )


def describe(
    motion: Motion,
    terrain: Terrain | None,
    *,
    steps: Tensor,
    basis: Basis,
    setting: SgdSetting | None,
    dissipation_ratio: Tensor | None,
    first: int | None,
    last: int | None,
    generator: torch.Generator,
) -> Fluctuations:
    """Put motion and terrain in relation; without terrain (a sketch) the relation is NaN. See `analyze`."""
    snapshots = len(motion.projections)
    flat = torch.full_like(motion.variance, torch.nan) if terrain is None else terrain.flatness
    relation = fit_relation(
        motion.variance,
        flat,
        first=first or (2 if motion.drift and basis == "components" else 1),
        last=last,
        projections=motion.projections if snapshots else None,
        correlation_time=motion.integrated_time * snapshots / motion.window,
        generator=generator,
    )
    hot, residual, irreversible = None, None, None
    if setting is not None and terrain is not None:
        hot = temperature(terrain.noise.diagonal(), setting)
        irreversible = irreversibility(terrain, setting)
        if snapshots:
            covariance = motion.projections.mT @ motion.projections / (snapshots - 1)
            residual = lyapunov_residual(terrain.hessian, covariance, terrain.noise, setting)
    return Fluctuations(
        basis, steps, motion, terrain, relation, hot, residual, irreversible, dissipation_ratio
    )


def landscape_of(
    trajectory: Trajectory,
    model: nn.Module | ModelFunction,
    data: tuple[Any, Any] | Batches,
    *,
    loss: Loss | None = None,
    batch_size: int | None = None,
) -> Landscape:
    """The loss about the mean of a trajectory, as a function of the trajectory's weights.

    Raises:
        ValueError: if the model does not have parameters of these names and shapes.
    """
    function = ModelFunction.of(model)
    known = {name: tuple(p.shape) for name, p in function.parameters.items()}
    wanted = {name: tuple(shape) for name, shape in zip(trajectory.names, trajectory.shapes, strict=True)}
    if foreign := {name: shape for name, shape in wanted.items() if known.get(name) != shape}:
        raise ValueError(f"the model has no such parameters: {foreign}; it has {known}")
    chosen = replace(function, selected=trajectory.names)
    return Landscape(chosen, data, center=trajectory.mean(), loss=loss, batch_size=batch_size)


def directions_and_motion(
    trajectory: Trajectory, landscape: Landscape, basis: Basis, count: int, generator: torch.Generator
) -> tuple[Tensor, Motion]:
    """Unit vectors (k, P) and the motion along them. Arguments as in `analyze`."""
    rows, size = trajectory.differences, trajectory.size
    found, vectors = principal_components(rows, count)
    projections = found.projections
    if basis != "components":
        vectors = other_basis(landscape, basis, min(count, size), generator)
        projections = project(rows, vectors.to(rows.device))
    motion = motion_along(projections, found, every=trajectory.every, size=size)
    device = landscape.center.device  # snapshots may be kept elsewhere
    return vectors.to(device), motion.to(device)


def other_basis(landscape: Landscape, basis: Basis, count: int, generator: torch.Generator) -> Tensor:
    """Unit vectors (count, P) of a basis that is not the trajectory's own."""
    center = landscape.center
    kind = {"generator": generator, "dtype": torch.float64}
    if basis == "hessian":
        start = torch.randn(center.numel(), **kind).to(center.device)  # type: ignore[call-overload]
        return leading_eigenvectors(landscape.hessian_products, start, count)[1]
    if basis != "random":
        raise ValueError(f"basis must be 'components', 'hessian' or 'random', got {basis!r}")
    drawn = torch.randn(center.numel(), count, **kind).to(center.device)  # type: ignore[call-overload]
    return torch.linalg.qr(drawn).Q.mT
