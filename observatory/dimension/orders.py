"""Order parameters of oscillation across layers, for the profiles of one network."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from observatory.dimension.oscillation import FEWEST, oscillation

PROFILES = ("path_focusing", "participation_ratio", "two_nn", "levina_bickel")
ORDERS = ("staggered", "signed_staggered", "oscillation_p", "turning_z", "period")


def profile_of(name: str, values: Mapping[str, Tensor]) -> Tensor:
    """The profile over the hidden layers that is asked for oscillation; NaN if it was not measured.

    Focusing leaves out the last hidden layer, which few outputs focus from the far side. A dimension is
    divided by the width where the widths differ.
    """
    width = values["units"]
    if name not in values:
        return torch.full_like(width, torch.nan)
    if name == "path_focusing":
        return values[name][..., :-1]
    return values[name] if bool((width == width[..., :1]).all()) else values[name] / width


def order_parameters(values: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`ORDERS` of all `PROFILES` by name, (profiles,); NaN for fewer than five layers."""
    columns = []
    for name in PROFILES:
        y = profile_of(name, values)
        if y.shape[-1] < FEWEST:
            columns.append(y.new_full((len(ORDERS),), torch.nan))
            continue
        found = oscillation(y)
        columns.append(
            torch.stack([found.staggered, found.signed, found.p_value, found.turning_z, found.period])
        )
    return dict(zip(ORDERS, torch.stack(columns).unbind(1), strict=True))
