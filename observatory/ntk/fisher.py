"""The trace of the Fisher information of a network, through gradients of its outputs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from observatory.looking.model import Forward, ModelFunction, Output
from observatory.looking.probe import Probe, forked_streams, rows, split_batch
from observatory.ntk.fisher_estimators import (
    ESTIMATORS,
    OF_WHOLE_BATCHES,
    BatchSums,
    Estimate,
    Estimator,
    ExampleSums,
    FisherDirections,
    FisherTraces,
    whole_batch_values,
)
from observatory.ntk.fisher_likelihoods import Likelihood, output_likelihood
from observatory.ntk.nonfinite import not_finite
from observatory.ntk.norms import squared_gradient_norms_by_layer

FisherKind = Literal["true", "empirical"]


def fisher_trace(
    model: nn.Module | ModelFunction,
    x: Any,
    y: Tensor | None = None,
    *,
    likelihood: Likelihood | None = None,
    kind: FisherKind = "true",
    estimator: Estimator = "auto",
    sigma2: float = 1.0,
    match_loss: bool = False,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean",
    draws: int = 2,
    generator: torch.Generator | None = None,
    max_examples: int | None = None,
    over_ranks: bool = False,
    inputs: Callable[[Any], Any] | None = None,
    targets: Callable[[Any], Any] | None = None,
    forward: Forward | None = None,
    output: Output | None = None,
    select: str | Callable[[str], bool] | None = None,
) -> Estimate:
    """Tr F = (1/N) Σ_i Tr(H_i Θ_ii), the mean squared length of the score ∇ ln p(y|x_i).

    F = (1/N) Σ_i E_y[∇ ln p(y|x_i) ∇ ln p(y|x_i)ᵀ] with labels y of the model's own distribution ("true"), or
    with those of the data ("empirical", another quantity: Kunstner, Balles, Hennig 2019, arXiv:1905.12558,
    which tends to zero as the data are fitted). Only the diagonal blocks of the tangent kernel enter, so that
    per-example gradient norms are enough.

    Args:
        model: looked at in evaluation mode; its mode, gradients and buffers stay as they are.
        x: N examples along the first axis of a tensor or nested tensors; or a loader of batches (x, y), of
            which the whole, or the first `max_examples` examples, are used.
        y: targets. Default likelihood: categorical for integers, Gaussian for others.
        likelihood: "categorical" (logits along the last axis), "bernoulli" (logits), "poisson" (ln of the
            mean) or "gaussian" (means).
        kind: "true" needs no targets; those given as `ignore_index` mark outputs that do not count.
        estimator: see `observatory.ntk.fisher_estimators`; "auto" is exact up to 16 outputs per example, else
            sampled labels.
        sigma2: variance of the Gaussian; 1 belongs to the loss ½‖f - y‖².
        match_loss: take the variance C/2 instead, which belongs to `torch.nn.MSELoss`.
        ignore_index: class that marks padding; examples that are all padding do not count in N.
        reduction: "mean" over the examples, or "sum".
        draws: K, for the random estimators. `standard_error` needs K ≥ 2; with one draw per example it is the
            larger `sampling_error`, and unknown (NaN) for the estimators of whole batches.
        generator: of the draws, on any device; default one with seed 0.
        max_examples: of a loader.
        over_ranks: x is this process's share of the examples: add the sums of all processes. Every rank must
            then call this function, and every rank needs at least one example.
        inputs, targets: parts of a loader's batch, by default its first and second.
        forward, output, select: see `ModelFunction.of`.

    Raises:
        ValueError: if there are no examples or no targets where they are needed, targets do not fit the
            outputs, the result is not finite, or an example's output depends on the others.
    """
    return fisher_trace_by_layer(
        model, x, y, likelihood=likelihood, kind=kind, estimator=estimator, sigma2=sigma2,
        match_loss=match_loss, ignore_index=ignore_index, reduction=reduction, draws=draws,
        generator=generator, max_examples=max_examples, over_ranks=over_ranks, inputs=inputs, targets=targets,
        forward=forward, output=output, select=select,
    ).whole  # fmt: skip


def fisher_trace_by_layer(
    model: nn.Module | ModelFunction,
    x: Any,
    y: Tensor | None = None,
    *,
    likelihood: Likelihood | None = None,
    kind: FisherKind = "true",
    estimator: Estimator = "auto",
    sigma2: float = 1.0,
    match_loss: bool = False,
    ignore_index: int = -100,
    reduction: Literal["mean", "sum"] = "mean",
    draws: int = 2,
    generator: torch.Generator | None = None,
    max_examples: int | None = None,
    over_ranks: bool = False,
    allow_nonfinite: bool = False,
    inputs: Callable[[Any], Any] | None = None,
    targets: Callable[[Any], Any] | None = None,
    forward: Forward | None = None,
    output: Output | None = None,
    select: str | Callable[[str], bool] | None = None,
) -> FisherTraces:
    """The trace and its parts by layer, or by parameter where several layers share it.

    Arguments and errors are those of `fisher_trace`.

    Args:
        allow_nonfinite: return NaN instead of refusing a network that has diverged.
    """
    if kind not in ("true", "empirical"):
        raise ValueError(f"kind must be 'true' or 'empirical', got {kind!r}")
    if estimator not in ESTIMATORS:
        raise ValueError(f"estimator must be one of {', '.join(ESTIMATORS)}, got {estimator!r}")
    if kind == "empirical" and estimator not in ("auto", "exact"):
        raise ValueError(f"the empirical Fisher information has nothing to draw: leave out {estimator!r}")
    if draws < 1:
        raise ValueError(f"at least one draw is needed, got draws={draws}")
    function = ModelFunction.of(model, forward=forward, output=output, select=select)
    random = generator or torch.Generator().manual_seed(0)
    sums: ExampleSums | BatchSums | None = None
    part: Probe | None = None
    for part in _batches(x, y, max_examples, function.device, inputs, targets):
        _check(part, kind)
        whom = partial(
            output_likelihood, likelihood, part.targets,
            sigma2=sigma2, match_loss=match_loss, ignore_index=ignore_index,
        )  # fmt: skip
        if estimator in OF_WHOLE_BATCHES:
            sums = sums or BatchSums()
            assert isinstance(sums, BatchSums)
            sums.add(*whole_batch_values(estimator, function, part.inputs, whom, part.targets, draws, random))
        else:
            sums = sums or ExampleSums()
            assert isinstance(sums, ExampleSums)
            method = "empirical" if kind == "empirical" else estimator
            directions = FisherDirections(method, whom, part.targets, draws, random)
            norms = squared_gradient_norms_by_layer(function, part.inputs, directions)
            sums.add(norms, directions.counted, directions.random_draws)
    if sums is None or part is None:
        raise ValueError("there are no examples to look at: the loader is empty")
    found = sums.estimates(mean=reduction == "mean", over_ranks=over_ranks)
    if found.whole.examples == 0:
        raise ValueError(f"every target is {ignore_index}, which marks padding: no example counts")
    if not allow_nonfinite and not bool(found.whole.value.isfinite()):
        raise ValueError(f"the trace is not finite: {not_finite(function, [part.inputs])}")
    return found


def _check(part: Probe, kind: FisherKind) -> None:
    if len(part) == 0:
        raise ValueError("there are no examples to look at: the probe is empty")
    if kind == "empirical" and not isinstance(part.targets, Tensor):
        raise ValueError("kind='empirical' needs targets y, one for each example")
    if isinstance(part.targets, Tensor) and len(part.targets) != len(part):
        raise ValueError(
            f"{len(part)} examples and {len(part.targets)} targets: one target per example is needed"
        )


def _batches(
    x: Any,
    y: Tensor | None,
    most: int | None,
    device: torch.device,
    inputs: Callable[[Any], Any] | None,
    targets: Callable[[Any], Any] | None,
) -> Iterator[Probe]:
    """The examples themselves, or the batches of a loader; no random stream moves."""
    if y is not None or not isinstance(x, Iterable) or isinstance(x, Tensor | Mapping | list | tuple):
        yield Probe(x, y).to(device)
        return
    left = most
    with forked_streams([device.index or 0] if device.type == "cuda" else []):
        for batch in x:
            part = split_batch(batch, inputs=inputs, targets=targets).to(device)
            if left is not None and left < len(part):
                part = Probe(rows(part.inputs, 0, left), rows(part.targets, 0, left))
            if len(part):
                yield part
            left = None if left is None else left - len(part)
            if left is not None and left <= 0:
                return
