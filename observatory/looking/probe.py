"""The probe: the fixed examples on which a run is looked at."""

from __future__ import annotations

import hashlib
import itertools
import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.data import DataLoader, Dataset, IterableDataset, default_collate

Split = Literal["train", "val"]
STORED_BELOW = 64 * 2**20  # bytes; larger probes are stored as indices and a hash


@dataclass(frozen=True)
class ProbeRequest:
    """Which examples to look at: `size` of them, drawn without replacement by a generator of their own.

    Args:
        size: number of examples, at least 1.
        split: "train" or "val": whose data set.
        balanced: equally many of each class (as nearly as `size` allows); needs integer targets.
        seed: of the draw.
    """

    size: int = 64
    split: Split = "train"
    balanced: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"a probe needs at least one example, got size={self.size}")
        if self.split not in ("train", "val"):
            raise ValueError(f"split must be 'train' or 'val', got {self.split!r}")


@dataclass(frozen=True, eq=False)
class Probe:
    """Fixed inputs and targets.

    `inputs` is what the model is called with: a tensor with N examples along its first axis, or a nested
    tuple, list or dict of such tensors.
    """

    inputs: Any
    targets: Any = None
    indices: Tensor | None = (
        None  # (N,) int64, positions in the data set they were drawn from, where there is one
    )
    source: str = "given"

    def __len__(self) -> int:
        return int(_first(self.inputs).shape[0])

    def to(self, device: torch.device, dtype: torch.dtype | None = None) -> Probe:
        """The same probe on `device`, floating numbers in `dtype` (default: half raised to float32)."""
        move = _moved(device, dtype)
        return replace(self, inputs=tree_map(move, self.inputs), targets=tree_map(move, self.targets))

    def digest(self) -> str:
        """SHA-256 over dtypes, shapes and bytes: equal probes have equal digests."""
        hashed = hashlib.sha256()
        for leaf in tree_leaves((self.inputs, self.targets)):
            if isinstance(leaf, Tensor):
                array = np.ascontiguousarray(
                    leaf.detach().cpu().float() if leaf.is_floating_point() else leaf.cpu()
                )
                hashed.update(f"{array.dtype}{array.shape}".encode())
                hashed.update(array.tobytes())
        return hashed.hexdigest()

    def save(self, path: Path) -> None:
        """Write indices, digest and, below 64 MB, the tensors themselves as .npz, without pickles."""
        arrays: dict[str, np.ndarray] = {"digest": np.array(self.digest()), "source": np.array(self.source)}
        if self.indices is not None:
            arrays["indices"] = self.indices.numpy()
        leaves = {
            f"{part}_{k}": leaf.detach().cpu()
            for part, tree in (("inputs", self.inputs), ("targets", self.targets))
            for k, leaf in enumerate(tree_leaves(tree))
            if isinstance(leaf, Tensor)
        }
        if sum(leaf.numel() * leaf.element_size() for leaf in leaves.values()) < STORED_BELOW:
            arrays |= {
                key: (leaf.float() if leaf.dtype.itemsize < 4 and leaf.is_floating_point() else leaf).numpy()
                for key, leaf in leaves.items()
            }
            with suppress(TypeError):
                arrays["outline"] = np.array(json.dumps([_outline(self.inputs), _outline(self.targets)]))
        partial = path.with_suffix(".partial.npz")
        np.savez(partial, allow_pickle=False, **arrays)
        partial.replace(path)

    @classmethod
    def load(cls, path: Path) -> Probe | None:
        """What `save` wrote; None where its tensors were too large, or it held something else than tensors.

        Raises:
            OSError: if there is no such file.
            ValueError: if it is torn, or no probe.
        """
        try:
            with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
                if "outline" not in arrays:
                    return None
                outlines = zip(("inputs", "targets"), json.loads(str(arrays["outline"])), strict=True)
                inputs, targets = (_restored(part, outline, arrays) for part, outline in outlines)
                indices = torch.from_numpy(arrays["indices"]) if "indices" in arrays else None
                return cls(inputs, targets, indices, str(arrays["source"]))
        except (BadZipFile, KeyError, EOFError, TypeError) as error:
            raise ValueError(f"{path} is no probe, or is torn: {error}") from error


def rows(inputs: Any, start: int, stop: int) -> Any:
    """Examples `start` to `stop` of nested inputs."""
    return tree_map(lambda leaf: leaf[start:stop] if isinstance(leaf, Tensor) else leaf, inputs)


def _outline(tree: Any) -> Any:
    """How tensors are nested, for JSON: in plain containers only, since a file must not name a class.

    Raises:
        TypeError: if there is anything else.
    """
    if tree is None or isinstance(tree, Tensor):
        return None if tree is None else "tensor"
    if type(tree) in (list, tuple):
        return [type(tree).__name__, *map(_outline, tree)]
    if type(tree) is dict and all(type(key) is str for key in tree):
        return {key: _outline(part) for key, part in tree.items()}
    raise TypeError(f"a {type(tree).__name__} is neither a tensor nor a plain container of tensors")


