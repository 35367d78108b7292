"""Empirical kernels side by side with the explicit Jacobian (`torch.func.jacrev`), nngeometry and BackPACK.

Each contender runs in a process of its own, one thread, and reports its best time and its peak memory above
what was resident after a kernel of two examples. Ratios are theirs over ours. Each kernel is compared with
ours before it is timed. Peers that are not installed are left out (extra `peers`).

"jacrev" forms the explicit Jacobian once, "tutorial" is the recipe of PyTorch's tutorial on neural tangent
kernels, which forms it for each side of the kernel, also where the sides are the same examples.

    python benchmarks/ntk.py [--networks mlp cnn resnet18] [--examples 32] [--device cpu]
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from networks import NETWORKS, examples
from torch import Tensor, nn

SECONDS = 1.0  # of measuring, for each contender


def ours(net: nn.Module, x: Tensor, kind: str) -> Callable[[], Tensor]:
    from observatory.looking import ModelFunction
    from observatory.ntk import empirical_ntk

    function = ModelFunction.of(net)  # as during a run: the twin is made once
    return lambda: empirical_ntk(function, x, kind=kind)


def jacrev(net: nn.Module, x: Tensor, kind: str) -> Callable[[], Tensor]:
    jacobian, equation = _jacobian(net), _contraction(kind)

    def kernel() -> Tensor:
        parts = [torch.einsum(equation, j, j) for j in jacobian(x)]
        return torch.stack(parts).sum(0)

    return kernel


def tutorial(net: nn.Module, x: Tensor, kind: str) -> Callable[[], Tensor]:
    jacobian, equation = _jacobian(net), _contraction(kind)

    def kernel() -> Tensor:
        pairs = zip(jacobian(x), jacobian(x), strict=True)
        return torch.stack([torch.einsum(equation, one, two) for one, two in pairs]).sum(0)

    return kernel


def _contraction(kind: str) -> str:
    return "icp,jdp->icjd" if kind == "full" else "icp,jcp->ij"


def _jacobian(net: nn.Module) -> Callable[[Tensor], list[Tensor]]:
    """Explicit, (N, C, numbers of the parameter) for each parameter."""
    net.eval()
    theta = {name: p.detach() for name, p in net.named_parameters()}
    buffers = dict(net.named_buffers())

    def single(parameters: dict[str, Tensor], one: Tensor) -> Tensor:
        return torch.func.functional_call(net, (parameters, buffers), (one[None],))[0]

    rows = torch.func.vmap(torch.func.jacrev(single), (None, 0))
    return lambda x: [j.flatten(2) for j in rows(theta, x).values()]


def nngeometry(net: nn.Module, x: Tensor, kind: str) -> Callable[[], Tensor]:
    if kind != "full":
        raise NotImplementedError("nngeometry has no contracted kernel")
    from nngeometry.gram import GramMatrix
    from torch.utils.data import DataLoader, TensorDataset

    net.eval()
    loader = DataLoader(TensorDataset(x.clone()), batch_size=len(x))
    return lambda: GramMatrix(net, loader).to_torch().permute(1, 0, 3, 2)


def backpack_kernel(net: nn.Module, x: Tensor, kind: str) -> Callable[[], Tensor]:
    from backpack import backpack, extend
    from backpack.extensions import BatchGrad

    net = extend(net.eval())
    parameters = list(net.parameters())
    equation = "ip,jp->ij"

    def kernel() -> Tensor:
        rows = []
        for c in range(10):
            with backpack(BatchGrad()):
                net(x)[:, c].sum().backward()
            rows.append(torch.cat([p.grad_batch.flatten(1) for p in parameters], 1))
        if kind == "trace":
            return torch.stack([torch.einsum(equation, row, row) for row in rows]).sum(0)
        jacobian = torch.stack(rows, 1).flatten(0, 1)
        return (jacobian @ jacobian.T).view(len(x), 10, len(x), 10)

    return kernel


CONTENDERS = {
    "ours": ours,
    "jacrev": jacrev,
    "tutorial": tutorial,
    "nngeometry": nngeometry,
    "backpack": backpack_kernel,
}
PEERS = ("nngeometry", "backpack")


def measure(who: str, network: str, n: int, kind: str, device: str) -> None:
    """In a process of its own: print seconds and megabytes as JSON."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    net, x = NETWORKS[network]().to(device), examples(network, n).to(device)
    CONTENDERS[who](net, x[:2], kind)()  # what is imported and set up once does not count
    before = resident(device)
    kernel = CONTENDERS[who](net, x, kind)
    found = kernel()
    memory = peak(device) - before
    if who != "ours":
        torch.testing.assert_close(
            found, ours(net, x, kind)(), rtol=1e-3, atol=1e-4 * found.abs().max().item()
        )
    print(json.dumps({"seconds": fastest(kernel, device), "megabytes": memory / 2**20}))


