"""Loss and gradient of 200 RK4 steps of FitzHugh-Nagumo on 64² cells: ours, torchdiffeq's, and a JAX scan.

    python benchmarks/adjoint.py

Prints the seconds of the first call, which compiles, and of the best of several later ones, the
ratios (both sides called in turn, so that other work on the machine slows either), and how far the
gradient with respect to the initial u is from ours. One core, float32; torchdiffeq's rk4 is the 3/8
rule with the same four evaluations a step: with our right-hand side, with padded differences in place of
`laplacian`, with the fields in one tensor and copied borders, and with its adjoint equation, whose way
back through diffusion ends in NaN.
Peers that are not installed (extra `peers`) are left out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import pad

from observatory.numerics.ode import VectorField, integrate, laplacian, uniform_grid

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false intra_op_parallelism_threads=1"  # before JAX

CELLS, STEPS, H = 64, 200, 0.1
TRUTH = {"diffusion": 1.0, "k": 1.0, "a": 0.1, "epsilon": 0.01, "b": 0.5}


class FitzHughNagumo(nn.Module):
    """u' = D∇²u + k u(1-u)(u-a) - v, v' = ε(b u - v), fields apart."""

    def __init__(self) -> None:
        super().__init__()
        for name, value in TRUTH.items():
            self.register_parameter(name, nn.Parameter(torch.tensor(value)))

    def rhs(self, t: Tensor, y: dict[str, Tensor]) -> dict[str, Tensor]:
        u, v = y["u"], y["v"]
        reaction = self.k * u * (1 - u) * (u - self.a)
        return {"u": self.diffusion * self.flux(u) + reaction - v, "v": self.epsilon * (self.b * u - v)}

    def flux(self, u: Tensor) -> Tensor:
        return laplacian(u)


class OfDifferences(FitzHughNagumo):
    """The same, written out as a user may: fluxes through faces."""

    def flux(self, u: Tensor) -> Tensor:
        x, z = u[..., 1:] - u[..., :-1], u[..., 1:, :] - u[..., :-1, :]
        return pad(x, (0, 1)) - pad(x, (1, 0)) + pad(z, (0, 0, 0, 1)) - pad(z, (0, 0, 1, 0))


def beginning(lanes: int) -> dict[str, Tensor]:
    u, v = torch.zeros(lanes, CELLS, CELLS), torch.zeros(lanes, CELLS, CELLS)
    u[..., : CELLS // 3], v[:, : CELLS // 2] = 1.0, 0.15
    return {"u": u.requires_grad_(), "v": v.requires_grad_()}


def ours(
    field: VectorField, lanes: int, steps: int, compiled: bool, backward: bool = True
) -> Callable[[], Tensor]:
    y, grid = beginning(lanes), uniform_grid(torch.tensor([0.0, steps * H]), H)

    def call() -> Tensor:
        end = integrate(field, y, grid, gradient="checkpointed", compiled=compiled)["u"][-1]
        if not backward:
            return end
        return torch.autograd.grad(end.square().sum(), [*field.theta.values(), *y.values()])[-2]

    return call


def torchdiffeq(
    system: FitzHughNagumo, stacked: bool = False, adjoint: bool = False
) -> Callable[[], Tensor] | None:
    try:
        from torchdiffeq import odeint, odeint_adjoint
    except ImportError:
        return None
    y, times = beginning(1), torch.tensor([0.0, STEPS * H])

    def apart(t: Tensor, s: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        made = system.rhs(t, {"u": s[0], "v": s[1]})
        return made["u"], made["v"]

    def together(t: Tensor, s: Tensor) -> Tensor:
        u, v = s.unbind(1)
        w = pad(u[:, None], (1, 1, 1, 1), mode="replicate")[:, 0]
        curved = w[:, 1:-1, 2:] + w[:, 1:-1, :-2] + w[:, 2:, 1:-1] + w[:, :-2, 1:-1] - 4 * u
        reaction = system.k * u * (1 - u) * (u - system.a)
        return torch.stack([system.diffusion * curved + reaction - v, system.epsilon * (system.b * u - v)], 1)

    def call() -> Tensor:
        start = torch.stack([y["u"], y["v"]], 1) if stacked else (y["u"], y["v"])
        rk4: dict = {"method": "rk4", "options": {"step_size": H}}
        if adjoint:
            states = odeint_adjoint(apart, start, times, adjoint_params=tuple(system.parameters()), **rk4)
        else:
            states = odeint(together if stacked else apart, start, times, **rk4)
        end = states[-1][:, 0] if stacked else states[0][-1]
        return torch.autograd.grad(end.square().sum(), [*system.parameters(), *y.values()])[-2]

    return call


def jax_scan(lanes: int) -> Callable[[], Tensor] | None:
    try:
        import jax
        import jax.numpy as jnp
    except ImportError:
        return None

    def rhs(y, p):
        u, v = y
        x, z = u[..., 1:] - u[..., :-1], u[..., 1:, :] - u[..., :-1, :]
        side, up = [(0, 0), (0, 0)], [(0, 0)]
        flux = jnp.pad(x, [*side, (0, 1)]) - jnp.pad(x, [*side, (1, 0)])
        flux = flux + jnp.pad(z, [*up, (0, 1), (0, 0)]) - jnp.pad(z, [*up, (1, 0), (0, 0)])
        reaction = p["k"] * u * (1 - u) * (u - p["a"])
        return p["diffusion"] * flux + reaction - v, p["epsilon"] * (p["b"] * u - v)

    def step(y, p):
        def along(a, k):
            return tuple(s + a * H * d for s, d in zip(y, k, strict=True))

        k1 = rhs(y, p)
        k2 = rhs(along(0.5, k1), p)
        k3 = rhs(along(0.5, k2), p)
        k4 = rhs(along(1.0, k3), p)
        parts = zip(y, k1, k2, k3, k4, strict=True)
        return tuple(s + H / 6 * (a + 2 * b + 2 * c + d) for s, a, b, c, d in parts)

    def loss(y, p):
        advance = jax.checkpoint(lambda state, _: (step(state, p), None))
        return (jax.lax.scan(advance, y, None, length=STEPS)[0][0] ** 2).sum()

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1)))
    y = tuple(jnp.asarray(field.detach().numpy()) for field in beginning(lanes).values())
    return lambda: torch.from_numpy(np.array(jax.block_until_ready(gradient(y, TRUTH))[0][0]))


def seconds(call: Callable[[], Tensor], repeats: int = 8) -> tuple[float, float]:
    """Of the first call, and the best of the later ones."""
    taken = []
    for _ in range(repeats + 1):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return taken[0], min(taken[1:])


def beside(call: Callable[[], Tensor], mine: Callable[[], Tensor]) -> tuple[tuple[float, float], float]:
    """First and best seconds of a call, and the best of ours, in turn."""
    first = seconds(call, 1)[0]
    rounds = [(seconds(call, 1)[1], seconds(mine, 1)[1]) for _ in range(6)]
    theirs, own = zip(*rounds, strict=True)
    return (first, min(theirs)), min(own)


def report(name: str, taken: tuple[float, float], remark: str) -> None:
    print(f"{name:<24} first {taken[0]:6.2f} s, then {taken[1]:.4f} s: {remark}", flush=True)


def main() -> None:
    torch.set_num_threads(1)
    field = VectorField(FitzHughNagumo())
    mine = ours(field, 1, STEPS, True)
    taken, gradient = seconds(mine), mine()
    report("compiled, gradient", taken, "the first call compiles")
    forward, both = beside(ours(field, 1, STEPS, True, backward=False), mine)
    report("compiled, forward", forward, f"with gradient {both / forward[1]:.1f} times as long")
    twice, once = beside(ours(field, 1, 2 * STEPS, True), mine)
    report("compiled, 400 steps", twice, f"{twice[1] / once:.2f} times 200 steps, nothing compiled anew")
    for lanes in (2, 8):
        several, one = beside(ours(field, lanes, STEPS, True), mine)
        report(f"compiled, {lanes} lanes", several, f"{several[1] / one:.2f} times one lane")
    for name, call in (
        ("eager", ours(field, 1, STEPS, False)),
        ("compiled, differences", ours(VectorField(OfDifferences()), 1, STEPS, True)),
        ("torchdiffeq rk4", torchdiffeq(FitzHughNagumo())),
        ("torchdiffeq, differences", torchdiffeq(OfDifferences())),
        ("torchdiffeq, stacked", torchdiffeq(FitzHughNagumo(), stacked=True)),
        ("torchdiffeq, adjoint", torchdiffeq(FitzHughNagumo(), adjoint=True)),
        ("JAX checkpointed scan", jax_scan(1)),
    ):
        if call is not None:
            taken, again = beside(call, mine)
            apart = float((call() - gradient).abs().max() / gradient.abs().max())
            report(name, taken, f"{taken[1] / again:.2f} times ours, gradient apart by {apart:.0e}")


if __name__ == "__main__":
    main()
