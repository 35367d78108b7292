"""Pages of studies and comparisons: complete, harmless, and without an error in a browser."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import killed_study
import pytest
from torch.utils.tensorboard import SummaryWriter  # noqa: F401  its import costs a second, once

from observatory.cli import main
from observatory.running import run_experiment, write_comparison

EVIL = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished study whose name holds HTML."""
    root = tmp_path_factory.mktemp("study")
    file = killed_study.write_study(root / f"{EVIL}.yaml")
    assert run_experiment(file, output=root) == 0
    return root / EVIL


def test_the_page_of_a_study_has_verdict_table_and_plan(study: Path) -> None:
    page = (study / "report.html").read_text()
    conclusion = json.loads((study / "conclusion.json").read_text())
    assert len(conclusion["findings"]) >= 5 and conclusion["tables"]
    assert "widths=64-16-10,seed_everything=1" in page
    assert EVIL not in page and "&lt;img" in page
    assert "Wider networks" in (study / "report.md").read_text()


def test_finished_runs_are_not_repeated(study: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = study.parent / f"{EVIL}.yaml"
    before = {path: path.stat().st_mtime_ns for path in study.glob("*=*/**/*") if path.is_file()}
    conclusion = (study / "conclusion.json").read_bytes()
    run_experiment(file, output=study.parent)
    assert before == {path: path.stat().st_mtime_ns for path in study.glob("*=*/**/*") if path.is_file()}
    assert (study / "conclusion.json").read_bytes() == conclusion
    run_experiment(file, output=study.parent, dry_run=True)
    assert "every value valid, 4 of them finished" in capsys.readouterr().out


def test_a_comparison_says_what_differs(study: Path, tmp_path: Path) -> None:
    runs = sorted(study.glob("widths*"))
    page = write_comparison(runs, tmp_path / "comparison.html")
    text = page.read_text()
    assert "model.network.widths" in text.replace(".init_args", "")
    assert "test/loss" in text and "ntk/entropy" in text and EVIL not in text
    for run in runs:
        assert run.name in text
    assert main(["compare", *map(str, runs[:2]), "--output", str(tmp_path / "two.md")]) == 0
    assert "seed\\_everything" in (tmp_path / "two.md").read_text()
    with pytest.raises(ValueError, match="at least two"):
        write_comparison(runs[:1])
    with pytest.raises(ValueError, match="given twice"):
        write_comparison([runs[0], runs[0]])


def test_tensorboard_has_the_initial_state_beside_the_end(study: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

    run = next(study.glob("widths=64-8-10,seed_everything=0"))
    events = EventAccumulator(str(run)).Reload()
    plugin = events.SummaryMetadata("_hparams_/session_start_info").plugin_data
    columns = HParamsPluginData.FromString(plugin.content).session_start_info.hparams
    first = events.Scalars("ntk/entropy")[0].value
    assert columns["initial/ntk/entropy"].number_value == pytest.approx(first, rel=1e-6)
    assert columns["seed_everything"].number_value == 0
    finished = json.loads((run / "finished.json").read_text())["metrics"]
    assert events.Scalars("final/test/loss")[-1].value == pytest.approx(finished["test/loss"], rel=1e-6)
    assert "custom_scalars__config__" in events.Tags()["tensors"]


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium on this machine")
def test_pages_open_without_an_error(study: Path, tmp_path: Path) -> None:
    sync_api = pytest.importorskip("playwright.sync_api")
    pages = [study / "report.html", write_comparison(sorted(study.glob("widths*")), tmp_path / "c.html")]
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu", "--disable-sync"]
        )
        try:
            for path in pages:
                page = browser.new_page()
                wrong: list[str] = []
                page.on("console", lambda m, w=wrong: w.append(m.text) if m.type == "error" else None)
                page.on("pageerror", lambda e, w=wrong: w.append(str(e)))
                page.on("dialog", lambda d, w=wrong: (w.append("dialog"), d.dismiss()))
                page.goto(path.as_uri())
                assert page.evaluate("[...document.images].every(i => i.naturalWidth > 0)")
                assert wrong == []
        finally:
            browser.close()
