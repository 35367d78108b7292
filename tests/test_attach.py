"""The entry point that attaches to every Trainer of an environment."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from runs import fit

from observatory.attach import from_environment
from observatory.callbacks import CollectiveVariables
from observatory.records import open_run

SCRIPT = """
import lightning.pytorch as pl, torch
from torch.utils.data import DataLoader, TensorDataset
class Net(pl.LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(4, 2)
    def forward(self, x):
        return self.layer(x)
    def training_step(self, batch, _):
        return torch.nn.functional.cross_entropy(self(batch[0]), batch[1])
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)
pl.seed_everything(0)
data = TensorDataset(torch.randn(32, 4), torch.arange(32) % 2)
trainer = pl.Trainer(max_epochs=2, accelerator="cpu", enable_progress_bar=False,
                     enable_checkpointing=False, logger=False)
model = Net()
trainer.fit(model, DataLoader(data, 8, shuffle=True))
print("weights", model.layer.weight.flatten().tolist())
"""


def run_script(folder: Path, script: str = SCRIPT, **environment: str) -> subprocess.CompletedProcess[str]:
    (folder / "script.py").write_text(script)
    clean = {k: v for k, v in os.environ.items() if k != "OBSERVATORY"}
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=clean | environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done


def weights(done: subprocess.CompletedProcess[str]) -> str:
    return next(line for line in done.stdout.splitlines() if line.startswith("weights"))


def test_unset_variable_attaches_nothing(monkeypatch):
    monkeypatch.delenv("OBSERVATORY", raising=False)
    assert from_environment() == []


@pytest.mark.parametrize(
    "content, reason",
    [
        (None, "there is no file"),
        ("", "has no mapping `observe:`"),
        ("observe: [1, 2]", "has no mapping `observe:`"),
        ("observe: {a: {class_path: NoSuchThing}}", "NoSuchThing"),
        ("observe: {a: {class_path: CollectiveVariables, init_args: {every_n_stepz: 3}}}", "every_n_stepz"),
        (
            "observe: {a: {class_path: CollectiveVariables, init_args: {every_n_steps: 0}}}",
            "must be positive",
        ),
        ("observe: {a: [", "observe"),
        (
            "observe: {a: CollectiveVariables, b: {class_path: CollectiveVariables, init_args: {name: a}}}",
            "two entries of observe: are called 'a'",
        ),
    ],
)
def test_broken_file_is_one_warning(tmp_path, monkeypatch, content, reason):
    if content is not None:
        (tmp_path / "broken.yaml").write_text(content)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OBSERVATORY", "broken.yaml")
    with pytest.warns(UserWarning, match="OBSERVATORY=broken.yaml is not used, training goes on") as caught:
        assert from_environment() == []
    assert len(caught) == 1 and reason in str(caught[0].message)


def test_name_that_the_script_uses_already_is_not_in_its_way(tmp_path, monkeypatch):
    (tmp_path / "observe.yaml").write_text("observe: {ntk: CollectiveVariables}")
    monkeypatch.setenv("OBSERVATORY", str(tmp_path / "observe.yaml"))
    own = CollectiveVariables(every_n_steps=6, max_overhead=None)
    with pytest.warns(UserWarning, match="'ntk' is not recorded any more.*give one of them another name="):
        fit(tmp_path, [own], max_epochs=1)
    trace = open_run(tmp_path / "observatory/run_0")["ntk/trace"]
    assert trace.steps.tolist() == [0, 6, 12]


def test_two_names_of_the_file_are_two_records_of_one_class(tmp_path, monkeypatch):
    content = "observe: {early: {class_path: CollectiveVariables, init_args: {at: [2], max_overhead: null}}, "
    (tmp_path / "observe.yaml").write_text(content + "all: CollectiveVariables}")
    monkeypatch.setenv("OBSERVATORY", str(tmp_path / "observe.yaml"))
    fit(tmp_path, max_epochs=1)
    run = open_run(tmp_path / "observatory/run_0")
    assert run.instruments == ["all", "early"]
    assert run["early/trace"].steps.tolist() == [0, 2, 12]


@pytest.mark.slow
def test_script_of_the_pytorch_lightning_package_is_watched_and_not_changed(tmp_path):
    pytest.importorskip("pytorch_lightning", reason="the pytorch_lightning package is not installed")
    for name in ("plain", "watched"):
        (tmp_path / name).mkdir()
    (tmp_path / "watched/observe.yaml").write_text(
        "observe:\n  kernel:\n    class_path: CollectiveVariables\n"
        "    init_args: {every_n_steps: 2, max_overhead: null}\n"
    )
    script = SCRIPT.replace("lightning.pytorch", "pytorch_lightning")
    plain = run_script(tmp_path / "plain", script)
    watched = run_script(tmp_path / "watched", script, OBSERVATORY="observe.yaml")
    assert weights(watched) == weights(plain)
    trace = open_run(tmp_path / "watched/observatory/run_0")["kernel/trace"]
    assert trace.steps.tolist() == [0, 2, 4, 6, 8]


def test_script_that_never_heard_of_the_package_is_watched_and_not_changed(tmp_path):
    (tmp_path / "plain").mkdir()
    (tmp_path / "watched").mkdir()
    (tmp_path / "watched/observe.yaml").write_text(
        "observe:\n  kernel:\n    class_path: CollectiveVariables\n"
        "    init_args: {every_n_steps: 2, max_overhead: null}\n"
    )
    plain = run_script(tmp_path / "plain")
    watched = run_script(tmp_path / "watched", OBSERVATORY="observe.yaml")
    assert weights(watched) == weights(plain)
    trace = open_run(tmp_path / "watched/observatory/run_0")["kernel/trace"]
    assert trace.steps.tolist() == [0, 2, 4, 6, 8]
