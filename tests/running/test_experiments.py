"""Experiment files: those shipped are valid and quick to try; what is wrong in one is said in a line."""

from __future__ import annotations

import re
import time
from importlib.resources import files
from pathlib import Path

import killed_study
import pytest
import yaml

from observatory.cli import main
from observatory.running import read_experiment

SHIPPED = sorted(f.name for f in files("observatory.experiments").iterdir() if f.name.endswith(".yaml"))


@pytest.mark.parametrize("name", SHIPPED)
@pytest.mark.parametrize("quick", [False, True])
def test_every_shipped_experiment_is_valid(
    name: str, quick: bool, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--quick"] if quick else []
    assert main(["run", name, "--dry-run", "--output", str(tmp_path), *options]) == 0
    assert "valid" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", SHIPPED)
def test_every_shipped_experiment_can_be_tried_within_a_minute(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    started = time.process_time()
    try:
        assert main(["run", name, "--quick"]) == 0
    except SystemExit:
        message = capsys.readouterr().err
        if "OBSERVATORY_DATA" in message:
            pytest.skip(message.strip())
        raise
    assert time.process_time() - started < 60
    assert "report: " in capsys.readouterr().out
    pages = list(tmp_path.rglob("report.html"))
    assert pages and all("</html>" in page.read_text() for page in pages)


WRONG = [
    ({"base": killed_study.STUDY["base"] | {"modle": {"x": 1}}}, "modle"),
    ({"sweep": {}}, "sweep: must map dotted keys"),
    ({"study": {}}, "study: must name a class"),
    ({"study": {"class_path": "observatory.studies.Nothing"}}, "Nothing cannot be imported"),
    ({"study": {"class_path": "pathlib.Path"}}, "is not a Study"),
    ({"study": {"class_path": "observatory.studies.SeedsAndWidth", "init_args": {"x": 1}}}, "study: .*'x'"),
    ({"stack": "maybe"}, "stack: is true or false"),
    ({"extra": 1}, "extra is no part of a study"),
    ({"quick": {"sweep.nothing": [1]}}, r"quick: sweep\.nothing is not swept"),
]


@pytest.mark.parametrize(("change", "message"), WRONG)
def test_what_is_wrong_is_said_in_one_line(
    change: dict, message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = killed_study.write_study(tmp_path / "small.yaml", **change)
    arguments = ["run", str(file), "--dry-run", *(["--quick"] if "quick" in change else [])]
    with pytest.raises(SystemExit) as refused:
        main(arguments)
    assert refused.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1
    assert re.search(message, lines[0])


@pytest.mark.parametrize(
    ("text", "message"),
    [("- 1", "is not a mapping"), ("a: [", "is not YAML"), ("sweep: {a: [1]}", "needs base:")],
)
def test_other_files_are_refused(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(ValueError, match=message):
        read_experiment(tmp_path / "x.yaml")


def test_unknown_names_are_answered_with_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"seeds_and_width\.yaml"):
        read_experiment("seeds_and_widht")


def test_a_study_may_vary_a_shipped_experiment(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    study = killed_study.STUDY | {"base": "digits", "sweep": {"seed_everything": [0, 1]}}
    file.write_text(yaml.safe_dump(study))
    experiment = read_experiment(file)
    assert experiment.base == {k: v for k, v in read_experiment("digits").base.items() if k != "quick"}
