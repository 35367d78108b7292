"""Many small networks trained as one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule
from torch import Tensor, nn
from torch.func import functional_call, vmap
from torch.optim import Optimizer

from observatory.training.optimisers import configured
from observatory.training.stackable import base_rate, why_not
from observatory.training.supervised import Supervised, mean_loss


class _Slice(nn.Parameter):
    """One member's part of a stacked parameter: a view of its numbers, and of its gradient."""

    _place: tuple[nn.Parameter, int]

    def __new__(cls, stacked: nn.Parameter, k: int) -> _Slice:
        part = super().__new__(cls, stacked.detach()[k], stacked.requires_grad)
        part._place = (stacked, k)
        return part

    @property
    def grad(self) -> Tensor | None:  # type: ignore[override]
        stacked, k = self._place
        return None if stacked.grad is None else stacked.grad[k]

    def __deepcopy__(self, memo: dict[int, Any]) -> nn.Parameter:
        return nn.Parameter(self.detach().clone(), self.requires_grad)  # a copy has no stack


def _copy_with(
    module: nn.Module,
    parameter: Callable[[str, nn.Parameter], nn.Parameter],
    buffer: Callable[[str, Tensor], Tensor],
) -> nn.Module:
    """A copy of `module` with other tensors in the places of its own; ties stay tied."""
    memo: dict[int, Any] = {id(p): parameter(name, p) for name, p in module.named_parameters()}
    memo |= {id(b): buffer(name, b) for name, b in module.named_buffers()}
    return copy.deepcopy(module, memo)


def _along(member: Tensor, like: Tensor) -> Tensor:
    """Numbers (K,) shaped to multiply `like` (K, ...)."""
    return member.view(-1, *[1] * (like.ndim - 1))


