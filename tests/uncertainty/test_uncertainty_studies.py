"""Studies of error bars conclude what is in their runs; a test of the Trainer leaves what they read."""

from __future__ import annotations

import copy
import math

import lightning.pytorch as pl
import pytest
import torch

from observatory.callbacks.tested_uncertainty import TestedUncertainty
from observatory.data import UCI, UCISplits
from observatory.report import write_page
from observatory.studies import FinishedRun
from observatory.studies.published_tables import NLL, RMSE
from observatory.studies.uncertainty_elsewhere import AWAY, HOME, SCORES, UncertaintyElsewhere
from observatory.studies.uncertainty_tables import KEY, ROWS, UncertaintyTables
from observatory.training import MLP, BestEpoch, Replicas, Supervised
from observatory.uncertainty.judging import Judged, load_judged, save_judged

NAMES = (
    "rmse", "nll", "crps", "coverage_90", "mean_z2", "spearman", "spearman_ceiling", "constant/nll",
    "constant/crps", "additive/nll", "profiled/nll",
)  # fmt: skip


def run_of(folder, name, gain, seed):
    generator = torch.Generator().manual_seed(seed)
    std = torch.exp(torch.randn(60, 1, generator=generator))
    rows = {"residual": std * torch.randn(60, 1, generator=generator), "std": std, "raw": std}
    metrics = dict.fromkeys(NAMES, 0.9) | {"nll": 2.0 + 0.3 * seed, "constant/nll": 2.0 + 0.3 * seed + gain}
    save_judged([Judged(metrics, rows)], folder / f"{name}{seed}" / ROWS)
    return FinishedRun(f"{name}{seed}", {KEY: name}, {}, folder / f"{name}{seed}")


def test_tables_are_won_and_lost_by_paired_differences(tmp_path):
    """Splits differ by much more than the two error bars on each of them."""
    runs = [
        run_of(tmp_path, name, sign * (0.05 + 0.01 * seed), seed)
        for name, sign in (("yacht", 1), ("power", -1))
        for seed in range(4)
    ]
    runs += [run_of(tmp_path, "mine", 0.05 * (-1) ** seed, seed) for seed in range(4)]
    conclusion = UncertaintyTables().conclude(runs)
    told = [finding.text for finding in conclusion.findings]
    # differences 0.05, 0.06, 0.07, 0.08: mean 0.065, standard deviation 0.0129, over √4
    assert told[0].endswith("beats one error bar for all inputs on yacht (+0.065 ± 0.006 nat).")
    assert told[1] == "One error bar is better than σ(x) on power (-0.065 ± 0.006 nat)."
    assert told[2].startswith("The two cannot be told apart on mine (+0.000")
    # 2.45 here against 1.634 ± 0.016 (PBP) on yacht and 2.837 on power
    assert any("better on power and worse on yacht" in text for text in told)
    page = tmp_path / "page.html"
    write_page("page", UncertaintyTables().conclude(runs[:4]).sections, page)
    assert "1.634 ± 0.016" in page.read_text() and "yacht: errors against error bars" in page.read_text()


def test_published_figures_are_whole():
    assert set(NLL) == set(RMSE) and len(NLL) == 9
    assert NLL["naval"]["MCD"].value == -4.450 and RMSE["naval"]["MCD"].value == 0.0007
    assert NLL["protein"]["DE"].error == 0.02


def test_sweep_without_tables_is_refused():
    with pytest.raises(ValueError, match=r"the study compares tables: sweep data\.init_args\.name"):
        UncertaintyTables().check([{}])
    with pytest.raises(ValueError, match="the study compares data sets"):
        UncertaintyElsewhere().check([{HOME: "a"}])


