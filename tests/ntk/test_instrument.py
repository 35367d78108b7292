"""Collective variables at work on outputs of every shape."""

from __future__ import annotations

import pytest
import torch
from cases import jacobian, make
from torch import Tensor, nn

from observatory.looking import Look, ModelFunction, Probe
from observatory.ntk import CollectiveVariables, collective_variables


def observed(module: nn.Module, x: Tensor, y: Tensor, **options: object) -> dict[str, Tensor]:
    probe = Probe(x, y)
    return dict(
        CollectiveVariables(**options).observe(Look(ModelFunction.of(module), probe, step=0, epoch=0))
    )


def language_model() -> tuple[nn.Module, Tensor, Tensor]:
    module, x = make("transformer with tied embedding")
    return module, x[:, :3], x[:, 1:]  # the next token at each of three places


@pytest.mark.parametrize("outputs", ["flat", "per_site"])
def test_language_model_with_a_target_at_every_place(outputs):
    module, x, y = language_model()
    j = jacobian(module, x)  # (4, 3·7, P)
    hot = nn.functional.one_hot(y, 7).double().flatten(1)
    if outputs == "per_site":
        j, hot = j.reshape(12, 7, -1), hot.reshape(12, 7)
        order = y.flatten().argsort(stable=True)  # every row has one class, by which they are sorted
        j, hot = j[order], hot[order]
    kernel = torch.einsum("icp,jcp->ij", j, j)
    expected = collective_variables(kernel, targets=hot)
    found = observed(module, x, y, outputs=outputs)
    assert (found["kernel"] - kernel).abs().max() <= 1e-10 * kernel.abs().max()
    for name in ("trace", "entropy", "centred_entropy", "alignment", "centred_alignment"):
        assert found[name].item() == pytest.approx(getattr(expected, name).item(), rel=1e-9)


def test_targets_that_fit_no_row_give_no_alignment():
    module, x, y = language_model()
    assert observed(module, x, y[:2])["alignment"].isnan()
    assert observed(module, x, y[:, 0], outputs="per_site")["alignment"].isnan()


@pytest.mark.parametrize("name", ["recurrent layer", "gated recurrent layer", "long short-term memory"])
def test_recurrent_networks(name):
    module, x = make(name)
    y = torch.tensor([2, 0, 1, 2, 0])
    j = jacobian(module, x[y.argsort(stable=True)])
    kernel = torch.einsum("icp,jcp->ij", j, j)
    assert (observed(module, x, y)["kernel"] - kernel).abs().max() <= 1e-10 * kernel.abs().max()


def test_unknown_outputs_are_refused():
    with pytest.raises(ValueError, match="outputs must be 'flat' or 'per_site', got 'sites'"):
        CollectiveVariables(outputs="sites")
