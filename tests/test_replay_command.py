"""`observatory replay`: a finished experiment, looked at through its checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import yaml

from observatory.cli import main
from observatory.records import open_run

EXPERIMENT = Path(__file__).parent.parent / "experiments" / "digits.yaml"


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended")
def test_checkpoints_of_fit_replay_into_the_record_that_fit_wrote(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    experiment = yaml.safe_load(EXPERIMENT.read_text())
    experiment["report"] = False
    experiment["data"]["init_args"]["batch_size"] = 128
    experiment["trainer"] |= {"max_epochs": 2, "enable_progress_bar": False}
    experiment["trainer"]["callbacks"] = [
        {
            "class_path": "lightning.pytorch.callbacks.ModelCheckpoint",
            "init_args": {"dirpath": "saved", "every_n_train_steps": 5, "save_top_k": -1},
        }
    ]
    experiment["observe"]["ntk"]["init_args"] |= {"every_n_steps": 5, "max_overhead": None}
    Path("experiment.yaml").write_text(yaml.safe_dump(experiment))
    assert main(["fit", "--config", "experiment.yaml"]) == 0
    files = sorted(map(str, Path("saved").glob("*.ckpt")))
    assert len(files) == 4
    assert main(["replay", "--config", "experiment.yaml", "--out", "again", *files]) == 0
    assert capsys.readouterr().out.strip().endswith("report: again/report.html")
    run, again = open_run("runs/digits/version_0"), open_run("again")
    assert again["ntk/trace"].steps.tolist() == [5, 10, 15, 20]
    assert again["ntk/trace"].steps.tolist() == run["ntk/trace"].steps.tolist()[1:]
    np.testing.assert_array_equal(again["ntk/kernel"].values, run["ntk/kernel"].values[1:])


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended")
def test_configuration_without_instruments_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    experiment = yaml.safe_load(EXPERIMENT.read_text()) | {"observe": {}}
    Path("experiment.yaml").write_text(yaml.safe_dump(experiment))
    with pytest.raises(SystemExit):
        main(["replay", "--config", "experiment.yaml", "no.ckpt"])
    assert "names no instrument in observe: or trainer.callbacks" in capsys.readouterr().err
