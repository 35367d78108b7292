"""The shipped experiments on real data, against measured and published figures."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
import yaml

from observatory.running import run_experiment
from observatory.uncertainty.judging import load_judged

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
ROWS = "observatory/uncertainty/test_rows.npz"
SPLITS = 8
# mean and standard deviation over the first 8 splits with ς² = 10⁻¹⁰ λ_max, and constant σ: RMSE, NLL, NLL
MEASURED = {"boston": (2.78, 0.63, 2.452, 0.149, 2.543), "yacht": (1.03, 0.33, 1.300, 0.254, 1.520)}


def scores_of(folder: Path) -> list[dict[str, torch.Tensor]]:
    return [load_judged(run / ROWS)[0] for run in sorted(folder.iterdir()) if (run / ROWS).is_file()]


@pytest.mark.parametrize("name", ["uncertainty_uci", "uncertainty_diabetes", "uncertainty_ood"])
def test_experiments_resolve(name, data_root, capsys):
    assert run_experiment(name, dry_run=True) == 0
    assert "every value valid" in capsys.readouterr().out


@pytest.mark.slow  # two minutes
@pytest.mark.parametrize("table", MEASURED)
def test_tables_are_those_that_were_measured(table, tmp_path, data_root):
    content = yaml.safe_load((EXPERIMENTS / "uncertainty_uci.yaml").read_text())
    lists = content["sweep"]["zip"]
    k = lists["data.init_args.name"].index(table)
    lists |= {key: [values[k]] for key, values in lists.items()}
    lists |= {"data.init_args.splits": [SPLITS], "model.init_args.copies": [SPLITS]}
    file = tmp_path / "tables.yaml"
    file.write_text(yaml.safe_dump(content))
    assert run_experiment(file, output=tmp_path) == 0
    (found,) = scores_of(tmp_path / "tables")
    rmse, rmse_sd, nll, nll_sd, constant = MEASURED[table]
    for name, value, spread in (("rmse", rmse, rmse_sd), ("nll", nll, nll_sd)):
        # theirs and ours are means over the same splits: two combined standard errors
        combined = math.hypot(spread, float(found[name].std())) / math.sqrt(SPLITS)
        assert float(found[name].mean()) == pytest.approx(value, abs=2 * combined)
    if table == "yacht":
        assert float(found["nll"].mean()) < float(found["constant/nll"].mean()) < constant + 0.5


@pytest.mark.slow  # five minutes
def test_digits_and_clothes(tmp_path, data_root):
    assert run_experiment("uncertainty_ood", output=tmp_path) == 0
    found = {True: [], False: []}
    for run in sorted((tmp_path / "uncertainty_ood").iterdir()):
        if (run / ROWS).is_file():
            home = yaml.safe_load((run / "run.yaml").read_text())["data"]["class_path"]
            found[home.endswith("FashionMNIST")].append(load_judged(run / ROWS)[0])
    for scores in (*found[True], *found[False]):
        assert scores["nll"] < scores["temperature/nll"] < scores["plain/nll"]
        assert scores["accuracy"] == scores["plain/accuracy"]
    digits, clothes = found[False], found[True]
    mean = {key: sum(float(s[f"ood/{key}"]) for s in digits) / 3 for key in ("entropy", "max_softmax")}
    assert mean["entropy"] > mean["max_softmax"] + 0.02
    assert all(float(s["ood/raw_variance"]) > 0.94 for s in clothes)
