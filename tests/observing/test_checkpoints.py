"""Finished runs, looked at through their checkpoints."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from runs import bits
from scenes import EVERY_STEP, Outputs, batches, network
from torch import nn
from torch.nn.functional import cross_entropy

import observatory
from observatory.ntk import CollectiveVariables
from observatory.records import Run

STEPS = (0, 3, 10, 12)


def trained(folder: Path) -> Run:
    """A run of 12 updates, looked at while it went on, that saves its weights at some steps."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    instruments = [CollectiveVariables()]
    with observatory.watch(
        model, probe=batches()[0], instruments=instruments, out=folder, **EVERY_STEP
    ) as watch:
        torch.save(model.state_dict(), folder / "step_0.pt")
        for x, y in batches(12):
            optimizer.zero_grad()
            cross_entropy(model(x), y).backward()
            optimizer.step()
            watch.step()
            if watch.updates in STEPS:
                torch.save(model.state_dict(), folder / f"step_{watch.updates}.pt")
    return observatory.open_run(folder)


def assert_replayed(replayed: Run, run: Run) -> None:
    """Equal values at the saved steps; what depends on the looks before depends on which those were."""
    at = np.searchsorted(run["ntk/trace"].steps, STEPS)
    for quantity in [q for q in run if q not in ("ntk/velocity", "ntk/stage")]:
        assert replayed[quantity].steps.tolist() == list(STEPS)
        np.testing.assert_array_equal(replayed[quantity].values, run[quantity].values[at], quantity)


def test_replayed_record_is_that_of_the_run(tmp_path):
    run = trained(tmp_path)
    model = network()
    before = bits(model.state_dict())
    files = [tmp_path / f"step_{k}.pt" for k in reversed(STEPS)]  # in any order
    replayed = observatory.replay(
        model, files, probe=batches()[0], instruments=[CollectiveVariables()], out=tmp_path / "again"
    )
    assert_replayed(replayed, run)
    assert bits(model.state_dict()) == before and model.training
    assert observatory.write_report(tmp_path / "again").is_file()


@pytest.mark.parametrize("place", ["nested", "below a prefix", "compiled", "wrapped"])
def test_weights_are_found_wherever_a_checkpoint_keeps_them(tmp_path, place):
    model, x = network(), batches()[0][0]
    state = model.state_dict()
    content = {
        "nested": {"model_state_dict": state, "optimizer": {"lr": 0.1}},
        "below a prefix": {"state_dict": {f"net.{k}": v for k, v in state.items()} | {"w": torch.ones(2)}},
        "compiled": {f"net._orig_mod.{k}": v for k, v in state.items()},
        "wrapped": {f"module.{k}": v for k, v in state.items()},
    }[place]
    other = network()
    nn.init.zeros_(other[0].weight)
    run = observatory.replay(other, [content], steps=[7], probe=x, instruments=[Outputs()], out=tmp_path)
    assert run["outputs/outputs"].steps.tolist() == [7]
    np.testing.assert_array_equal(run["outputs/outputs"].values[0], model.eval()(x).detach())


class Closed(nn.Module):
    """Calls its layer through a function that `copy.deepcopy` leaves with the layer of the original."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 3)
        self.call = lambda x: self.layer(x)
        self.unread = open(os.devnull)  # noqa: SIM115 - which it refuses

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.call(x)


def test_a_module_that_deepcopy_cannot_copy_is_replayed(tmp_path):
    model, x = Closed(), batches()[0][0]
    state = {name: torch.ones_like(tensor) for name, tensor in model.state_dict().items()}
    run = observatory.replay(model, [state], probe=x, instruments=[Outputs()], out=tmp_path)
    expected = x.sum(1, keepdim=True).expand(-1, 3) + 1
    np.testing.assert_allclose(run["outputs/outputs"].values[0], expected, rtol=1e-5, atol=1e-6)
    model.unread.close()


def test_of_two_copies_the_prefix_chooses(tmp_path):
    both = {f"{copy}.{k}": v for copy in ("net", "ema") for k, v in network().state_dict().items()}
    options = {"probe": batches()[0], "instruments": [Outputs()], "out": tmp_path}
    with pytest.raises(ValueError, match=r"step 0 does not fit Sequential: .*'net\.', 'ema\.'; choose with"):
        observatory.replay(network(), [both], **options)
    assert len(observatory.replay(network(), [both], prefix="ema.", **options)["outputs/norm"]) == 1


def test_a_torn_file_is_left_out_and_a_program_in_one_never_runs(tmp_path):
    class Program:
        def __reduce__(self):
            return (Path.touch, (tmp_path / "executed",))

    files = [tmp_path / f"step={k}.ckpt" for k in range(4)]
    for file in files[:3]:
        torch.save(network().state_dict(), file)
    files[1].write_bytes(files[1].read_bytes()[:1000])
    torch.save({"state_dict": network().state_dict(), "hyper_parameters": Program()}, files[3])
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        run = observatory.replay(
            network(), files, probe=batches()[0], instruments=[Outputs()], out=tmp_path / "run"
        )
    assert run["outputs/norm"].steps.tolist() == [0, 2]
    assert not (tmp_path / "executed").exists()
    reasons = [str(one.message) for one in caught]
    assert len(reasons) == 2 and all("a checkpoint is left out" in reason for reason in reasons)
    assert "step=1.ckpt" in reasons[0] and "add_safe_globals" in reasons[1]


def test_what_does_not_fit_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"step 0 does not fit Linear: .*does not hold all of weight, bias"):
        observatory.replay(nn.Linear(3, 2), [{"w": torch.ones(3)}], instruments=[Outputs()], out=tmp_path)
    with pytest.raises(ValueError, match=r"step 0 does not fit Linear: [\s\S]*size mismatch for weight"):
        observatory.replay(
            nn.Linear(3, 2), [nn.Linear(4, 2).state_dict()], instruments=[Outputs()], out=tmp_path
        )
    with pytest.raises(ValueError, match="2 steps are given for 1 checkpoints"):
        observatory.replay(nn.Linear(3, 2), [{}], steps=[1, 2], instruments=[Outputs()], out=tmp_path)
    with pytest.raises(ValueError, match="none of 0 checkpoints can be read"):
        observatory.replay(nn.Linear(3, 2), [], instruments=[Outputs()], out=tmp_path)


def test_order_of_unnamed_checkpoints_is_that_of_the_series(tmp_path):
    states = [
        {k: v * 0 + scale for k, v in nn.Linear(6, 3).state_dict().items()} for scale in (3.0, 1.0, 2.0)
    ]
    run = observatory.replay(
        nn.Linear(6, 3), states, probe=batches()[0], instruments=[Outputs()], out=tmp_path
    )
    assert run["outputs/norm"].steps.tolist() == [0, 1, 2]
    # 21 parameters of one value
    np.testing.assert_allclose(run["outputs/norm"].values, 21**0.5 * np.array([3, 1, 2]), rtol=1e-6)
