"""The observer in a Lightning run, with instruments made for the purpose."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from contract import EVERY_STEP, CallbackContract, SaveAt
from runs import Classifier, examples, fit, loaders, trainer
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from observatory.callbacks.callback import OF_EVERY_STEP, ObservingCallback
from observatory.looking import Look
from observatory.observing import History, Instrument, logbook
from observatory.records import Quantity, open_run


class Norm(Instrument):
    """‖θ‖, ‖f(x)‖ and the number of looks so far."""

    default_name = "norm"

    def __init__(self, **kwargs) -> None:
        super().__init__(**kwargs)
        self.looks = 0

    def quantities(self) -> dict[str, Quantity]:
        return {
            "weights": Quantity((), "1", "‖θ‖"),
            "outputs": Quantity((), "1", "‖f(x)‖ on the probe"),
            "looks": Quantity((), "1", "number of looks, this one included"),
        }

    def observe(self, look: Look) -> Mapping[str, Tensor]:
        self.looks += 1
        torch.rand(3)  # an instrument that draws: nobody's stream may move
        flat = torch.cat([p.flatten() for p in look.model.theta.values()])
        return {
            "weights": flat.norm(),
            "outputs": look.model(look.probe.inputs).norm(),
            "looks": torch.tensor(self.looks),
        }

    def state_dict(self) -> dict:
        return {"looks": self.looks}

    def load_state_dict(self, state: Mapping) -> None:
        self.looks = state["looks"]


class Failing(Norm):
    default_name = "failing"

    def observe(self, look: Look) -> Mapping[str, Tensor]:
        if look.step == 5:
            raise RuntimeError("the lens is broken")
        return super().observe(look)


class WatchNorm(ObservingCallback):
    def __init__(self, **kwargs) -> None:
        super().__init__([Norm()], **kwargs)


class TestNorm(CallbackContract):
    make = WatchNorm

    test_yaml_round_trip = None  # not among the package's callbacks


def test_values_are_those_of_the_weights_after_the_update(tmp_path):
    norms = {}

    class Keep(torch.nn.Module):
        pass

    class Noting(Classifier):
        def on_train_batch_start(self, *_):
            theta = torch.cat([p.detach().flatten() for p in self.parameters()])
            norms[self.global_step] = theta.norm().item()

    fit(tmp_path, [WatchNorm(**EVERY_STEP)], module=Noting)
    recorded = open_run(tmp_path / "observatory/run_0")["norm/weights"]
    assert recorded.steps.tolist() == list(range(25))
    assert recorded.values[:24].tolist() == [pytest.approx(norms[k], rel=1e-6) for k in range(24)]


def test_failing_instrument_is_switched_off_and_the_others_go_on(tmp_path):
    callback = ObservingCallback([Failing(), Norm()], every_n_steps=1, max_overhead=None)
    message = "instrument 'failing' is switched off, training goes on: RuntimeError: the lens is broken"
    with pytest.warns(UserWarning, match=message) as caught:
        watched = fit(tmp_path / "a", [callback])
    assert len([w for w in caught if "failing" in str(w.message)]) == 1
    watched.assert_same(fit(tmp_path / "b"))
    run = open_run(tmp_path / "a/observatory/run_0")
    assert run["failing/weights"].steps.tolist() == list(range(5))
    assert run["norm/weights"].steps.tolist() == list(range(25))
    assert run.events("failing")[-1] == {"event": "failure", "reason": "RuntimeError: the lens is broken"}


def test_strict_raises(tmp_path):
    with pytest.raises(RuntimeError, match="the lens is broken"):
        fit(tmp_path, [ObservingCallback([Failing()], **EVERY_STEP)])


def test_first_and_last_look_are_taken_whatever_the_schedule(tmp_path):
    fit(tmp_path, [WatchNorm(every_n_steps=10, max_overhead=None)])
    assert open_run(tmp_path / "observatory/run_0")["norm/looks"].steps.tolist() == [0, 10, 20, 24]


def test_epoch_schedule(tmp_path):
    fit(tmp_path, [WatchNorm(every_n_epochs=1, max_overhead=None)], max_epochs=3)
    assert open_run(tmp_path / "observatory/run_0")["norm/looks"].steps.tolist() == [0, 12, 24, 36]


def test_window_of_samples_and_its_conclusion(tmp_path):
    class Window(Instrument):
        default_name = "window"

        def quantities(self):
            return {"mean": Quantity((), "1", "mean step of the window")}

        def samples_at(self, step, epoch):
            return 5 <= step < 9

        def __init__(self):
            super().__init__()
            self.steps = []

        def sample(self, look):
            self.steps.append(float(look.step))
            assert set(look.gradients) == set(look.model.theta)

        def conclude(self, history: History):
            return {"mean": torch.tensor(self.steps).mean()} if len(history.values) == 0 else {}

    fit(tmp_path, [ObservingCallback([Window()], **EVERY_STEP)])
    mean = open_run(tmp_path / "observatory/run_0")["window/mean"]
    assert (mean.steps.tolist(), mean.values.tolist()) == ([9], [6.5])


def test_two_callbacks_share_the_record_of_a_run(tmp_path):
    fit(
        tmp_path,
        [ObservingCallback([Norm()], **EVERY_STEP), ObservingCallback([Norm(name="again")], **EVERY_STEP)],
    )
    run = open_run(tmp_path / "observatory/run_0")
    assert run.instruments == ["again", "norm"]
    np.testing.assert_array_equal(run["again/weights"].values, run["norm/weights"].values)


def test_two_instruments_of_one_name_are_refused(tmp_path):
    with pytest.raises(ValueError, match="two instruments are called 'norm'"):
        ObservingCallback([Norm(), Norm()])


def test_two_callbacks_of_one_name_are_refused_by_the_trainer(tmp_path):
    with pytest.raises(RuntimeError, match=r"more than one stateful callback[\s\S]*state_key"):
        fit(tmp_path, [WatchNorm(), WatchNorm()])


def test_of_two_instruments_of_one_name_the_first_is_recorded(tmp_path):
    """In callbacks that the Trainer can tell apart; the other one says so, and goes on for the loggers."""
    first = ObservingCallback([Norm()], every_n_steps=6, max_overhead=None)
    second = ObservingCallback([Norm(), Norm(name="other")], every_n_steps=4, max_overhead=None)
    with pytest.warns(UserWarning, match="'norm' is not recorded any more.*give one of them another name="):
        watched = fit(tmp_path / "a", [first, second], max_epochs=1)
    watched.assert_same(fit(tmp_path / "b", max_epochs=1))
    run = open_run(tmp_path / "a/observatory/run_0")
    assert run["norm/looks"].steps.tolist() == [0, 6, 12]
    assert run["other/looks"].steps.tolist() == [0, 4, 8, 12]


def test_exception_of_the_user_closes_the_record_and_is_the_users(tmp_path):
    class Raises(Classifier):
        def training_step(self, batch, number):
            if self.global_step == 5:
                raise ZeroDivisionError("mine")
            return super().training_step(batch, number)

    callback = WatchNorm(**EVERY_STEP)
    with pytest.raises(ZeroDivisionError, match="mine"):
        fit(tmp_path, [callback], module=Raises)
    assert open_run(tmp_path / "observatory/run_0")["norm/looks"].steps.tolist() == list(range(6))
    assert callback.observer.stations[0].record is None
    assert not any(tmp_path in directory.parents for directory in logbook._open)
    fit(tmp_path, [callback], max_epochs=1)  # begins afresh
    assert open_run(tmp_path / "observatory/run_1")["norm/looks"].values.tolist() == list(range(1, 14))


def test_second_fit_of_a_longer_trainer_continues_the_record(tmp_path):
    import lightning.pytorch as pl
    from runs import loaders, trainer

    pl.seed_everything(1, verbose=False)
    run, module = trainer(tmp_path, [WatchNorm(**EVERY_STEP)], max_epochs=1), Classifier()
    run.fit(module, *loaders())
    run.fit_loop.max_epochs = 2
    run.fit(module, *loaders())
    looks = open_run(tmp_path / "observatory/run_0")["norm/looks"]
    assert looks.steps.tolist() == list(range(25))
    assert looks.values.tolist() == list(range(1, 26))


def test_new_run_in_the_folder_of_another_keeps_the_old_record(tmp_path):
    from lightning.pytorch.loggers import CSVLogger

    fit(tmp_path, [WatchNorm(**EVERY_STEP)], logger=CSVLogger(tmp_path, "x", version=0), max_steps=3)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(tmp_path, [WatchNorm(**EVERY_STEP)], logger=CSVLogger(tmp_path, "x", version=0), max_steps=5)
    assert any("held the record of another run, which is now in" in str(w.message) for w in caught)
    folder = tmp_path / "x/version_0"
    assert len(open_run(folder)["norm/looks"]) == 6
    assert len(open_run(folder / "observatory.before_1")["norm/looks"]) == 4


def test_resumed_instrument_keeps_its_state(tmp_path):
    checkpoint = tmp_path / "at.ckpt"
    fit(tmp_path, [WatchNorm(**EVERY_STEP), SaveAt(6, checkpoint)], max_steps=8)
    fit(tmp_path, [WatchNorm(**EVERY_STEP)], max_steps=10, ckpt_path=checkpoint)
    looks = open_run(tmp_path / "observatory/run_1")["norm/looks"]
    assert looks.steps.tolist() == list(range(11))
    assert looks.values.tolist() == list(range(1, 12))


class FromEveryHook(WatchNorm):
    """Looks wherever Lightning calls: gradients may be off, and the module in evaluation mode."""

    def _look(self, trainer):
        (station,) = self.observer.stations
        self.observer._look(station, trainer.global_step, trainer.current_epoch)

    def on_before_zero_grad(self, trainer, *_):
        self._look(trainer)

    def on_after_backward(self, trainer, *_):
        self._look(trainer)

    def on_before_optimizer_step(self, trainer, *_):
        self._look(trainer)

    def on_validation_batch_end(self, trainer, *_):
        if not trainer.sanity_checking:
            self._look(trainer)

    def on_validation_epoch_end(self, trainer, *_):
        if not trainer.sanity_checking:
            self._look(trainer)

    def on_train_epoch_end(self, trainer, module):
        self._look(trainer)
        super().on_train_epoch_end(trainer, module)


@pytest.mark.parametrize("accumulate", [1, 3])
def test_looks_from_every_hook_disturb_nothing(tmp_path, accumulate):
    watched = fit(tmp_path / "a", [FromEveryHook(**EVERY_STEP)], accumulate_grad_batches=accumulate)
    watched.assert_same(fit(tmp_path / "b", accumulate_grad_batches=accumulate))
    assert len(open_run(tmp_path / "a/observatory/run_0")["norm/looks"]) > 50


def test_empty_hooks_are_passed_over_and_those_of_a_subclass_are_not(tmp_path):
    class Hears(WatchNorm):
        heard = 0

        def on_after_backward(self, trainer, module):
            super().on_after_backward(trainer, module)
            self.heard += 1

    assert {getattr(WatchNorm(**EVERY_STEP), hook) for hook in OF_EVERY_STEP} == {None}
    hears = Hears(**EVERY_STEP)
    fit(tmp_path, [hears])
    assert hears.heard == 24  # batches in two epochs


def test_batches_are_offered_until_the_probe_is_found_and_again_in_the_next_run(tmp_path):
    class Stream(IterableDataset):
        def __iter__(self):
            return zip(*examples().tensors, strict=True)

    callback = ObservingCallback([Norm(probe=20)], **EVERY_STEP)
    offered, offer = [], callback.observer.offer_batch
    callback.observer.offer_batch = lambda batch: (offered.append(len(batch[0])), offer(batch))
    for run in ("a", "b"):
        offered.clear()
        data = DataLoader(Stream(), 8), loaders()[1]
        trainer(tmp_path / run, [callback], max_epochs=1).fit(Classifier(), *data)
        assert offered == [8, 8, 8]
        assert callback.on_train_batch_start is None


def test_bits_of_a_disturbed_run_differ(tmp_path):
    """The comparison can fail: one draw from the global stream is enough."""

    class Draws(WatchNorm):
        def on_train_batch_end(self, *args):
            torch.rand(1)

    with pytest.raises(AssertionError):
        fit(tmp_path / "a", [Draws()]).assert_same(fit(tmp_path / "b"))


def test_observables_can_be_monitored(tmp_path):
    from lightning.pytorch.callbacks import EarlyStopping

    stop = EarlyStopping(
        "norm/weights", patience=0, mode="min", check_on_train_epoch_end=True, min_delta=100.0
    )
    fit(tmp_path, [WatchNorm(**EVERY_STEP), stop], max_epochs=5)
    assert stop.stopped_epoch == 1
