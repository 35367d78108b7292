"""The guide to a physics model of one's own: its code and its configurations run, and recover the truth."""

from __future__ import annotations

import ast
import re
import sys
from pathlib import Path

import numpy as np
import pytest

from observatory.cli import main
from observatory.records import open_run

GUIDE = Path(__file__).parent.parent / "docs" / "your_own_physics_model.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", GUIDE.read_text(), re.DOTALL)
MODEL, RECORDING = [text for language, text in BLOCKS if language == "python"]
STEPS, GRADIENT = [text for language, text in BLOCKS if language == "yaml"]


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with what the guide tells to write, in which the commands are given."""
    for name, text in (("pendulum.py", MODEL), ("pendulum.yaml", STEPS), ("gradient.yaml", GRADIENT)):
        (tmp_path / name).write_text(text)
    monkeypatch.chdir(tmp_path)
    with monkeypatch.context() as patch:
        patch.syspath_prepend(tmp_path)
        exec(compile(RECORDING, "recording", "exec"), {})
    monkeypatch.delitem(sys.modules, "pendulum")  # the commands have to find it
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["observatory"])
    yield tmp_path
    sys.modules.pop("pendulum", None)


def test_the_model_has_thirty_lines():
    assert len(MODEL.strip().split("\n")) <= 30
    assert any(isinstance(node, ast.ClassDef) for node in ast.parse(MODEL).body)


@pytest.mark.filterwarnings("ignore:You passed in a `val_dataloader`")
def test_gauss_newton_steps_recover_the_pendulum(folder, capsys):
    assert main(["run", "pendulum.yaml"]) == 0
    assert re.search(r"omega = 2\.\d+ ± 0\.00", capsys.readouterr().out)
    version = folder / "lightning_logs" / "version_0"
    fit = open_run(version).instrument("fit")
    assert fit["value"].coordinates["parameter"] == ["omega", "gamma", "kappa"]
    estimate, error = fit["estimate"].values[-1][0], fit["error"].values[-1][0]
    assert (np.abs(estimate - [2.5, 0.1, 0.2]) < 5 * error).all()
    assert (error < [0.002, 0.01, 0.01]).all()
    # 243 numbers, 51 unknowns, 42 ties: χ²/N = 0.96 with a spread of 9 %
    assert fit["misfit"].values[-1] == pytest.approx(0.96, abs=4.5 * 0.09)
    assert (version / "report.html").is_file()


@pytest.mark.slow
def test_instruments_of_networks_watch_the_gradient(folder):
    assert main(["fit", "--config", "gradient.yaml"]) == 0
    run = open_run(folder / "lightning_logs" / "version_0")
    assert (run["ntk/trace"].values > 0).all() and (run["fisher/trace"].values > 0).all()
    assert run["fit/misfit"].values[-1] < run["fit/misfit"].values[0]


@pytest.mark.parametrize("epochs", [2, pytest.param(150, marks=pytest.mark.slow)])
def test_the_readme_fits_a_spring(epochs, tmp_path, monkeypatch):
    """As it stands but for the number of epochs; the shipped recordings have ω = 2 and γ = 0.3."""
    readme = (GUIDE.parent.parent / "README.md").read_text()
    (_, model), (_, settings) = re.findall(r"```(\w+)\n(.*?)```", readme.split("`spring.py`")[1], re.DOTALL)[
        :2
    ]
    (tmp_path / "spring.py").write_text(model)
    (tmp_path / "spring.yaml").write_text(settings)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setattr(sys, "argv", ["observatory"])
    assert main(["fit", "--config", "spring.yaml", "--trainer.max_epochs", str(epochs)]) == 0
    sys.modules.pop("spring", None)
    fit = open_run(tmp_path / "lightning_logs" / "version_0").instrument("fit")
    assert fit["misfit"].values[-1] < fit["misfit"].values[0]
    if epochs == 150:
        estimate, error = fit["estimate"].values[-1][0], fit["error"].values[-1][0]
        assert (np.abs(estimate - [2.0, 0.3]) < 5 * error).all() and (error < 0.002).all()
