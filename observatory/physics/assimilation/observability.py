"""What the data cannot tell, said before a fit wastes time on it and after it has run into a bound."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping

import torch
from torch import Tensor


def warn_of_silent(loss: Tensor, z: Mapping[str, Tensor]) -> None:
    """Name the unknowns on which a loss does not depend: their gradient is exactly 0."""
    slopes = torch.autograd.grad(
        loss, list(z.values()), retain_graph=True, allow_unused=True, materialize_grads=True
    )
    silent = [name for name, slope in zip(z, slopes, strict=True) if not slope.any()]
    if silent:
        warnings.warn(
            f"the gradient with respect to {', '.join(silent)} is exactly 0: these data do not depend on it "
            "within the window that was observed, so that it stays where it began; observe more, or leave it "
            "out of the unknowns",
            UserWarning,
            stacklevel=3,
        )


def warn_of_bounds(names: Iterable[str]) -> None:
    """Name the parameters that have run into a bound."""
    if said := ", ".join(names):
        warnings.warn(
            f"{said} ended at a bound: the data ask for values beyond it, or cannot tell; standard errors "
            "mean nothing there",
            UserWarning,
            stacklevel=3,
        )
