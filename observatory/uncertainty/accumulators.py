"""What one pass over the training data leaves: the Gram matrix of the features, or its triangular root."""

from __future__ import annotations

import itertools
import math
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from observatory.looking.ranks import all_reduce_sum, world_size
from observatory.looking.undisturbed import undisturbed

ROWS = 2048  # that `Gram` multiplies together
BLOCK = 96  # columns per product of triangular matrices: what is known to be zero is not computed


def column_blocks(width: int, size: int) -> list[tuple[int, int]]:
    """(start, end) of blocks of `size` columns, the rest first, where an upper triangle is shortest."""
    rest = width % size
    first = rest if rest >= size // 3 else rest + size
    return list(itertools.pairwise([0, *range(min(first, width), width, size), width]))


class NotFinite(ValueError):
    """Features, outputs or residuals are NaN or infinite: the network has diverged, or its inputs are bad."""


class Accumulator(nn.Module):
    """A sum over rows that does not depend on their order, can be merged, and gives A = C + ς² I.

    C = Σ_i ω_i f_i f_iᵀ, a sum and not a mean, not centred; ω_i is the loss weight of row i. Rows of half
    precision are raised to float32; autocast and TF32 are off.

    Args:
        width: d, entries of a row.
        device: of the sum.
        dtype: of the sum.
    """

    matrix: Tensor  # (d, d)
    rows: Tensor  # number of rows, int64
    weight: Tensor  # Σ ω, float64

    def __init__(
        self, width: int, *, device: torch.device | None = None, dtype: torch.dtype = torch.float64
    ) -> None:
        super().__init__()
        if width < 1:
            raise ValueError(f"a row needs at least one entry, got width={width}")
        self.register_buffer("matrix", torch.zeros(width, width, dtype=dtype, device=device))
        self.register_buffer("rows", torch.zeros((), dtype=torch.int64, device=device))
        self.register_buffer("weight", torch.zeros((), dtype=torch.float64, device=device))
        self._waiting: Tensor | None = None  # rows that are not in the matrix yet: large products are faster
        self._count = 0  # of them

    @property
    def width(self) -> int:
        return self.matrix.shape[0]

    def update(self, features: Tensor, weights: Tensor | None = None, *, short: bool = False) -> None:
        """Add rows.

        Args:
            features: (n, d); gradients are not followed.
            weights: ω, (n,), not negative; default 1.
            short: whether the last entry is 1 in all rows and left out, (n, d - 1).

        Raises:
            NotFinite: if something is NaN or infinite.
            ValueError: if the width differs, or a weight is negative.
        """
        features = features.detach()
        if features.ndim != 2 or features.shape[1] != self.width - short:
            raise ValueError(
                f"features of shape {tuple(features.shape)} do not fit into an accumulator of width "
                f"{self.width}: rows (n, {self.width}), the entry of the bias (1, or 0 for derivatives) last"
                + (f"; short ones (n, {self.width - 1}), without it" if short else "")
            )
        features = features.to(self.matrix.device, torch.promote_types(features.dtype, torch.float32))
        if not math.isfinite(features.sum().item()):  # a tenth of the time of looking at every number
            bad = int((~torch.isfinite(features)).any(1).sum())
            if bad:
                raise NotFinite(f"{bad} of {len(features)} rows of features are NaN or infinite")
        if weights is not None:
            weights = self._checked(weights, features)
            features = self._whole(features) * weights.sqrt()[:, None].to(features.dtype)
        self.rows.add_(len(features))
        self.weight.add_(len(features) if weights is None else weights.sum())
        self._wait(features)

    def _whole(self, features: Tensor) -> Tensor:
        """With the last entry."""
        return functional.pad(features, (0, self.width - features.shape[1]), value=1.0)

    def _wait(self, features: Tensor) -> None:
        """Keep rows until there are many."""
        n, width = features.shape
        most, waiting = self._enough(), self._waiting
        if waiting is not None and (waiting.dtype != features.dtype or waiting.shape[1] != width):
            self.flush()
        if self._count + n > most:
            self._take_in()
        if n > most:
            self._take_in(features)
            return
        if self._waiting is None:
            self._waiting = features.new_empty(most, width)
        self._waiting[self._count : self._count + n] = features
        self._count += n

    def _enough(self) -> int:
        """Rows that are taken in together."""
        return ROWS

    def flush(self) -> None:
        """Take in the rows that wait."""
        self._take_in()
        self._waiting = None

    def _take_in(self, rows: Tensor | None = None) -> None:
        """Add these rows; default those that wait."""
        if rows is None and self._waiting is not None:
            rows, self._count = self._waiting[: self._count], 0
        if rows is not None and len(rows):
            with torch.no_grad(), undisturbed(self.matrix.device, streams=False):
                self._add(rows)

    def _apply(self, *args: Any, **kwargs: Any) -> Any:
        self.flush()  # what waits is no buffer, and would stay where it is
        return super()._apply(*args, **kwargs)

    def _checked(self, weights: Tensor, features: Tensor) -> Tensor:
        weights = weights.detach().to(features.device, torch.float64)
        if weights.shape != features.shape[:1] or not bool((weights >= 0).all()):
            raise ValueError(
                f"weights must be {len(features)} numbers, none of them negative, "
                f"got shape {tuple(weights.shape)}"
            )
        return weights

    def _add(self, rows: Tensor) -> None:
        """Add Σ f fᵀ of checked rows, (n, d) or (n, d - 1)."""
        raise NotImplementedError

    def merge(self, other: Accumulator) -> None:
        """Add what another worker has accumulated.

        Raises:
            ValueError: if it is of another kind or width.
        """
        if type(self) is not type(other) or self.width != other.width:
            raise ValueError(
                f"a {type(self).__name__} of width {self.width} cannot take in a {type(other).__name__} of "
                f"width {other.width}"
            )
        self.flush()
        other.flush()
        self._merge(other.matrix.to(self.matrix))
        self.rows += other.rows.to(self.rows)
        self.weight += other.weight.to(self.weight)

    def _merge(self, matrix: Tensor) -> None:
        raise NotImplementedError

    def all_reduce(self) -> None:
        """Add up what the ranks have; every rank must call it, and all have the same sum afterwards."""
        self.flush()
        if world_size() > 1:
            self._reduce()
            self.rows.copy_(all_reduce_sum(self.rows))
            self.weight.copy_(all_reduce_sum(self.weight))

    def _reduce(self) -> None:
        raise NotImplementedError

    def scale(self, factor: float) -> None:
        """Multiply C, as if every row had come `factor` times."""
        if factor != 1:
            self.flush()
            self._scale(factor)
            self.weight *= factor

    def _scale(self, factor: float) -> None:
        raise NotImplementedError

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        self.flush()
        super()._save_to_state_dict(destination, prefix, keep_vars)

    def spectrum(self) -> tuple[Tensor, Tensor]:
        """λ, (d,) descending and clamped at 0, and U, (d, d), of C = U diag(λ) Uᵀ."""
        raise NotImplementedError

    def root(self, reg: float) -> Tensor:
        """Upper triangular R with RᵀR = C + ς² I, (d, d) float64; `reg` is ς² ≥ 0."""
        raise NotImplementedError


