"""The inverse prediction rigidity s²(x) = f(x)ᵀ A⁻¹ f(x), and the spectrum of the features behind it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from observatory.uncertainty.accumulators import Accumulator, column_blocks

FLOOR = 1e-12  # of λ_max: rounding of float32 features lies there, and below it null directions decide all


@dataclass(frozen=True)
class Spectrum:
    """Eigenvalues of the Gram matrix and what follows from them."""

    eigenvalues: Tensor  # λ, (d,) float64, descending
    reg: float  # ς²

    @property
    def effective_dimension(self) -> Tensor:
        """d_eff = Σ_k λ_k/(λ_k + ς²), which is also the sum of the leverages of the training rows."""
        return (self.eigenvalues / (self.eigenvalues + self.reg)).nan_to_num(0.0).sum()

    @property
    def rank(self) -> Tensor:
        """Number of eigenvalues above 10⁻¹² λ_max."""
        return (self.eigenvalues > FLOOR * self.eigenvalues[0]).sum()

    @property
    def participation_ratio(self) -> Tensor:
        """(Σλ)²/Σλ²."""
        return self.eigenvalues.sum().square() / self.eigenvalues.square().sum()

    @property
    def largest(self) -> Tensor:
        """λ_max."""
        return self.eigenvalues[0]


class Rigidity(nn.Module):
    """s²(f) = f A⁻¹ fᵀ = ‖f V‖² with V = L⁻¹ lower triangular, LᵀL = A = C + ς² I.

    A sum of squares has no cancellation. The factor is made in float64, V is kept in the precision of the
    features.

    Args:
        width: d.
        dtype: of the features.
        device: of the result.
    """

    root: Tensor  # R, (d, d) float64
    eigenvalues: Tensor  # λ of C, (d,) float64, descending
    reg: Tensor  # ς², float64; NaN before the first factorisation
    last_row: Tensor  # V_d, (d,) in the features' precision: the bias is seen by all columns

    def __init__(
        self, width: int, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None
    ) -> None:
        super().__init__()
        empty = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.register_buffer("root", empty)
        self.register_buffer("eigenvalues", empty.new_zeros(width))
        self.register_buffer("reg", empty.new_full((), torch.nan))
        self.register_buffer("last_row", torch.zeros(width, dtype=dtype, device=device))
        for k, (start, end) in enumerate(column_blocks(width)):  # V below its diagonal blocks, contiguous
            block = torch.zeros(width - start, end - start, dtype=dtype, device=device)
            self.register_buffer(f"block_{k}", block)

    def factorise(self, accumulator: Accumulator, reg: float) -> None:
        """From C and ς².

        Raises:
            ValueError: if ς² is negative, or 0 where C does not have full rank.
        """
        if not reg >= 0:
            raise ValueError(f"reg is the number ς² ≥ 0 added to the diagonal, got {reg}")
        values, _ = accumulator.spectrum()
        spectrum = Spectrum(values, reg)
        if reg == 0 and int(spectrum.rank) < len(values):
            raise ValueError(
                f"reg=0 needs features of full rank, but their Gram matrix has rank {int(spectrum.rank)} of "
                f"{len(values)}; the smallest usable reg is {FLOOR * float(values[0]):.3g}"
            )
        root = accumulator.root(reg)
        lower = torch.linalg.qr(root.flip(1), mode="r").R.flip(0, 1)  # LᵀL = RᵀR
        eye = torch.eye(len(values), dtype=root.dtype, device=root.device)
        self.root.copy_(root)
        self.eigenvalues.copy_(values)
        self.reg.fill_(reg)
        v = torch.linalg.solve_triangular(lower, eye, upper=False)
        self.last_row.copy_(v[-1])
        for k, (start, end) in enumerate(column_blocks(len(v))):
            self.get_buffer(f"block_{k}").copy_(v[start:, start:end])

    @property
    def spectrum(self) -> Spectrum:
        return Spectrum(self.eigenvalues, float(self.reg))

    def forward(self, features: Tensor) -> Tensor:
        """s, (n,), of rows (n, d) in the precision of the features; (n, d - 1) if the last entry is 1."""
        full, parts = features.shape[1] == len(self.last_row), []
        for k, (start, end) in enumerate(column_blocks(len(self.last_row))):
            block, rows = getattr(self, f"block_{k}"), features[:, start:]
            product = rows @ block if full else torch.addmm(self.last_row[start:end], rows, block[:-1])
            parts.append(torch.linalg.vector_norm(product, dim=1))
        return parts[0] if len(parts) == 1 else torch.linalg.vector_norm(torch.stack(parts), dim=0)

    def exact(self, features: Tensor) -> Tensor:
        """s² in float64 by a triangular solve, (n,), of rows (n, d)."""
        return self._solved(features).square().sum(0)

    def covariance(self, features: Tensor, others: Tensor) -> Tensor:
        """f A⁻¹ f'ᵀ between rows (n, d) and (m, d): (n, m) float64."""
        return self._solved(features).mT @ self._solved(others)

    def _solved(self, features: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.root.mT, features.double().mT, upper=False)  # (d, n)
