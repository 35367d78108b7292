"""Which rule treats which call of a layer."""

from __future__ import annotations

from typing import Any

from observatory.looking.calls import LayerCall
from observatory.ntk.convolutions import ConvolutionFactors
from observatory.ntk.factors import EmbeddingFactors, Factors, LinearFactors
from observatory.ntk.normalisations import AffineFactors

RULES: dict[str, type[Factors]] = {
    "linear": LinearFactors,
    "conv1d": ConvolutionFactors,
    "conv2d": ConvolutionFactors,
    "conv3d": ConvolutionFactors,
    "embedding": EmbeddingFactors,
    "layer_norm": AffineFactors,
    "rms_norm": AffineFactors,
    "group_norm": AffineFactors,
    "batch_norm": AffineFactors,
}


def rule_of(call: LayerCall) -> type[Factors] | None:
    """The rule for a call, or None if it must be treated by the definition."""
    given: dict[str, Any] = call.arguments
    if call.layer == "embedding" and (given.get("max_norm") is not None or given.get("scale_grad_by_freq")):
        return None
    if call.layer == "batch_norm" and given.get("training"):
        return None
    if call.layer.startswith("conv") and len(call.shape) != len(call.weight_shape or ()):
        return None  # an image without a batch axis
    if set(call.parameters) - {"weight", "bias"}:
        return None  # a parameter is the input
    return RULES[call.layer]
