"""What regression and classification share: the pass over the data, and the rigidity of the last layer."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sized
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.modules.dropout import _DropoutNd
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, DistributedSampler

from observatory.looking import Forward, Output
from observatory.looking.probe import split_batch
from observatory.looking.ranks import all_reduce_sum, warn, world_size
from observatory.uncertainty.accumulators import ACCUMULATORS, Accumulator
from observatory.uncertainty.jacobian import JacobianHead, find_head
from observatory.uncertainty.layer import LastLayer, Pool, find_last_layer
from observatory.uncertainty.regulariser import fixed_reg
from observatory.uncertainty.rigidity import Rigidity

Weights = Callable[[Any], Tensor]
MODAL = (_DropoutNd, _NormBase, nn.MultiheadAttention)  # what they return depends on the mode


@dataclass(frozen=True)
class Rows:
    """One batch of a loader, seen through the network."""

    output: Tensor  # as the network returned it
    short_features: Tensor  # (n, d), or (n, d - 1) without the last entry if it is 1 in all rows
    width: int  # d
    targets: Any  # None if the batch has none
    examples: int  # of the batch; each has one or more rows
    batch: Any

    @cached_property
    def features(self) -> Tensor:
        """(n, d)"""
        return functional.pad(self.short_features, (0, self.width - self.short_features.shape[1]), value=1.0)


class LastLayerPosterior(nn.Module):
    """A trained network with the Gram matrix of its last layer's features.

    The network is referred to, not copied. It is evaluated in evaluation mode, and is in the mode in which it
    was found afterwards.

    Args:
        model: the network.
        reg: ς², the number added to the diagonal of the Gram matrix; "auto" is 10⁻⁶ trace(C)/d.
        last_layer: the layer, or its name; default the nn.Linear executed last, if its output is the
            network's.
        pool: the linear map that follows it, from (rows ..., k) to (n, k), such as `lambda f: f.sum(1)`.
        jacobian: take ∂ŷ/∂θ of the module `last_layer`, of whatever kind, as features (see `JacobianHead`).
        accumulator: "gram" sums f fᵀ; "sqrt" keeps its triangular root, with twice the digits, for d ≲ 512.
        accumulate_in: precision in which rows are multiplied; default their own.
        inputs, targets: parts of a batch; default its first and second.
        forward: how the model is called on the inputs, `forward(model, inputs)`; default `model(inputs)`.
        output: which part of what the model returns is meant.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        reg: float | str = "auto",
        last_layer: str | nn.Module | None = None,
        pool: Pool | None = None,
        jacobian: bool = False,
        accumulator: Literal["gram", "sqrt"] = "gram",
        accumulate_in: torch.dtype | None = None,
        inputs: Callable[[Any], Any] | None = None,
        targets: Callable[[Any], Any] | None = None,
        forward: Forward | None = None,
        output: Output | None = None,
    ) -> None:
        super().__init__()
        if accumulator not in ACCUMULATORS:
            raise ValueError(f"accumulator must be one of {', '.join(ACCUMULATORS)}, got {accumulator!r}")
        if not isinstance(reg, str) and not reg >= 0:
            raise ValueError(f"reg is the number ς² ≥ 0 added to the diagonal, got {reg}")
        self.model, self.requested_reg, self.kind = model, reg, accumulator
        self.accumulate_in = accumulate_in
        self._last_layer, self._pool, self._jacobian = last_layer, pool, jacobian
        self._inputs, self._targets, self._forward, self._output = inputs, targets, forward, output
        self.layer: LastLayer | None = None
        self.gram: Accumulator | None = None
        self.rigidity: Rigidity | None = None

    # The pass over the data

    def fit(self, loader: Any, *, weights: Weights | None = None, total: int | None = None) -> Any:
        """Accumulate the Gram matrix over a loader, add up what the ranks have, and factorise.

        Args:
            loader: batches of the training data, without shuffled augmentation; order does not matter.
            weights: ω of the rows of a batch, (n,); default 1.
            total: number of examples of which the loader holds a random part: C is scaled up to them.

        Returns:
            Itself.

        Raises:
            ValueError: if there is nothing in the loader, or features are NaN or infinite (with the batch).
        """
        self.gram = None
        examples = 0
        for number, rows in enumerate(self._passing(loader, weights is not None)):
            gram = self._accumulator(rows.width, rows.short_features.device)
            try:
                self._take(rows, gram, None if weights is None else weights(rows.batch))
            except ValueError as error:
                raise type(error)(f"batch {number}: {error}") from error
            examples += rows.examples
        if self.gram is None:
            raise ValueError("the loader is empty: there is nothing to fit")
        self._all_reduce()
        if total is None:
            self._check_count(loader, examples)
        else:
            seen = all_reduce_sum(self.gram.weight.new_tensor(examples))
            self.gram.scale(total / float(seen))
        self.factorise()
        return self

    def _take(self, rows: Rows, gram: Accumulator, weights: Tensor | None) -> None:
        features = self._raised(rows.short_features)
        gram.update(features, weights, short=features.shape[1] < rows.width)

    def _all_reduce(self) -> None:
        assert self.gram is not None
        self.gram.all_reduce()

    def update(self, features: Tensor, weights: Tensor | None = None) -> None:
        """Add rows of features (n, d) with loss weights ω (n,), such as ∂f/∂x of derivative targets.

        The entry of the bias is the last one: 1, or 0 for derivatives. Factorise when all are there.
        """
        self._accumulator(features.shape[-1], features.device).update(self._raised(features), weights)

    def _raised(self, features: Tensor) -> Tensor:
        return features if self.accumulate_in is None else features.to(self.accumulate_in)

    def _accumulator(self, width: int, device: torch.device) -> Accumulator:
        if self.gram is None:
            self.gram = ACCUMULATORS[self.kind](width, device=device)
        return self.gram

    def factorise(self, reg: float | None = None) -> None:
        """Prepare predictions with ς² = `reg`; default the one asked for at construction."""
        if self.gram is None:
            raise RuntimeError("nothing was accumulated: call fit or update first")
        chosen = self._chosen_reg() if reg is None else reg
        if int(self.gram.rows) < self.gram.width:
            warn(
                f"{int(self.gram.rows)} rows for {self.gram.width} features: in the directions that no row "
                "has, the variance is set by ς² alone"
            )
        dtype = self._dtype()
        self.rigidity = Rigidity(self.gram.width, dtype=dtype, device=self.gram.matrix.device)
        self.rigidity.factorise(self.gram, chosen)

    def _chosen_reg(self) -> float:
        assert self.gram is not None
        if not isinstance(self.requested_reg, str):
            return float(self.requested_reg)
        return fixed_reg(self.gram.spectrum()[0])

    def _dtype(self) -> torch.dtype:
        first = next((p.dtype for p in self.model.parameters() if p.is_floating_point()), torch.float32)
        return torch.promote_types(first, torch.float32)

    # Looking through the network

    def _call(self, x: Any) -> Any:
        returned = self.model(x) if self._forward is None else self._forward(self.model, x)
        return returned if self._output is None else self._output(returned)

    def _watch(self, x: Any) -> tuple[Tensor, Tensor]:
        """Output as returned, and features (n, d)."""
        output, inputs = self._heard(x)
        return output, self._layer_of(x).rows(inputs)

    def _heard(self, x: Any) -> tuple[Tensor, Tensor]:
        """Output as returned, and what went into the last layer."""
        return self._layer_of(x).watch(lambda: self._call(x))

    def _layer_of(self, x: Any) -> LastLayer:
        """The last layer, found with these inputs if it is not known yet."""
        if self.layer is None and self._jacobian:
            self.layer = find_head(self.model, lambda: self._call(x), self._last_layer)
        elif self.layer is None:
            self.layer = find_last_layer(
                self.model, lambda: self._call(x), name=self._last_layer, pool=self._pool
            )
        return self.layer

    def _passing(self, loader: Any, whole: bool = False) -> Iterator[Rows]:
        """Every batch of this rank's part of a loader, seen in evaluation mode without gradients."""
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        left, heard = _own_examples(loader), None
        with evaluating(self.model), torch.no_grad(), ExitStack() as stack:
            for batch in loader:
                batch = _moved(batch, device)
                part = split_batch(batch, inputs=self._inputs, targets=self._targets)
                layer = self._layer_of(part.inputs)
                if heard is None:
                    heard = stack.enter_context(layer.listening())
                output, inputs = layer.watch(partial(self._call, part.inputs), heard)
                features, width = layer.short(inputs), layer.width
                rows = Rows(output, features, width, part.targets, len(part), batch if whole else None)
                if left is not None and len(part) > left:
                    rows = _first(rows, left)
                if left is not None:
                    left -= min(left, len(part))
                if rows.examples:
                    yield rows

    def _check_count(self, loader: Any, examples: int) -> None:
        dataset = getattr(loader, "dataset", None)
        if (
            world_size() == 1
            and isinstance(dataset, Sized)
            and not isinstance(dataset, torch.utils.data.IterableDataset)
        ):
            expected = len(dataset)
            if examples != expected:
                dropped = getattr(loader, "drop_last", False)
                warn(
                    f"{examples} examples were seen of {expected} in the data set"
                    + ("; make the loader with drop_last=False" if dropped else "")
                )

    @property
    def fitted(self) -> Rigidity:
        """The rigidity.

        Raises:
            RuntimeError: before `fit`.
        """
        if self.rigidity is None:
            raise RuntimeError("nothing is known yet: call fit(training_loader) first")
        return self.rigidity

    def raw_variance(self, x: Any) -> Tensor:
        """s²(x) = f(x)ᵀ A⁻¹ f(x), (n,): large far from the training data, whatever the scale α."""
        with torch.no_grad(), evaluating(self.model, remind=True):
            return self.fitted(self._watch(x)[1]).square()

    # State

    def get_extra_state(self) -> dict[str, Any]:
        layer = None if self.layer is None else self.layer.name
        jacobian = self._jacobian
        return {"layer": layer, "jacobian": jacobian, "kind": self.kind, "reg": self.requested_reg}

    def set_extra_state(self, state: dict[str, Any]) -> None:
        self.kind, self.requested_reg = state["kind"], state["reg"]
        if state["layer"] is not None:
            module: Any = dict(self.model.named_modules())[state["layer"]]
            self._jacobian = state["jacobian"]
            kind = JacobianHead if self._jacobian else LastLayer
            self.layer = kind(state["layer"], module, self._pool)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any, **kwargs: Any) -> None:
        """Make room for what was fitted before it is loaded."""
        root = state_dict.get(f"{prefix}rigidity.root")
        matrix = state_dict.get(f"{prefix}gram.matrix")
        extra = state_dict.get(f"{prefix}_extra_state", {})
        device = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        if matrix is not None:
            kind = ACCUMULATORS[extra.get("kind", self.kind)]
            self.gram = kind(len(matrix), device=device, dtype=matrix.dtype)
        if root is not None:
            dtype = state_dict[f"{prefix}rigidity.bias"].dtype
            self.rigidity = Rigidity(len(root), dtype=dtype, device=device)
        self._make_room(state_dict, prefix, device)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def _make_room(self, state_dict: Any, prefix: str, device: torch.device) -> None:
        """For what a subclass has fitted."""


