"""Weight fluctuations against what one does by hand today: checkpoints, scikit-learn's PCA, loops over
directions.

    python benchmarks/weights.py                       P = 2 500 and 10⁶, T = 250 for the latter
    python benchmarks/weights.py --snapshots 1000      T = 1000 for both (the trajectory alone is 4 GB)

Every line prints both sides and their ratio. Times are minima of repeated runs, side by side in one process;
memory is the growth of the peak of a process of its own.
"""

from __future__ import annotations

import argparse
import copy
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial

import lightning.pytorch as pl
import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from observatory.callbacks import WeightFluctuations as RecordedFluctuations
from observatory.looking import Look, ModelFunction, Probe
from observatory.numerics.curvature import ravel
from observatory.solvable.online_regression import simulate_online_regression
from observatory.training import MLP, Supervised
from observatory.weights import Landscape, Lines, flatness, principal_components
from observatory.weights.instrument import WeightFluctuations

PCA = {
    "ours, exact": "from observatory.weights import principal_components\nprincipal_components(rows, 20)",
    "scikit-learn, exact": "from sklearn.decomposition import PCA\nPCA(20, "
    "svd_solver='full').fit(rows.numpy())",
    "scikit-learn, its default": "from sklearn.decomposition import PCA\nPCA(20).fit(rows.numpy())",
}
PROGRAM = """
import resource, time, torch
torch.set_num_threads({threads})
torch.linalg.eigh(torch.eye(64)); import observatory.weights, sklearn.decomposition
rows = torch.randn({snapshots}, {size}).cumsum(0).mul_(1e-3)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.perf_counter()
{work}
seconds = time.perf_counter() - start
print(seconds, (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


def decompose(snapshots: int, size: int, threads: int) -> None:
    """Principal components: time, and memory beyond the trajectory."""
    stored = 4 * snapshots * size
    print(f"20 components of T = {snapshots}, P = {size} ({stored / 1e9:.3g} GB)")
    first = 0.0
    for name, work in PCA.items():
        if "exact" in name and "ours" not in name and 4 * stored > _free_memory():
            print(f"  {name:28} left out: it needs about {4 * stored / 1e9:.0f} GB")
            continue
        program = PROGRAM.format(threads=threads, snapshots=snapshots, size=size, work=work)
        out = subprocess.run(
            [sys.executable, "-c", program], capture_output=True, text=True, check=True
        ).stdout
        seconds, memory = map(float, out.split())
        first = first or seconds
        print(
            f"  {name:28} {seconds:8.2f} s  {seconds / first:6.1f} ×   +{memory / stored:.2f} trajectories "
            f"of memory"
        )


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


def recording(snapshots: int) -> None:
    """A snapshot of the 50 × 50 layer each step, against a checkpoint in memory and against the step
    itself.
    """
    net = nn.Sequential(nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = torch.randn(50, 784), torch.randint(10, (50,))
    model, probe = ModelFunction.of(net, select=r"^2\.weight"), Probe(())
    looks = [Look(model, probe, step, 0, optimizers=(optimizer,)) for step in range(snapshots)]

    def train() -> None:
        for _ in range(snapshots):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()

    def snap() -> None:
        one = WeightFluctuations(window=(0, snapshots))
        for look in looks:
            one.sample(look)

    step, own = (seconds / snapshots * 1e6 for seconds in _side_by_side(train, snap, 5))
    print(f"recording {ravel(model.theta).numel()} weights: {own:.1f} µs; bare training step {step:.0f} µs "
          f"({own / step:.1%})")  # fmt: skip


class _Clock(pl.Callback):
    """Seconds a step between two steps of a run."""

    def __init__(self, first: int, last: int) -> None:
        self.first, self.last, self.seconds = first, last, math.nan

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        if trainer.global_step == self.first:
            self.seconds = -time.perf_counter()
        elif trainer.global_step == self.last:
            self.seconds = (self.seconds + time.perf_counter()) / (self.last - self.first)


def recording_in_a_trainer(steps: int, rounds: int) -> None:
    """The setting of Feng and Tu in Lightning's Trainer, the callback included, with and without in turn."""
    x, y = torch.randn(50 * (steps + 1), 784), torch.randint(10, (50 * (steps + 1),))
    loader = DataLoader(TensorDataset(x, y), 50)

    def run(*callbacks: pl.Callback) -> float:
        clock = _Clock(steps // 10, steps)
        trainer = pl.Trainer(
            max_epochs=1, accelerator="cpu", logger=False, enable_checkpointing=False,
            enable_progress_bar=False, enable_model_summary=False, callbacks=[*callbacks, clock],
            default_root_dir=tempfile.mkdtemp(),
        )  # fmt: skip
        trainer.fit(Supervised(MLP([784, 50, 50, 10]), optimizer=partial(torch.optim.SGD, lr=0.1)), loader)
        return clock.seconds * 1e6

    without, recorded = [], []
    for _ in range(rounds):
        without.append(run())
        recorded.append(
            run(RecordedFluctuations(window=(0, steps + 1), select=r"\.3\.weight$", directions=4, at=[0]))
        )
    ratios = sorted(b / a - 1 for a, b in zip(without, recorded, strict=True))
    print(
        f"a step in the Trainer: {min(without):.0f} µs, recorded {min(recorded):.0f} µs: "
        f"{min(recorded) / min(without) - 1:+.1%} of minima; pairs {', '.join(f'{r:+.1%}' for r in ratios)}"
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
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    decompose(1000, 2500, options.threads)
    decompose(options.snapshots, 10**6, options.threads)
    landscapes(50, 2000)
    landscapes(1000, 500)
    ensembles(4000, 300)
    recording(1000)
    recording_in_a_trainer(1000, 6)


if __name__ == "__main__":
    main()
