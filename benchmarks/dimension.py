"""Estimators of dimension against scikit-dimension, and the cost of a look.

    python benchmarks/dimension.py            N = 2000 and 10⁴, D = 20, 50 and 784, one core
    python benchmarks/dimension.py --sizes 2000 --dimensions 20

Side by side in one process, in rounds in which each is run once. Times are minima over the rounds, ratios
those of the minima and, in brackets, the median over the rounds. Peers are left out where scikit-dimension
is not installed. Together are the estimators from ratios of neighbours' distances, from one search: three
TwoNN, Levina-Bickel and Gride at six scales, against the peer's TwoNN by itself; and with the correlation
dimension, which counts pairs once more, against the peer's four one after the other. Beside each peer
stands also our estimator of that name alone. The peers have no error bars but Gride's; ours from random
halves are computed when they are read, and stand apart. Memory is that of all of ours above the data, in a
process of its own.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
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
    Neighbours,
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


def together(x: Tensor, dtype: torch.dtype) -> dict[str, Dimension]:
    return from_ratios(nearest_neighbours(x, dtype=dtype))


def from_ratios(near: Neighbours) -> dict[str, Dimension]:
    found = {method: two_nn(near, method=method) for method in ("ols", "ml", "censored")}
    return found | {"mle": levina_bickel(near), "gride": gride(near, n1=SCALES)}


def ours(x: Tensor, dtype: torch.dtype) -> dict[str, Dimension]:
    """The same and the correlation dimension."""
    near = nearest_neighbours(x, dtype=dtype)
    return from_ratios(near) | {"correlation": correlation_dimension(near, dtype=dtype)}


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
    bars(ours(x[:500], dtype))
    before = resident("cpu")
    bars(ours(x, dtype))
    return (peak("cpu") - before) / 2**20


def estimators(n: int, d: int, repeats: int) -> None:
    x = cloud(n, d)
    print(f"N = {n}, D = {d}")
    theirs, names = peers(x), ("float32", "float64")
    calls = {name: partial(together, x, getattr(torch, name)) for name in names}
    if theirs:
        calls = {"TwoNN": theirs["TwoNN"]} | calls
    spent = _rounds(calls, 3 * repeats)
    for name in names:
        told = f"; {_ratio(spent['TwoNN'], spent[name])} its TwoNN alone" if theirs else ""
        print(f"  together, {name}   {1e3 * min(spent[name]):7.1f} ms{told}")
    all_of_ours(x, theirs, repeats)


def all_of_ours(x: Tensor, theirs: Mapping[str, Callable[[], object]], repeats: int) -> None:
    """With the correlation dimension, against each of the peer's and their sum; error bars and memory."""
    names = ("float32", "float64")
    found = {name: ours(x, getattr(torch, name)) for name in names}
    own = {f"{key} {name}": call for name in names for key, call in alone(x, getattr(torch, name)).items()}
    calls = {name: partial(ours, x, getattr(torch, name)) for name in names} | own | dict(theirs)
    least = {name: min(times) for name, times in _rounds(calls, repeats).items()}
    for name in names:
        command = [sys.executable, __file__, "--memory", *map(str, x.shape), name]
        out = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        told = f"; {sum(least[k] for k in theirs) / least[name]:.1f} × its four" if theirs else ""
        print(f"  and correlation, {name} {1e3 * least[name]:7.1f} ms{told}; "
              f"error bars {1e3 * bars(found[name]):.0f} ms more; memory +{float(out):.0f} MB")  # fmt: skip
    for name in theirs:
        ratios = ", ".join(f"{least[name] / least[f'{name} {k}']:.2f} × {k}" for k in names)
        print(f"  scikit-dimension {name:8} {1e3 * least[name]:8.1f} ms; ours of that name {ratios}")
    pairs = [(found["float32"][name].value, one.value) for name, one in found["float64"].items()]
    error = max(float((single / double - 1).abs().max()) for single, double in pairs)
    told = f"float32 differs from float64 by at most {error:.0e}"
    for name, same in {"TwoNN": "ols", "MLE": "mle", "CorrInt": "correlation"}.items():
        if name in theirs:
            differs = abs(theirs[name]() / float(found["float64"][same].value) - 1)
            told += f", its {name} from ours in float64 by {differs:.0e}"
    print(f"  {told}")


def look(threads: int) -> None:
    """A profile of ten hidden layers of 256."""
    widths = [784, *[256] * 10, 10]
    layers = [part for a, b in itertools.pairwise(widths) for part in (nn.Linear(a, b), nn.ReLU())]
    network, x = nn.Sequential(*layers[:-1]), torch.randn(2000, 784)
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    spent = _rounds({"look": lambda: profile(network, x)}, 3)["look"]
    torch.set_num_threads(before)
    print(f"a look at ten hidden layers of 256 with 2000 examples: {min(spent):.2f} s on {threads} cores")


def _rounds(calls: Mapping[str, Callable[[], Any]], repeats: int) -> dict[str, list[float]]:
    """Seconds of each call in each round, after one that does not count."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for _ in range(repeats + 1):
        for name, call in calls.items():
            start = time.perf_counter()
            call()
            spent[name].append(time.perf_counter() - start)
    return {name: times[1:] for name, times in spent.items()}


def _ratio(theirs: list[float], mine: list[float]) -> str:
    each = [a / b for a, b in zip(theirs, mine, strict=True)]
    return f"{min(theirs) / min(mine):.2f} (median {statistics.median(each):.2f}) ×"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--sizes", type=int, nargs="+", default=[2000, 10000])
    parser.add_argument("--dimensions", type=int, nargs="+", default=[20, 50, 784])
    parser.add_argument("--look", action=argparse.BooleanOptionalAction, default=True)
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
    if options.look:
        look(2)


if __name__ == "__main__":
    main()
