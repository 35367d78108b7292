"""Records of runs: what is written is what is read, alone or aligned with others."""

from __future__ import annotations

import builtins
import json

import numpy as np
import pytest
import torch

from observatory.records import Quantity, RunRecord, open_run, open_runs

QUANTITIES = {
    "entropy": Quantity((), "nat", "S"),
    "spectrum": Quantity(("rank",), "1", "λ"),
    "norm": Quantity(("layer",), "1", "‖W‖"),
}


def write(directory, steps, *, run_id="a", offset=0.0, metadata=None):
    record = RunRecord(directory, run_id, metadata)
    ntk = record.instrument(
        "ntk", QUANTITIES, source="observatory.ntk:CollectiveVariables", settings={"n": 3}
    )
    for step in steps:
        ntk.append(
            step,
            {
                "entropy": torch.tensor(step + offset),
                "spectrum": np.arange(3.0) + step,
                "norm": torch.ones(2) * step,
            },
            coordinates={"layer": ["first", "second"]},
        )
        ntk.note({"event": "look", "step": step, "planned": step, "seconds": 0.1})
    record.close()


def test_what_is_written_is_what_is_read(tmp_path):
    write(tmp_path / "run/observatory", range(5), metadata={"seed": 7})
    run = open_run(tmp_path / "run")
    assert list(run) == ["ntk/entropy", "ntk/spectrum", "ntk/norm"] and len(run) == 3
    norm = run["ntk/norm"]
    assert (norm.dims, norm.coordinates, norm.unit) == (
        ("step", "layer"),
        {"layer": ["first", "second"]},
        "1",
    )
    np.testing.assert_array_equal(norm.values, np.arange(5.0)[:, None] * [1, 1])
    assert run.metadata["seed"] == 7 and run.metadata["versions"]["numpy"] == np.__version__
    assert run.instrument("ntk")["spectrum"].at(3).tolist() == [3, 4, 5]
    assert run.meta("ntk")["settings"] == {"n": 3}
    assert [event["step"] for event in run.events("ntk")] == [0, 1, 2, 3, 4]
    np.testing.assert_array_equal(np.asarray(run["ntk/entropy"]), np.arange(5.0))


def test_numbers_keep_their_type_and_half_precision_is_raised(tmp_path):
    record = RunRecord(tmp_path, "a")
    part = record.instrument("x", {k: Quantity((), "1", "") for k in "abcd"})
    part.append(0, {"a": torch.tensor(1.5).bfloat16(), "b": torch.tensor(3), "c": True, "d": np.float64(2)})
    types = {key: open_run(tmp_path)[f"x/{key}"].values.dtype.str for key in "abcd"}
    assert types == {"a": "<f4", "b": "<i8", "c": "|b1", "d": "<f8"}


def test_what_is_missing_is_named(tmp_path):
    write(tmp_path / "run/observatory", range(3))
    run = open_run(tmp_path / "run")
    with pytest.raises(
        KeyError, match=r"'ntk/trace' is not in the record .*; there are ntk/entropy, ntk/spectrum"
    ):
        run["ntk/trace"]
    with pytest.raises(KeyError, match=r"no instrument 'fisher' .*; there are ntk"):
        run.instrument("fisher")
    with pytest.raises(KeyError, match=r"not recorded at step 7; the nearest step is 2"):
        run["ntk/entropy"].at(7)
    with pytest.raises(FileNotFoundError, match=r"no record .*did you mean .*run/observatory"):
        open_run(tmp_path)


def test_undeclared_or_misshapen_quantities_are_refused(tmp_path):
    part = RunRecord(tmp_path, "a").instrument("ntk", QUANTITIES)
    with pytest.raises(
        ValueError, match=r"'trace' is not declared by quantities\(\) \(entropy, spectrum, norm\)"
    ):
        part.append(0, {"trace": 1.0})
    with pytest.raises(ValueError, match=r"declared with dims \('rank',\), got a value of shape \(2, 2\)"):
        part.append(0, {"spectrum": np.zeros((2, 2))})


