"""Networks as people use them, looked at by `CollectiveVariables`: cost of a look, and what no rule covers.

Each network runs in a process of its own, one thread: a training step of batch 64 with SGD, then a look
(trace kernel and collective variables of N = 32). Memory is the peak above what is resident before.

    python benchmarks/zoo.py [--networks resnet18 gpt] [--examples 32] [--device cpu]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from collections.abc import Callable

import torch
from networks import GPT
from ntk import fastest, peak, resident
from torch import Tensor, nn
from torchvision import models


def resnet18(classes: int = 10) -> nn.Module:
    """With the stem for CIFAR: 3 × 3, stride 1, no pooling."""
    net = models.resnet18(num_classes=classes)
    net.conv1, net.maxpool = nn.Conv2d(3, 64, 3, 1, 1, bias=False), nn.Identity()
    return net


def vgg11_bn(classes: int = 10) -> nn.Module:
    """With one linear map on the 512 features that an image of 32 × 32 leaves."""
    net = models.vgg11_bn(num_classes=classes)
    net.avgpool, net.classifier = nn.Identity(), nn.Linear(512, classes)
    return net


def mobilenet_v3_small(classes: int = 10) -> nn.Module:
    """As it is."""
    return models.mobilenet_v3_small(num_classes=classes)


def vit(classes: int = 10) -> nn.Module:
    """vit_b_16 reduced: patches of 4, 4 blocks of width 128 with 4 heads."""
    return models.VisionTransformer(32, 4, 4, 4, 128, 256, num_classes=classes)


def swin(classes: int = 10) -> nn.Module:
    """swin_t reduced: patches of 2, blocks 2-2 of width 48-96 with 3-6 heads, windows of 4 × 4."""
    return models.SwinTransformer([2, 2], 48, [2, 2], [3, 6], [4, 4], num_classes=classes)


def gpt(classes: int = 32) -> nn.Module:
    """Two causal blocks of width 64, tied embedding; logits of the token after the last."""
    return GPT(vocabulary=classes)


ZOO: dict[str, Callable[..., nn.Module]] = {
    "resnet18": resnet18,
    "vgg11_bn": vgg11_bn,
    "mobilenet_v3_small": mobilenet_v3_small,
    "vit_b_16 reduced": vit,
    "swin_t reduced": swin,
    "gpt, tied": gpt,
}


def inputs(name: str, n: int, classes: int = 32, side: int = 32) -> Tensor:
    """Images of 3 × side × side, or as many tokens."""
    return torch.randint(classes, (n, side)) if name.startswith("gpt") else torch.randn(n, 3, side, side)


def measure(name: str, n: int, device: str) -> None:
    """In a process of its own: print what was found as JSON."""
    from observatory.looking import ModelFunction
    from observatory.looking.calls import record_calls
    from observatory.ntk import collective_variables, empirical_ntk
    from observatory.ntk.claims import claims_of

    torch.set_num_threads(1)
    torch.manual_seed(0)
    net = ZOO[name]().to(device)
    batch, x = inputs(name, 64).to(device), inputs(name, n).to(device)
    y = torch.randint(10, (64,), device=device)
    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(batch), y).backward()
        optimizer.step()

    function = ModelFunction.of(net)  # as during a run: the twin is made once

    def look() -> None:
        collective_variables(empirical_ntk(function, x, kind="trace"))

    found: dict[str, float] = {"parameters": sum(p.numel() for p in net.parameters())}
    record = record_calls(function, x[:4])
    fallback = claims_of(function, record).fallback
    found["fallback"] = sum(function.theta[name].numel() for name in fallback) / found["parameters"]
    del record
    step()
    for what, run in (("step", step), ("look", look)):
        before = resident(device)
        run()
        found[f"{what} megabytes"] = (peak(device) - before) / 2**20
        found[f"{what} seconds"] = fastest(run, device)
    print(json.dumps(found))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--networks", nargs="+", default=list(ZOO), choices=list(ZOO))
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--measure", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        measure(options.measure, options.examples, options.device)
        return
    print("| network | parameters | by definition | look | in steps of 64 | memory of a look | of a step |")
    print("|---|---|---|---|---|---|---|")
    for name in options.networks:
        given = ["--measure", name, "--examples", str(options.examples), "--device", options.device]
        command = [sys.executable, "-W", "ignore", __file__, *given]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"| {name} | {done.stderr.strip().splitlines()[-1]} |")
            continue
        found = json.loads(done.stdout.strip().splitlines()[-1])
        look, step = found["look seconds"], found["step seconds"]
        print(
            f"| {name} | {found['parameters']:,.0f} | {100 * found['fallback']:.2g} % | {1e3 * look:.0f} ms "
            f"| {look / step:.1f} | {found['look megabytes']:.0f} MB | {found['step megabytes']:.0f} MB |",
            flush=True,
        )


if __name__ == "__main__":
    main()
