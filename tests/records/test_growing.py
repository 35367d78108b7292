"""The growing array: readable at any moment, whole after any accident."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from observatory.records import GrowingArray, read_growing
from observatory.records.growing import HEADER_BYTES


@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<i8", "?"])
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_numpy_reads_what_was_appended(tmp_path, dtype, shape):
    array = GrowingArray(tmp_path / "a.npy", dtype, shape)
    values = (np.arange(7 * int(np.prod(shape))).reshape(7, *shape) % 5).astype(dtype)
    for k, value in enumerate(values):
        array.append(3 * k, 0.5 * k, np.asarray(value))
        seen = np.load(tmp_path / "a.npy", mmap_mode="r")  # at every moment
        np.testing.assert_array_equal(seen["value"], values[: k + 1])
    loaded = np.load(tmp_path / "a.npy")
    assert loaded["step"].tolist() == [0, 3, 6, 9, 12, 15, 18]
    assert loaded["time"].tolist() == [0.5 * k for k in range(7)]
    assert loaded["value"].dtype == np.dtype(dtype)


def test_reopened_array_goes_on(tmp_path):
    for k in range(3):
        array = GrowingArray(tmp_path / "a.npy", "f8", (2,))
        array.append(k, 0.0, np.full(2, k, float))
        array.close()
    assert np.load(tmp_path / "a.npy")["value"].tolist() == [[0, 0], [1, 1], [2, 2]]


@pytest.mark.parametrize("torn", range(1, 24, 5))
def test_torn_record_is_not_there(tmp_path, torn):
    path = tmp_path / "a.npy"
    array = GrowingArray(path, "f8", ())
    for k in range(4):
        array.append(k, 0.0, np.asarray(float(k)))
    array.close()
    with path.open("ab") as file:
        file.write(b"\x7f" * torn)
    assert read_growing(path)["value"].tolist() == [0, 1, 2, 3]
    again = GrowingArray(path, "f8", ())
    again.append(9, 0.0, np.asarray(9.0))
    assert read_growing(path)["value"].tolist() == [0, 1, 2, 3, 9]
    assert path.stat().st_size == HEADER_BYTES + 5 * 24


def test_resuming_drops_later_records(tmp_path):
    path = tmp_path / "a.npy"
    array = GrowingArray(path, "f4", (2,))
    for step in (0, 2, 5, 9):
        array.append(step, 0.0, np.full(2, step, np.float32))
    array.close()
    GrowingArray.drop_after(path, 5)
    assert np.load(path)["step"].tolist() == [0, 2, 5]
    GrowingArray.drop_after(path, -1)
    assert len(np.load(path)) == 0


@pytest.mark.parametrize("dtype, shape", [("f8", (3,)), ("f4", (2,)), ("f8", ())])
def test_changed_shape_or_type_is_refused_with_both_named(tmp_path, dtype, shape):
    GrowingArray(tmp_path / "a.npy", "f8", (2,)).append(0, 0.0, np.zeros(2))
    with pytest.raises(ValueError, match=r"holds values of dtype float64 and shape \(2,\), not of dtype"):
        GrowingArray(tmp_path / "a.npy", dtype, shape)
    with pytest.raises(ValueError, match=r"shape \(2,\), got one of shape \(5,\)"):
        GrowingArray(tmp_path / "a.npy", "f8", (2,)).append(1, 0.0, np.zeros(5))


@pytest.mark.parametrize("dtype, value", [("i8", 0.5), ("i8", np.nan), ("?", 1)])
def test_numbers_that_the_type_of_the_first_record_cannot_hold_are_refused(tmp_path, dtype, value):
    array = GrowingArray(tmp_path / "a.npy", dtype, ())
    with pytest.raises(
        ValueError, match=r"holds values of dtype .* and shape \(\), got one of (float|int)64"
    ):
        array.append(0, 0.0, np.asarray(value))
    assert array.count == 0


def test_other_files_are_refused(tmp_path):
    np.save(tmp_path / "b.npy", np.zeros(100))
    (tmp_path / "c.npy").write_bytes(b"x" * 1000)
    for name in ("b.npy", "c.npy"):
        with pytest.raises(ValueError, match="is no growing array"):
            GrowingArray(tmp_path / name, "f8", ())


def test_full_disk_raises_and_leaves_whole_records(tmp_path, monkeypatch):
    array = GrowingArray(tmp_path / "a.npy", "f8", (4,))
    array.append(0, 0.0, np.ones(4))
    write = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda file, data, offset: write(file, data[:10], offset))
    with pytest.raises(OSError, match=r"only 10 of 48 bytes fit into .*a\.npy: the disk is full"):
        array.append(1, 0.0, np.ones(4))
    monkeypatch.undo()
    assert np.load(tmp_path / "a.npy")["step"].tolist() == [0]
    array.append(2, 0.0, np.ones(4))
    assert np.load(tmp_path / "a.npy")["step"].tolist() == [0, 2]


WRITER = """
import sys, numpy as np
from pathlib import Path
from observatory.records import GrowingArray
arrays = [GrowingArray(Path(sys.argv[1]) / f"{k}.npy", "f8", (k,)) for k in (1, 50)]
print("ready", flush=True)
step = 0
while True:
    for array in arrays:
        array.append(step, 0.0, np.full(array._shape, float(step)))
    step += 1
"""


def test_killed_at_random_instants_every_record_is_whole(tmp_path):
    random = np.random.default_rng(0)
    for attempt in range(10):
        folder = tmp_path / str(attempt)
        folder.mkdir()
        writer = subprocess.Popen([sys.executable, "-c", WRITER, str(folder)], stdout=subprocess.PIPE)
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(random.uniform(0.001, 0.05))
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        writer.stdout.close()
        for k in (1, 50):
            records = read_growing(folder / f"{k}.npy")
            assert records["step"].tolist() == list(range(len(records)))
            assert (records["value"] == records["step"][:, None]).all()
            assert len(np.load(folder / f"{k}.npy")) in (len(records), len(records) - 1)
