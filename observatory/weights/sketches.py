"""Covariances of trajectories that do not fit into memory, one snapshot at a time."""

from __future__ import annotations

import torch
from torch import Tensor


class StreamingCovariance:
    """Exact mean and covariance of few weights, without keeping snapshots (Welford's update, in blocks).

    Args:
        size: number of weights P; memory 8P².
    """

    def __init__(self, size: int, *, device: torch.device | str = "cpu") -> None:
        self.count = 0
        self.mean = torch.zeros(size, dtype=torch.float64, device=device)
        self.scatter = torch.zeros(size, size, dtype=torch.float64, device=device)

    def update(self, rows: Tensor) -> None:
        """Take in some snapshots, (n, P)."""
        block = rows.double()
        number, mean = block.shape[0], block.mean(0)
        centred, shift = block - mean, mean - self.mean
        total = self.count + number
        self.scatter += centred.mT @ centred
        self.scatter += torch.outer(shift, shift) * (self.count * number / total)
        self.mean += shift * (number / total)
        self.count = total

    @property
    def covariance(self) -> Tensor:
        """(P, P), divisor T - 1."""
        return self.scatter / (self.count - 1)


class FrequentDirections:
    """The leading directions of fluctuation from ℓ rows: ‖ZᵀZ - BᵀB‖₂ ≤ ‖Z - Z_k‖²_F/(ℓ - k) for every k < ℓ.

    The scatter matrix about the final mean is a sum of rank-one terms that are known as snapshots arrive,
    n/(n+1) (x_{n+1} - m_n)(x_{n+1} - m_n)ᵀ, so that the mean need not be known beforehand.
    (Ghashami, Liberty, Phillips, Woodruff 2016, arXiv:1501.01711.)

    Args:
        size: number of weights P.
        rows: ℓ; memory 8ℓP bytes in float32.
    """

    def __init__(
        self,
        size: int,
        rows: int = 128,
        *,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> None:
        if rows < 2:
            raise ValueError(f"frequent directions need at least 2 rows, got {rows}")
        self.rows = rows
        self.count = 0
        self.total = torch.zeros((), dtype=torch.float64, device=device)  # ‖Z‖²_F of the centred snapshots
        self.lost = torch.zeros((), dtype=torch.float64, device=device)  # bound on ‖ZᵀZ - BᵀB‖₂ so far
        self.mean = torch.zeros(size, dtype=torch.float64, device=device)
        self._buffer = torch.zeros(2 * rows, size, dtype=dtype, device=device)
        self._filled = 0

    def update(self, rows: Tensor) -> None:
        """Take in some snapshots, (n, P)."""
        for row in rows:
            if self._filled == len(self._buffer):
                self._shrink()
            difference = row.double() - self.mean
            row_of_scatter = difference * (self.count / (self.count + 1)) ** 0.5
            self._buffer[self._filled] = row_of_scatter.to(self._buffer.dtype)
            self.total += row_of_scatter.square().sum()
            self.mean += difference / (self.count + 1)
            self.count += 1
            self._filled += 1

    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues of BᵀB, falling, and the rows that combine B into unit directions."""
        rows = self._buffer[: self._filled]
        gram = torch.zeros(len(rows), len(rows), dtype=torch.float64, device=rows.device)
        for block in rows.split(2**16, dim=1):
            gram.addmm_(block.double(), block.double().mT)
        values, vectors = torch.linalg.eigh(gram)
        return values.flip(0).clamp_min(0), vectors.flip(1).mT

    def _shrink(self) -> None:
        values, vectors = self._spectrum()
        cut = values[self.rows - 1]
        self.lost += cut
        scale = ((values - cut).clamp_min(0) / values.clamp_min(torch.finfo(values.dtype).tiny)).sqrt()
        kept = self.rows - 1
        weights = (scale[:kept, None] * vectors[:kept]).to(self._buffer.dtype)
        self._buffer[:kept] = weights @ self._buffer
        self._filled = kept

    def components(self, count: int) -> tuple[Tensor, Tensor]:
        """Estimates of the leading variances (k,) and their unit directions (k, P), k ≤ count."""
        values, vectors = self._spectrum()
        kept = min(count, self.rows - 1, int((values > 1e-10 * values[0]).sum()))
        weights = (vectors[:kept] / values[:kept, None].sqrt()).to(self._buffer.dtype)
        return values[:kept] / (self.count - 1), weights @ self._buffer[: self._filled]


class CountSketch:
    """Random projection to m coordinates: each weight goes, with a random sign, to one of them.

    Inner products of snapshots, and so the Gram matrix, keep their values up to O(1/√m) of the trace;
    directions cannot be lifted back. (Charikar, Chen, Farach-Colton 2002; Clarkson, Woodruff 2013,
    arXiv:1207.6365.)

    Args:
        size: number of weights P.
        coordinates: m.
        generator: of the places and signs.
        device: of the vectors that will be sketched; default the generator's.
    """

    def __init__(
        self,
        size: int,
        coordinates: int = 4096,
        *,
        generator: torch.Generator,
        device: torch.device | str | None = None,
    ) -> None:
        kind = {"generator": generator, "device": generator.device}
        self.coordinates = coordinates
        self.place = torch.randint(coordinates, (size,), **kind).to(device)  # type: ignore[call-overload]
        self.sign = (torch.randint(2, (size,), **kind) * 2 - 1).to(device, torch.int8)  # type: ignore[call-overload]

    def __call__(self, rows: Tensor) -> Tensor:
        """The sketch (..., m) of vectors (..., P), at least in float32."""
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        sketch = rows.new_zeros(*rows.shape[:-1], self.coordinates)
        return sketch.index_add_(-1, self.place, rows * self.sign)


def random_coordinates(size: int, count: int, *, generator: torch.Generator) -> Tensor:
    """`count` of `size` coordinates, drawn without repeats, sorted: (count,)."""
    if not 1 <= count <= size:
        raise ValueError(f"between 1 and {size} coordinates can be drawn, {count} were asked for")
    return torch.randperm(size, generator=generator, device=generator.device)[:count].sort().values
