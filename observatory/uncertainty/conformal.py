"""Split conformal prediction with normalised residuals."""

from __future__ import annotations

import math

from torch import Tensor


def conformal_quantile(z: Tensor, coverage: float) -> Tensor:
    """q, the ⌈(n + 1)(1 - δ)⌉-th smallest of |r_i|/σ_i: ŷ ± qσ then covers with probability 1 - δ at least.

    For exchangeable rows of continuous |z| the coverage is ⌈(n + 1)(1 - δ)⌉/(n + 1) exactly, on average over
    calibration sets. (Lei et al. 2018, arXiv:1604.04173.)

    Args:
        z: r/σ of calibration rows, any shape; each number counts as a row.
        coverage: 1 - δ, between 0 and 1.

    Returns:
        q, () float64.

    Raises:
        ValueError: if there are too few rows for that coverage.
    """
    if not 0 < coverage < 1:
        raise ValueError(f"coverage lies between 0 and 1, got {coverage}")
    scores = z.double().abs().flatten()
    n = len(scores)
    k = math.ceil((n + 1) * coverage - 1e-9)  # 0.9·10 is 9.000000000000002 on some days
    if k > n:
        needed = math.ceil(coverage / (1 - coverage) - 1e-9)
        raise ValueError(f"{n} rows are too few for a coverage of {coverage}: it takes at least {needed}")
    return scores.kthvalue(k).values
