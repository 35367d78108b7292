"""The command line: what it runs, and what it says when it cannot."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from observatory.cli import main
from observatory.records import open_run

EXPERIMENT = Path(__file__).parent.parent / "experiments" / "digits.yaml"
QUICK = [
    "--trainer.max_epochs",
    "2",
    "--trainer.enable_progress_bar",
    "false",
    "--data.init_args.batch_size",
    "128",
]


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line with which a command is refused."""
    with pytest.raises(SystemExit) as exit:
        main(arguments)
    (line,) = [line for line in capsys.readouterr().err.split("\n") if line.startswith("observatory: ")]
    assert exit.value.code == 2
    return line


def table_of(folder: Path) -> Any:
    """The hyperparameters that TensorBoard shows of a run."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    events = accumulator.EventAccumulator(str(folder)).Reload()
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
    return HParamsPluginData.FromString(plugin.content).session_start_info.hparams


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended")
def test_fit_trains_observes_tests_and_reports(tmp_path, capsys):
    assert main(["fit", "--config", str(EXPERIMENT), *QUICK]) == 0
    lines = capsys.readouterr().out.strip().split("\n")[-5:]
    folder = tmp_path / "runs/digits/version_0"
    assert lines[0].startswith("after 20 steps: test/loss") and "test/accuracy" in lines[0]
    assert lines[1].startswith("ntk: the kernel's entropy")
    assert "looks" in lines[2] and "budget of 5 %" in lines[2]
    assert lines[3] == "report: runs/digits/version_0/report.html" and (tmp_path / lines[3][8:]).is_file()
    assert lines[4] == "dashboard: tensorboard --logdir runs/digits"
    run = open_run(folder)
    assert run["ntk/entropy"].steps[[0, -1]].tolist() == [0, 20]
    assert run["ntk/kernel"].values.shape[1:] == (50, 50)
    assert yaml.safe_load((folder / "config.yaml").read_text())["observe"]["ntk"]["class_path"].endswith(
        "Variables"
    )
    columns = table_of(folder)
    first = run["ntk/entropy"].values[0]
    assert columns["initial/ntk/entropy"].number_value == pytest.approx(first, rel=1e-6)
    assert columns["data.batch_size"].number_value == 128
    assert columns["model.network"].string_value.endswith("ConvNet")


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended")
def test_instruments_among_the_callbacks_of_the_trainer_watch_beside_those_of_observe(tmp_path):
    config = yaml.safe_load(EXPERIMENT.read_text()) | {"report": False}
    options = {"probe": 8, "name": "own", "at": [3]}
    config["trainer"]["callbacks"] = [{"class_path": "FisherInformation", "init_args": options}]
    Path("both.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", "both.yaml", *QUICK[:1], "1", *QUICK[2:]]) == 0
    run = open_run(tmp_path / "runs/digits/version_0")
    assert run.instruments == ["ntk", "own"]
    assert run["own/trace"].steps.tolist() == [0, 3, 10]


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended")
@pytest.mark.parametrize(
    "arguments, message",
    [
        (["--trainer.max_epochz", "2"], "max_epochz"),
        (["--data.init_args.batch_sice", "2"], "batch_sice"),
        (["--observe.ntk.init_args.every_n_stepz", "2"], "every_n_stepz"),
        (["--observe.more.class_path", "NoSuchInstrument"], "NoSuchInstrument"),
        (["--model.class_path", "NoSuchModel"], "NoSuchModel"),
        (["--trainer.max_epochs", "many"], "many"),
        (["--config", "nowhere.yaml"], "nowhere.yaml"),
    ],
)
def test_what_is_misspelt_is_named_in_one_line(capsys, arguments, message):
    assert message in refused(capsys, "fit", "--config", str(EXPERIMENT), *arguments)


@pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended")
def test_missing_data_is_one_line_that_names_the_variable(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("OBSERVATORY_DATA", str(tmp_path / "nothing"))
    config = yaml.safe_load(EXPERIMENT.read_text())
    config["data"] = {"class_path": "observatory.data.MNIST", "init_args": {}}
    Path("mnist.yaml").write_text(yaml.safe_dump(config))
    line = refused(capsys, "fit", "--config", "mnist.yaml", *QUICK[:4])
    assert "set OBSERVATORY_DATA" in line and "idx3" in line


def test_report_of_a_run_as_html_and_markdown(capsys, tmp_path):
    from test_page import some_record

    some_record(tmp_path / "run")
    assert main(["report", "run"]) == 0
    assert Path("run/report.html").is_file()
    assert main(["report", "run", "--output", "page.md"]) == 0
    assert capsys.readouterr().out.split() == ["run/report.html", "page.md"]


def test_report_of_nothing_is_refused(capsys):
    assert "there is no record (run.json) in nowhere" in refused(capsys, "report", "nowhere")


def test_unknown_commands_are_refused(capsys):
    assert "invalid choice: 'fitt'" in refused(capsys, "fitt")


def test_list_names_what_can_be_configured(capsys):
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name in ("CollectiveVariables", "Observatory", "Digits", "Supervised", "digits.yaml"):
        assert name in out


def test_shipped_experiments_are_those_of_the_folder():
    from importlib.resources import files

    shipped = {
        file.name for file in files("observatory.experiments").iterdir() if file.name.endswith(".yaml")
    }
    assert shipped == {file.name for file in EXPERIMENT.parent.glob("*.yaml")}
