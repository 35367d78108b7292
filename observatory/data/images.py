"""MNIST, Fashion-MNIST and CIFAR-10, read from the files they were published in."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.utilities import rank_zero_info
from torch import Tensor

from observatory.data.files import (
    MissingData,
    data_root,
    folder_with,
    missing,
    read_cifar_binary,
    read_idx,
    read_png_rows,
)
from observatory.data.tensors import Splits, TensorData, spread_order

Labelled = tuple[Tensor, Tensor]  # images (N, channels, height, width), uint8, and labels (N,), int64


class ImageData(TensorData):
    """Base of the image data sets with a published test set; a subclass says how the files are read.

    Args:
        root: folder of the data sets; default $OBSERVATORY_DATA, else ~/.cache/observatory.
        download: fetch missing files with torchvision.
        flat: each image as one row of numbers.
        validation: share of the published training set in the validation split.
        moments: mean and standard deviation that pixels are normalised with, the same for all channels;
            default those of the data set. A set that another network is shown needs that network's.
        options: those of `TensorData`.
    """

    mean: Sequence[float]  # of pixel / 255 over the published training set, per channel
    std: Sequence[float]

    def __init__(
        self,
        root: str | os.PathLike[str] | None = None,
        download: bool = False,
        flat: bool = False,
        validation: float = 0.1,
        moments: tuple[float, float] | None = None,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if not 0 <= validation < 1:
            raise ValueError(f"validation={validation} leaves nothing to train on")
        if moments is not None:
            self.mean, self.std = ([m] * len(type(self).mean) for m in moments)
        self.root, self.download = data_root(root), download
        self.flat, self.validation = flat, validation

    def read(self) -> tuple[Labelled, Labelled]:
        """Published training and test set."""
        raise NotImplementedError

    def splits(self) -> Splits:
        (x, y), (x_test, y_test) = self.read()
        order = spread_order(y, generator=torch.Generator().manual_seed(self.split_seed))
        val, train = (p.sort().values for p in torch.tensor_split(order, [round(self.validation * len(y))]))
        return Splits(
            (self._normalised(x[train]), y[train]),
            (self._normalised(x[val]), y[val]),
            (self._normalised(x_test), y_test),
        )

    def _normalised(self, pixels: Tensor) -> Tensor:
        mean, std = (torch.tensor(moment).view(-1, 1, 1) for moment in (self.mean, self.std))
        x = pixels.float().div_(255).sub_(mean).div_(std)
        return x.flatten(1) if self.flat else x


def _torchvision(name: str, root: Path, *, download: bool, train: bool = True) -> Any:
    """A data set of torchvision, imported only here."""
    try:
        from torchvision import datasets
    except (ImportError, RuntimeError) as broken:  # a torchvision of another torch raises either
        raise MissingData(
            f"{name} is not in {root} and torchvision cannot be imported to get it: {broken}"
        ) from broken
    root.mkdir(parents=True, exist_ok=True)
    return getattr(datasets, name)(root, train=train, download=download)


_IDX = tuple(
    f"{split}-{kind}-ubyte" for split in ("train", "t10k") for kind in ("images-idx3", "labels-idx1")
)


def _read_mnist(data: ImageData, name: str, folder: str, source: str) -> tuple[Labelled, Labelled]:
    """The four idx files, of which torchvision keeps copies in <name>/raw."""
    places = (folder, f"{name}/raw")
    found = folder_with(_IDX, [data.root / place for place in places])
    if found is None and data.download:
        _torchvision(name, data.root, download=True)
        found = data.root / name / "raw"
    if found is None:
        raise missing(name, "{train,t10k}-{images-idx3,labels-idx1}-ubyte[.gz]", data.root, places, source)
    train_x, train_y, test_x, test_y = (read_idx(found / file) for file in _IDX)
    return (train_x[:, None], train_y.long()), (test_x[:, None], test_y.long())


class MNIST(ImageData):
    """Handwritten digits (LeCun, Bottou, Bengio & Haffner 1998), 60 000 + 10 000 images of 1 × 28 × 28."""

    mean, std = (0.13066,), (0.30811,)

    def read(self) -> tuple[Labelled, Labelled]:
        return _read_mnist(self, "MNIST", "mnist", "yann.lecun.com/exdb/mnist, or download=True")


class HandwrittenDigits(MNIST):
    """MNIST where its files are; otherwise the 1797 digits of scikit-learn, enlarged to 1 × 28 × 28.

    Which it was is said once: for experiments that have to run anywhere, on real data at least.
    """

    def read(self) -> tuple[Labelled, Labelled]:
        try:
            return super().read()
        except MissingData as missing_files:
            rank_zero_info(f"the 1797 digits of scikit-learn stand in for MNIST: {missing_files}")
        from sklearn.datasets import load_digits

        pixels, labels = load_digits(return_X_y=True)
        small = torch.from_numpy(pixels).float().view(-1, 1, 8, 8) * (255 / 16)
        x = torch.nn.functional.interpolate(small, size=(28, 28), mode="bilinear")
        y = torch.from_numpy(labels).long()
        held_out, kept = torch.tensor_split(
            spread_order(y, generator=torch.Generator().manual_seed(0)), [len(y) // 5]
        )
        return (x[kept], y[kept]), (x[held_out], y[held_out])


class FashionMNIST(ImageData):
    """Clothes (Xiao, Rasul & Vollgraf 2017, arXiv:1708.07747), 60 000 + 10 000 images of 1 × 28 × 28."""

    mean, std = (0.28604,), (0.35302,)

    def read(self) -> tuple[Labelled, Labelled]:
        source = "github.com/zalandoresearch/fashion-mnist, or download=True"
        return _read_mnist(self, "FashionMNIST", "fashion-mnist", source)


_CIFAR_MEAN, _CIFAR_STD = (0.49140, 0.48216, 0.44653), (0.24703, 0.24349, 0.26159)
_CIFAR_SOURCE = "www.cs.toronto.edu/~kriz/cifar.html"


class CIFAR10(ImageData):
    """Photographs of ten classes (Krizhevsky 2009), 50 000 + 10 000 images of 3 × 32 × 32.

    Read from the binary version; from the Python version through torchvision, which knows its checksums.
    """

    mean, std = _CIFAR_MEAN, _CIFAR_STD
    _files = (*(f"data_batch_{k}.bin" for k in range(1, 6)), "test_batch.bin")

    def read(self) -> tuple[Labelled, Labelled]:
        places = ("cifar-10-batches-bin", "cifar10")
        found = folder_with(self._files, [self.root / place for place in places])
        if found is not None:
            *train, test = (found / name for name in self._files)
            return read_cifar_binary(train), read_cifar_binary([test])
        if not (self.download or (self.root / "cifar-10-batches-py").is_dir()):
            here = "; CIFAR10Subset reads cifar10-subset/" if (self.root / "cifar10-subset").is_dir() else ""
            source = f"{_CIFAR_SOURCE} (binary version), or download=True{here}"
            raise missing("CIFAR10", "data_batch_{1..5}.bin, test_batch.bin", self.root, places, source)
        return self._through_torchvision(train=True), self._through_torchvision(train=False)

    def _through_torchvision(self, *, train: bool) -> Labelled:
        data = _torchvision("CIFAR10", self.root, download=self.download, train=train)
        return torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous(), torch.tensor(data.targets)


class CIFAR10Subset(ImageData):
    """The first 10 000 training and the first 1000 test images of CIFAR-10 from eleven PNG files."""

    mean, std = _CIFAR_MEAN, _CIFAR_STD
    _train = tuple(f"train_{k:02d}.png" for k in range(10))

    def read(self) -> tuple[Labelled, Labelled]:
        folder = self.root / "cifar10-subset"
        if (
            folder_with((*self._train, "test_00.png", "train_labels.txt", "test_labels.txt"), [folder])
            is None
        ):
            files = "train_{00..09}.png, test_00.png, {train,test}_labels.txt"
            raise missing("CIFAR10Subset", files, self.root, ["cifar10-subset"], f"rows of {_CIFAR_SOURCE}")
        train = read_png_rows([folder / name for name in self._train], folder / "train_labels.txt")
        return train, read_png_rows([folder / "test_00.png"], folder / "test_labels.txt")