def test_elsewhere_says_which_score_notices(tmp_path):
    rows = {
        f"{where}_{key}": torch.linspace(0.1, 1, 50) + shift
        for where, shift in (("here", 0.0), ("there", 1.0))
        for key in SCORES
    }
    scores = {f"ood/{key}": 0.6 + 0.05 * k for k, key in enumerate(SCORES)} | {"raw_error_auroc": 0.6}
    for kind, nll in (("", 0.1), ("temperature/", 0.2), ("plain/", 0.3)):
        scores |= {f"{kind}nll": nll, f"{kind}error_auroc": 0.9}
        scores |= {f"{kind}{name}": 0.5 for name in ("accuracy", "brier", "ece", "adaptive_ece")}
    save_judged([Judged(scores, rows)], tmp_path / ROWS)
    point = {HOME: "observatory.data.MNIST", AWAY: "observatory.data.FashionMNIST"}
    conclusion = UncertaintyElsewhere().conclude([FinishedRun("one", point, {}, tmp_path)])
    told = [finding.text for finding in conclusion.findings]
    assert told[0].startswith("MNIST → FashionMNIST: log loss 0.1000 averaged, 0.2000 with one temperature")
    assert told[0].endswith("in this order in 1 of 1 seeds.")
    assert "best by the entropy of averaged probabilities (AUROC 0.800); s² has 0.700" in told[1]
    assert write_page("page", conclusion.sections, tmp_path / "page.html").is_file()


def fitted_and_tested(tmp_path, model, data, epochs=15):
    """Fit and test, with the best epoch."""
    best = BestEpoch()
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, max_epochs=epochs, default_root_dir=tmp_path,
        enable_progress_bar=False, enable_model_summary=False, enable_checkpointing=False,
        callbacks=[best, TestedUncertainty()],
    )  # fmt: skip
    trainer.fit(model, data)
    weights = {key: value.clone() for key, value in model.state_dict().items()}
    assert all(torch.equal(weights[key], best.weights[key]) for key in weights)
    (found,) = trainer.test(model, data, verbose=False)
    assert all(torch.equal(value, weights[key]) for key, value in model.state_dict().items())
    return found, load_judged(tmp_path / "observatory/run_0/uncertainty/test_rows.npz"), best


def test_trainer_tests_the_best_epoch_in_the_targets_own_units(tmp_path):
    pl.seed_everything(0, verbose=False)
    data, model = UCI(batch_size=64), Supervised(MLP([10, 16, 1]), loss="mse")
    found, (scores, rows), best = fitted_and_tested(tmp_path, model, data)
    assert best.epoch > 0
    x, y = data.dataset("test").tensors
    with torch.no_grad():
        residual = (y - model(x)) * data.target_std
    assert found["test/rmse"] == pytest.approx(residual.square().mean().sqrt().item(), rel=1e-5)
    assert 40 < found["test/rmse"] < 90  # of a target whose standard deviation is 77
    torch.testing.assert_close(rows["residual"][0], residual, rtol=1e-4, atol=1e-4)
    z = rows["residual"] / rows["std"]
    nll = 0.5 * (math.log(2 * math.pi) + 2 * rows["std"].log() + z**2).mean()
    assert found["test/nll"] == pytest.approx(nll.item(), rel=1e-5)
    assert scores["nll"].tolist() == pytest.approx([nll.item()], rel=1e-5)


def test_splits_in_one_stack_are_judged_like_each_alone(tmp_path):
    pl.seed_everything(0, verbose=False)
    network = MLP([10, 16, 1])
    stack = Replicas(2, network, loss="mse")
    _, (scores, rows), best = fitted_and_tested(
        tmp_path / "stack", stack, UCISplits(splits=2, batch_size=64), 8
    )
    alone = Supervised(copy.deepcopy(network), loss="mse")
    _, (single, row), own = fitted_and_tested(tmp_path / "alone", alone, UCI(split=1, batch_size=64), 8)
    assert rows["residual"].shape == (2, 44, 1) and best.epoch[1] == own.epoch
    # the same training up to the rounding of float32 in stacked products
    torch.testing.assert_close(rows["residual"][1], row["residual"][0], rtol=1e-3, atol=1e-2)
    assert scores["nll"][1].item() == pytest.approx(single["nll"][0].item(), rel=1e-3)
