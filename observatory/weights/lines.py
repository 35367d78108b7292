"""The loss along straight lines in weight space, without forming the weights at every point."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import jvp, vmap
from torch.nn import functional
from torch.utils._pytree import tree_map

from observatory.numerics.curvature import (
    FORWARD_MODE_ERRORS,
    lacks_forward_mode,
    prepare_forward_mode,
    unravel,
)
from observatory.weights.course import (
    LINEAR_IN_WEIGHTS,
    Course,
    LinearLayer,
    OnCourse,
    weight_and_bias,
)
from observatory.weights.landscape import Landscape

SLOPES_BYTES = 2**28  # of the outputs of layers with directions for weights
Slopes = dict[str, Tensor]  # number of an operation to layer(x; p)


class StraightLine(OnCourse):
    """While active, every use of a weight θ₀ means θ₀ + s p.

    A layer that is linear in its weights is evaluated as layer(x; θ₀) + s layer(x; p): under `vmap` over
    s the two products are shared by all points of a line, and where no chosen weight reaches x they are
    not even evaluated. Any other operation gets the sum itself.

    Args:
        start: θ₀ by name; the very tensors that the operations will be called with.
        direction: p by name, of the same shapes.
        s: distance, a scalar.
        course: of the evaluation at θ₀.
        slopes: layer(x; p) of the layers of the course.
    """

    def __init__(
        self,
        start: Mapping[str, Tensor],
        direction: Mapping[str, Tensor],
        s: Tensor,
        course: Course | None = None,
        slopes: Slopes | None = None,
    ) -> None:
        super().__init__(course)
        self._along = {id(tensor): (tensor, direction[name]) for name, tensor in start.items()}
        self._s, self._slopes = s, slopes or {}

    def reached(self, func: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Any:
        if (known := self.layer) is not None and (slope := self._slopes.get(str(known[0]))) is not None:
            return torch.addcmul(known[1].output, self._s, slope)
        if func in LINEAR_IN_WEIGHTS and id(args[0]) not in self._along:
            weight, bias = weight_and_bias(args, kwargs)
            if id(weight) in self._along or id(bias) in self._along:
                return self._linear(func, args, kwargs, weight, bias)
        return func(*self._moved(args), **self._moved(kwargs))

    def _moved(self, arguments: Any) -> Any:
        """The arguments with θ₀ + s p in place of θ₀."""

        def move(leaf: Any) -> Any:
            found = self._along.get(id(leaf))
            return leaf if found is None else found[0] + self._s * found[1]

        return tree_map(move, arguments)

    def _linear(
        self,
        func: Callable[..., Tensor],
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
        weight: Any,
        bias: Any,
    ) -> Tensor:
        named = {key: value for key, value in kwargs.items() if key not in ("weight", "bias")}
        layer = LinearLayer(func, args[0], weight, bias, args[3:], named, func(*args, **kwargs))
        along = {key: found[1] for key, found in self._along.items()}
        return torch.addcmul(layer.output, self._s, _slope(layer, along))


def _slope(layer: LinearLayer, along: Mapping[int, Tensor]) -> Tensor:
    """layer(x; p), of a shape that can be added to the output; `along` has p by the id of θ₀."""
    bias = along.get(id(layer.bias))
    if id(layer.weight) in along:
        return layer.of(along[id(layer.weight)], bias)
    assert bias is not None  # one of the two is chosen
    shape = (-1,) if layer.function is functional.linear else (-1, *[1] * (layer.weight.ndim - 2))
    return bias.reshape(shape).expand_as(layer.output)


class Lines:
    """L(θ₀ + s p_i) along k directions.

    Args:
        landscape: about θ₀.
        directions: p_i, (k, P).
    """

    def __init__(self, landscape: Landscape, directions: Tensor) -> None:
        self.landscape, self.directions = landscape, directions
        self._lines = unravel(directions.to(landscape.center), landscape.theta)
        self._slopes = self._first_layers(landscape.courses)

    def _first_layers(self, courses: Sequence[Course | None]) -> list[Slopes]:
        """Outputs of the layers that chosen weights enter first, with p_i for weights, of each batch."""
        layers = [list(course.layers.items()) if course else [] for course in courses]
        outputs = [layer.output for batch in layers for _, layer in batch]
        size = sum(out.numel() * out.element_size() for out in outputs) * len(self.directions)
        if size > SLOPES_BYTES:
            return [{} for _ in courses]
        names = {id(tensor): name for name, tensor in self.landscape.theta.items()}

        def slope(layer: LinearLayer) -> Callable[[Mapping[str, Tensor]], Tensor]:
            return lambda p: _slope(layer, {key: p[name] for key, name in names.items()})

        with torch.no_grad():
            return [{str(n): vmap(slope(layer))(self._lines) for n, layer in batch} for batch in layers]

    def values(self, distances: Tensor, rows: Tensor | None = None) -> Tensor:
        """L(θ₀ + s_ij p_i), (k, m), float64.

        Args:
            distances: s, (k, m).
            rows: which directions, (k,) bool; default all, `distances` belongs to the chosen ones.
        """
        s = distances.to(self.landscape.center)

        def chosen(tree: Any) -> Any:
            return tree if rows is None else tree_map(lambda leaf: leaf[rows], tree)

        def evaluate(batch: int) -> Tensor:
            points = vmap(self._point(batch), in_dims=(None, None, 0))
            arguments = chosen(self._lines), chosen(self._slopes[batch]), s
            rows_at_once = max(1, self._at_once // s.shape[1])
            with torch.no_grad():
                return vmap(points, chunk_size=rows_at_once)(*arguments)

        return self.landscape.mean(evaluate)

    def derivatives(self) -> tuple[Tensor, Tensor]:
        """Slopes p_i·∇L and curvatures p_iᵀHp_i at θ₀, each (k,), float64.

        Differentiated twice along each line in forward mode, which spares the gradients' size of work; from
        Hessian products where an operation lacks that mode.
        """
        prepare_forward_mode()
        try:
            found = self.landscape.mean(self._derive)
        except FORWARD_MODE_ERRORS as error:
            if not lacks_forward_mode(error):
                raise
            vectors = self.directions.double()
            slopes = vectors @ self.landscape.gradient()
            return slopes, (vectors * self.landscape.hessian_products(self.directions)).sum(1)
        return found[:, 0], found[:, 1]

    def _derive(self, batch: int) -> Tensor:
        zero = self.landscape.center.new_zeros(())
        unit, point = torch.ones_like(zero), self._point(batch)

        def one(direction: dict[str, Tensor], slopes: Slopes) -> Tensor:
            def slope(s: Tensor) -> Tensor:
                return jvp(lambda s: point(direction, slopes, s), (s,), (unit,))[1]

            return torch.stack(jvp(slope, (zero,), (unit,)))

        return vmap(one, chunk_size=self._at_once)(self._lines, self._slopes[batch])

    def _point(self, batch: int) -> Callable[[dict[str, Tensor], Slopes, Tensor], Tensor]:
        land = self.landscape
        inputs, targets = land.batches[batch]

        def loss(direction: dict[str, Tensor], slopes: Slopes, s: Tensor) -> Tensor:
            with StraightLine(land.theta, direction, s, land.courses[batch], slopes):
                output = land.function(inputs, land.theta)
            return land.loss(output, targets)

        return loss

    @property
    def _at_once(self) -> int:
        return self.landscape.points_at_once(self.directions.shape[1])
