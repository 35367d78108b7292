"""Many networks trained as one end where they end one after the other."""

from __future__ import annotations

import copy
import runpy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from observatory.data import Diabetes, Digits, StackedData, TensorData
from observatory.training import MLP, ConvNet, Ensemble, Supervised

EPOCHS = 3


def trainer(folder: Path, **options: Any) -> pl.Trainer:
    given = {"max_epochs": EPOCHS} | options
    return pl.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **given,
    )


def tied() -> nn.Module:
    first, last = nn.Linear(64, 10, bias=False), nn.Linear(64, 10, bias=False)
    last.weight = first.weight
    return nn.Sequential(first, nn.Tanh(), nn.Linear(10, 64), last)


def batch_normed() -> nn.Module:
    return nn.Sequential(nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(inplace=True), nn.Linear(16, 10))


def partly_frozen() -> nn.Module:
    network = MLP([64, 16, 10])
    network[1].requires_grad_(False)
    return network


def adam(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    return partial(torch.optim.Adam, lr=lr)


def momentum(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    return partial(torch.optim.SGD, lr=lr, momentum=0.9, nesterov=True, weight_decay=1e-3)


def adamw(lr: float) -> Callable[[Any], torch.optim.Optimizer]:
    return partial(torch.optim.AdamW, lr=lr, weight_decay=0.1)


def cosine(optimizer: torch.optim.Optimizer) -> torch.optim.lr_scheduler.LRScheduler:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, EPOCHS)


def classify(make: Callable[[], nn.Module], optimizer: Any, rates: list[float], **options: Any) -> Any:
    """Members with initial states, rates and data orders of their own, and their data."""

    def members() -> list[Supervised]:
        made = []
        for k, rate in enumerate(rates):
            torch.manual_seed(k)
            made.append(Supervised(make(), optimizer=optimizer(rate), **options))
        return made

    return members, [Digits(flat=True, subset=200, seed=k) for k in range(len(rates))]


def regress() -> Any:
    def members() -> list[Supervised]:
        return [Supervised(MLP([10, 8, 1], "tanh"), "mse", adam(1e-2)) for _ in range(3)]

    return members, [Diabetes(seed=k, split_seed=k, batch_size=32) for k in range(3)]


CASES: dict[str, Any] = {
    "one rate": classify(lambda: MLP([64, 16, 10]), adam, [1e-3] * 4),
    "rates": classify(lambda: MLP([64, 16, 10]), adam, [1e-3, 3e-3, 1e-4], scheduler=cosine),
    "momentum": classify(lambda: MLP([64, 16, 10], "tanh"), momentum, [1e-2, 1e-1, 0.0]),
    "weight decay": classify(partly_frozen, adamw, [1e-2, 1e-3]),
    "tied weights": classify(tied, adam, [1e-2, 1e-3]),
    # not with Adam: gradients that vanish in front of a BatchNorm are round-off, which Adam makes steps of
    "batch norm": classify(batch_normed, momentum, [1e-2, 1e-3, 1e-4]),
    "targets of their own": regress(),
}


def one_after_the_other(
    members: list[Supervised], data: list[TensorData], folder: Path, **options: Any
) -> None:
    for member, own in zip(members, data, strict=True):
        trainer(folder, **options).fit(member, own)


def assert_same_weights(ensemble: Ensemble, members: list[Supervised], tolerance: float) -> None:
    for k, member in enumerate(members):
        together = ensemble.member(k).state_dict()
        assert together.keys() == member.state_dict().keys()
        for name, alone in member.state_dict().items():
            torch.testing.assert_close(together[name], alone, atol=tolerance, rtol=0, msg=f"{k}: {name}")


def doubled(members: list[Supervised], data: list[TensorData]) -> None:
    for member, own in zip(members, data, strict=True):
        member.double()
        own.setup("fit")
        own._data = type(own._data)(
            *((x.double(), y.double() if y.is_floating_point() else y) for x, y in own._data)
        )


@pytest.mark.parametrize("case", CASES)
def test_weights_are_those_of_members_trained_one_after_the_other(case: str, tmp_path: Path) -> None:
    make, data = CASES[case]
    torch.manual_seed(0)
    members = make()
    doubled(members, data)
    ensemble = Ensemble(members)
    trainer(tmp_path).fit(ensemble, StackedData(data))
    one_after_the_other(members, data, tmp_path)
    # float64: 12 to 30 steps, each adding round-off of 1e-16 that Adam's division may amplify
    assert_same_weights(ensemble, members, tolerance=1e-11)


def test_single_precision_agrees_to_a_millionth(tmp_path: Path) -> None:
    members, data = classify(lambda: MLP([64, 16, 10]), momentum, [1e-2] * 8)
    alone = members()
    ensemble = Ensemble(alone)
    trainer(tmp_path).fit(ensemble, StackedData(data))
    one_after_the_other(alone, data, tmp_path)
    assert_same_weights(ensemble, alone, tolerance=1e-6)


def test_the_gradient_of_the_sum_is_each_members_own(
    device: torch.device, generator: torch.Generator
) -> None:
    members = [Supervised(MLP([5, 7, 3], "tanh")).double().to(device) for _ in range(4)]
    ensemble = Ensemble(members).to(device)
    x = torch.randn(4, 6, 5, generator=generator, dtype=torch.float64).to(device)
    y = torch.randint(3, (4, 6), generator=generator).to(device)
    losses = ensemble.batch_losses(x, y)
    losses.sum().backward()
    for k, (member, view) in enumerate(zip(members, ensemble.members(), strict=True)):
        loss = member.loss(member(x[k]), y[k])
        own = torch.autograd.grad(loss, list(member.parameters()))
        assert losses[k].item() == pytest.approx(loss.item(), rel=1e-13)
        for seen, gradient in zip(view.parameters(), own, strict=True):
            torch.testing.assert_close(seen.grad, gradient, atol=1e-14, rtol=1e-12)
        assert all(p.grad is None for p in copy.deepcopy(view).parameters())


def test_convolutions_are_stacked_too(tmp_path: Path) -> None:
    torch.manual_seed(0)
    members = [Supervised(ConvNet((1, 8, 8), [4, 8], 10), optimizer=momentum(1e-2)) for _ in range(3)]
    data: list[TensorData] = [Digits(subset=100, seed=k, shuffle_labels=0.5 * k) for k in range(3)]
    ensemble = Ensemble(members)
    trainer(tmp_path).fit(ensemble, StackedData(data))
    one_after_the_other(members, data, tmp_path)
    assert_same_weights(ensemble, members, tolerance=1e-6)


def test_gradients_are_clipped_member_by_member(tmp_path: Path) -> None:
    members, data = classify(lambda: MLP([64, 16, 10]), momentum, [1e-1, 1e-1])
    alone = members()
    with torch.no_grad():
        alone[0].network[1].weight.mul_(10)  # large gradients in one member only
    ensemble = Ensemble(alone)
    clipped = {"gradient_clip_val": 0.5, "accumulate_grad_batches": 2}
    trainer(tmp_path, **clipped).fit(ensemble, StackedData(data))
    one_after_the_other(alone, data, tmp_path, **clipped)
    assert_same_weights(ensemble, alone, tolerance=2e-6)


def test_metrics_are_the_members_own(tmp_path: Path) -> None:
    members, data = classify(lambda: MLP([64, 16, 10]), adam, [1e-2, 1e-3, 1e-5])
    alone = members()
    ensemble = Ensemble(alone)
    run = trainer(tmp_path)
    run.fit(ensemble, StackedData(data))
    run.test(ensemble, StackedData(data), verbose=False)
    one_after_the_other(alone, data, tmp_path)
    for name in ("test/loss", "test/accuracy"):
        own = [trainer(tmp_path).test(m, d, verbose=False)[0][name] for m, d in zip(alone, data, strict=True)]
        torch.testing.assert_close(ensemble.metrics[name], torch.tensor(own), atol=1e-5, rtol=0)
    assert ensemble.metrics["val/loss"].shape == ensemble.losses.shape == (3,)
    assert run.callback_metrics["test/loss"].item() == pytest.approx(
        ensemble.metrics["test/loss"].mean().item()
    )


def test_a_member_follows_the_training_without_a_copy(tmp_path: Path) -> None:
    members, data = classify(lambda: MLP([64, 16, 10]), adam, [1e-2, 1e-3])
    ensemble = Ensemble(members())
    watched = ensemble.members()[1]
    before = watched.network[1].weight.clone()
    trainer(tmp_path).fit(ensemble, StackedData(data))
    assert not torch.equal(before, watched.network[1].weight)
    x = data[0].dataset("val").tensors[0]
    torch.testing.assert_close(ensemble(x)[1], watched(x), atol=1e-5, rtol=0)


def test_one_member_diverges_alone(tmp_path: Path) -> None:
    members, data = classify(lambda: MLP([64, 16, 10]), momentum, [1e-2, 1e-2])
    alone = members()
    with torch.no_grad():
        alone[0].network[1].weight.fill_(torch.nan)
    ensemble = Ensemble(alone)
    trainer(tmp_path).fit(ensemble, StackedData(data))
    finite = [all(p.isfinite().all() for p in ensemble.member(k).parameters()) for k in range(2)]
    assert finite == [False, True]


class Scaled(nn.Module):
    def __init__(self, scale: float) -> None:
        super().__init__()
        self.scale = scale
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.linear(x)


def net(**options: Any) -> Supervised:
    return Supervised(**({"network": MLP([64, 4, 10]), "optimizer": adam(1e-3)} | options))


@pytest.mark.parametrize(
    ("members", "reason"),
    [
        ([], "nothing to stack"),
        ([net(), nn.Linear(2, 2)], "only runs of Supervised are stacked, not of Linear"),
        ([net(network=MLP([64, 4, 10], dropout=0.5))], r"Dropout\(p=0.5\) draws from one stream"),
        ([net(network=nn.BatchNorm1d(3, momentum=None))], "momentum=None"),
        ([net(), net(network=MLP([64, 5, 10]))], "differ in structure, shapes"),
        ([net(network=Scaled(1.0)), net(network=Scaled(2.0))], "types or settings"),
        ([net(), net(loss="mse")], "the losses differ"),
        ([net(), net(loss=nn.CrossEntropyLoss(label_smoothing=0.1))], "the losses differ"),
        ([net(), net(optimizer=momentum(0.1))], "optimizers differ"),
        ([net(optimizer=torch.optim.Rprop)], "Rprop does not treat each number alone"),
        ([net(), net(scheduler=cosine)], "the schedules differ"),
        ([net(scheduler=torch.optim.lr_scheduler.ReduceLROnPlateau)], "would follow the mean"),
    ],
)
def test_what_cannot_be_stacked_is_refused_with_the_reason(members: list[Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        Ensemble(members)


def test_schedules_that_do_not_scale_need_equal_rates() -> None:
    floor = partial(torch.optim.lr_scheduler.CosineAnnealingLR, T_max=3, eta_min=1e-5)
    one, two = net(scheduler=floor), net(scheduler=floor, optimizer=adam(1e-2))
    assert Ensemble.why_not([one, one]) is None
    assert Ensemble.why_not([one, two]) == (
        "CosineAnnealingLR is not proportional to the learning rates, which differ"
    )


def test_data_that_cannot_be_stacked_are_refused() -> None:
    with pytest.raises(ValueError, match="the batch sizes differ: 32, 64"):
        StackedData([Digits(), Digits(batch_size=32)])
    with pytest.raises(ValueError, match=r"\[100, 200\] training examples take different numbers of steps"):
        StackedData([Digits(subset=100), Digits(subset=200)]).setup("fit")


def test_equal_data_are_loaded_once_and_stored_once() -> None:
    members = [Digits(seed=k) for k in range(3)] + [Digits(shuffle_labels=1.0)]
    data = StackedData(members)
    data.setup("fit")
    assert members[0]._data is members[2]._data and members[0]._data is not members[3]._data
    x, y = next(iter(data.train_dataloader()))
    assert x.shape == (4, 64, 1, 8, 8) and y.shape == (4, 64)
    stacked = data.train_dataloader().dataset
    assert [shared for _, shared in stacked.columns] == [True, False]  # images once, labels four times
    image, label = stacked[5]
    assert image.shape == (4, 1, 8, 8) and label.shape == (4,)


@pytest.mark.slow
def test_a_stack_of_64_networks_trains_15_times_faster_than_they_do() -> None:
    benchmark = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "ensemble.py"))
    torch.set_num_threads(1)
    benchmark["in_the_loop_stacked"](*benchmark["runs"]())  # first calls
    slow, alone = benchmark["timed"](lambda: benchmark["in_the_loop_apart"](*benchmark["runs"]()))
    fast, together = benchmark["timed"](lambda: benchmark["in_the_loop_stacked"](*benchmark["runs"]()))
    assert benchmark["farthest"](alone, together) < 1e-6
    assert slow / fast > 15  # 23 to 28 where it was measured, in CPU time
