"""The learning rate follows the trace of the tangent kernel."""

from __future__ import annotations

from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from runs import Classifier, examples, fit

from observatory.callbacks.trace_controlled import TraceControlledLearningRate
from observatory.looking import Probe
from observatory.ntk import empirical_ntk


class Rates(pl.Callback):
    """The learning rate of every step, and the mean trace at the beginning of every epoch."""

    def __init__(self) -> None:
        self.rates: list[float] = []
        self.traces: list[float] = []

    def on_train_batch_start(self, trainer: pl.Trainer, module: Any, batch: Any, index: int) -> None:
        self.rates.append(trainer.optimizers[0].param_groups[0]["lr"])
        if index == 0:
            module.eval()
            x = examples()[:32][0]
            self.traces.append(float(empirical_ntk(module, x, kind="trace").trace()) / len(x))
            module.train()


def controlled(tmp_path, scale=0.02, **options) -> Rates:
    seen = Rates()
    control = TraceControlledLearningRate(scale, probe=Probe(examples()[:32][0]), **options)
    fit(tmp_path, [control, seen], module=lambda: Classifier("sgd"), max_epochs=3)
    return seen


def test_rate_times_mean_trace_is_the_scale(tmp_path):
    seen = controlled(tmp_path)
    assert [0.02 / trace for trace in seen.traces] == pytest.approx(seen.rates[::12], rel=1e-5)
    assert len(set(seen.rates)) == 3  # constant within an epoch


def test_rate_is_kept_between_looks(tmp_path):
    seen = controlled(tmp_path, every_n_epochs=2)
    assert seen.rates[:24] == seen.rates[:1] * 24
    assert seen.rates[24] == pytest.approx(0.02 / seen.traces[2], rel=1e-5)


def test_a_rate_that_does_not_change_is_a_plain_run(tmp_path):
    plain = fit(tmp_path, module=lambda: Classifier("sgd"))
    control = TraceControlledLearningRate(0.02, probe=Probe(examples()[:32][0]))
    control.mean_trace = lambda *_: float("nan")  # a rate is kept where there is no trace
    watched = fit(tmp_path, [control], module=lambda: Classifier("sgd"))
    watched.assert_same(plain)


def test_resumed_in_mid_epoch_keeps_the_epochs_rate():
    control = TraceControlledLearningRate(0.02)
    control.load_state_dict({"epoch": 4})
    assert control.state_dict() == {"epoch": 4}


class Scheduled(Classifier):
    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        return {
            "optimizer": optimizer,
            "lr_scheduler": torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9),
        }


def test_two_masters_of_the_rate_are_refused(tmp_path):
    with pytest.raises(ValueError, match="remove one of the two"):
        fit(tmp_path, [TraceControlledLearningRate(0.02)], module=Scheduled)


@pytest.mark.parametrize("bad", [{"scale": 0.0}, {"scale": 1.0, "every_n_epochs": 0}])
def test_scale_and_interval_are_positive(bad):
    with pytest.raises(ValueError, match="positive"):
        TraceControlledLearningRate(**bad)
