"""Pages: complete, self-contained, and safe whatever a name contains."""

from __future__ import annotations

import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from observatory.records import Finding, Panel, RunRecord
from observatory.report import Section, write_page, write_report

EVIL = "<script>alert(1)</script>"


def some_record(
    folder: Path, name: str = "ntk", source: str = "observatory.ntk.instrument:CollectiveVariables"
) -> None:
    """A record as the first instrument leaves it."""
    from observatory.ntk.collective import collective_variables
    from observatory.ntk.instrument import CollectiveVariables

    record = RunRecord(folder / "observatory", "x", {"module": "Net"})
    part = record.instrument(
        name, CollectiveVariables().quantities(), source=source, settings={"max_overhead": 0.05}
    )
    random = np.random.default_rng(0)
    for step in (0, 1, 3, 10, 40, 200):
        import torch

        features = torch.from_numpy(random.normal(size=(20, 30))) * (1 + step)
        kernel = features @ features.T
        found = collective_variables(kernel, targets=torch.arange(20) % 4, reference=kernel, previous=kernel)
        scalars = {k: getattr(found, k) for k in CollectiveVariables().quantities() if hasattr(found, k)}
        part.append(step, {**scalars, "spectrum": found.eigenvalues, "kernel": kernel})
        part.note({"event": "look", "step": step, "planned": step, "seconds": 0.01, "free": step == 0})
    record.close()


def test_page_of_a_run_says_what_was_found(tmp_path):
    some_record(tmp_path)
    page = write_report(tmp_path)
    assert page == tmp_path / "report.html"
    text = page.read_text()
    for expected in (
        "the kernel&#39;s entropy",
        "Phase portrait",
        "Spectrum",
        "10.0 ms",
        "5 %",
        "Tr K = Σᵢ Kᵢᵢ",
    ):
        assert expected in text
    assert not re.search(r'(src|href)="(?!data:|#)', text)  # nothing is loaded from elsewhere
    assert text.count("<img") == text.count('alt="') == 5


def test_page_is_the_same_whenever_it_is_written(tmp_path):
    some_record(tmp_path)
    first = write_report(tmp_path).read_bytes()
    assert write_report(tmp_path).read_bytes() == first


def test_markdown_holds_the_same(tmp_path):
    some_record(tmp_path)
    page = write_report(tmp_path, output=tmp_path / "report.md").read_text()
    figures = re.findall(r"!\[.*?\]\((.*?)\)", page)
    assert len(figures) == 5 and all((tmp_path / name).is_file() for name in figures)
    assert "## ntk" in page and "| trace |" in page


def test_class_of_somebody_else_is_not_imported(tmp_path):
    (tmp_path / "evil.py").write_text("raise SystemExit('imported')")
    some_record(tmp_path, source="evil:Instrument")
    text = write_report(tmp_path).read_text()
    assert "figures are plain curves, since its class is not imported" in text and text.count("<img") > 5


def test_figures_that_fail_are_a_warning_on_the_page(tmp_path, monkeypatch):
    from observatory.ntk import figures

    def broken(run: object) -> list[Panel]:
        raise ZeroDivisionError("no ink")

    monkeypatch.setattr(figures, "panels", broken)
    some_record(tmp_path)
    assert "its figures failed: ZeroDivisionError: no ink" in write_report(tmp_path).read_text()


def test_failure_of_an_instrument_is_on_the_page(tmp_path):
    some_record(tmp_path)
    with (tmp_path / "observatory/ntk/events.jsonl").open("a") as file:
        file.write('{"event": "failure", "reason": "RuntimeError: the lens is broken"}\n')
    assert "ntk was switched off: RuntimeError: the lens is broken" in write_report(tmp_path).read_text()


def test_pages_of_other_formats_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"written as \.html or \.md, not as '\.pdf'"):
        write_page("x", [], tmp_path / "x.pdf")


@pytest.mark.skipif(shutil.which("chromium") is None, reason="no Chromium on this machine")
def test_browser_shows_names_and_executes_nothing(tmp_path):
    sync_api = pytest.importorskip("playwright.sync_api")
    from matplotlib.figure import Figure

    figure = Figure()
    figure.subplots().set_title("plain")
    section = Section(
        EVIL, EVIL, [Finding(EVIL, "warning")], [Panel(EVIL, figure, EVIL)], (EVIL,), [(EVIL,)], EVIL
    )
    write_page(EVIL, [section], tmp_path / "evil.html", subtitle=EVIL)
    some_record(tmp_path)
    write_report(tmp_path)
    problems: list[str] = []
    with sync_api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=shutil.which("chromium"), args=["--no-sandbox", "--disable-gpu", "--disable-sync"]
        )
        page = browser.new_page()
        page.on("console", lambda message: problems.append(message.text))
        page.on("pageerror", lambda error: problems.append(str(error)))
        page.on("dialog", lambda dialog: problems.append(f"dialog {dialog.message}"))
        for name in ("evil.html", "report.html"):
            page.goto((tmp_path / name).as_uri())
            widths = page.eval_on_selector_all("img", "images => images.map(i => i.naturalWidth)")
            assert widths and all(width > 0 for width in widths)
        page.goto((tmp_path / "evil.html").as_uri())
        assert page.inner_text("h1") == EVIL and page.inner_text("td") == EVIL
        browser.close()
    assert problems == []
