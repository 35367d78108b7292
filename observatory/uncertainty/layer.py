"""The last layer of a network: which one it is, and what goes into it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

EXACT = (torch.float32, torch.float64)  # what rows may be kept in
Run = Callable[[], Any]  # one forward pass of the network, returning what it returns
Pool = Callable[[Tensor], Tensor]


@dataclass(frozen=True, eq=False)
class LastLayer:
    """A Linear whose output, pooled if `pool` is given, is the network's own: ŷ = W f + b.

    The features of a row are f, followed by 1 if there is a bias.
    """

    name: str
    module: nn.Linear
    pool: Pool | None = None  # the linear map (rows ..., d) -> (n, d) that the network applies to the output

    @property
    def width(self) -> int:
        """d, with the entry of the bias."""
        return self.module.in_features + int(self.module.bias is not None)

    @property
    def outputs(self) -> int:
        return self.module.out_features

    def weight(self) -> Tensor:
        """[W, b], (O, d)."""
        w, b = self.module.weight.detach(), self.module.bias
        return w if b is None else torch.cat([w, b.detach()[:, None]], 1)

    def rows(self, inputs: Tensor) -> Tensor:
        """Features (n, d) from what went into the layer, (..., in_features); half precision is raised.

        Raises:
            ValueError: if pooling leaves something else than rows.
        """
        inputs = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        if self.module.bias is not None:
            inputs = torch.cat([inputs, inputs.new_ones(*inputs.shape[:-1], 1)], -1)
        if self.pool is None:
            return inputs.flatten(0, -2) if inputs.ndim > 1 else inputs[None]
        pooled = self.pool(inputs)
        if pooled.ndim != 2 or pooled.shape[1] != self.width:
            raise ValueError(
                f"pool= made {tuple(pooled.shape)} of features {tuple(inputs.shape)}; it must leave rows "
                f"(n, {self.width})"
            )
        return pooled

    def short(self, inputs: Tensor) -> Tensor:
        """The same without the last entry of the rows where it is 1 in all of them."""
        if self.pool is not None:
            return self.rows(inputs)
        if inputs.ndim == 2 and inputs.dtype in EXACT:  # before anything that costs time
            return inputs
        inputs = inputs.to(torch.promote_types(inputs.dtype, torch.float32))
        return inputs.flatten(0, -2) if inputs.ndim > 1 else inputs[None]

    @contextmanager
    def listening(self) -> Iterator[list[Tensor]]:
        """A list of what goes into the layer meanwhile, attached to the graph.

        A hook listens, which changes nothing about the forward pass and is gone afterwards.
        """
        heard: list[Tensor] = []
        handle = self.module.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
        try:
            yield heard
        finally:
            handle.remove()

    def watch(self, run: Run, heard: list[Tensor] | None = None) -> tuple[Any, Tensor]:
        """What the network returned, and what went into the layer, attached to the graph.

        Args:
            run: calls the network.
            heard: what `listening` gave, for several calls.

        Raises:
            RuntimeError: if the layer was not called.
        """
        if heard is None:  # not by `listening`: a context costs as much as a small layer
            heard = []
            handle = self.module.register_forward_pre_hook(lambda _, args: heard.append(args[0]))
            try:
                returned = run()
            finally:
                handle.remove()
        else:
            heard.clear()
            returned = run()
        if not heard:
            raise RuntimeError(
                f"the forward pass did not call {self.name!r}: is it the network that was fitted?"
            )
        return returned, heard[-1]


def find_last_layer(
    root: nn.Module, run: Run, *, name: str | nn.Module | None = None, pool: Pool | None = None
) -> LastLayer:
    """The last layer of a network, found by one forward pass and checked by its values.

    Args:
        root: whose submodules are asked.
        run: one forward pass through `root`.
        name: of the layer, or the layer itself; default the nn.Linear that is executed last.
        pool: see `LastLayer`.

    Raises:
        ValueError: if there is no Linear, or the network's output is not that of the layer up to its shape
            (a softmax, a scaling or a dictionary follows, say); the text lists the layers in the order in
            which they are executed.
    """
    calls, returned = _executed(root, run)
    told = "; Linear layers in order of execution: " + (", ".join(n for n, *_ in calls) or "none")
    chosen = _named(root, name) if name is not None else calls[-1][1] if calls else None
    if chosen is None:
        raise ValueError(f"{type(root).__name__} executes no nn.Linear{told}; other heads need jacobian=True")
    heard = [(n, out) for n, module, out in calls if module is chosen]
    if not heard:
        raise ValueError(f"last_layer={name!r} is not executed by a forward pass as nn.Linear{told}")
    label, output = heard[-1]
    if not same_output(returned, output if pool is None else pool(output)):
        raise ValueError(
            f"the network returns {_described(returned)}, which is not the output of {label!r}"
            f"{' pooled by pool=' if pool is not None else ' up to its shape'}: what follows it is not seen. "
            "Pass the part of the network up to its last layer, say which part of the return value is the "
            f"layer's own with output=, or name another layer with last_layer={told}"
        )
    return LastLayer(label, chosen, pool)


def _executed(root: nn.Module, run: Run) -> tuple[list[tuple[str, nn.Linear, Tensor]], Any]:
    """Every call of a Linear with its output, and what the network returned."""
    calls: list[tuple[str, nn.Linear, Tensor]] = []
    handles = [
        module.register_forward_hook(
            lambda m, _, out, name=name: calls.append((name, m, out.detach().clone()))
        )
        for name, module in root.named_modules()
        if isinstance(module, nn.Linear)
    ]
    try:
        with torch.no_grad():
            return calls, run()
    finally:
        for handle in handles:
            handle.remove()


def _named(root: nn.Module, name: str | nn.Module) -> nn.Linear:
    found = dict(root.named_modules()).get(name) if isinstance(name, str) else name
    if not isinstance(found, nn.Linear):
        linear = [n for n, m in root.named_modules() if isinstance(m, nn.Linear)]
        what = "no submodule" if found is None else f"a {type(found).__name__}"
        raise ValueError(
            f"last_layer={name!r} is {what}; Linear layers are {', '.join(linear) or 'none'}. "
            "Other heads need jacobian=True"
        )
    return found


def same_output(returned: Any, output: Tensor) -> bool:
    """Equal up to reshaping; pooling rounds."""
    if not isinstance(returned, Tensor) or returned.numel() != output.numel():
        return False
    one, other = returned.detach().flatten().double(), output.flatten().double()
    scale = float(other.abs().nan_to_num(0.0, 0.0).max())
    return torch.allclose(one, other, rtol=1e-5, atol=1e-6 * scale, equal_nan=True)


def _described(returned: Any) -> str:
    if isinstance(returned, Tensor):
        return f"a tensor of shape {tuple(returned.shape)}"
    if isinstance(returned, dict):
        return f"a dict of {', '.join(map(repr, returned))}"
    return f"a {type(returned).__name__}"
