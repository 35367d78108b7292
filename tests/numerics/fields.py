"""Right-hand sides whose solutions or gradients are known."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from observatory.numerics.ode import laplacian


class Growth(nn.Module):
    """y' = a y."""

    def __init__(self, a: float = -0.7) -> None:
        super().__init__()
        self.a = nn.Parameter(torch.tensor(a, dtype=torch.float64))

    def rhs(self, t: Tensor, y: Tensor) -> Tensor:
        return self.a * y


class Heat(nn.Module):
    """y' = D (y₊ - 2y + y₋) on a line without flux through its ends; eigenvectors are the DCT-II modes."""

    def __init__(self, diffusion: float = 1.0) -> None:
        super().__init__()
        self.diffusion = nn.Parameter(torch.tensor(diffusion, dtype=torch.float64))

    def rhs(self, t: Tensor, y: Tensor) -> Tensor:
        return self.diffusion * pad(y.diff(dim=-1), (1, 1)).diff(dim=-1)


class Forced(nn.Module):
    """y' = k (cos t - y): depends on time."""

    def __init__(self, k: float = 1.5) -> None:
        super().__init__()
        self.k = nn.Parameter(torch.tensor(k, dtype=torch.float64))

    def rhs(self, t: Tensor, y: Tensor) -> Tensor:
        return self.k * (torch.cos(t).reshape(t.shape + (1,) * (y.ndim - t.ndim)) - y)

    def solution(self, t: Tensor, start: float) -> Tensor:
        """Of y(0) = start."""
        k = self.k.detach()
        steady = k * (k * torch.cos(t) + torch.sin(t)) / (k**2 + 1)
        return steady + (start - k**2 / (k**2 + 1)) * torch.exp(-k * t)


class FitzHughNagumo(nn.Module):
    """u' = D∇²u + k u(1-u)(u-a) - v, v' = ε(b u - v), fields without flux through the borders."""

    def __init__(self, dtype: torch.dtype = torch.float64) -> None:
        super().__init__()
        for name, value in {"diffusion": 1.0, "k": 1.0, "a": 0.1, "epsilon": 0.01, "b": 0.5}.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value, dtype=dtype)))

    def rhs(self, t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        u, v = y["u"], y["v"]
        reaction = self.k * u * (1 - u) * (u - self.a)
        return {"u": self.diffusion * laplacian(u) + reaction - v, "v": self.epsilon * (self.b * u - v)}

    @staticmethod
    def beginning(*shape: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
        """A front and a block that it cannot enter."""
        u, v = torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype)
        u[..., : shape[-1] // 3], v[..., : shape[-2] // 2, :] = 1.0, 0.15
        return {"u": u, "v": v}
