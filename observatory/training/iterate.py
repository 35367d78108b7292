"""Methods that follow no gradient advance in the same loop."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.loggers import TensorBoardLogger
from torch import Tensor, nn
from torch.optim import Optimizer

from observatory.training.fit import examples_in


class Iterate(LightningModule):
    """Call `method.advance(batch)` once per batch; scalars returned by name are logged as train/<name>.

    The state of the method (of a Wang-Landau walker, a population, a Gaussian process) is its buffers, so
    that checkpoints hold it and a resumed run continues it. Random numbers come from the global streams,
    which `SeedEveryStep` makes resumable, or from a generator seeded with a counter among the buffers. If it
    has `figures()`, matplotlib figures by name, TensorBoard gets them at the end.

    Args:
        method: a module with `advance(batch)` returning a mapping of scalars or None. With no data to learn
            from, `observatory.data.Steps` is the data module.

    Raises:
        TypeError: if the method cannot advance.
    """

    def __init__(self, method: nn.Module) -> None:
        super().__init__()
        if not callable(getattr(method, "advance", None)):
            raise TypeError(f"{type(method).__name__} has no advance(batch) to be called")
        self.method: Any = method

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.method(*args, **kwargs)

    # The optimizer of nothing and the gradient of a constant make each call one update of Lightning's clock.
    # Manual optimisation would count as well, but ModelCheckpoint then warns and ignores time intervals.
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        scalars = self.method.advance(batch)
        if scalars:
            named = {f"train/{name}": value for name, value in scalars.items()}
            self.log_dict(named, batch_size=examples_in(batch))
        return torch.zeros((), device=self.device, requires_grad=True)

    def on_train_end(self) -> None:
        """TensorBoard shows what the method draws of itself."""
        figures = getattr(self.method, "figures", None)
        boards = [logger for logger in self.loggers if isinstance(logger, TensorBoardLogger)]
        if callable(figures) and boards and self.trainer.is_global_zero:
            for name, figure in figures().items():
                for board in boards:
                    board.experiment.add_figure(name, figure, self.global_step, close=False)
                figure.clear()

    def configure_optimizers(self) -> Optimizer:
        return torch.optim.SGD([nn.Parameter(torch.empty(0, device=self.device))])
