"""Weight fluctuations against what one does by hand today: checkpoints, scikit-learn's PCA, loops over
directions.

    python benchmarks/weights.py                       P = 2 500 and 10⁶, T = 250 for the latter
    python benchmarks/weights.py --snapshots 1000      T = 1000 for both (the trajectory alone is 4 GB)

Every line prints both sides and their ratio. Times are minima of repeated runs, side by side in one process.
Memory is the peak of a process of its own in units of the trajectory, which is itself the 1 of it; libraries
are loaded before.
"""

from __future__ import annotations

import argparse
import copy
import math
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from observatory.looking import ModelFunction
from observatory.solvable.online_regression import simulate_online_regression
from observatory.weights import Landscape, Lines, flatness, principal_components

PCA = {
    "ours, exact": "from observatory.weights import principal_components\nprincipal_components(rows, 20)",
    "scikit-learn, exact": "from sklearn.decomposition import PCA\nPCA(20, "
    "svd_solver='full').fit(rows.numpy())",
    "scikit-learn, its default": "from sklearn.decomposition import PCA\nPCA(20).fit(rows.numpy())",
}
PROGRAM = """
import ctypes, re, time, torch
torch.set_num_threads({threads})
def resident(name):
    return 1024 * int(re.search(name + r":\\s+(\\d+)", open("/proc/self/status").read())[1])
for size in (450, 20_000):  # load what is loaded on the first call
    rows = torch.randn(300, size)
{small}
del rows
ctypes.CDLL(None).malloc_trim(0)
rows = torch.randn({snapshots}, {size}).mul_(1e-3)
torch.cumsum(rows, 0, out=rows)
with open("/proc/self/clear_refs", "w") as peak:
    peak.write("5")
before, start = resident("VmRSS"), time.perf_counter()
{work}
print(time.perf_counter() - start, resident("VmHWM") - before)
"""


def decompose(snapshots: int, size: int, threads: int) -> None:
    """Principal components of a random walk: time, and the peak of memory in trajectories."""
    stored = 4 * snapshots * size
    print(f"20 components of T = {snapshots}, P = {size} ({stored / 1e9:.3g} GB)")
    first = 0.0
    for name, work in PCA.items():
        if "exact" in name and "ours" not in name and 4 * stored > _free_memory():
            print(f"  {name:28} left out: it needs about {4 * stored / 1e9:.0f} GB")
            continue
        small = textwrap.indent(work, "    ")
        program = PROGRAM.format(threads=threads, snapshots=snapshots, size=size, work=work, small=small)
        out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
        seconds, memory = map(float, out.stdout.split())
        first = first or seconds
        print(
            f"  {name:28} {seconds:8.2f} s  {seconds / first:6.1f} ×   at its peak {1 + memory / stored:.2f} "
            f"trajectories, {memory / 1e6:.0f} MB beside the rows"
        )


