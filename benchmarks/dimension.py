"""Estimators of dimension against scikit-dimension, and the cost of a look.

    python benchmarks/dimension.py            N = 2000 and 10⁴, D = 784 and 20, one core
    python benchmarks/dimension.py --sizes 2000

Times are minima of repeated runs, side by side in one process; peers are left out where scikit-dimension is
not installed. The neighbour pass feeds all of our estimators: three TwoNN, Levina-Bickel, Gride at
six scales and the correlation dimension. Beside each peer stands also our estimator of that name alone, which
shall nowhere be slower. The peers have no error bars but Gride's; ours from random halves are computed when
they are read, and stand apart. Memory is that of all of ours above the data, in a process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from ntk import peak, resident
from torch import Tensor, nn

from observatory.dimension import (
    Dimension,
    correlation_dimension,
    gride,
    levina_bickel,
    nearest_neighbours,
    profile,
    two_nn,
)

SCALES = (1, 2, 4, 8, 16, 32)


def cloud(n: int, d: int) -> Tensor:
    """Ten curved dimensions with noise."""
    generator = torch.Generator().manual_seed(0)
    z = torch.randn(n, 10, generator=generator, dtype=torch.float64)
    mixed = torch.tanh(z @ torch.randn(10, 64, generator=generator, dtype=torch.float64) / 3)
    x = mixed @ torch.randn(64, d, generator=generator, dtype=torch.float64) / 8
    return x + 0.01 * torch.randn(n, d, generator=generator, dtype=torch.float64)


def ours(x: Tensor, dtype: torch.dtype) -> tuple[dict[str, Dimension], float]:
    """All of them, and the seconds after the neighbour pass."""
    near = nearest_neighbours(x, dtype=dtype)
    start = time.perf_counter()
    found = {method: two_nn(near, method=method) for method in ("ols", "ml", "censored")}
    found |= {"mle": levina_bickel(near), "gride": gride(near, n1=SCALES)}
    after = time.perf_counter() - start
    return found | {"correlation": correlation_dimension(near, dtype=dtype)}, after


def bars(found: Mapping[str, Dimension]) -> float:
    """Seconds for the error bars."""
    start = time.perf_counter()
    for one in found.values():
        _ = one.standard_error
    return time.perf_counter() - start


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
    """Each of those four of ours from a search of its own, no deeper than its value needs."""
    return {
        "TwoNN": lambda: two_nn(nearest_neighbours(x, 2, dtype=dtype)).value,
        "MLE": lambda: levina_bickel(nearest_neighbours(x, 20, dtype=dtype)).value,
        "GRIDE": lambda: gride(nearest_neighbours(x, dtype=dtype), n1=SCALES).value,
        "CorrInt": lambda: correlation_dimension(nearest_neighbours(x, dtype=dtype), dtype=dtype).value,
    }


def memory(n: int, d: int, dtype: torch.dtype) -> float:
    """MiB that all estimators together take, with error bars, above the data and what is loaded."""
    x = torch.randn(n, d, dtype=dtype)
    bars(ours(x[:500], dtype)[0])
    before = resident("cpu")
    bars(ours(x, dtype)[0])
    return (peak("cpu") - before) / 2**20


def estimators(n: int, d: int, repeats: int) -> None:
    x = cloud(n, d)
    seconds, found = {}, {}
    print(f"N = {n}, D = {d}: all neighbour estimators together")
    for name in ("float32", "float64"):
        dtype = getattr(torch, name)
        seconds[name], (found[name], after) = _least(partial(ours, x, dtype), repeats + 3)
        command = [sys.executable, __file__, "--memory", str(n), str(d), name]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        print(f"  ours, {name}   {seconds[name]:7.3f} s, of which after the neighbours {after:.3f} s; "
              f"error bars {bars(found[name]):.3f} s more; memory +{float(out):.0f} MB")  # fmt: skip
    pairs = [(found["float32"][name].value, one.value) for name, one in found["float64"].items()]
    error = max(float((single / double - 1).abs().max()) for single, double in pairs)
    print(f"  float32 differs from float64 by at most {error:.1e}")
    beside_peers(x, seconds, {name: one.value for name, one in found["float64"].items()}, repeats)


def beside_peers(x: Tensor, seconds: Mapping[str, float], values: Mapping[str, Tensor], repeats: int) -> None:
    total, theirs = 0.0, peers(x)
    own = {name: alone(x, getattr(torch, name)) for name in seconds}
    for name, call in theirs.items():
        spent, found = _least(call, repeats)
        total += spent
        ratios = ", ".join(f"{spent / s:.2f} × {k}" for k, s in seconds.items())
        same = {"TwoNN": "ols", "MLE": "mle", "CorrInt": "correlation"}.get(name)
        told = f"; differs by {abs(found / float(values[same]) - 1):.0e}" if same else ""
        single = ", ".join(f"{spent / _least(own[k][name], repeats)[0]:.2f} × {k}" for k in own)
        print(f"  scikit-dimension {name:8} {spent:7.3f} s   {ratios}; that one alone {single}{told}")
    if theirs:
        ratios = ", ".join(f"{total / s:.1f} × {k}" for k, s in seconds.items())
        print(f"  one after the other       {total:7.3f} s   {ratios}")


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
            estimators(n, d, 7 if n < 5000 else 2)
    look(2)


if __name__ == "__main__":
    main()
