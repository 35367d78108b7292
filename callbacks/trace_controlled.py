"""A learning rate that follows the trace of the neural tangent kernel."""

from __future__ import annotations

import math
from functools import partial
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

from observatory.callbacks.callback import _loader
from observatory.looking.live import LiveModel
from observatory.looking.model import ModelFunction
from observatory.looking.probe import ProbeRequest
from observatory.looking.undisturbed import undisturbed
from observatory.ntk.fisher import fisher_trace_by_layer
from observatory.observing import Instrument
from observatory.observing.source import ProbeSource

SMALLEST = 1e-8  # added to the trace, as Tovey et al. do


class TraceControlledLearningRate(Callback):
    """η = scale/(Tr K/n + 10⁻⁸) from the beginning of every so many epochs on.

    K is the trace-contracted tangent kernel of n probe examples, as in `CollectiveVariables`: the rate is
    small where outputs respond strongly to the weights. Unlike the instruments this changes the training.
    (Tovey et al. 2024, arXiv:2410.07451.)

    Args:
        scale: η times the mean trace, a pure number; gradient descent on half the squares is stable for
            η λ₁/n < 2, and λ₁/n ≤ Tr K/n.
        every_n_epochs: between two looks at the trace.
        probe: how many training examples, or a request.
        options: how the model is called and which parameters count, see `Instrument`.

    Raises:
        ValueError: if the scale or the interval is not positive; at the start of training, if a scheduler
            sets the learning rate too.
    """

    def __init__(
        self, scale: float, *, every_n_epochs: int = 1, probe: int | ProbeRequest = 64, **options: Any
    ) -> None:
        if not scale > 0 or every_n_epochs < 1:
            raise ValueError(
                f"scale must be positive and every_n_epochs at least 1, got {scale} and {every_n_epochs}"
            )
        self.scale, self.every_n_epochs = scale, every_n_epochs
        self.what = Instrument(probe=probe, **options)
        self.epoch = -1  # last one whose trace was looked at
        self._live: LiveModel | None = None
        self._source: ProbeSource | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.lr_scheduler_configs:
            raise ValueError("both a scheduler and the trace set the learning rate: remove one of the two")

    @override
    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = trainer.current_epoch
        if epoch % self.every_n_epochs or epoch == self.epoch:  # the latter after resuming in mid-epoch
            return
        self.epoch = epoch
        trace = self.mean_trace(trainer, pl_module)
        rate = self.scale / (trace + SMALLEST)
        if math.isfinite(trace):  # a network that has diverged keeps its rate
            for group in (group for optimizer in trainer.optimizers for group in optimizer.param_groups):
                group["lr"] = rate
        for logger in trainer.loggers:
            values = {"trace_controlled/mean_trace": trace, "trace_controlled/learning_rate": rate}
            logger.log_metrics(values, step=trainer.global_step)

    def mean_trace(self, trainer: Trainer, pl_module: LightningModule) -> float:
        """Tr K/n of the weights as they are now; every rank must call it, and all get the same."""
        if self._live is None or self._live.module is not pl_module:
            self._live, self._source = LiveModel(pl_module), ProbeSource(partial(_loader, trainer))
        what = self.what
        with undisturbed(pl_module.device):
            model: ModelFunction = self._live.function(
                forward=what.forward, output=what.output, select=what.select
            )
            assert self._source is not None
            probe = self._source.find(what, pl_module.device, self._live.dtype)
            if probe is None:
                raise ValueError("the training data are a stream: give inputs to look at as probe=Probe(x)")
            # a Gaussian of unit variance has the Fisher information Σ ∇f ∇fᵀ/n, whose trace this is
            found = fisher_trace_by_layer(
                model, probe.inputs, likelihood="gaussian", estimator="exact", allow_nonfinite=True
            )
        return float(found.whole.value)

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"epoch": self.epoch}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epoch = state_dict["epoch"]
