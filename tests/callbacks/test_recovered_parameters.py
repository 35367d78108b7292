"""A fit of trajectories that is watched, and not disturbed."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from contract import CallbackContract
from runs import Classifier

from observatory.callbacks import CollectiveVariables, FisherInformation, RecoveredParameters
from observatory.data import SimulatedTrajectories
from observatory.looking import Probe
from observatory.physics.assimilation import Assimilation, LevenbergMarquardt, Unknown
from observatory.physics.systems import DampedOscillator
from observatory.records import open_run
from observatory.report import write_report
from observatory.training import Fit, Iterate


def fitted(folder, method, callbacks, epochs):
    unknowns = {"omega": Unknown(lower=0.0), "gamma": Unknown(lower=0.0)}
    model = Assimilation(
        DampedOscillator(1.8, 0.2), unknowns, systems=3, segments=4, step=0.11, relative_noise=0.01,
        observed=("x",), matching=100.0,
    )  # fmt: skip
    truth = DampedOscillator(2.0, 0.3)
    data = SimulatedTrajectories(truth, 3, 41, 4.0, [(0.5, 1.5), (-1.0, 1.0)], observed=("x",))
    made = Iterate(LevenbergMarquardt(model, (1e-2, 1.0, 1e4), epochs // 3)) if method else Fit(model)
    trainer = pl.Trainer(
        default_root_dir=folder, accelerator="cpu", max_epochs=epochs, logger=False, callbacks=callbacks,
        enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    data.setup("fit")
    trainer.fit(made, data.train_dataloader(), None if method else data.val_dataloader())
    return model


def test_gauss_newton_steps_are_recorded_with_their_errors(tmp_path):
    fitted(tmp_path, True, [RecoveredParameters(every_n_steps=1, max_overhead=None, strict=True)], 15)
    run = open_run(tmp_path / "observatory/run_0").instrument("fit")
    assert run["value"].coordinates["parameter"] == ["omega", "gamma"]
    assert run["value"].steps.tolist() == list(range(16))
    value, error = run["estimate"].values[-1][0], run["error"].values[-1][0]
    assert (abs(value - [2.0, 0.3]) < 5 * error).all() and (error < 0.05).all()
    # 123 numbers, 26 unknowns, 18 ties: χ²/N = 0.93 with a spread of 13 %
    assert abs(run["misfit"].values[-1] - 0.93) < 5 * 0.13 and run["misfit"].values[0] > 10
    assert run["prediction"].values[-1].shape == run["observation"].values[-1].shape == (3, 41, 1)
    texts = [finding.text for finding in _findings(run)]
    assert texts[0].startswith("omega = ") and "χ²/N fell" in texts[1]
    assert write_report(tmp_path / "observatory/run_0").is_file()


def oscillators():
    """All trajectories as one batch."""
    data = SimulatedTrajectories(
        DampedOscillator(2.0, 0.3), 3, 11, 2.0, [(0.5, 1.5), (-1.0, 1.0)], observed=("x",)
    )
    data.setup("fit")
    return next(iter(data.val_dataloader()))


class WithOscillators(Classifier):
    """Trains a network, and fits trajectories beside it, now and then: a shot takes longer than its step."""

    def __init__(self, **options):
        super().__init__(**options)
        self.assimilation = Assimilation(
            DampedOscillator(1.8, 0.2), systems=3, segments=2, step=0.5, relative_noise=0.01, observed=("x",)
        )

    def training_step(self, batch, number):
        loss = super().training_step(batch, number)
        return loss if number % 8 else loss + self.assimilation.training_loss(oscillators())

    def on_train_batch_end(self, *_):
        if self.nan_from is not None and self.global_step >= self.nan_from:
            with torch.no_grad():
                self.assimilation.z["omega"].fill_(torch.nan)

    def to(self, *given, **options):
        """A fit is of double precision, in half a precision too."""
        assimilation, self.assimilation = self.assimilation, torch.nn.Identity()
        super().to(*given, **options)
        self.assimilation = assimilation
        return self


def watching(**options):
    return RecoveredParameters(probe=Probe(*oscillators()), **options)


class TestRecoveredParameters(CallbackContract):
    make = watching
    module = WithOscillators


def _findings(run):
    from observatory.assimilated import RecoveredParameters as Instrument

    assert len(Instrument.figures(run)) == 3
    return Instrument.findings(run)


def test_a_watched_fit_is_the_fit(tmp_path):
    watching = [RecoveredParameters(every_n_steps=1, max_overhead=None, strict=True)]
    watched = fitted(tmp_path / "a", False, watching, 3)
    alone = fitted(tmp_path / "b", False, [], 3)
    for name, value in watched.state_dict().items():
        assert torch.equal(value, alone.state_dict()[name]), name


def test_kernel_and_fisher_information_watch_the_fit(tmp_path):
    """Tr K = Σ (∂f/∂θ)² over parameters and states, Tr F = ⟨Σ (∂f/∂z)²⟩/σ² over parameters alone, at the end
    of a fit and against central differences, whose error at δ = 10⁻⁵ is below 10⁻⁸."""
    options = {"every_n_steps": 2, "max_overhead": None, "strict": True}
    watching = [
        CollectiveVariables(**options),
        FisherInformation(select=r"\bz\b", estimator="exact", sigma2=0.25, **options),
    ]
    model = fitted(tmp_path, False, watching, 2)
    run = open_run(tmp_path / "observatory/run_0")
    batch = (torch.arange(3), torch.linspace(0, 4, 41, dtype=torch.float64).expand(3, -1))

    def squares(parameter):
        total = 0.0
        for k in range(parameter.numel()):
            either = []
            for shift in (1e-5, -1e-5):
                with torch.no_grad():
                    before = parameter.clone()
                    parameter.view(-1)[k] += shift
                    either.append(model(batch))
                    parameter.copy_(before)
            total += float(((either[0] - either[1]) / 2e-5).square().sum())
        return total

    by_z = sum(squares(parameter) for parameter in model.z.values())
    assert run["fisher/trace"].values[-1] == pytest.approx(by_z / 3 / 0.25, rel=1e-6)
    trace = by_z + squares(model.states)
    assert run["ntk/kernel"].values[-1].trace() == pytest.approx(trace, rel=1e-5)
