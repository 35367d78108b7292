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
    """s²(f) = f A⁻¹ fᵀ = ‖f V‖² with V = R⁻¹ upper triangular, RᵀR = A = C + ς² I.

    A sum of squares has no cancellation. The factor is made in float64, V is kept in the precision of the
    features, in blocks of columns without the zeros below them: six tenths of the full product.

    Args:
        width: d.
        dtype: of the features.
        device: of the result.
    """

    root: Tensor  # R, (d, d) float64
    eigenvalues: Tensor  # λ of C, (d,) float64, descending
    reg: Tensor  # ς², float64; NaN before the first factorisation
    bias: Tensor  # V_d in the columns of the last block, in which alone it is not zero

    def __init__(
        self, width: int, *, dtype: torch.dtype = torch.float32, device: torch.device | None = None
    ) -> None:
        super().__init__()
        empty = torch.zeros(width, width, dtype=torch.float64, device=device)
        self.register_buffer("root", empty)
        self.register_buffer("eigenvalues", empty.new_zeros(width))
        self.register_buffer("reg", empty.new_full((), torch.nan))
        self.names: list[str] = []
        self.cuts = column_blocks(width, max(48, -(-width // 96) * 16))  # few calls, and few products with 0
        for start, end in self.cuts:  # each contiguous: products are faster
            self.names.append(f"columns_{start}_to_{end}")
            block = torch.zeros(min(end, width - 1), end - start, dtype=dtype, device=device)
            self.register_buffer(self.names[-1], block)
        self.register_buffer("bias", block.new_zeros(end - start))

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
        self.root.copy_(root)
        self.eigenvalues.copy_(values)
        self.reg.fill_(reg)
        eye = torch.eye(len(values), dtype=root.dtype, device=root.device)
        v = torch.linalg.solve_triangular(root, eye, upper=True)
        for name, (start, end) in zip(self.names, self.cuts, strict=True):
            block = self.get_buffer(name)
            block.copy_(v[: len(block), start:end])
        self.bias.copy_(v[-1, start:])

    @property
    def spectrum(self) -> Spectrum:
        return Spectrum(self.eigenvalues, float(self.reg))

    def forward(self, features: Tensor) -> Tensor:
        """s, (n,), of rows (n, d) in the precision of the features; (n, d - 1) if the last entry is 1."""
        *blocks, last = [getattr(self, name) for name in self.names]
        parts = [features[:, : len(block)] @ block for block in blocks]
        parts.append(self._product_with_bias(features, last))
        return torch.linalg.vector_norm(torch.cat(parts, 1), dim=1)

    def _product_with_bias(self, features: Tensor, block: Tensor) -> Tensor:
        if features.shape[1] == len(block):
            return torch.addmm(self.bias, features, block)
        return features[:, :-1] @ block + features[:, -1:] * self.bias

    def exact(self, features: Tensor) -> Tensor:
        """s² in float64 by a triangular solve, (n,), of rows (n, d)."""
        return self._solved(features).square().sum(0)

    def covariance(self, features: Tensor, others: Tensor) -> Tensor:
        """f A⁻¹ f'ᵀ between rows (n, d) and (m, d): (n, m) float64."""
        return self._solved(features).mT @ self._solved(others)

    def _solved(self, features: Tensor) -> Tensor:
        return torch.linalg.solve_triangular(self.root.mT, features.double().mT, upper=False)  # (d, n)