def resident(device: str) -> int:
    """Bytes now in use, from which the peak is counted anew."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        return torch.cuda.memory_allocated()
    Path("/proc/self/clear_refs").write_text("5")
    return _status("VmRSS")


def peak(device: str) -> int:
    """Most bytes in use since `resident`."""
    return torch.cuda.max_memory_allocated() if device == "cuda" else _status("VmHWM")


def _status(field: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def fastest(function: Callable[[], object], device: str) -> float:
    """Shortest time of one call, in seconds: at least three calls, and as many as fit into `SECONDS`."""
    times: list[float] = []
    while len(times) < 3 or sum(times) < SECONDS:
        started = time.perf_counter()
        function()
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - started)
    return min(times)


def step_seconds(network: str, device: str) -> float:
    """One training step of batch 64."""
    net, x = NETWORKS[network]().to(device), examples(network, 64).to(device)
    y = torch.randint(10, (64,)).to(device)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x), y).backward()
        optimizer.step()

    return fastest(step, device)


def matrix_rate(device: str) -> float:
    """Measured float32 matrix product, operations per second."""
    a = torch.randn(1024, 1024, device=device)
    return 2 * 1024**3 / fastest(lambda: a @ a, device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=["mlp", "cnn", "resnet18"])
    parser.add_argument("--examples", nargs="+", type=int, default=[32])
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        who, network, n, kind = options.measure
        measure(who, network, int(n), kind, options.device)
        return
    torch.set_num_threads(1)
    print(f"matrix rate {matrix_rate(options.device) / 1e9:.0f} GFlop/s, one thread")
    print(
        f"{'network':9} {'N':>4} {'kernel':6} {'who':11} {'time':>10} {'ratio':>7} {'memory':>9} {'ratio':>6}"
    )
    for network in options.networks:
        step = step_seconds(network, options.device)
        print(f"{network:9} {'':4} {'':6} {'step of 64':11} {1e3 * step:8.1f} ms")
        for n in options.examples:
            for kind in ("full", "trace"):
                compare(network, n, kind, options.device, step)


def compare(network: str, n: int, kind: str, device: str, step: float) -> None:
    base: dict[str, float] | None = None
    for who in CONTENDERS:
        if who in PEERS and importlib.util.find_spec(who) is None:
            continue
        given = ["--device", device, "--measure", who, network, str(n), kind]
        command = [sys.executable, "-W", "ignore", __file__, *given]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            reason = done.stderr.strip().split("\n")[-1][:70]
            print(f"{network:9} {n:4} {kind:6} {who:11} {'none':>10}  {reason}")
            continue
        found = json.loads(done.stdout.strip().split("\n")[-1])
        base = base or found
        line = f"{network:9} {n:4} {kind:6} {who:11} {1e3 * found['seconds']:8.1f} ms "
        line += f"{found['seconds'] / base['seconds']:7.2f} {found['megabytes']:6.0f} MB "
        line += f"{found['megabytes'] / max(base['megabytes'], 1e-9):6.2f}"
        print(line + (f"  ({found['seconds'] / step:.2f} steps)" if who == "ours" else ""), flush=True)


if __name__ == "__main__":
    main()
