"""Where data files lie, and how the formats they came in are read without any library of their own."""

from __future__ import annotations

import gzip
import math
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

VARIABLE = "OBSERVATORY_DATA"


class MissingData(FileNotFoundError):
    """Files that a data module needs are not there; the message is one line that says what to do."""


def data_root(root: str | os.PathLike[str] | None = None) -> Path:
    """Folder of the data sets: `root`, else $OBSERVATORY_DATA, else ~/.cache/observatory."""
    given = root if root is not None else os.environ.get(VARIABLE)
    return Path(given).expanduser() if given else Path.home() / ".cache" / "observatory"


def folder_with(files: Iterable[str], folders: Iterable[Path]) -> Path | None:
    """The first of `folders` in which every one of `files` lies, as it is or compressed with gzip."""
    wanted = list(files)
    return next((f for f in folders if all(_plain_or_gz(f / name) is not None for name in wanted)), None)


def missing(what: str, files: str, root: Path, folders: Sequence[str], source: str) -> MissingData:
    """The error that says which files are expected where and who has them."""
    where = " or ".join(str(root / folder) for folder in folders)
    holder = folders[0].split("/")[0]
    return MissingData(
        f"{what}: no {files} in {where}; set {VARIABLE} (or root=) to the folder that holds {holder}/. "
        f"Source: {source}"
    )


def _plain_or_gz(path: Path) -> Path | None:
    return next((p for p in (path, path.with_name(path.name + ".gz")) if p.is_file()), None)


def read_bytes(path: Path) -> bytes:
    """Content of `path`, or of `path`.gz uncompressed."""
    found = _plain_or_gz(path)
    if found is None:
        raise MissingData(f"neither {path} nor {path.name}.gz exists")
    return gzip.decompress(found.read_bytes()) if found.suffix == ".gz" else found.read_bytes()


def read_idx(path: Path) -> Tensor:
    """An idx file of unsigned bytes (LeCun's MNIST format), as it is or with gzip.

    Big-endian: two zero bytes, type 8, number of axes n, n lengths of four bytes, then the values.

    Raises:
        ValueError: if the file is of another format or another length than its header says.
    """
    content = read_bytes(path)
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"{path} is no idx file of unsigned bytes: it begins with {content[:4].hex()}")
    axes = content[3]
    shape = np.frombuffer(content, ">i4", axes, offset=4).tolist()
    expected = 4 + 4 * axes + math.prod(shape)
    if len(content) != expected:
        raise ValueError(f"{path} has {len(content)} bytes, its header of shape {shape} announces {expected}")
    return torch.from_numpy(np.frombuffer(content, np.uint8, offset=4 + 4 * axes).reshape(shape).copy())


def read_cifar_binary(paths: Iterable[Path]) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32), uint8, and labels (N,) of CIFAR-10's binary version: 1 + 3072 bytes per image.

    Raises:
        ValueError: if a file is not a whole number of images.
    """
    parts = []
    for path in paths:
        content = np.frombuffer(read_bytes(path), np.uint8)
        if content.size % 3073:
            raise ValueError(f"{path} has {content.size} bytes, not a multiple of 3073")
        parts.append(content.reshape(-1, 3073))
    rows = torch.from_numpy(np.concatenate(parts))
    return rows[:, 1:].reshape(-1, 3, 32, 32), rows[:, 0].long()


def read_png_rows(paths: Iterable[Path], labels: Path) -> tuple[Tensor, Tensor]:
    """Images (N, 3, 32, 32), uint8, and labels (N,) from RGB pictures of which each row is one image.

    Raises:
        ValueError: if there are not as many labels as rows.
    """
    from PIL import Image

    rows = []
    for path in paths:
        with Image.open(path) as picture:
            rows.append(np.asarray(picture.convert("RGB")).reshape(-1, 32, 32, 3))
    images = torch.from_numpy(np.concatenate(rows)).permute(0, 3, 1, 2).contiguous()
    classes = torch.from_numpy(np.loadtxt(labels, dtype=np.int64, ndmin=1))
    if len(images) != len(classes):
        raise ValueError(f"{len(images)} images, but {labels} has {len(classes)} labels")
    return images, classes
