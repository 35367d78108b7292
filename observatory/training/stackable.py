"""Which training runs may be stacked into one without changing any of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn, optim
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd
from torch.optim import lr_scheduler

from observatory.training.supervised import Supervised

# Their step acts on each number alone and is proportional to the learning rate.
ELEMENTWISE = (
    optim.SGD,
    optim.Adam,
    optim.AdamW,
    optim.RMSprop,
    optim.Adagrad,
    optim.Adadelta,
    optim.Adamax,
    optim.NAdam,
    optim.RAdam,
)
# Their rate is a common factor times the initial one.
PROPORTIONAL = (
    lr_scheduler.LambdaLR,
    lr_scheduler.MultiplicativeLR,
    lr_scheduler.StepLR,
    lr_scheduler.MultiStepLR,
    lr_scheduler.ConstantLR,
    lr_scheduler.LinearLR,
    lr_scheduler.ExponentialLR,
    lr_scheduler.PolynomialLR,
    lr_scheduler.CosineAnnealingLR,
)


def _made(member: Supervised) -> tuple[optim.Optimizer, Any]:
    """Optimizer and schedule (or None) of a run of its own."""
    made = member.configure_optimizers()
    return (made["optimizer"], made["lr_scheduler"]["scheduler"]) if isinstance(made, dict) else (made, None)


def base_rate(member: Supervised) -> float:
    """Learning rate before the schedule."""
    group = _made(member)[0].param_groups[0]
    return float(group.get("initial_lr", group["lr"]))


def why_not(members: Sequence[LightningModule]) -> str | None:
    """What keeps these runs from being trained as one; None if nothing does."""
    if not members:
        return "there is nothing to stack"
    runs = [member for member in members if type(member) is Supervised]
    if len(runs) < len(members):
        other = next(type(member).__name__ for member in members if type(member) is not Supervised)
        return f"only runs of Supervised are stacked, not of {other}"
    return _networks(runs) or _losses(runs) or _optimizers(runs)


def _networks(runs: Sequence[Supervised]) -> str | None:
    first = runs[0].network
    for module in first.modules():
        if isinstance(module, _DropoutNd) and module.p > 0:
            return (
                f"{type(module).__name__}(p={module.p}) draws from one stream for all: "
                "no member would drop the units that it drops alone"
            )
        if isinstance(module, _BatchNorm) and module.momentum is None:
            return "BatchNorm with momentum=None takes the number of batches out of the tensor it is kept in"
    if any(not _alike(run.network, first) for run in runs):
        return "the networks differ in structure, shapes, types or settings"
    return None


def _losses(runs: Sequence[Supervised]) -> str | None:
    first = runs[0].loss
    if any(True for _ in first.parameters()):
        return "the loss has parameters of its own"
    same = (
        _alike(run.loss, first)
        and all(torch.equal(a, b) for a, b in zip(run.loss.buffers(), first.buffers(), strict=True))
        for run in runs
    )
    return None if all(same) else "the losses differ"


def _alike(one: nn.Module, other: nn.Module) -> bool:
    """The same computation for equal tensors: classes, names, shapes, and every plain attribute."""
    if repr(one) != repr(other) or _shapes(one) != _shapes(other):
        return False
    pairs = zip(one.modules(), other.modules(), strict=True)
    return all(type(a) is type(b) and _equal(_settings_of(a), _settings_of(b)) for a, b in pairs)


def _settings_of(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if not key.startswith("_")}


def _equal(a: dict[str, Any], b: dict[str, Any]) -> bool:
    if a.keys() != b.keys():
        return False
    array = (Tensor, np.ndarray)
    return all(np.array_equal(a[k], b[k]) if isinstance(a[k], array) else a[k] == b[k] for k in a)


def _shapes(network: nn.Module) -> list[tuple]:
    parameters = [(name, p.shape, p.dtype, p.requires_grad) for name, p in network.named_parameters()]
    return parameters + [(name, b.shape, b.dtype, False) for name, b in network.named_buffers()]


def _optimizers(runs: Sequence[Supervised]) -> str | None:
    made = [_made(run) for run in runs]
    optimizer, schedule = made[0]
    if type(optimizer) not in ELEMENTWISE:
        return (
            f"{type(optimizer).__name__} does not treat each number alone, or not in proportion to its rate"
        )
    if len(optimizer.param_groups) > 1:
        return "the optimizers have several groups of parameters"
    if any(type(o) is not type(optimizer) or _settings(o) != _settings(optimizer) for o, _ in made):
        return "the optimizers differ in more than the learning rate"
    if any(_schedule(s) != _schedule(schedule) for _, s in made) or len({run.interval for run in runs}) > 1:
        return "the schedules differ"
    return _rates(runs, schedule)


def _rates(runs: Sequence[Supervised], schedule: Any) -> str | None:
    if isinstance(schedule, lr_scheduler.ReduceLROnPlateau):
        return "ReduceLROnPlateau would follow the mean of the members"
    if schedule is None or len({base_rate(run) for run in runs}) == 1:
        return None
    if type(schedule) not in PROPORTIONAL or getattr(schedule, "eta_min", 0.0) != 0.0:
        return f"{type(schedule).__name__} is not proportional to the learning rates, which differ"
    return None


def _settings(optimizer: optim.Optimizer) -> dict[str, Any]:
    return {key: value for key, value in optimizer.defaults.items() if key != "lr"}


def _schedule(schedule: Any) -> tuple[type, dict[str, Any]]:
    """Kind and settings of a schedule, without the rates."""
    state = schedule.state_dict() if schedule is not None else {}
    return type(schedule), {key: v for key, v in state.items() if key not in ("base_lrs", "_last_lr")}
