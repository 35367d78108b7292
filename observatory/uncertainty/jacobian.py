"""Heads that are not one Linear layer: their gradients are their features."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev, vmap

from observatory.uncertainty.layer import LastLayer, Run, same_output


@dataclass(frozen=True, eq=False)
class JacobianHead(LastLayer):
    """Any module whose output is the network's own; the features of an output are ∂ŷ_o/∂θ of its parameters.

    Every number that the head returns is a row of its own, with one scale α for all. For a Linear this is the
    usual s² (the Gram matrix is then 1 ⊗ FᵀF).
    """

    module: nn.Module  # type: ignore[assignment]

    @property
    def width(self) -> int:
        return sum(p.numel() for p in self.module.parameters())

    @property
    def outputs(self) -> int:
        return 1

    def weight(self) -> Tensor:
        raise ValueError(
            "outputs are not linear in the parameters of this head: there is no ensemble to draw"
        )

    def rows(self, inputs: Tensor) -> Tensor:
        """(examples times outputs, d): one backward pass for each output."""
        parameters = {name: p.detach() for name, p in self.module.named_parameters()}

        def outputs(theta: dict[str, Tensor], x: Tensor) -> Tensor:
            returned: Tensor = functional_call(self.module, theta, (x[None],))
            return returned.flatten()

        jacobian = vmap(jacrev(outputs), (None, 0))(parameters, inputs)  # each (B, O, *shape)
        joined = torch.cat([part.flatten(2) for part in jacobian.values()], 2)
        return joined.flatten(0, 1).to(torch.promote_types(joined.dtype, torch.float32))

    def short(self, inputs: Tensor) -> Tensor:
        return self.rows(inputs)


def find_head(root: nn.Module, run: Run, name: str | nn.Module | None) -> JacobianHead:
    """The head `name`, checked by one forward pass.

    Raises:
        ValueError: if there is none of that name, or the network's output is not its own up to its shape.
    """
    named = {label: module for label, module in root.named_modules() if module is name or label == name}
    if not named or name is None:
        raise ValueError(
            f"jacobian=True needs the head as last_layer=; {name!r} is no submodule of the network"
        )
    label, module = next(iter(named.items()))
    heard: list[Tensor] = []
    handle = module.register_forward_hook(lambda _, __, output: heard.append(output.detach()))
    try:
        with torch.no_grad():
            returned = run()
    finally:
        handle.remove()
    if not heard or not same_output(returned, heard[-1]):
        raise ValueError(f"the network does not return the output of {label!r}: what follows it is not seen")
    return JacobianHead(label, module)