def evaluating(model: nn.Module, *, remind: bool = False) -> AbstractContextManager[None]:
    """Evaluation mode, and afterwards the mode of every submodule as it was."""
    if any(module.training for module in model.modules()):
        return _evaluating(model, remind)
    return nullcontext()


@contextmanager
def _evaluating(model: nn.Module, remind: bool) -> Iterator[None]:
    modes = [(module, module.training) for module in model.modules()]
    if remind and any(training and isinstance(m, MODAL) for m, training in modes):
        warn("the network is in training mode; predictions are those of evaluation mode: call model.eval()")
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def _moved(batch: Any, device: torch.device) -> Any:
    """A batch on a device. Looking for tensors at any depth is slow beside a small network."""
    if type(batch) in (list, tuple) and all(isinstance(leaf, Tensor) for leaf in batch):
        return type(batch)(leaf.to(device) for leaf in batch)
    return tree_map(lambda leaf: leaf.to(device) if isinstance(leaf, Tensor) else leaf, batch)


def _own_examples(loader: Any) -> int | None:
    """How many examples of a rank are its own: a DistributedSampler repeats the first ones at the end."""
    sampler = getattr(loader, "sampler", None)
    if not (isinstance(loader, DataLoader) and isinstance(sampler, DistributedSampler)) or sampler.drop_last:
        return None
    return len(range(sampler.rank, len(sampler.dataset), sampler.num_replicas))  # type: ignore[arg-type]


def _first(rows: Rows, examples: int) -> Rows:
    """The first examples of a batch."""

    def cut(tensor: Any) -> Any:
        return tensor[: examples * (len(tensor) // rows.examples)] if isinstance(tensor, Tensor) else tensor

    return replace(
        rows,
        output=cut(rows.output),
        short_features=cut(rows.short_features),
        targets=tree_map(cut, rows.targets),
        examples=examples,
        batch=tree_map(cut, rows.batch),
    )