def _built(outline: Any, leaves: Iterator[Tensor | None]) -> Any:
    if isinstance(outline, list):
        parts = [_built(part, leaves) for part in outline[1:]]
        return tuple(parts) if outline[0] == "tuple" else parts
    if isinstance(outline, dict):
        return {key: _built(part, leaves) for key, part in outline.items()}
    return next(leaves)


def _restored(part: str, outline: Any, arrays: Mapping[str, np.ndarray]) -> Any:
    keys = (f"{part}_{k}" for k in itertools.count())
    return _built(outline, (torch.from_numpy(arrays[key]) if key in arrays else None for key in keys))


def _first(tree: Any) -> Tensor:
    for leaf in tree_leaves(tree):
        if isinstance(leaf, Tensor):
            if leaf.ndim == 0:
                break
            return leaf
    raise ValueError(
        "the probe's inputs hold no tensor with examples along its first axis; name the inputs with inputs="
    )


def _moved(device: torch.device, dtype: torch.dtype | None) -> Callable[[Any], Any]:
    def move(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        half = leaf.dtype in (torch.bfloat16, torch.float16)
        wanted = dtype if dtype is not None and leaf.is_floating_point() else leaf.dtype
        return leaf.detach().to(device=device, dtype=torch.float32 if half and dtype is None else wanted)

    return move


@contextmanager
def forked_streams(devices: Sequence[int] = ()) -> Iterator[None]:
    """Leave the random streams of torch (CPU and the CUDA `devices`), numpy and Python as they were."""
    python, legacy = random.getstate(), np.random.get_state()
    with torch.random.fork_rng(devices=list(devices)):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(legacy)


def split_batch(
    batch: Any, *, inputs: Callable[[Any], Any] | None = None, targets: Callable[[Any], Any] | None = None
) -> Probe:
    """A probe from one batch: by default a batch is (x, y), or x alone.

    Raises:
        ValueError: if the batch is neither and no `inputs=` says what the model is called with.
    """
    if inputs is None and isinstance(batch, Tensor):
        return Probe(batch, targets(batch) if targets else None)
    if inputs is None and not (isinstance(batch, list | tuple) and len(batch) >= 1):
        raise ValueError(
            f"a batch of type {type(batch).__name__} is not (inputs, targets); "
            "say which part is which with inputs= and targets=, e.g. inputs=lambda batch: batch['image']"
        )
    x = inputs(batch) if inputs else batch[0]
    y = (
        targets(batch)
        if targets
        else (batch[1] if isinstance(batch, list | tuple) and len(batch) > 1 else None)
    )
    return Probe(x, y)


def draw_probe(
    loader: DataLoader,
    request: ProbeRequest,
    *,
    inputs: Callable[[Any], Any] | None = None,
    targets: Callable[[Any], Any] | None = None,
) -> Probe:
    """Fetch the requested examples by `dataset[i]` and the loader's `collate_fn`; no random stream moves.

    Raises:
        ValueError: if the data set is empty, or balance is asked of targets that are not integers.
        TypeError: if the data set is iterable and has no length; take its first batches as they pass by
            instead.
    """
    dataset = loader.dataset
    if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__len__"):
        raise TypeError("an iterable data set has no examples to draw by index")
    n = len(dataset)
    if n == 0:
        raise ValueError(f"the {request.split} data set is empty: there is nothing to look at")
    generator = torch.Generator().manual_seed(request.seed)
    with forked_streams():
        order = torch.randperm(n, generator=generator)
        chosen = _balanced(dataset, order, request.size) if request.balanced else order[: request.size]
        collate = loader.collate_fn if loader.collate_fn is not None else default_collate
        batch = collate([dataset[int(i)] for i in chosen])
    probe = split_batch(batch, inputs=inputs, targets=targets)
    return replace(probe, indices=chosen, source=f"{request.split}:{type(dataset).__name__}")


def _balanced(dataset: Dataset, order: Tensor, size: int) -> Tensor:
    """The first `size` of `order` with equally many of each class."""
    labels = _labels(dataset)[order]
    classes, inverse = labels.unique(return_inverse=True)
    one_hot = torch.nn.functional.one_hot(inverse, len(classes))
    turn = (one_hot.cumsum(0) * one_hot).sum(1)  # this is the turn-th example of its class
    return order[torch.argsort(turn, stable=True)[:size]]


def _labels(dataset: Any) -> Tensor:
    """Integer labels of a whole data set: its `targets`, its second tensor, or those of its items."""
    if isinstance(dataset, torch.utils.data.Subset):
        return _labels(dataset.dataset)[torch.as_tensor(dataset.indices)]
    if isinstance(dataset, torch.utils.data.TensorDataset) and len(dataset.tensors) > 1:
        labels = dataset.tensors[1]
    elif hasattr(dataset, "targets"):
        labels = torch.as_tensor(dataset.targets)
    else:
        labels = torch.as_tensor([int(dataset[i][1]) for i in range(len(dataset))])
    if labels.is_floating_point() or labels.ndim != 1:
        raise ValueError(
            "a balanced probe needs one integer label per example, "
            f"got {labels.dtype} of shape {tuple(labels.shape)}; ask for balanced=False"
        )
    return labels.cpu()
