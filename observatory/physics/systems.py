"""Systems of ordinary differential equations; leading dimensions of a state are ensembles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn


class System(nn.Module):
    """y' = f(t, y; θ) with scalar parameters and named components; a system of one's own needs `rhs` only.

    Args:
        parameters: values of the parameters, trainable, float64.
    """

    components: ClassVar[tuple[str, ...]]  # names of the last dimension of a state

    def __init__(self, **parameters: float) -> None:
        super().__init__()
        for name, value in parameters.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=torch.float64)))

    def rhs(self, t: Tensor, y: Tensor) -> Tensor:
        """y' for a state (..., D); a parameter is a number, or a tensor (...) with one value per lane."""
        raise NotImplementedError


class LotkaVolterra(System):
    """x' = αx - βxz - c₁x², z' = δxz - γz - c₂z²: prey x, predators z, and competition among either."""

    components = ("x", "z")
    alpha: Tensor
    beta: Tensor
    gamma: Tensor
    delta: Tensor
    c1: Tensor
    c2: Tensor

    def __init__(
        self,
        alpha: float = 0.5,
        beta: float = 0.5,
        gamma: float = 0.5,
        delta: float = 0.5,
        c1: float = 0.0,
        c2: float = 0.0,
    ) -> None:
        super().__init__(alpha=alpha, beta=beta, gamma=gamma, delta=delta, c1=c1, c2=c2)

    def rhs(self, t: Tensor, y: Tensor) -> Tensor:
        x, z = y.unbind(-1)
        meeting = x * z
        return torch.stack(
            [
                self.alpha * x - self.beta * meeting - self.c1 * x**2,
                self.delta * meeting - self.gamma * z - self.c2 * z**2,
            ],
            -1,
        )


class Lorenz63(System):
    """x' = σ(y - x), y' = x(ρ - z) - y, z' = xy - βz (Lorenz, J. Atmos. Sci. 20, 130 (1963)).

    The largest Lyapunov exponent at the default values is 0.906.
    """

    components = ("x", "y", "z")
    sigma: Tensor
    rho: Tensor
    beta: Tensor

    def __init__(self, sigma: float = 10.0, rho: float = 28.0, beta: float = 8 / 3) -> None:
        super().__init__(sigma=sigma, rho=rho, beta=beta)

    def rhs(self, t: Tensor, y: Tensor) -> Tensor:
        x, y, z = y.unbind(-1)
        return torch.stack([self.sigma * (y - x), x * (self.rho - z) - y, x * y - self.beta * z], -1)


class Lorenz96(System):
    """xᵢ' = xᵢ₋₁ (xᵢ₊₁ - xᵢ₋₂) - xᵢ + F on a ring (Lorenz, Predictability, ECMWF 1996).

    The largest Lyapunov exponent of 40 of them at F = 8 is 1.68.
    """

    forcing: Tensor

    def __init__(self, size: int = 40, forcing: float = 8.0) -> None:
        super().__init__(forcing=forcing)
        self.components = tuple(f"x{i}" for i in range(size))  # type: ignore[misc]

    def rhs(self, t: Tensor, y: Tensor) -> Tensor:
        before, after, second = y.roll(1, -1), y.roll(-1, -1), y.roll(2, -1)
        return before * (after - second) - y + self.forcing[..., None]


class Gravity(System):
    """n bodies: qᵢ'' = G Σⱼ mⱼ (qⱼ - qᵢ) / (|qⱼ - qᵢ|² + ε²)^(3/2); the method `verlet` keeps their energy.

    A state holds all positions and then all velocities, body by body.

    Args:
        masses: of the bodies, trainable together.
        dimensions: of space.
        softening: ε, a length below which attraction fades.
        constant: G.
    """

    masses: Tensor

    def __init__(
        self,
        masses: Sequence[float] = (1.0, 1.0),
        dimensions: int = 2,
        softening: float = 0.0,
        constant: float = 1.0,
    ) -> None:
        super().__init__()
        self.masses = nn.Parameter(torch.tensor(list(masses), dtype=torch.float64))
        self.dimensions, self.softening, self.constant = dimensions, softening, constant
        names = [f"{axis}{body}" for body in range(len(masses)) for axis in "xyz"[:dimensions]]
        self.components = (*names, *(f"v{name}" for name in names))  # type: ignore[misc]

    def rhs(self, t: Tensor, y: Tensor) -> Tensor:
        q, v = y.chunk(2, -1)
        q = q.unflatten(-1, (len(self.masses), self.dimensions))
        apart = q[..., None, :, :] - q[..., :, None, :]  # (..., n, n, d), from the first to the second
        # 1 on the diagonal: a body does not attract itself, and 0/0 would
        squared = apart.square().sum(-1) + self.softening**2 + torch.eye(len(self.masses)).to(y)
        pull = self.constant * self.masses[:, None] * apart * squared[..., None] ** -1.5
        return torch.cat([v, pull.sum(-2).flatten(-2)], -1)


class DampedOscillator(System):
    """x'' + γ x' + ω² x = 0 as x' = v, v' = -ω² x - γ v."""

    components = ("x", "v")
    omega: Tensor
    gamma: Tensor

    def __init__(self, omega: float = 1.0, gamma: float = 0.1) -> None:
        super().__init__(omega=omega, gamma=gamma)

    def rhs(self, t: Tensor, y: Tensor) -> Tensor:
        x, v = y.unbind(-1)
        return torch.stack([v, -(self.omega**2) * x - self.gamma * v], -1)
