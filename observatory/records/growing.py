"""One growing .npy file: append-only, readable at any moment, safe against `kill -9` at any instant."""

from __future__ import annotations

import os
import struct
from pathlib import Path

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

HEADER_BYTES = 256
COUNT_DIGITS = 15
_CLOCK = struct.Struct("<qd")


def record_dtype(dtype: DTypeLike, shape: tuple[int, ...]) -> np.dtype:
    """Step, seconds since the epoch, value: what one look leaves of one quantity."""
    return np.dtype([("step", "<i8"), ("time", "<f8"), ("value", np.dtype(dtype).newbyteorder("<"), shape)])


def header(dtype: np.dtype) -> tuple[bytes, int]:
    """The .npy header (format 1.0) of no records, padded to a fixed length, and where its count stands."""
    before = f"{{'descr': {npy.dtype_to_descr(dtype)!r}, 'fortran_order': False, 'shape': ("
    text = f"{before}{0:>{COUNT_DIGITS}},), }}"
    room = HEADER_BYTES - 10 - 1
    if len(text) > room:
        raise ValueError(f"a value of {dtype['value']} needs a header of more than {HEADER_BYTES} bytes")
    body = text.ljust(room).encode("latin1") + b"\n"
    return b"\x93NUMPY\x01\x00" + len(body).to_bytes(2, "little") + body, 10 + len(before)


class GrowingArray:
    """Appends records of one shape and dtype to `path`; `numpy.load(path)` reads them at any moment.

    The record is written first, in one call, and the count in the header second, so that a reader sees whole
    records only. The true count is the file's size: a torn record at the end, left by a full disk or a killed
    process, is dropped when the file is opened again. The header is not memory-mapped: where a file was cut
    short by somebody else, or its server went away, a write is refused with an error, but a store into a map
    kills the process.

    Args:
        path: of the .npy file; made if it does not exist.
        dtype: of the values.
        shape: of one value.

    Raises:
        ValueError: if the file holds records of another dtype or shape, or is no growing array.
        OSError: if the disk refuses.
    """

    def __init__(self, path: Path, dtype: DTypeLike, shape: tuple[int, ...]) -> None:
        self.path = path
        self.dtype = record_dtype(dtype, shape)
        self.count = 0
        self._shape = shape
        self._header, self._count_at = header(self.dtype)
        self._file = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            self._open()
        except BaseException:
            self.close()
            raise

    def _open(self) -> None:
        size = os.fstat(self._file).st_size
        if size < HEADER_BYTES:  # new, or killed while it was made
            os.ftruncate(self._file, 0)
            self._write(self._header, 0)
            size = HEADER_BYTES
        elif (found := read_dtype(self.path)) != self.dtype:
            raise ValueError(
                f"{self.path} holds values of {_words(found)}, not of {_words(self.dtype)}: "
                "a changed shape cannot continue a record; record into another folder"
            )
        self.cut((size - HEADER_BYTES) // self.dtype.itemsize)

    def append(self, step: int, time: float, value: NDArray) -> None:
        """Append one record. If the disk is full the file is as before, and OSError is raised.

        The first record settles the type: later ones of its kind (float32 among float64) are cast to it.

        Raises:
            ValueError: if the value has another shape than the records before it, or is of another kind, such
                as real numbers among integers.
        """
        if value.shape != self._shape:
            raise ValueError(
                f"{self.path} holds values of shape {self._shape}, got one of shape {value.shape}"
            )
        if not np.can_cast(value.dtype, self.dtype["value"].base, "same_kind"):
            raise ValueError(f"{self.path} holds values of {_words(self.dtype)}, got one of {value.dtype}")
        data = _CLOCK.pack(step, time) + value.astype(self.dtype["value"].base, copy=False).tobytes()
        end = HEADER_BYTES + self.count * self.dtype.itemsize
        try:
            self._write(data, end)
        except OSError:
            os.ftruncate(self._file, end)
            raise
        self._set_count(self.count + 1)

    @classmethod
    def drop_after(cls, path: Path, step: int) -> None:
        """Drop the records in `path` of later steps than `step`."""
        value = read_dtype(path)["value"]
        array = cls(path, value.base, value.shape)
        try:
            array.cut(int(np.searchsorted(read_growing(path)["step"], step, side="right")))
        finally:
            array.close()

    def cut(self, count: int) -> None:
        """Keep the first `count` records."""
        self._set_count(count)
        os.ftruncate(self._file, HEADER_BYTES + count * self.dtype.itemsize)

    def _set_count(self, count: int) -> None:
        self._write(b"%*d" % (COUNT_DIGITS, count), self._count_at)
        self.count = count

    def _write(self, data: bytes, offset: int) -> None:
        written = os.pwrite(self._file, data, offset)
        if written != len(data):  # a full disk takes what it can and reports no error
            raise OSError(f"only {written} of {len(data)} bytes fit into {self.path}: the disk is full")

    def close(self) -> None:
        """Close the file; safe to call twice."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def begun(file: Path) -> bool:
    """Whether it holds a header; a process killed while it made the file leaves less."""
    return file.is_file() and file.stat().st_size >= HEADER_BYTES


def read_dtype(path: Path) -> np.dtype:
    """The dtype of the records in `path`.

    Raises:
        ValueError: if it is no growing array.
    """
    with open(path, "rb") as file:
        try:
            if npy.read_magic(file) != (1, 0):
                raise ValueError("format")
            _, _, dtype = npy.read_array_header_1_0(file)
        except ValueError as error:
            raise ValueError(f"{path} is no growing array of a record") from error
        if file.tell() != HEADER_BYTES or dtype.names != ("step", "time", "value") or dtype.hasobject:
            raise ValueError(f"{path} is no growing array of a record")
    return dtype


def _words(dtype: np.dtype) -> str:
    value = dtype["value"]
    return f"dtype {value.base} and shape {value.shape}"


def read_growing(path: Path) -> np.ndarray:
    """All whole records in `path`, memory-mapped, also while somebody appends to it."""
    dtype = read_dtype(path)
    count = (path.stat().st_size - HEADER_BYTES) // dtype.itemsize
    if count <= 0:
        return np.empty(0, dtype)
    return np.memmap(path, dtype, "r", HEADER_BYTES, (count,))
