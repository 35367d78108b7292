"""Runs of equal shape, trained as one stack, leave what each leaves in a run of its own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import killed_study
import numpy as np
import pytest
import torch
import yaml

from observatory.records import open_run
from observatory.report import read_metrics
from observatory.running import plan_runs, read_experiment
from observatory.running.execution import END, RunFolder, execute
from observatory.running.stack import Unit, units_of
from observatory.running.sweep import with_values

CALLBACKS = "observatory.callbacks"


def folders_of(root: Path, **changes: Any) -> list[RunFolder]:
    file = killed_study.write_study(root / "small.yaml", **changes)
    runs = plan_runs(read_experiment(file))
    folders = [RunFolder(root / run.name, run) for run in runs]
    for folder in folders:
        folder.claim()
    return folders


def with_base(**values: Any) -> dict[str, Any]:
    """The base of the small study with dotted keys changed."""
    return with_values(killed_study.STUDY["base"], {key.replace("__", "."): v for key, v in values.items()})


OBSERVE = {
    "ntk": {
        "class_path": f"{CALLBACKS}.CollectiveVariables",
        "init_args": {"probe": 10, "max_overhead": None, "every_n_steps": 3},
    },
    "fisher": {
        "class_path": f"{CALLBACKS}.FisherInformation",
        "init_args": {"probe": 10, "max_overhead": None, "every_n_steps": 13},
    },
    "weights": {
        "class_path": f"{CALLBACKS}.WeightFluctuations",
        "init_args": {"select": "network.3", "window": [8, 38], "directions": 3, "max_overhead": None},
    },
}
SWEEP = {
    "zip": {
        "seed_everything": [0, 1, 2],
        "data.init_args.seed": [3, 4, 5],
        "data.init_args.shuffle_labels": [0.0, 0.5, 1.0],
        "model.init_args.optimizer.init_args.lr": [0.1, 0.03, 0.1],
    }
}


def test_each_member_leaves_what_it_leaves_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Float32: round-off of 1e-7 per step, after 40 steps of SGD below 1e-4 of any value."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    optimizer = {"class_path": "torch.optim.SGD", "init_args": {"lr": 0.1}}
    base = with_base(observe=OBSERVE, model__init_args__optimizer=optimizer, report=False)
    (tmp_path / "alone").mkdir()
    alone = folders_of(tmp_path / "alone", base=base, sweep=SWEEP)
    (tmp_path / "stacked").mkdir()
    stacked = folders_of(tmp_path / "stacked", base=base, sweep=SWEEP)
    units = units_of(stacked)
    assert [len(unit.folders) for unit in units] == [3]
    finished = units[0].execute()
    for folder, together in zip(alone, finished, strict=True):
        own = execute(folder)
        assert (own.name, own.point) == (together.name, together.point)
        assert set(own.metrics) == set(together.metrics)
        for name, value in own.metrics.items():
            assert together.metrics[name] == pytest.approx(value, rel=2e-3, abs=1e-5, nan_ok=True), name
        one, other = open_run(folder.path), open_run(together.folder)
        assert list(one) == list(other) and len(list(one)) > 20
        for name in one:
            assert np.array_equal(one[name].steps, other[name].steps), name
        for name in ("ntk/trace", "ntk/entropy", "fisher/trace", "weights/temperature"):
            np.testing.assert_allclose(one[name].values, other[name].values, rtol=1e-3, err_msg=name)
        a, b = read_metrics(folder.path), read_metrics(together.folder)
        assert a.keys() >= b.keys() >= {"train/loss", "val/loss", "val/accuracy"}
        for name in ("train/loss", "val/loss", "test/loss"):
            assert a[name][0] == b[name][0], name
            np.testing.assert_allclose(a[name][1], b[name][1], rtol=1e-3)
        end, there = (torch.load(path / END, weights_only=True) for path in (folder.path, together.folder))
        assert end["global_step"] == there["global_step"]
        for name, weights in end["state_dict"].items():
            torch.testing.assert_close(there["state_dict"][name], weights, atol=1e-5, rtol=0)
        files = {p.name for p in folder.path.iterdir()} ^ {p.name for p in together.folder.iterdir()}
        assert not {name for name in files if not name.startswith("events.out")}
        configured = [yaml.safe_load((p / "config.yaml").read_text()) for p in (folder.path, together.folder)]
        assert configured[0]["seed_everything"] == configured[1]["seed_everything"]
        assert not list(elsewhere.iterdir())
        assert one.metadata["seed"] == other.metadata["seed"] == str(own.point["seed_everything"])


def test_only_runs_of_equal_shape_share_a_stack(tmp_path: Path) -> None:
    sweep = {
        "model.init_args.network.init_args.widths": [[64, 8, 10], [64, 16, 10]],
        "data.init_args.batch_size": [50, 100],
        "seed_everything": [0, 1, 2],
    }
    units = units_of(folders_of(tmp_path, sweep=sweep))
    assert [len(unit.folders) for unit in units] == [3, 3, 3, 3]
    assert [unit.folders[0].run.point["seed_everything"] for unit in units] == [0] * 4


@pytest.mark.parametrize(
    "changes",
    [
        {"trainer__callbacks": [{"class_path": "lightning.pytorch.callbacks.DeviceStatsMonitor"}]},
        {"trainer__devices": 2},
        {"observe": {"x": {"class_path": "lightning.pytorch.callbacks.LearningRateMonitor"}}},
        {"model__init_args__network__init_args__dropout": 0.5},
        {"model__init_args__optimizer": {"class_path": "torch.optim.LBFGS"}},
    ],
)
def test_what_belongs_to_one_run_is_not_shared(changes: dict[str, Any], tmp_path: Path) -> None:
    sweep = {"seed_everything": [0, 1, 2]}
    assert len(units_of(folders_of(tmp_path, base=with_base(**changes), sweep=sweep))) == 3


class Moody(torch.nn.Linear):
    """Asks for the values of its inputs, which a stack cannot answer for all members at once."""

    def __init__(self) -> None:
        super().__init__(64, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x if x.sum() > 0 else -x)


def test_networks_that_cannot_be_stacked_run_one_after_the_other(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = with_base(
        model__init_args__network={"class_path": "test_stack.Moody"}, trainer__max_epochs=1, observe={}
    )
    units = units_of(folders_of(tmp_path, base=base, sweep={"seed_everything": [0, 1]}))
    assert [len(unit.folders) for unit in units] == [2]
    assert len(units[0].execute()) == 2
    assert "trained one after the other, because" in caplog.text


def test_a_study_may_train_every_run_alone(tmp_path: Path) -> None:
    file = killed_study.write_study(tmp_path / "small.yaml", stack=False)
    assert not read_experiment(file).stack
    assert Unit(folders_of(tmp_path)[:1]).name == "widths=64-8-10,seed_everything=0"


def test_trained_stacks_are_finished_without_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Killed between the pages of its members: the rest are written from what is there."""
    from observatory.running import execution, stack

    folders = folders_of(tmp_path, sweep={"seed_everything": [0, 1]})
    finish = RunFolder.finish
    monkeypatch.setattr(RunFolder, "finish", lambda self, metrics: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        units_of(folders)[0].execute()
    monkeypatch.setattr(RunFolder, "finish", finish)
    monkeypatch.setattr(execution, "train", None)
    monkeypatch.setattr(stack, "train", None)
    assert [folder.finished() for folder in folders] == [None, None]
    stack.finish_trained(folders)
    assert [folder.finished().metrics.keys() >= {"test/loss"} for folder in folders] == [True, True]
    assert not list(tmp_path.glob(".stack-*"))
