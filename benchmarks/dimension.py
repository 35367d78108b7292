"""Estimators of dimension against scikit-dimension, and the cost of a look.

    python benchmarks/dimension.py            N = 2000 and 10⁴, D = 784 and 20, one core
    python benchmarks/dimension.py --sizes 2000

Times are minima of repeated runs, side by side in one process; peers are left out where scikit-dimension is
not installed. The neighbour pass feeds all of our estimators: three TwoNN, Levina-Bickel, Gride at
six scales and the correlation dimension, with error bars that the peers do not have; beside each peer stands
also our estimator of that name alone. Memory is that of all of them above the data, in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch
from ntk import peak, resident
from torch import Tensor, nn

from observatory.dimension import (
    correlation_dimension,
    gride,
    levina_bickel,
    nearest_neighbours,
    profile,
    two_nn,
)
from observatory.dimension.ratios import TWO_NN_DEPTH

SCALES = (1, 2, 4, 8, 16, 32)


def cloud(n: int, d: int) -> Tensor:
    """Ten curved dimensions with noise."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, 10, generator=generator, dtype=torch.float64)
    mixed = torch.tanh(z @ torch.randn(10, 64, generator=generator, dtype=torch.float64) / 3)
    x = mixed @ torch.randn(64, d, generator=generator, dtype=torch.float64) / 8
    return x + 0.01 * torch.randn(n, d, generator=generator, dtype=torch.float64)


def ours(x: Tensor, dtype: torch.dtype) -> tuple[dict[str, float], float]:
    """All values, and the seconds after the neighbour pass."""
    near = nearest_neighbours(x, dtype=dtype)
    start = time.perf_counter()
    found = {method: two_nn(near, method=method).value for method in ("ols", "ml", "censored")}
    found["mle"] = levina_bickel(near).value
    found |= {f"gride {n}": value for n, value in zip(SCALES, gride(near, n1=SCALES).value, strict=True)}
    after = time.perf_counter() - start
    found["correlation"] = correlation_dimension(near, dtype=dtype).value
    return {name: float(value) for name, value in found.items()}, after


def peers(x: Tensor) -> Mapping[str, Callable[[], object]]:
    """scikit-dimension's estimators, the four of ours that it has."""
    try:
        import skdim.id as skdim
    except ImportError:
        return {}
    data = x.numpy()
    return {
        "TwoNN": lambda: skdim.TwoNN().fit(data).dimension_,
        "MLE": lambda: skdim.MLE().fit(data, n_neighbors=20, comb="mle").dimension_,
        "GRIDE": lambda: skdim.GRIDE(multiscale=True, range_max=64).fit(data).dimension_,
        "CorrInt": lambda: skdim.CorrInt().fit(data).dimension_,
    }


def alone(x: Tensor, dtype: torch.dtype) -> Mapping[str, Callable[[], object]]:
    """Each of those four of ours from a search of its own, no deeper than it needs."""
    return {
        "TwoNN": lambda: two_nn(nearest_neighbours(x, TWO_NN_DEPTH, dtype=dtype)),
        "MLE": lambda: levina_bickel(nearest_neighbours(x, dtype=dtype)),
        "GRIDE": lambda: gride(nearest_neighbours(x, dtype=dtype), n1=SCALES),
        "CorrInt": lambda: correlation_dimension(nearest_neighbours(x, dtype=dtype), dtype=dtype),
    }


def memory(n: int, d: int, dtype: torch.dtype) -> float:
    """MiB that all estimators together take above the data and what is loaded."""
    x = torch.randn(n, d, dtype=dtype)
    ours(x[:500], dtype)
    before = resident("cpu")
    ours(x, dtype)
    return (peak("cpu") - before) / 2**20


def estimators(n: int, d: int, repeats: int) -> None:
    x = cloud(n, d)
    seconds, values, after = {}, {}, {}
    for dtype in (torch.float32, torch.float64):
        seconds[dtype], (values[dtype], after[dtype]) = _least(lambda: ours(x, dtype), repeats)  # noqa: B023
    error = max(abs(values[torch.float32][k] / values[torch.float64][k] - 1) for k in values[torch.float64])
    names = {dtype: str(dtype).removeprefix("torch.") for dtype in seconds}
    print(f"N = {n}, D = {d}: all neighbour estimators together")
    for dtype, spent in seconds.items():
        command = [sys.executable, __file__, "--memory", str(n), str(d), names[dtype]]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        print(f"  ours, {names[dtype]}   {spent:7.2f} s, of which after the neighbours {after[dtype]:.2f} s; "
              f"memory +{float(out):.0f} MB")  # fmt: skip
    print(f"  float32 differs from float64 by at most {error:.1e}")
    total, theirs = 0.0, peers(x)
    own = alone(x, torch.float32)
    for name, call in theirs.items():
        spent, found = _least(call, repeats if n < 5000 else 1)
        total += spent
        ratios = ", ".join(f"{spent / s:.2f} × {names[k]}" for k, s in seconds.items())
        same = {"TwoNN": "ols", "MLE": "mle", "CorrInt": "correlation"}.get(name)
        told = f"; differs by {abs(found / values[torch.float64][same] - 1):.0e}" if same else ""
        single = spent / _least(own[name], repeats)[0]
        print(f"  scikit-dimension {name:8} {spent:7.2f} s   {ratios}; {single:.2f} × that one alone{told}")
    if theirs:
        ratios = ", ".join(f"{total / s:.1f} × {names[k]}" for k, s in seconds.items())
        print(f"  one after the other       {total:7.2f} s   {ratios}")


def look(threads: int) -> None:
    """A profile of ten hidden layers of 256."""
    widths = [784, *[256] * 10, 10]
    layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    network, x = nn.Sequential(*layers[:-1]), torch.randn(2000, 784)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    spent, _ = _least(lambda: profile(network, x), 3)
    torch.set_num_threads(before)
    print(f"a look at ten hidden layers of 256 with 2000 examples: {spent:.2f} s on {threads} cores")


def _least(call: Callable[[], Any], repeats: int) -> tuple[float, Any]:
    spent = []
    for _ in range(repeats):
        start = time.perf_counter()
        found = call()
        spent.append(time.perf_counter() - start)
    return min(spent), found


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[10000, 2000])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[784, 20])
    parser.add_argument("--memory", nargs=3, metavar=("N", "D", "DTYPE"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.memory:
        n, d, name = options.memory
        print(memory(int(n), int(d), getattr(torch, name)))
        return
    sys.stdout.reconfigure(line_buffering=True)
    for n in options.sizes:
        for d in options.dimensions:
            estimators(n, d, 3 if n < 5000 else 1)
    look(2)


if __name__ == "__main__":
    main()