def own_memory(snapshots: int, size: int) -> None:
    """What our PCA allocates itself, without the packing buffers of the BLAS."""
    rows = torch.randn(snapshots, size).cumsum_(0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        principal_components(rows, 20)
    events = seen.profiler.kineto_results.events()
    peak = np.cumsum([event.nbytes() for event in events if event.name() == "[memory]"]).max()
    print(f"  ours, T = {snapshots}, P = {size}: {1 + peak / (4 * rows.numel()):.3f} trajectories in tensors")


def _free_memory() -> float:
    with open("/proc/meminfo") as lines:
        return 1024 * next(float(line.split()[1]) for line in lines if line.startswith("MemAvailable"))


def survey_by_hand(net: nn.Module, layer: nn.Linear, x: Tensor, y: Tensor, directions: Tensor) -> Tensor:
    """κ by double backward and F by doubling and bisection to 10⁻³, one direction and one loss at a time."""
    start = layer.weight.detach().clone()

    def loss(s: float, p: Tensor) -> float:
        with torch.no_grad():
            layer.weight.copy_(start + s * p)
            return float(nn.functional.cross_entropy(net(x), y))

    base, found = loss(0.0, start), []
    for flat in directions:
        p = flat.reshape(start.shape)
        layer.weight.data = start.clone()
        value = nn.functional.cross_entropy(net(x), y)
        (slope,) = torch.autograd.grad(value, layer.weight, create_graph=True)
        (product,) = torch.autograd.grad((slope * p).sum(), layer.weight)
        crossings = []
        for side in (-1.0, 1.0):
            low, high = 0.0, 1e-2
            while loss(side * high, p) < math.e * base and high < 1e3:
                low, high = high, 2 * high
            while high - low > 1e-3 * high:
                middle = (low + high) / 2
                low, high = (low, middle) if loss(side * middle, p) > math.e * base else (middle, high)
            crossings.append(high)
        found.append([float((product * p).sum()), sum(crossings)])
    layer.weight.data = start
    return torch.tensor(found)


def trained(width: int, examples: int) -> tuple[nn.Sequential, Tensor, Tensor, Tensor]:
    """784-w-w-10 near a minimum on noisy clusters, and 20 leading directions of its last 60 SGD steps."""
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Linear(784, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, 10)
    )
    y = torch.arange(examples) % 10
    x = torch.randn(examples, 784) + 2 * torch.randn(10, 784)[y] / 5
    optimizer = torch.optim.SGD(net.parameters(), lr=0.05)
    snapshots = []
    for step in range(260):
        batch = torch.randint(examples, (50,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
        optimizer.step()
        if step >= 200:
            snapshots.append(net[2].weight.detach().flatten().clone())
    return net, x, y, principal_components(torch.stack(snapshots), 20)[1]


def landscapes(width: int, examples: int) -> None:
    """Curvature and flatness of 20 directions of the middle layer of 784-w-w-10."""
    net, x, y, directions = trained(width, examples)
    model = ModelFunction.of(net, select=r"^2\.weight")
    by_hand = copy.deepcopy(net)
    results: dict[str, Tensor] = {}

    def ours() -> None:
        lines = Lines(Landscape(model, (x, y)), directions)
        slopes, curvature = lines.derivatives()
        found = flatness(lines, slopes=slopes, curvature=curvature, scale=torch.full((20,), 1e-3))
        results["ours"] = torch.stack([curvature, found.width], 1)

    def theirs() -> None:
        results["by hand"] = survey_by_hand(by_hand, by_hand[2], x, y, directions)

    def scan() -> None:  # ten of the 201 points of a profile of each direction
        with torch.no_grad():
            for _ in range(10 * len(directions)):
                by_hand[2].weight.copy_(net[2].weight + 0.1 * directions[0].reshape(width, width))
                float(nn.functional.cross_entropy(by_hand(x), y))

    mine, hand = _side_by_side(ours, theirs, 3 if width < 500 else 1)
    _, profile = _side_by_side(lambda: None, scan, 1)
    finite = results["ours"].isfinite().all(1)
    error = (results["ours"] / results["by hand"] - 1)[finite].abs().amax(0).tolist()
    loss = nn.functional.cross_entropy(net(x), y).item()
    print(
        f"curvature and flatness of 20 directions, P = {width * width}, {examples} examples, L₀ = "
        f"{loss:.3g}\n  ours {mine:.2f} s   loops with bisection {hand:.2f} s, {hand / mine:.1f} ×   loops "
        f"over profiles of 201 points {20.1 * profile:.1f} s, {20.1 * profile / mine:.0f} ×   largest "
        f"difference κ {error[0]:.1e}, F {error[1]:.1e}"
    )


def ensembles(replicas: int, steps: int) -> None:
    """Online regression: one batched run against a loop over replicas in numpy."""
    curvature = np.array([4, 2, 1, 0.5, 0.25])

    def ours() -> None:
        simulate_online_regression(
            torch.tensor(curvature), learning_rate=0.15, batch_size=2, label_noise=0.5,
            replicas=replicas, steps=steps, discard=0, generator=torch.Generator().manual_seed(0),
        )  # fmt: skip

    def loop() -> None:
        draw = np.random.default_rng(0)
        for _ in range(replicas // 100):  # a hundredth of the replicas: the loop is linear in them
            delta = np.zeros(5)
            for _ in range(steps):
                x, noise = draw.standard_normal((2, 5)) * np.sqrt(curvature), 0.5 * draw.standard_normal(2)
                delta -= 0.15 / 2 * (x @ delta - noise) @ x

    mine, hand = _side_by_side(ours, loop, 3)
    updates = replicas * steps
    print(
        f"online regression, {replicas} replicas × {steps} steps\n  ours {updates / mine / 1e6:.2f} M "
        f"updates/s   numpy loop {updates / 100 / hand / 1e6:.3f} M updates/s   {100 * hand / mine:.0f} ×"
    )


def _side_by_side(one: Callable[[], None], other: Callable[[], None], repeats: int) -> tuple[float, float]:
    seconds: list[list[float]] = [[], []]
    for _ in range(repeats):
        for spent, work in zip(seconds, (one, other), strict=True):
            start = time.perf_counter()
            work()
            spent.append(time.perf_counter() - start)
    return min(seconds[0]), min(seconds[1])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--snapshots", type=int, default=250, help="T of the trajectory with P = 10⁶")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--only", choices=["components", "landscapes", "ensembles"])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.only in (None, "components"):
        decompose(1000, 2500, options.threads)
        own_memory(1000, 2500)
        decompose(options.snapshots, 10**6, options.threads)
    if options.only in (None, "landscapes"):
        landscapes(50, 2000)
        landscapes(1000, 500)
    if options.only in (None, "ensembles"):
        ensembles(4000, 300)


if __name__ == "__main__":
    main()
