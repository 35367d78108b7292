"""Scale and shift of normalisations."""

from __future__ import annotations

from functools import cached_property

from torch import Tensor
from torch.nn import functional

from observatory.ntk.factors import Factors


class AffineFactors(Factors):
    """Few parameters, so their gradients are formed: Σ_s B x̂ and Σ_s B. B is (D, *output of the call)."""

    @cached_property
    def standard(self) -> Tensor:
        """The normalised input x̂, of the shape of the output."""
        plain = {key: value for key, value in self.call.arguments.items() if key not in ("weight", "bias")}
        normalised: Tensor = getattr(functional, self.call.layer)(**plain)
        return normalised

    def backward(self, gradient: Tensor) -> Tensor:
        return gradient

    def parameter_gradients(self, b: Tensor) -> dict[str, Tensor]:
        products = {"weight": lambda: b * self.standard, "bias": lambda: b}
        return {name: self._summed(products[name]()) for name in self.own}

    def _summed(self, product: Tensor) -> Tensor:
        """Sum over sites."""
        product = self.by_example(product)  # (D, N, rows, ...)
        if self.call.layer in ("layer_norm", "rms_norm"):
            return product.flatten(2, -1 - len(self.call.weight_shape or ())).sum(2)
        return product.flatten(4).sum((2, 4)) if product.ndim > 4 else product.sum(2)
