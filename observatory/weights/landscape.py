"""The loss as a function of chosen weights, on a fixed set of examples."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from functools import cached_property, partial
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.func import grad, vmap
from torch.utils._pytree import tree_leaves, tree_map

from observatory.looking import Loss, ModelFunction
from observatory.looking.likelihood import likelihood_loss
from observatory.numerics.curvature import (
    Theta,
    directional_derivatives,
    hessian_products,
    ravel,
    unravel,
)
from observatory.numerics.elementary import ElementaryLosses
from observatory.weights.course import AnotherCourse, Course, OnCourse, record_course

Batches = Iterable[tuple[Any, Any]]
POINTS_BYTES = 2**28  # of weights or inputs of the points that are evaluated at once
POINTS_ON_CPU = 10
COURSES_BYTES = 2**28  # of what no chosen weight reaches


class Landscape:
    """L(θ) = (1/N) Σ_μ ℓ_μ(θ) about a point, in evaluation mode, with other weights and buffers as they are.

    Batches count by their examples. What depends only on the other weights (layers below the chosen ones) is
    evaluated once for all points and directions.

    Args:
        model: the network; the weights that are varied are its selected ones.
        data: (inputs, targets) as a pair of tensors, or batches of such pairs.
        center: θ₀, shape (P,); default the present weights.
        loss: loss(output, targets), a mean over the examples; default the likelihood of the targets' type.
        batch_size: examples at once, where `data` is one pair; default all.
    """

    def __init__(
        self,
        model: nn.Module | ModelFunction,
        data: tuple[Any, Any] | Batches,
        *,
        center: Tensor | None = None,
        loss: Loss | None = None,
        batch_size: int | None = None,
    ) -> None:
        function = ModelFunction.of(model)
        single = {name: _single(p) for name, p in function.parameters.items()}
        self.function = replace(function, parameters=single)
        self.loss = _elementary(loss or likelihood_loss)
        theta = self.function.theta
        self.theta = theta if center is None else unravel(center.to(ravel(theta)), theta)
        self.batches = [_moved(batch, self.function.device) for batch in _batches(data, batch_size)]
        self.counts = [_count(inputs) for inputs, _ in self.batches]
        self.samples = sum(self.counts)
        if not self.samples:
            raise ValueError("the loss needs at least one example; the data are empty")

    @property
    def center(self) -> Tensor:
        """θ₀, (P,)."""
        return ravel(self.theta)

    @cached_property
    def courses(self) -> list[Course | None]:
        """Of each batch, what no chosen weight reaches; None beyond the memory for it."""
        found: list[Course | None] = []
        room = COURSES_BYTES
        for inputs, _ in self.batches:
            others = self.function.parameters, self.function.buffers, inputs
            evaluate = partial(self.function, inputs, self.theta)
            course = record_course(evaluate, self.theta, others) if room > 0 else None
            room -= 0 if course is None else course.bytes
            found.append(course if room >= 0 else None)
        return found

    def value(self) -> Tensor:
        """L(θ₀), scalar, float64."""

        def evaluate(batch: int) -> Tensor:
            inputs, targets = self.batches[batch]
            return self.loss(self.function(inputs, self.theta), targets)

        with torch.no_grad():
            return self._mean(evaluate)

    def at(self, points: Tensor) -> Tensor:
        """L(θ) at points (k, P), shape (k,), float64."""
        stacked = unravel(points.to(self.center), self.theta)
        chunk = self.points_at_once(points.shape[1])

        def evaluate(batch: int) -> Tensor:
            with torch.no_grad():
                return vmap(self._loss(batch), chunk_size=chunk)(stacked)

        return self.mean(evaluate)

    def gradient(self) -> Tensor:
        """∇L(θ₀), (P,), float64."""
        return self.mean(lambda batch: ravel(grad(self._loss(batch))(dict(self.theta))))

    def hessian_products(self, directions: Tensor) -> Tensor:
        """H p_i at θ₀ for directions (k, P), shape (k, P), float64."""
        chunk = self.points_at_once(2 * directions.shape[1])
        vectors = directions.to(self.center)
        return self.mean(
            lambda batch: hessian_products(self._loss(batch), self.theta, vectors, chunk_size=chunk)
        )

    def slopes(self, directions: Tensor) -> Tensor:
        """g_μ·p_i, the slope of each example's own loss along each direction, shape (N, k), float64."""
        chunk = self.points_at_once(directions.shape[1])
        vectors = directions.to(self.center)

        def each(batch: int, theta: Theta) -> Tensor:
            targets = self.batches[batch][1]
            one = vmap(lambda output, y: self.loss(output[None], tree_map(_unsqueezed, y)))
            return one(self._output(batch, theta), targets)

        def slopes(batch: int) -> Tensor:
            return directional_derivatives(partial(each, batch), self.theta, vectors, chunk_size=chunk)

        found = [self._on_course(slopes)(batch) for batch in range(len(self.batches))]
        return torch.cat(found, dim=1).mT.double()

    def _output(self, batch: int, theta: Theta) -> Tensor:
        with OnCourse(self.courses[batch]):
            return self.function(self.batches[batch][0], theta)

    def _loss(self, batch: int) -> Callable[[Theta], Tensor]:
        return lambda theta: self.loss(self._output(batch, theta), self.batches[batch][1])

    def mean(self, evaluate: Callable[[int], Tensor]) -> Tensor:
        """Mean of a function of the number of a batch, weighted with the batches' examples, in float64."""
        return self._mean(self._on_course(evaluate))

    def _mean(self, evaluate: Callable[[int], Tensor]) -> Tensor:
        total = cast(Tensor, 0.0)
        for batch, count in enumerate(self.counts):
            total = total + evaluate(batch).double() * (count / self.samples)
        return total

    def _on_course(self, evaluate: Callable[[int], Tensor]) -> Callable[[int], Tensor]:
        """`evaluate`, once more without the course if the network leaves it."""
        courses = self.courses  # recorded here, outside of the transforms in which they are used

        def safely(batch: int) -> Tensor:
            try:
                return evaluate(batch)
            except AnotherCourse:
                courses[batch] = None
                return evaluate(batch)

        return safely

    def points_at_once(self, size: int) -> int:
        """Points whose weights and activations (guessed from the inputs) fit into memory together."""
        largest = max(
            sum(leaf.numel() for leaf in tree_leaves(x) if isinstance(leaf, Tensor)) for x, _ in self.batches
        )
        fitting = max(1, POINTS_BYTES // (4 * max(size, largest)))
        # the activations of a few points stay in the cache of a CPU (best of 1 to 40 for layers 50 to
        # 1000 wide)
        return min(fitting, POINTS_ON_CPU) if self.function.device.type == "cpu" else fitting


def _elementary(loss: Loss) -> Loss:
    def evaluated(output: Tensor, targets: Tensor) -> Tensor:
        with ElementaryLosses():
            return loss(output, targets)

    return evaluated


def _single(tensor: Tensor) -> Tensor:
    """Half precision cannot resolve a line search."""
    half = tensor.dtype in (torch.bfloat16, torch.float16)
    return tensor.float() if half else tensor


def _unsqueezed(tensor: Tensor) -> Tensor:
    return tensor[None]


def _moved(batch: tuple[Any, Any], device: torch.device) -> tuple[Any, Any]:
    def move(leaf: Any) -> Any:
        return _single(leaf.detach().to(device)) if isinstance(leaf, Tensor) else leaf

    return cast(tuple[Any, Any], tree_map(move, tuple(batch)))


def _count(inputs: Any) -> int:
    return int(next(leaf for leaf in tree_leaves(inputs) if isinstance(leaf, Tensor)).shape[0])


def _batches(data: tuple[Any, Any] | Batches, batch_size: int | None) -> Iterator[tuple[Any, Any]]:
    if not isinstance(data, tuple):
        yield from data
        return
    inputs, targets = data
    count = _count(inputs)
    width = batch_size or max(count, 1)
    for start in range(0, count, width):

        def part(leaf: Any, start: int = start) -> Any:
            return leaf[start : start + width] if isinstance(leaf, Tensor) else leaf

        yield tree_map(part, inputs), tree_map(part, targets)
