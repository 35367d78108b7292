"""Error bars of the last layer side by side with training, plain forward passes and laplace-torch.

Times are the best of several rounds in which all take turns, one thread; laplace-torch is of extra `peers`.

    python benchmarks/uncertainty.py [--rows 20000] [--device cpu]
"""

from __future__ import annotations

import argparse
import importlib.util
import time
import warnings
from collections.abc import Callable

import torch
from networks import resnet18
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from observatory.uncertainty import Gram, LastLayerClassifier, LastLayerGP

BATCH = 128
Act = Callable[[], object]


def mlp(outputs: int) -> nn.Module:
    """32-256-256-outputs, ReLU."""
    torch.manual_seed(0)
    layers = [nn.Linear(32, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, outputs)]
    return nn.Sequential(*layers)


def rounds(
    contenders: dict[str, Act], device: str, seconds: float = 2.0, most: int = 300
) -> dict[str, float]:
    """Best time of each in seconds; they take turns, so that a busy machine is fair."""
    best = dict.fromkeys(contenders, float("inf"))
    started = time.perf_counter()
    for count in range(most):
        for name, act in contenders.items():
            began = time.perf_counter()
            act()
            if device == "cuda":
                torch.cuda.synchronize()
            best[name] = min(best[name], time.perf_counter() - began)
        if count >= 1 and time.perf_counter() - started > seconds * len(contenders):
            break
    return best


def epoch(net: nn.Module, loader: DataLoader, loss: nn.Module) -> Act:
    optimizer = torch.optim.Adam(net.parameters())

    def act() -> None:
        net.train()
        for x, y in loader:
            optimizer.zero_grad()
            loss(net(x), y).backward()
            optimizer.step()
        net.eval()

    return act


def passes(net: nn.Module, loader: DataLoader) -> Act:
    """Forward passes alone."""

    @torch.no_grad()
    def act() -> None:
        for x, _ in loader:
            net(x)

    return act


def laplace(net: nn.Module, kind: str, structure: str) -> object | None:
    if importlib.util.find_spec("laplace") is None:
        return None
    from laplace import Laplace

    return Laplace(net, kind, subset_of_weights="last_layer", hessian_structure=structure)


def fitting(rows: int, device: str) -> None:
    """One pass against one epoch of training, and against laplace-torch's fit."""
    x, y = torch.randn(rows, 32, device=device), torch.randn(rows, 1, device=device)
    loader = DataLoader(TensorDataset(x, y), BATCH)
    net = mlp(1).to(device).eval()
    gp = LastLayerGP(net)
    contenders = {
        "training epoch": epoch(mlp(1).to(device), loader, nn.MSELoss()),
        "forward passes": passes(net, loader),
        "fit": lambda: gp.fit(loader),
        "factorise": lambda: gp.factorise(),
    }
    other = laplace(net, "regression", "full")
    if other is not None:
        contenders["laplace-torch full fit"] = lambda: other.fit(loader)
    gp.fit(loader)
    best = rounds(contenders, device, most=5)
    gp.gram.update(torch.randn(BATCH, 257, device=device))  # a fresh matrix to be decomposed
    began = time.perf_counter()
    gp.factorise()
    best["factorise"] = time.perf_counter() - began
    of = best["training epoch"]
    for name, seconds in best.items():
        print(f"fit      {name:26} {1e3 * seconds:9.1f} ms {seconds / of:7.3f} epochs")
    accumulation = best["fit"] - best["forward passes"] - best["factorise"]
    print(f"fit      {'accumulation alone':26} {1e3 * accumulation:9.1f} ms {accumulation / of:7.3f} epochs")
    if other is not None:
        print(f"fit      ours / laplace-torch {best['fit'] / best['laplace-torch full fit']:.3f}")


def predicting(device: str) -> None:
    """A prediction with its error bar against a plain forward pass."""
    for batch in (BATCH, 256, 1024):
        numbers(batch, device)
        classes(batch, device)
    x = torch.randn(256, 3, 32, 32, device=device)
    torch.manual_seed(0)
    net = resnet18().to(device).eval()
    shared = fitted(
        LastLayerClassifier(net),
        torch.randn(256, 3, 32, 32, device=device),
        torch.randint(10, (256,), device=device),
    )
    show("ResNet-18, batch 256", {"forward": forward(net, x), "predict": lambda: shared.predict(x)}, device)