class Gram(Accumulator):
    """C itself: products in the precision of the features, their sum in float64. 2 d² operations a row."""

    _decomposed: tuple[tuple[int, int], tuple[Tensor, Tensor]] | None = None  # of which state of the matrix

    def _add(self, rows: Tensor) -> None:
        n, width = rows.shape
        for start, end in column_blocks(width, BLOCK):
            self.matrix[:end, start:end] += rows[:, :end].mT @ rows[:, start:end]
        if width < self.width:
            self.matrix[:width, width] += rows.sum(0)
            self.matrix[width, width] += n

    def _merge(self, matrix: Tensor) -> None:
        self.matrix += matrix

    def _reduce(self) -> None:
        self.matrix.copy_(all_reduce_sum(self.matrix))

    def _scale(self, factor: float) -> None:
        self.matrix *= factor

    def gram(self) -> Tensor:
        """C, (d, d) float64, symmetric."""
        self.flush()
        upper = self.matrix.triu()
        return upper + upper.triu(1).mT

    def spectrum(self) -> tuple[Tensor, Tensor]:
        self.flush()
        state = (self.matrix.data_ptr(), self.matrix._version)
        if self._decomposed is None or self._decomposed[0] != state:
            values, vectors = torch.linalg.eigh(self.gram().double())
            self._decomposed = state, (values.flip(0).clamp_min(0), vectors.flip(1))
        return self._decomposed[1]

    def root(self, reg: float) -> Tensor:
        # Not Cholesky: clamped eigenvalues are positive even where rounding makes C + ς² I indefinite.
        values, vectors = self.spectrum()
        return _triangle((values + reg).sqrt()[:, None] * vectors.mT)


class Root(Accumulator):
    """An upper triangular R with RᵀR = C by QR of stacked rows: twice the digits of the Gram matrix.

    Up to 2 d rows wait; O(d²) operations a row, several times those of `Gram`.
    """

    def _enough(self) -> int:
        return 2 * self.width

    def _add(self, rows: Tensor) -> None:
        rows = self._whole(rows).to(self.matrix.dtype)
        self.matrix.copy_(_triangle(torch.cat([self.matrix, rows])))

    def _merge(self, matrix: Tensor) -> None:
        self.matrix.copy_(_triangle(torch.cat([self.matrix, matrix])))

    def _reduce(self) -> None:
        gathered = self.matrix.new_zeros(world_size(), *self.matrix.shape)
        gathered[torch.distributed.get_rank()] = self.matrix
        self.matrix.copy_(_triangle(all_reduce_sum(gathered).flatten(0, 1)))

    def _scale(self, factor: float) -> None:
        self.matrix *= factor**0.5

    def spectrum(self) -> tuple[Tensor, Tensor]:
        self.flush()
        _, values, vectors = torch.linalg.svd(self.matrix.double())
        return values.square(), vectors.mT

    def root(self, reg: float) -> Tensor:
        self.flush()
        prior = torch.eye(self.width, dtype=torch.float64, device=self.matrix.device) * reg**0.5
        return _triangle(torch.cat([self.matrix.double(), prior]))


def _triangle(rows: Tensor) -> Tensor:
    """R of a QR decomposition, (d, d) upper triangular."""
    return torch.linalg.qr(rows, mode="r").R


ACCUMULATORS: dict[str, type[Accumulator]] = {"gram": Gram, "sqrt": Root}
