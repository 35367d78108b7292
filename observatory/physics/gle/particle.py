"""A particle with memory: all that its equation needs, observed at any time step, kept in files."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import yaml
from torch import Tensor

from observatory.physics.gle.kernels import ExponentialKernel, exponential_kernel
from observatory.physics.gle.potentials import DoubleWell, Flat, FreeEnergy, Harmonic, Potential
from observatory.physics.gle.simulation import simulate
from observatory.physics.gle.spline_potential import SplinePotential

INTERVALS = 64  # of the spline that stands for a tabulated free energy in a file
_ROOM = "observatory.physics.gle."
_KINDS = {_ROOM + kind.__name__: kind for kind in (Flat, Harmonic, DoubleWell, SplinePotential)}


@dataclass(frozen=True)
class Particle:
    """m ẍ = -U'(x) - ∫_0^t Γ(s)ẋ(t-s)ds + F(t), ⟨F(0)F(t)⟩ = kT Γ(t)."""

    kernel: ExponentialKernel  # Γ
    potential: Potential  # U
    mass: Tensor | float  # m, one for each parameter set of the kernel
    kT: float  # thermal energy

    def observed(self, dt: float, *, step: float, samples: int, lanes: int, **options: Any) -> Tensor:
        """Positions in equilibrium at each Δt, (S, P, T).

        Args:
            dt: Δt.
            step: of the integrator, at most; Δt is divided by a whole number.
            samples: T.
            lanes: P.
            options: of `simulate`.
        """
        stride = math.ceil(dt / step * (1 - 1e-9))
        return simulate(
            self.kernel,
            self.potential,
            mass=self.mass,
            kT=self.kT,
            step=dt / stride,
            samples=samples,
            lanes=lanes,
            stride=stride,
            **options,
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """A YAML file whose entries are arguments of `observatory.data.LangevinTrajectories`.

        A free energy of data becomes a spline of 64 intervals over its grid.

        Raises:
            ValueError: if there are several parameter sets, or the potential is none of this package.
        """
        if self.kernel.gamma.ndim > 1:
            raise ValueError(f"a file holds one particle, got {tuple(self.kernel.gamma.shape[:-1])} sets")
        k = self.kernel
        content = {
            "potential": _described(self.potential),
            "gamma": k.gamma.tolist(),
            "tau": k.tau.tolist(),
            "instantaneous": float(k.instantaneous),
            "cosines": k.cosines.tolist(),
            "mass": float(self.mass),
            "kT": float(self.kT),
        }
        Path(path).write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Particle:
        """What `save` wrote, or what was written by hand.

        Raises:
            ValueError: if an entry is missing, negative where it must not be, or the potential is unknown.
        """
        content = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        needed = {"potential", "gamma", "tau", "mass", "kT"}
        if not isinstance(content, dict) or (missing := needed - content.keys()):
            raise ValueError(
                f"{path} does not describe a particle: {', '.join(sorted(missing))} missing"
                if isinstance(content, dict)
                else f"{path} holds no entries"
            )
        if min(content["mass"], content["kT"]) <= 0:
            raise ValueError(f"mass and kT must be positive, got {content['mass']} and {content['kT']}")
        kernel = exponential_kernel(
            content["gamma"],
            content["tau"],
            instantaneous=content.get("instantaneous", 0.0),
            cosines=[tuple(wave) for wave in content.get("cosines", ())],
        )
        return cls(kernel, _made(content["potential"]), float(content["mass"]), float(content["kT"]))


def _described(potential: Potential) -> dict[str, Any]:
    if isinstance(potential, FreeEnergy) and potential.period is None:
        potential = SplinePotential.through(
            potential, float(potential.x[0]), float(potential.x[-1]), INTERVALS
        )
    if isinstance(potential, SplinePotential):
        init = {"low": potential.low, "high": potential.high}
        return _entry(potential, init | {"coefficients": potential.coefficients.tolist()})
    if not isinstance(potential, (Flat, Harmonic, DoubleWell)):
        raise ValueError(
            f"{type(potential).__name__} cannot be written as YAML: use SplinePotential.through(potential, "
            "low, high)"
        )
    return _entry(potential, asdict(potential))


def _entry(potential: object, init: dict[str, Any]) -> dict[str, Any]:
    return {"class_path": _ROOM + type(potential).__name__, "init_args": init}


def _made(entry: Mapping[str, Any]) -> Potential:
    kind = _KINDS.get(entry["class_path"])
    if kind is None:
        known = ", ".join(sorted(_KINDS))
        raise ValueError(f"the potential {entry['class_path']!r} is unknown; known are {known}")
    made: Potential = kind(**entry.get("init_args", {}))
    return made
