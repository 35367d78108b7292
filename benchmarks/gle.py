"""Memory kernels side by side with compiled peers: 10⁶ points, 1000 and 10 000 lags; steps of the simulation.

Peers are compiled with numba (extra `peers`): the O(n²) recursion of the trapezoid rule as memtools and its
like write it, and a loop over particles and steps. Ratios are theirs over ours; both compute the same
numbers, which is checked. One thread for kernels, two for simulations.

    python benchmarks/gle.py [--points 1000000]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from observatory.physics.gle import (
    DoubleWell,
    exponential_kernel,
    extract_kernel,
    kernel_of_correlations,
    simulate,
)
from observatory.physics.gle.embedding import propagator

KERNEL = exponential_kernel([3.0, 5.0], [0.3, 2.0])
WELL = DoubleWell(2.0)


def best(run: Callable[[], object], rounds: int = 3) -> float:
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return min(times)


def numba_or_none():
    try:
        import numba
    except ImportError:
        print("numba is not installed: no peers")
        return None
    return numba


def recursion(numba) -> Callable[[np.ndarray, np.ndarray, float], np.ndarray]:
    """G by the trapezoid rule, O(n²), from C_vv and C_xU'."""

    @numba.njit
    def solve(vv, xf, dt):
        n = len(vv)
        m = xf[0] / vv[0]
        G = np.zeros(n)
        for i in range(1, n):
            total = 0.0
            for j in range(1, i):
                total += G[j] * vv[i - j]
            G[i] = 2 / vv[0] * ((xf[i] - m * vv[i]) / dt - total)
        return G

    return solve


def scalar_loop(numba) -> Callable[..., np.ndarray]:
    """The same splitting, one particle after the other, float64."""

    @numba.njit(fastmath=True)
    def run(M, R, kick, barrier, lanes, steps):
        d = R.shape[1]
        out = np.empty((lanes, steps), dtype=np.float32)
        new = np.empty(d + 1)
        xi = np.empty(d)
        for p in range(lanes):
            y = np.random.standard_normal(d + 1)
            for t in range(steps):
                for k in range(d):
                    xi[k] = np.random.standard_normal()
                for i in range(d + 1):
                    total = 0.0
                    for j in range(d + 1):
                        total += M[i, j] * y[j]
                    for k in range(d):
                        total += R[i, k] * xi[k]
                    new[i] = total
                x = new[0]
                new[1] -= kick * 4 * barrier * x * (x * x - 1)
                for i in range(d + 1):
                    y[i] = new[i]
                out[p, t] = x
        return out

    return run


def kernels(points: int, numba) -> None:
    torch.set_num_threads(1)
    x = simulate(
        KERNEL, WELL, mass=1.0, kT=1.0, step=0.01, samples=points // 100, lanes=100, dtype=torch.float32,
        generator=torch.Generator().manual_seed(0),
    ).reshape(-1)  # fmt: skip
    solve = recursion(numba) if numba is not None else None
    for lags in (1000, 10_000):
        whole = best(lambda n=lags: extract_kernel(x, 0.01, 1.0, n_lags=n), 2)
        c = extract_kernel(x, 0.01, 1.0, n_lags=lags).correlations
        ours = best(lambda c=c: kernel_of_correlations(c["vv"], c["xf"], 0.01))
        line = f"{points} points, {lags} lags: pipeline {whole:.3f} s (≤ 2), kernel {ours:.4f} s (≤ 0.5)"
        if solve is not None:
            vv, xf = c["vv"].numpy(), c["xf"].numpy()
            theirs = solve(vv, xf, 0.01)
            G = kernel_of_correlations(c["vv"], c["xf"], 0.01)[0].numpy()
            off = np.abs(theirs - G).max() / np.abs(G).max()
            peer = best(lambda vv=vv, xf=xf: solve(vv, xf, 0.01), 2)
            line += f"; compiled recursion {peer:.4f} s, ratio {peer / ours:.2f}, differs by {off:.1e}"
        print(line, flush=True)


def steps(numba) -> None:
    torch.set_num_threads(2)
    run = scalar_loop(numba) if numba is not None else None
    for lanes, samples in ((100, 20_000), (4096, 2000)):
        rates = {}
        for compiled in (False, True):

            def ours(lanes: int = lanes, samples: int = samples, compiled: bool = compiled) -> Tensor:
                return simulate(
                    KERNEL, WELL, mass=1.0, kT=1.0, step=0.01, samples=samples, lanes=lanes,
                    dtype=torch.float32, compiled=compiled, generator=torch.Generator().manual_seed(0),
                )  # fmt: skip

            ours()
            rates["compiled" if compiled else "eager"] = lanes * samples / best(ours, 2)
        line = f"{lanes} lanes, float32: " + ", ".join(f"{k} {v:.3g}" for k, v in rates.items())
        if run is not None:
            p = propagator(KERNEL, 1.0, 1.0, 0.01)
            arguments = (p.M.numpy(), p.R.numpy(), float(p.kick), 2.0, lanes, samples // 10)
            run(*arguments)
            peer = lanes * (samples // 10) / best(lambda a=arguments: run(*a), 2)
            line += f", scalar loop {peer:.3g}; ratio {max(rates.values()) / peer:.2f}"
        print(f"{line} particle-steps/s", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", type=int, default=1_000_000)
    options = parser.parse_args()
    numba = numba_or_none()
    kernels(options.points, numba)
    steps(numba)


if __name__ == "__main__":
    main()
