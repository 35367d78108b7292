"""One look: everything an instrument may see of a training run at one moment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.optim import Optimizer

from observatory.looking.model import ModelFunction
from observatory.looking.probe import Probe

Loss = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class Look:
    """The model as a function, the probe, and the clock.

    Tensors are references to live ones: read, never write.
    """

    model: ModelFunction
    probe: Probe
    step: int  # optimizer updates that the weights have seen
    epoch: int  # number of the epoch, counted from 0
    loss: Loss | None = (
        None  # loss(output, targets) -> mean loss; None: the likelihood's own (see `Instrument`)
    )
    gradients: Mapping[str, Tensor] = field(
        default_factory=dict
    )  # `.grad` of the last update, by parameter name
    optimizers: tuple[Optimizer, ...] = ()
    owned: Mapping[str, nn.Parameter] = field(
        default_factory=dict
    )  # what the optimizers hold, by parameter name: shards where the module is sharded

    def later(self, step: int, epoch: int) -> Look:
        """The same look at another step, in less time than making one, field by field, would take."""
        look = object.__new__(Look)
        look.__dict__.update(self.__dict__, step=step, epoch=epoch)
        return look
