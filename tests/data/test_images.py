"""Image data sets from the files they were published in."""

from __future__ import annotations

import gzip
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from observatory.data import CIFAR10, MNIST, CIFAR10Subset, FashionMNIST, HandwrittenDigits, MissingData
from observatory.data.files import data_root, read_idx


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.array(array.shape, ">i4").tobytes() + array.tobytes()


@pytest.fixture
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (200, 28, 28), dtype=np.uint8)


LABELS = np.arange(200, dtype=np.uint8) % 10


def write_mnist(folder: Path, pixels: np.ndarray, *, compress: bool) -> None:
    folder.mkdir(parents=True)
    for split in ("train", "t10k"):
        for name, array in (("images-idx3", pixels), ("labels-idx1", LABELS)):
            content = idx(array)
            file = folder / f"{split}-{name}-ubyte{'.gz' if compress else ''}"
            file.write_bytes(gzip.compress(content) if compress else content)


@pytest.mark.parametrize(("folder", "compress"), [("mnist", True), ("mnist", False), ("MNIST/raw", False)])
def test_mnist_is_read_from_its_idx_files(
    folder: str, compress: bool, tmp_path: Path, pixels: np.ndarray
) -> None:
    write_mnist(tmp_path / folder, pixels, compress=compress)
    data = MNIST(root=tmp_path, validation=0.25)
    x, y = data.dataset("test").tensors
    expected = (torch.from_numpy(pixels)[:, None] / 255 - 0.13066) / 0.30811
    torch.testing.assert_close(x, expected, atol=1e-6, rtol=0)  # float32 of numbers up to 3
    assert y.tolist() == LABELS.tolist()
    assert data.dataset("train").tensors[0].shape == (150, 1, 28, 28)
    assert data.dataset("val").tensors[1].bincount().tolist() == [5] * 10
    assert MNIST(root=tmp_path, flat=True).dataset("train").tensors[0].shape == (180, 784)


def test_the_root_is_the_argument_then_the_variable_then_the_cache(
    tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_mnist(tmp_path / "fashion-mnist", pixels, compress=True)
    monkeypatch.setenv("OBSERVATORY_DATA", str(tmp_path))
    assert len(FashionMNIST(subset=50).dataset("train")) == 50
    assert data_root("/elsewhere") == Path("/elsewhere")
    monkeypatch.delenv("OBSERVATORY_DATA")
    assert data_root() == Path.home() / ".cache" / "observatory"


@pytest.mark.parametrize("module", [MNIST, FashionMNIST, CIFAR10, CIFAR10Subset])
def test_missing_files_are_one_line_that_says_what_to_do(module: type, tmp_path: Path) -> None:
    with pytest.raises(MissingData) as caught:
        module(root=tmp_path).setup("fit")
    message = str(caught.value)
    assert "\n" not in message
    for part in ("OBSERVATORY_DATA", str(tmp_path), "Source:", module.__name__):
        assert part in message


def test_a_broken_torchvision_matters_only_where_it_would_download(
    tmp_path: Path, pixels: np.ndarray, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "torchvision", None)
    with pytest.raises(MissingData, match="torchvision cannot be imported"):
        MNIST(root=tmp_path, download=True).setup("fit")
    write_mnist(tmp_path / "mnist", pixels, compress=True)
    MNIST(root=tmp_path, download=True).setup("fit")


def test_torn_and_foreign_idx_files_are_refused(tmp_path: Path, pixels: np.ndarray) -> None:
    file = tmp_path / "images"
    file.write_bytes(idx(pixels)[:-5])
    with pytest.raises(
        ValueError, match=r"156811 bytes, its header of shape \[200, 28, 28\] announces 156816"
    ):
        read_idx(file)
    file.write_bytes(b"\x89PNG....")
    with pytest.raises(ValueError, match="no idx file of unsigned bytes: it begins with 89504e47"):
        read_idx(file)


def test_cifar_reads_the_binary_version(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-bin"
    folder.mkdir()
    images = np.random.default_rng(1).integers(0, 256, (20, 3072), dtype=np.uint8)
    rows = np.concatenate([LABELS[:20, None], images], 1)
    for name in CIFAR10._files:
        (folder / name).write_bytes(rows.tobytes())
    data = CIFAR10(root=tmp_path, validation=0.0)
    x, y = data.dataset("test").tensors
    mean, std = (torch.tensor(m)[:, None, None] for m in (CIFAR10.mean, CIFAR10.std))
    restored = (x * std + mean).mul(255).round().to(torch.uint8)
    assert torch.equal(restored, torch.from_numpy(images).view(20, 3, 32, 32))
    assert y.tolist() == LABELS[:20].tolist()
    assert len(data.dataset("train")) == 100
    (folder / "test_batch.bin").write_bytes(rows.tobytes()[:-1])
    with pytest.raises(ValueError, match="not a multiple of 3073"):
        CIFAR10(root=tmp_path).setup("fit")


def test_a_row_of_the_picture_is_an_image(tmp_path: Path) -> None:
    folder = tmp_path / "cifar10-subset"
    folder.mkdir()
    images = np.random.default_rng(2).integers(0, 256, (10, 32, 32, 3), dtype=np.uint8)
    for name in (*CIFAR10Subset._train, "test_00.png"):
        Image.fromarray(images.reshape(10, 1024, 3)).save(folder / name)
    np.savetxt(folder / "train_labels.txt", np.arange(100) % 10, fmt="%d")
    np.savetxt(folder / "test_labels.txt", np.arange(10), fmt="%d")
    x, y = CIFAR10Subset(root=tmp_path).dataset("test").tensors
    mean, std = (torch.tensor(m)[:, None, None] for m in (CIFAR10.mean, CIFAR10.std))
    restored = (x * std + mean).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1)
    assert torch.equal(restored, torch.from_numpy(images))
    assert y.tolist() == list(range(10))


def test_published_pixels_have_the_published_moments(data_root: Path) -> None:
    for module, count in ((FashionMNIST, 60_000), (CIFAR10Subset, 10_000)):
        data = module(root=data_root, validation=0.0)
        x, y = data.dataset("train").tensors
        assert len(y) == count
        # the subset's moments differ from those of all 50 000 photographs by their sampling error
        tolerance = 1e-4 if count == 60_000 else 0.02
        assert x.double().mean((0, 2, 3)).abs().max() < tolerance
        assert (x.double().std((0, 2, 3)) - 1).abs().max() < tolerance


def test_digits_stand_in_for_mnist_where_its_files_are_not(tmp_path: Path, pixels: np.ndarray) -> None:
    write_mnist(tmp_path / "there/mnist", pixels, compress=True)
    there = HandwrittenDigits(root=tmp_path / "there", flat=True)
    assert torch.equal(
        there.dataset("train").tensors[0],
        MNIST(root=tmp_path / "there", flat=True).dataset("train").tensors[0],
    )
    x, y = HandwrittenDigits(root=tmp_path, flat=True, validation=0).dataset("train").tensors
    assert x.shape == (1438, 784) and sorted(y.bincount().tolist())[0] >= 139
    ink = x * 0.30811 + 0.13066  # brightness between 0 and 1 again
    assert ink.min() >= 0 and ink.max() <= 1 + 1e-6