class Ensemble(LightningModule):
    """K networks of equal shape, each with its own data order and learning rate, as one stack of weights.

    The gradient of Σₖ Lₖ(θₖ) with respect to θₖ is that of Lₖ, and the optimizers admitted act on each number
    alone: the weights (K, ...) are those of the members trained one after the other. Learning rates enter as
    θ ← θ + (ηₖ / η)·(θ' - θ), where θ → θ' is the optimizer's step at η = maxₖ ηₖ: it is proportional to η.
    Batches have shape (K, B, ...), as `observatory.data.StackedData` makes them. Logs the means over the
    members; `metrics` has the members' own.

    Args:
        members: their networks, losses, optimizers and schedules are taken; they are not changed.

    Raises:
        ValueError: if they cannot be stacked; `why_not` says it without raising.
    """

    shares: Tensor
    why_not = staticmethod(why_not)

    def __init__(self, members: Sequence[Supervised]) -> None:
        super().__init__()
        if reason := why_not(members):
            raise ValueError(reason)
        rates = torch.tensor([base_rate(member) for member in members], dtype=torch.float64)
        leader = members[int(rates.argmax())]  # its optimizer and schedule make the steps
        self.optimizer, self.scheduler, self.interval = leader.optimizer, leader.scheduler, leader.interval
        tensors = [dict(m.network.named_parameters()) | dict(m.network.named_buffers()) for m in members]

        def stacked(name: str) -> Tensor:
            return torch.stack([t[name].detach() for t in tensors])

        self.network = _copy_with(
            members[0].network,
            lambda name, p: nn.Parameter(stacked(name), p.requires_grad),
            lambda name, _: stacked(name),
        )
        self.loss = copy.deepcopy(members[0].loss)
        shares = rates / rates.max() if rates.max() > 0 else torch.ones_like(rates)
        self.size, self.equal_rates = len(members), bool((shares == 1).all())
        self.register_buffer("shares", shares.to(next(self.network.parameters())), persistent=False)  # ηₖ / η
        self.losses: Tensor = torch.full((len(members),), torch.nan)  # of the last training batch, (K,)
        self.metrics: dict[str, Tensor] = {}  # of the last validation and test, (K,) by name
        self._sums: dict[str, Tensor] = {}

    def member(self, k: int) -> Supervised:
        """The k-th member with the names that it has in a run of its own, to be looked at.

        Its tensors are views of the stack, gradients included, and follow the training. Ask when the ensemble
        is on its device.
        """
        network = _copy_with(self.network, lambda _, p: _Slice(p, k), lambda _, b: b[k])
        return Supervised(network, copy.deepcopy(self.loss), self.optimizer, self.scheduler, self.interval)

    def members(self) -> list[Supervised]:
        """All members, see `member`."""
        return [self.member(k) for k in range(self.size)]

    def forward(self, x: Tensor) -> Tensor:
        """Outputs (K, N, ...) of all members for inputs (N, ...)."""
        return self._outputs(x.expand(self.size, *x.shape))

    def _outputs(self, x: Tensor) -> Tensor:
        """Outputs (K, B, ...) for inputs (K, B, ...), each member its own."""
        state = dict(self.network.named_parameters()), dict(self.network.named_buffers())
        return vmap(lambda state, x: functional_call(self.network, state, (x,)))(state, x)

    def batch_losses(self, x: Tensor, y: Tensor) -> Tensor:
        """Mean loss of each member over its batch (K, B, ...), shape (K,); differentiate the sum."""
        return self._losses(self._outputs(x), y)

    def _losses(self, output: Tensor, y: Tensor) -> Tensor:
        """Mean loss of each member over its batch, shape (K,)."""
        loss = self.loss
        if type(loss) is nn.CrossEntropyLoss and loss.weight is None and loss.reduction == "mean":
            # the same without the detours of vmap, a sixth of a step
            each = nn.functional.cross_entropy(
                output.flatten(0, 1),
                y.flatten(0, 1),
                reduction="none",
                ignore_index=loss.ignore_index,
                label_smoothing=loss.label_smoothing,
            )
            counted = (y != loss.ignore_index).flatten(1).sum(1) if not y.is_floating_point() else y.shape[1]
            return each.view(self.size, -1).sum(1) / counted
        return vmap(lambda output, y: mean_loss(loss, output, y))(output, y)

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        losses = self.batch_losses(x, y)
        self.losses = losses.detach()
        self.log("train/loss", self.losses.mean(), prog_bar=True, batch_size=y.shape[1])
        return losses.sum()

    def on_validation_epoch_start(self) -> None:
        self._sums = {}

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self._evaluate("val", *batch)

    def on_validation_epoch_end(self) -> None:
        self._conclude("val")

    def on_test_epoch_start(self) -> None:
        self._sums = {}

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> None:
        self._evaluate("test", *batch)

    def on_test_epoch_end(self) -> None:
        self._conclude("test")

    def _evaluate(self, stage: str, x: Tensor, y: Tensor) -> None:
        output = self._outputs(x)
        values = {"loss": self._losses(output, y)}
        if not y.is_floating_point() and output.ndim == y.ndim + 1:
            values["accuracy"] = (output.argmax(2) == y).float().flatten(1).mean(1)
        values["examples"] = torch.ones_like(values["loss"])
        for name, value in values.items():
            key = f"{stage}/{name}"
            self._sums[key] = self._sums.get(key, 0) + value * y.shape[1]

    def _conclude(self, stage: str) -> None:
        sums = {name: self._over_ranks(value) for name, value in self._sums.items()}
        examples = sums.pop(f"{stage}/examples", None)
        if examples is not None:
            self.metrics |= {name: value / examples for name, value in sums.items()}
            self.log_dict({name: self.metrics[name].mean() for name in sums}, prog_bar=True, sync_dist=True)

    def _over_ranks(self, sums: Tensor) -> Tensor:
        gathered = self.all_gather(sums)
        assert isinstance(gathered, Tensor)
        return gathered.view(-1, self.size).sum(0)

    def configure_optimizers(self) -> Any:
        return configured(self.network.parameters(), self.optimizer, self.scheduler, self.interval)

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        stepped = [] if self.equal_rates else [p for p in self.network.parameters() if p.requires_grad]
        before = [p.detach().clone() for p in stepped]
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
        with torch.no_grad():
            for p, old in zip(stepped, before, strict=True):
                p.copy_(torch.lerp(old, p, _along(self.shares.to(p), p)))

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """By norm, each member by its own."""
        if not gradient_clip_val or gradient_clip_algorithm == "value":
            self.clip_gradients(optimizer, gradient_clip_val, gradient_clip_algorithm)
            return
        gradients = [p.grad for p in self.network.parameters() if p.grad is not None]
        norms = torch.stack([g.flatten(1).norm(dim=1) for g in gradients]).norm(dim=0)
        scale = (gradient_clip_val / (norms + 1e-6)).clamp(max=1)  # as torch.nn.utils.clip_grad_norm_
        for g in gradients:
            g.mul_(_along(scale, g))