def numbers(batch: int, device: str) -> None:
    x, y = torch.randn(2000, 32, device=device), torch.randn(2000, 1, device=device)
    net = mlp(1).to(device).eval()
    gp, new = fitted(LastLayerGP(net), x, y), x[:batch]
    with torch.no_grad():
        features = net[:-1](new)
    contenders: dict[str, Act] = {
        "forward": forward(net, new),
        "s(features) alone": forward(gp.fitted, features),  # what no way of predicting can do without
        "predict": lambda: gp.predict(new),
    }
    show(f"MLP, 1 output, batch {batch}", contenders, device)


def classes(batch: int, device: str) -> None:
    x, y = torch.randn(2000, 32, device=device), torch.randint(10, (2000,), device=device)
    net = mlp(10).to(device).eval()
    shared = fitted(LastLayerClassifier(net), x, y)
    kron = fitted(LastLayerClassifier(net, covariance="kron"), x, y)
    new = x[:batch]
    contenders: dict[str, Act] = {
        "forward": forward(net, new),
        "predict, shared": lambda: shared.predict(new),
        "predict, kron": lambda: kron.predict(new),
    }
    other = laplace(net, "classification", "kron")
    if other is not None:
        other.fit(DataLoader(TensorDataset(x, y), BATCH))
        contenders["laplace-torch kron"] = lambda: other(new, link_approx="probit")
    show(f"MLP, 10 classes, batch {len(new)}", contenders, device)


def fitted(gp, x: Tensor, y: Tensor):
    loader = DataLoader(TensorDataset(x, y), BATCH)
    return gp.fit(loader).calibrate(loader)


def forward(net: nn.Module, x: Tensor) -> Act:
    @torch.no_grad()
    def act() -> None:
        net(x)

    return act


def show(what: str, contenders: dict[str, Act], device: str) -> None:
    best = rounds(contenders, device)
    of = best["forward"]
    for name, seconds in best.items():
        print(f"predict  {what:28} {name:20} {1e3 * seconds:9.3f} ms {seconds / of:8.3f} forward passes")


def scaling(device: str) -> None:
    """Accumulation goes as d² and as N; memory as d²."""
    widths, seconds = [256, 512, 1024, 2048], []
    for width in widths:
        rows = torch.randn(512, width, device=device)
        gram = Gram(width, device=rows.device)
        seconds.append(rounds({"": lambda gram=gram, rows=rows: gram.update(rows)}, device, 1.0)[""])
    x = torch.tensor(widths).double().log()
    t = torch.tensor(seconds).double().log()
    slope = ((x - x.mean()) * (t - t.mean())).sum() / (x - x.mean()).square().sum()
    told = ", ".join(f"d = {d}: {1e3 * s:.1f} ms" for d, s in zip(widths, seconds, strict=True))
    print(f"scaling  512 rows, {told}; exponent {float(slope):.2f}")
    counts, times = [2000, 8000, 32000], []
    for count in counts:
        loader = DataLoader(TensorDataset(torch.randn(count, 32, device=device)), BATCH)
        gp = LastLayerGP(mlp(1).to(device).eval())
        times.append(rounds({"": lambda gp=gp, loader=loader: gp.fit(loader)}, device, 1.0)[""])
    told = ", ".join(f"N = {n}: {1e6 * s / n:.2f} µs" for n, s in zip(counts, times, strict=True))
    print(f"scaling  fit per row, {told}")
    state = sum(b.numel() * b.element_size() for part in (gp.gram, gp.rigidity) for b in part.buffers())
    print(f"memory   {state / 2**20:.2f} MiB for d = 257: {state / 257**2:.1f} bytes times d²")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=20_000)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    fitting(options.rows, options.device)
    predicting(options.device)
    scaling(options.device)


if __name__ == "__main__":
    main()
