"""Fisher traces side by side with nngeometry, BackPACK and curvlinops; sampled ones against a training step.

Everybody's first value is compared with ours. Times are the best of several rounds in which all take turns,
a training step among them, one thread. Ratios are theirs over ours. Peers that are not installed are left out
(extra `peers`).

    python benchmarks/fisher.py [--networks mlp cnn resnet18] [--examples 64] [--device cpu]
"""

from __future__ import annotations

import argparse
import importlib.util
import time
import warnings
from collections.abc import Callable

import torch
from networks import NETWORKS, examples
from torch import Tensor, nn

ROUNDS = 10
Trace = Callable[[], float]


def ours(net: nn.Module, x: Tensor, y: Tensor, estimator: str) -> Trace:
    from observatory.looking import ModelFunction
    from observatory.ntk.fisher import fisher_trace

    function = ModelFunction.of(net)  # as during a run: the twin is made once
    return lambda: fisher_trace(function, x, y, estimator=estimator, draws=1).value.item()


def nngeometry(net: nn.Module, x: Tensor, y: Tensor, representation: str) -> Trace:
    from nngeometry.metrics import FIM
    from nngeometry.object import pspace
    from torch.utils.data import DataLoader, TensorDataset

    loader = DataLoader(TensorDataset(x, y), batch_size=len(x))
    kind = getattr(pspace, representation)
    return lambda: float(FIM(net, loader, kind, variant="classif_logits", device=x.device).trace())


def backpack(net: nn.Module, x: Tensor, y: Tensor, extension: str) -> Trace:
    import backpack as package
    from backpack import extensions

    converter = not isinstance(net, nn.Sequential) or any(type(m).__module__ == "networks" for m in net)
    model = package.extend(net, use_converter=converter) if converter else package.extend(net)
    loss = package.extend(nn.CrossEntropyLoss())
    field = {"DiagGGNExact": "diag_ggn_exact", "DiagGGNMC": "diag_ggn_mc"}[extension]

    def trace() -> float:
        for p in model.parameters():
            p.grad = None
        with package.backpack(getattr(extensions, extension)()):
            loss(model(x), y).backward()
        return float(sum(getattr(p, field).sum() for p in model.parameters()))

    return trace


def curvlinops(net: nn.Module, x: Tensor, y: Tensor, _: str) -> Trace:
    from curvlinops import GGNLinearOperator

    parameters = dict(net.named_parameters())
    try:
        operator = GGNLinearOperator(
            net, nn.CrossEntropyLoss(), parameters, [(x, y)], check_deterministic=False
        )
    except (AttributeError, TypeError):  # older versions take a list
        operator = GGNLinearOperator(
            net, nn.CrossEntropyLoss(), list(parameters.values()), [(x, y)], check_deterministic=False
        )
    size = sum(p.numel() for p in parameters.values())
    generator = torch.Generator().manual_seed(0)

    def trace() -> float:
        z = (2 * torch.randint(2, (size,), generator=generator) - 1).to(x)
        return float(z @ (operator @ z))

    return trace


CONTENDERS: dict[str, list[tuple[str, str, Callable[..., Trace], str]]] = {
    "exact": [
        ("ours", "", ours, "exact"),
        ("nngeometry", "nngeometry", nngeometry, "PMatDiag"),
        ("nngeometry, implicit", "nngeometry", nngeometry, "PMatImplicit"),
        ("backpack", "backpack", backpack, "DiagGGNExact"),
    ],
    "sampled labels": [
        ("ours", "", ours, "sampled"),
        ("backpack", "backpack", backpack, "DiagGGNMC"),
    ],
    "one random vector": [
        ("ours, output signs", "", ours, "rademacher"),
        ("ours, parameter signs", "", ours, "hutchinson"),
        ("curvlinops", "curvlinops", curvlinops, ""),
    ],
}


def training_step(net: nn.Module, x: Tensor, y: Tensor) -> Trace:
    optimizer = torch.optim.SGD(net.parameters(), lr=0.0)

    def step() -> float:
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        return float(loss)

    return step


def rounds(contenders: dict[str, Trace], device: str) -> dict[str, float]:
    """Best time of each in seconds; they take turns, so that a busy machine is fair."""
    best = dict.fromkeys(contenders, float("inf"))
    for _ in range(ROUNDS):
        for name, trace in contenders.items():
            for _ in range(repeats(best[name])):  # alone with the caches, as in a loop
                started = time.perf_counter()
                trace()
                if device == "cuda":
                    torch.cuda.synchronize()
                best[name] = min(best[name], time.perf_counter() - started)
    return best


def repeats(seconds: float) -> int:
    return 20 if seconds < 0.02 else 3 if seconds < 0.3 else 1


def compare(network: str, n: int, device: str) -> None:
    def fresh() -> tuple[nn.Module, Tensor, Tensor]:
        torch.manual_seed(0)
        y = torch.randint(10, (n,), device=device)
        return NETWORKS[network]().to(device).eval(), examples(network, n).to(device), y

    net, x, y = fresh()
    step = training_step(net.train(), x, y)
    for what, contenders in CONTENDERS.items():
        made: dict[str, Trace] = {}
        values: dict[str, float] = {}
        for who, package, make, option in contenders:
            if package and importlib.util.find_spec(package) is None:
                continue
            try:
                trace = make(*fresh(), option)
                values[who], made[who] = trace(), trace
            except Exception as error:  # whatever a peer cannot do is a line of the table
                reason = str(error).strip().split("\n")[0][:60]
                print(f"{network:9} {n:4} {what:18} {who:24} {'none':>9}     {reason}")
        step()
        times = rounds({"step": step} | made, device)
        seconds = times.pop("step")
        base = next(iter(times.values()))
        print(f"{network:9} {n:4} {what:18} {'a training step':24} {1e3 * seconds:9.1f} ms")
        for who, t in times.items():
            line = f"{network:9} {n:4} {what:18} {who:24} {1e3 * t:9.1f} ms {t / base:7.2f} of ours"
            print(f"{line} {t / seconds:7.2f} steps   Tr F = {values[who]:.6g}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["mlp", "cnn", "resnet18"])
    parser.add_argument("--examples", nargs="+", type=int, default=[64])
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for network in options.networks:
        for n in options.examples:
            compare(network, n, options.device)


if __name__ == "__main__":
    main()
