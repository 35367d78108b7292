"""The callbacks in a Trainer of the `pytorch_lightning` package, which has classes of its own."""

from __future__ import annotations

from typing import Any

import pytorch_lightning as pl
from typing_extensions import override

from observatory.callbacks.callback import ObservingCallback


class Adapted(pl.Callback):
    """`pytorch_lightning.Trainer(callbacks=[Adapted(CollectiveVariables())])`.

    Args:
        callback: one of `observatory.callbacks`.
    """

    def __init__(self, callback: ObservingCallback) -> None:
        self.callback = callback

    @property
    @override
    def state_key(self) -> str:
        return self.callback.state_key

    @override
    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.callback.setup(trainer, pl_module, stage)

    @override
    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self.callback.on_train_start(trainer, pl_module)

    @override
    def on_train_batch_start(self, trainer: Any, pl_module: Any, batch: Any, batch_idx: int) -> None:
        # of the class: the object's own may be switched off
        type(self.callback).on_train_batch_start(self.callback, trainer, pl_module, batch, batch_idx)

    @override
    def on_train_batch_end(
        self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.callback.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    @override
    def on_train_epoch_end(self, trainer: Any, pl_module: Any) -> None:
        self.callback.on_train_epoch_end(trainer, pl_module)

    @override
    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self.callback.on_train_end(trainer, pl_module)

    @override
    def on_exception(self, trainer: Any, pl_module: Any, exception: BaseException) -> None:
        self.callback.on_exception(trainer, pl_module, exception)

    @override
    def teardown(self, trainer: Any, pl_module: Any, stage: str) -> None:
        self.callback.teardown(trainer, pl_module, stage)

    @override
    def state_dict(self) -> dict[str, Any]:
        return self.callback.state_dict()

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.callback.load_state_dict(state_dict)
