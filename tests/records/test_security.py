"""Records that somebody sent: they are read, never executed."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from observatory.records import RunRecord, open_run, read_growing
from observatory.records.growing import HEADER_BYTES, header, record_dtype
from observatory.records.quantity import Quantity


class Program:
    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self):
        return (os.mkdir, (str(self.marker),))


def test_pickles_inside_an_array_are_refused(tmp_path):
    path = tmp_path / "a.npy"
    np.save(
        path,
        np.array(
            [(0, 0.0, Program(tmp_path / "executed"))], [("step", "<i8"), ("time", "<f8"), ("value", "O")]
        ),
        allow_pickle=True,
    )
    with pytest.raises(ValueError, match="is no growing array of a record"):
        read_growing(path)
    assert not (tmp_path / "executed").exists()


def test_objects_in_a_header_of_our_own_layout_are_refused(tmp_path):
    """Mapped as objects, bytes of the file would be taken for addresses."""
    text, _ = header(record_dtype("<f8", ()))
    forged = text.replace(b"('value', '<f8')", b"('value', '|O') ")
    assert forged != text and len(forged) == HEADER_BYTES
    (tmp_path / "a.npy").write_bytes(forged + b"\x7f" * 240)
    with pytest.raises(ValueError, match="is no growing array of a record"):
        read_growing(tmp_path / "a.npy")


def test_numpy_reads_a_record_without_pickle(tmp_path):
    record = RunRecord(tmp_path, "a")
    record.instrument("x", {"y": Quantity((), "1", "")}).append(3, {"y": 2.0})
    loaded = np.load(tmp_path / "x/y.npy", allow_pickle=False)
    assert loaded["value"].tolist() == [2.0] and open_run(tmp_path)["x/y"].steps.tolist() == [3]
