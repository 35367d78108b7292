"""Every kind of module is looked at rightly, or the warning names the argument to set."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
import torch
from runs import bits
from scenes import EVERY_STEP, Outputs
from torch import Tensor, nn
from torch.nn.utils import parametrizations

import observatory
from observatory.ntk import CollectiveVariables
from observatory.ntk.fisher_instrument import FisherInformation

UPDATES, N = 3, 8
x, tokens = (
    torch.randn(N, 6, generator=torch.Generator().manual_seed(3)),
    torch.arange(5 * N).reshape(N, 5) % 7,
)
labels = torch.arange(N) % 3


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return self.first(a) * self.second(b)


class Dictionary(nn.Module):
    """A dictionary comes in and a dictionary goes out, as in many libraries of transformers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 3)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, Any]:
        hidden = (self.embed(batch["tokens"]) * batch["mask"][..., None]).mean(1)
        return {"logits": self.head(hidden), "hidden": hidden, "loss": None}


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(6, 3)

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        return self.net(inputs), inputs.norm(dim=1)


class Tied(nn.Module):
    """A language model whose output layer is its embedding."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.head = nn.Embedding(7, 4), nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.embed(inputs).tanh())


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.cell, self.head = nn.Embedding(7, 4), nn.GRU(4, 5, batch_first=True), nn.Linear(5, 3)

    def forward(self, inputs: Tensor) -> Tensor:
        return self.head(self.cell(self.embed(inputs))[0][:, -1])


def parametrised() -> nn.Module:
    spectral = parametrizations.spectral_norm(nn.Linear(6, 8))
    return nn.Sequential(spectral, nn.Tanh(), parametrizations.weight_norm(nn.Linear(8, 3)))


def frozen() -> nn.Module:
    net = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.ReLU(inplace=True), nn.Linear(8, 3))
    net[0].requires_grad_(False)
    return net


def lazy() -> nn.Module:
    return nn.Sequential(nn.LazyLinear(8), nn.LazyBatchNorm1d(), nn.ReLU(), nn.LazyLinear(3))


@dataclass
class Kind:
    """How a module is made and called, and what an instrument is told of it."""

    make: Callable[[], nn.Module]
    inputs: Any
    targets: Tensor = field(default_factory=lambda: labels)
    call: Callable[[nn.Module, Any], Tensor] = lambda module, inputs: module(inputs)
    options: dict[str, Any] = field(default_factory=dict)
    first: int = 0  # step of the first look
    kernels: bool = True  # whether the instruments of the tangent kernel can differentiate it


def logits(module: nn.Module, inputs: Any) -> Tensor:
    return module(inputs)["logits"]


KINDS = {
    "two inputs": Kind(
        TwoInputs, (x, x.flip(0)), call=lambda m, z: m(*z), options={"forward": lambda m, z: m(*z)}
    ),
    "dictionary": Kind(
        Dictionary,
        {"tokens": tokens, "mask": (tokens > 0).float()},
        call=logits,
        options={"output": lambda returned: returned["logits"]},
    ),
    "pair": Kind(Pair, x, call=lambda m, z: m(z)[0], options={"output": lambda returned: returned[0]}),
    "tied": Kind(Tied, tokens, targets=tokens, kernels=False),  # outputs (N, T, C)
    "recurrent": Kind(Recurrent, tokens, kernels=False),  # no vmap through a GRU
    "parametrised": Kind(parametrised, x),
    "frozen": Kind(frozen, x),
    "lazy": Kind(lazy, x, first=1),
}


def trained(kind: Kind, out: Any, instruments: list[Any], **options: Any) -> tuple[list, nn.Module]:
    torch.manual_seed(4)
    model = kind.make()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    probe = observatory.Probe(kind.inputs, kind.targets)
    with observatory.watch(
        model, optimizer, probe=probe, instruments=instruments, out=out, **(EVERY_STEP | options)
    ) as watch:
        for _ in range(UPDATES):
            optimizer.zero_grad()
            output = kind.call(model, kind.inputs)
            torch.nn.functional.cross_entropy(output.flatten(0, -2), kind.targets.flatten()).backward()
            optimizer.step()
            watch.step()
    return bits([model.state_dict(), torch.get_rng_state()]), model


@pytest.mark.parametrize("name", KINDS)
def test_kind_is_looked_at_rightly_and_not_changed(tmp_path, name):
    kind = KINDS[name]

    class Flat(Outputs):
        def observe(self, look: Any) -> Any:
            found = super().observe(look)
            return found | {"outputs": found["outputs"].flatten(0, -2)}

    kinds = (Flat, CollectiveVariables, FisherInformation) if kind.kernels else (Flat,)
    watched, model = trained(kind, tmp_path, [make(**kind.options) for make in kinds])
    assert watched == trained(kind, None, [])[0]
    run = observatory.open_run(tmp_path)
    steps = list(range(kind.first, UPDATES + 1))
    assert run["outputs/norm"].steps.tolist() == steps
    for trace in (run[name] for name in ("ntk/trace", "fisher/trace") if kind.kernels):
        assert trace.steps.tolist() == steps and (trace.values > 0).all()
    expected = kind.call(model.eval(), kind.inputs).detach().flatten(0, -2)
    np.testing.assert_allclose(run["outputs/outputs"].values[-1], expected, rtol=1e-5, atol=1e-6)


WRONG = {
    "two inputs": r"TwoInputs cannot be called with a tuple \(.*missing 1 required .*; say how with forward=",
    "dictionary": r"Dictionary returned dict, not a tensor; name the part that is meant with output=",
    "pair": r"Pair returned tuple, not a tensor; name the part that is meant with output=",
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_said_is_asked_for(tmp_path, name):
    kind = KINDS[name]
    with pytest.warns(UserWarning, match=WRONG[name]) as caught:
        watched, _ = trained(kind, tmp_path, [Outputs()], strict=False)
    assert len(caught) == 1 and watched == trained(kind, None, [])[0]


class Nothing(nn.Module):
    def forward(self, inputs: Tensor) -> Tensor:
        return inputs


@pytest.mark.parametrize(
    "model, reason",
    [
        (Nothing(), "Nothing has no parameters; there is nothing to look at"),
        (nn.Linear(6, 3).requires_grad_(False), "no trainable parameter is selected: all are frozen"),
    ],
)
def test_nothing_to_look_at(model, reason):
    with (
        pytest.warns(UserWarning, match=reason) as caught,
        observatory.watch(model, probe=x, instruments=[Outputs()]) as watch,
    ):
        watch.step()
    assert len(caught) == 1
