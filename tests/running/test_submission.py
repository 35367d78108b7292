"""Runs as jobs."""

from __future__ import annotations

import sys
from pathlib import Path

import killed_study
import pytest

from observatory.cli import main
from observatory.running import run_experiment

SMALL = {
    "sweep": {
        "model.init_args.network.init_args.widths": [[64, 8, 10], [64, 16, 10]],
        "seed_everything": [0, 1],
    }
}


@pytest.mark.slow
def test_jobs_of_this_machine_conclude_as_this_process_does(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    file = killed_study.write_study(tmp_path / "small.yaml", **SMALL)
    assert run_experiment(file, output=tmp_path / "jobs", submit="local") == 0
    run_experiment(file, output=tmp_path / "here")
    one, other = (tmp_path / where / "small/conclusion.json" for where in ("jobs", "here"))
    assert one.read_text() == other.read_text()
    assert len(list((tmp_path / "jobs/small/jobs").glob("*.pkl"))) > 0


@pytest.mark.slow
def test_a_job_that_fails_is_named_when_the_others_are_done(tmp_path: Path) -> None:
    pytest.importorskip("submitit")
    sweep = {
        "model.init_args.network.init_args.widths": [[64, 8, 10], [64, 16, 10]],
        "data.init_args.subset": [500, 100000],
    }
    file = killed_study.write_study(tmp_path / "small.yaml", sweep=sweep, stack=False)
    with pytest.raises(RuntimeError, match=r"2 of 4 jobs failed.*subset"):
        run_experiment(file, output=tmp_path, submit="local")
    assert len(list((tmp_path / "small").glob("*/finished.json"))) == 2


def test_without_submitit_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "submitit", None)
    file = killed_study.write_study(tmp_path / "small.yaml")
    with pytest.raises(SystemExit):
        main(["run", str(file), "--submit", "local", "--output", str(tmp_path)])
    assert "training-observatory[submitit]" in capsys.readouterr().err
