"""Linear ensembles in the one loop, their record and its page."""

from __future__ import annotations

import copy
from typing import Any, Self

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from contract import CallbackContract
from runs import Classifier
from torch import Tensor, nn

from observatory.callbacks import LinearEnsembleVariances
from observatory.data import Steps
from observatory.records import open_run
from observatory.report import write_report
from observatory.solvable.ensembles import LinearEnsembles
from observatory.training import Iterate
from observatory.weights import ensemble_instrument

# made once: the last bits of LAPACK's solutions depend on where it finds memory
MADE = LinearEnsembles(replicas=16, discard=2).requires_grad_(False)


class WithEnsembles(Classifier):
    """Trains a network, and advances ensembles of linear ones beside it."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.ensembles = copy.deepcopy(MADE)

    def training_step(self, batch: Any, number: int) -> Tensor:
        self.ensembles.advance(batch)
        return super().training_step(batch, number)

    def on_train_batch_end(self, *_: Any) -> None:
        if self.nan_from is not None and self.global_step >= self.nan_from:
            self.ensembles.online.sums.fill_(torch.nan)

    def to(self, *given: Any, **options: Any) -> Self:
        """Ensembles are of double precision, in half a precision too."""
        ensembles, self.ensembles = self.ensembles, nn.Identity()
        super().to(*given, **options)
        self.ensembles = ensembles
        return self


class TestLinearEnsembleVariances(CallbackContract):
    make = LinearEnsembleVariances
    module = WithEnsembles


def fit(root, method: nn.Module) -> None:
    pl.Trainer(
        max_epochs=2, default_root_dir=root, accelerator="cpu", logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False,
        callbacks=[LinearEnsembleVariances(every_n_steps=20, max_overhead=None, strict=True)],
    ).fit(Iterate(method), Steps(per_epoch=30))  # fmt: skip


def test_record_holds_means_errors_and_theory(tmp_path):
    fit(tmp_path, LinearEnsembles(replicas=64, discard=30))
    run = open_run(tmp_path / "observatory/run_0").instrument("ensembles")
    assert run["age"].values.tolist() == [0, 20, 40, 60]
    assert np.isnan(run["online"].values[:2]).all() and np.isfinite(run["online"].values[2:]).all()
    assert run["coupled_exact"].values[-1][0].tolist() == pytest.approx([0.667, 0.4, 0.211], abs=5e-4)
    assert run["online_naive"].values[-1].tolist() == pytest.approx([0.009375] * 5)
    assert run["gauge"].values[0] == pytest.approx(1)
    page = write_report(tmp_path / "observatory/run_0").read_text()
    for words in ("One layer, fresh data", "One layer, few examples", "Two layers, both learning", "Gauge:"):
        assert words in page
    assert not any(
        "nan" in finding.text for finding in ensemble_instrument.LinearEnsembleVariances.findings(run)
    )


def test_too_short_a_run_says_so(tmp_path):
    fit(tmp_path, LinearEnsembles(replicas=16, discard=500))
    run = open_run(tmp_path / "observatory/run_0").instrument("ensembles")
    (finding,) = ensemble_instrument.LinearEnsembleVariances.findings(run)
    assert (
        finding.level == "warning"
        and LinearEnsembleVariances().observer.stations[0].instrument.figures(run) == []
    )