@pytest.mark.parametrize("name", ["", "..", "../up", "a/../../b", "/root", "a//b", "nul\0"])
def test_names_that_lead_out_of_the_record_are_refused(tmp_path, name):
    with pytest.raises(ValueError, match="cannot be a name in a record"):
        RunRecord(tmp_path, "a").instrument(name, QUANTITIES)
    with pytest.raises(ValueError, match="cannot be a name in a record"):
        RunRecord(tmp_path, "a").instrument("fine", {name: Quantity((), "1", "")})


def test_resuming_drops_what_came_later(tmp_path):
    write(tmp_path, range(6))
    with (tmp_path / "ntk/events.jsonl").open("a") as file:
        file.write('{"event": "lo')  # torn by a kill
    RunRecord(tmp_path, "a").truncate_after(3)
    run = open_run(tmp_path)
    assert run["ntk/entropy"].steps.tolist() == [0, 1, 2, 3]
    assert [event["step"] for event in run.events("ntk")] == [0, 1, 2, 3]


def test_type_of_the_first_record_is_kept_by_a_run_that_is_resumed(tmp_path):
    """As by one that is not interrupted: what an instrument returns first may be of another precision."""
    quantities = {"y": Quantity((), "1", "")}
    values = [np.float32(1), np.float64(0.1), np.float64(0.2)]
    whole = RunRecord(tmp_path / "whole", "a").instrument("x", quantities)
    for step, value in enumerate(values):
        whole.append(step, {"y": np.asarray(value)})
        RunRecord(tmp_path / "parts", "a").instrument("x", quantities).append(step, {"y": np.asarray(value)})
    one, other = open_run(tmp_path / "whole")["x/y"], open_run(tmp_path / "parts")["x/y"]
    assert one.values.dtype == other.values.dtype == np.float32
    assert one.values.tolist() == other.values.tolist() == [np.float32(v) for v in values]


def test_folder_of_another_run_and_a_second_name_are_refused(tmp_path):
    write(tmp_path, range(2))
    with pytest.raises(ValueError, match=r"holds the record of another run \(a, this one is b\)"):
        RunRecord(tmp_path, "b")
    record = RunRecord(tmp_path, "a")
    record.instrument("fisher", QUANTITIES)
    with pytest.raises(ValueError, match="two instruments are called 'fisher'"):
        record.instrument("fisher", QUANTITIES)


def test_runs_are_aligned_on_the_union_of_their_steps(tmp_path):
    write(tmp_path / "r0", [0, 1, 4])
    write(tmp_path / "r1", [0, 2, 4], offset=10.0)
    (tmp_path / "r2").mkdir()  # no record: not among them
    runs = open_runs(str(tmp_path / "r*"))
    entropy = runs["ntk/entropy"]
    assert entropy.dims == ("run", "step") and entropy.steps.tolist() == [0, 1, 2, 4]
    nan = np.nan
    np.testing.assert_array_equal(entropy.values, [[0, 1, nan, 4], [10, nan, 12, 14]])
    assert runs["ntk/norm"].values.shape == (2, 4, 2) and "ntk/spectrum" in runs
    with pytest.raises(FileNotFoundError, match="nothing matches"):
        open_runs(str(tmp_path / "q*"))


def test_xarray(tmp_path, monkeypatch):
    xarray = pytest.importorskip("xarray")
    write(tmp_path, range(3))
    array = open_run(tmp_path)["ntk/norm"].to_xarray()
    assert isinstance(array, xarray.DataArray)
    assert array.sel(step=2, layer="second").item() == 2.0 and array.attrs["units"] == "1"
    imported = builtins.__import__

    def without(name, *args, **kwargs):
        if name == "xarray":
            raise ImportError(name)
        return imported(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(ImportError, match=r"training-observatory\[xarray\]"):
        open_run(tmp_path)["ntk/norm"].to_xarray()


def test_metadata_is_plain_json(tmp_path):
    write(tmp_path, range(2))
    for file in (tmp_path / "run.json", tmp_path / "ntk/meta.json"):
        assert json.loads(file.read_text())["format"] == 1
