"""Fisher traces against closed forms and the explicit Fisher matrix; what is refused."""

from __future__ import annotations

import math

import pytest
import torch
from cases import CASES, jacobian, make
from fisher_by_definition import NAMES, explicit, small, targets_for
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from observatory.looking import ModelFunction
from observatory.ntk.fisher import fisher_trace, fisher_trace_by_layer
from observatory.ntk.fisher_gram import fisher_spectrum


def test_linear_softmax():
    net, x, y = nn.Linear(4, 3).double(), torch.randn(30, 4, dtype=torch.float64), torch.randint(3, (30,))
    p = net(x).softmax(-1).detach()
    lengths, square = x.square().sum(1) + 1, p.square().sum(1)
    true = fisher_trace(net, x, likelihood="categorical")
    assert true.value.item() == pytest.approx((lengths * (1 - square)).mean().item(), rel=1e-12)
    assert true.standard_error == 0 and true.examples == 30
    empirical = fisher_trace(net, x, y, kind="empirical")
    expected = (lengths * (1 - 2 * p[torch.arange(30), y] + square)).mean().item()
    assert empirical.value.item() == pytest.approx(expected, rel=1e-12)


def test_linear_models_of_the_other_likelihoods():
    net, x = nn.Linear(4, 3).double(), torch.randn(30, 4, dtype=torch.float64)
    f, lengths = net(x).detach(), x.square().sum(1) + 1
    closed = {
        "bernoulli": (f.sigmoid() * (1 - f.sigmoid())).sum(1),
        "poisson": f.exp().sum(1),
        "gaussian": torch.full((30,), 3 / 0.7, dtype=torch.float64),
    }
    for name, curved in closed.items():
        found = fisher_trace(net, x, likelihood=name, sigma2=0.7).value
        assert found.item() == pytest.approx((lengths * curved).mean().item(), rel=1e-12)


@pytest.mark.parametrize("case", CASES)
def test_exact_trace_is_that_of_the_explicit_matrix(case):
    module, x = make(case)
    f = ModelFunction.of(module)(x)
    for name in NAMES if f.ndim > 1 else NAMES[1:]:
        expected = explicit(module, x, name).trace().item()
        found = fisher_trace(module, x, likelihood=name, estimator="exact").value.item()
        assert found == pytest.approx(expected, rel=1e-10)


@pytest.mark.parametrize("case", ["mlp", "residual with batch norm", "transformer with tied embedding"])
@pytest.mark.parametrize("name", NAMES)
def test_empirical_trace_is_the_mean_of_squared_gradients(case, name):
    module, x = make(case)
    f = ModelFunction.of(module)(x).detach()
    y = targets_for(name, f)
    losses = {
        "categorical": lambda f, y: nn.functional.cross_entropy(
            f.flatten(0, -2), y.flatten(), reduction="sum"
        ),
        "bernoulli": lambda f, y: nn.functional.binary_cross_entropy_with_logits(f, y, reduction="sum"),
        "poisson": lambda f, y: (f.exp() - y * f).sum(),
        "gaussian": lambda f, y: (f - y).square().sum() / 2,
    }
    free = f.clone().requires_grad_()
    g = torch.autograd.grad(losses[name](free, y), free)[0].flatten(1)
    expected = torch.einsum("ic,icp->ip", g, jacobian(module, x)).square().sum(1).mean().item()
    found = fisher_trace(module, x, y, kind="empirical", likelihood=name)
    assert found.value.item() == pytest.approx(expected, rel=1e-10)


def test_matched_loss_is_that_of_torch():
    net, x = nn.Linear(4, 3).double(), torch.randn(10, 4, dtype=torch.float64)
    y = torch.randn(10, 3, dtype=torch.float64)
    norms = []
    for one, target in zip(x, y, strict=True):
        gradients = torch.autograd.grad(nn.functional.mse_loss(net(one), target), list(net.parameters()))
        norms.append(sum(g.square().sum().item() for g in gradients))
    found = fisher_trace(net, x, y, kind="empirical", match_loss=True).value.item()
    assert found == pytest.approx(sum(norms) / 10, rel=1e-12)
    true, plain = fisher_trace(net, x, y, match_loss=True).value, fisher_trace(net, x, y).value
    assert (true / plain).item() == pytest.approx(2 / 3, rel=1e-12)


def test_saturated_predictions_do_not_cancel():
    net, x = nn.Linear(2, 2, bias=False).double(), torch.eye(2, dtype=torch.float64)
    with torch.no_grad():
        net.weight.copy_(torch.tensor([[40.0, 0.0], [0.0, 40.0]]))
    # p = (1 - q, q) with q = e⁻⁴⁰ for both: Σ_c p_c(1 - p_c) = 2q; 1 - ‖p‖² would be 0 in float64
    assert fisher_trace(net, x, likelihood="categorical").value.item() == pytest.approx(
        2 * math.exp(-40), rel=1e-12
    )


def test_layers_add_up_and_reduction_is_a_factor():
    module, x = make("residual with batch norm")
    found = fisher_trace_by_layer(module, x, likelihood="categorical")
    whole, parts = found.whole, found.layers
    assert sum(part.value for part in parts.values()) == pytest.approx(whole.value.item(), rel=1e-12)
    expected = fisher_trace(module, x, likelihood="categorical", select="^1").value
    assert sum(p.value for name, p in parts.items() if name.startswith("1")) == pytest.approx(expected.item())
    total = fisher_trace(module, x, likelihood="categorical", reduction="sum")
    assert total.value.item() == pytest.approx(len(x) * whole.value.item(), rel=1e-12)
    assert total.sampling_error.item() == pytest.approx(len(x) * whole.sampling_error.item(), rel=1e-12)


def test_padding_does_not_count():
    net, x, y = small(20)
    y[[2, 5, 11]] = -100
    kept = y >= 0
    for kind in ("true", "empirical"):
        padded, clean = fisher_trace(net, x, y, kind=kind), fisher_trace(net, x[kept], y[kept], kind=kind)
        assert padded.examples == clean.examples == 17
        assert padded.value.item() == pytest.approx(clean.value.item(), rel=1e-12)
        assert padded.sampling_error.item() == pytest.approx(clean.sampling_error.item(), rel=1e-12)
    module, tokens = make("transformer with tied embedding")
    labels = torch.randint(7, (4, 4))
    labels[:, 3] = -100
    part = fisher_trace(module, tokens, labels, estimator="exact")
    cut = fisher_trace(module, tokens, labels[:, :3], estimator="exact", output=lambda f: f[:, :3])
    assert part.value.item() == pytest.approx(cut.value.item(), rel=1e-10)


def test_probabilities_through_log_are_the_same_model():
    net, x, _ = small()
    expected = fisher_trace(net, x, likelihood="categorical").value.item()
    softmax = nn.Sequential(*net, nn.Softmax(-1))
    assert fisher_trace(softmax, x, likelihood="categorical", output=torch.log).value.item() == pytest.approx(
        expected, rel=1e-10
    )


def test_single_precision_and_device(device):
    net, x, _ = small()
    expected = fisher_trace(net, x, likelihood="categorical").value.item()
    net, x = net.float().to(device), x.float().to(device)
    assert fisher_trace(net, x, likelihood="categorical").value.item() == pytest.approx(expected, rel=1e-5)
    for estimator in ("sampled", "rademacher", "summed", "hutchinson"):
        found = fisher_trace(net, x, likelihood="categorical", estimator=estimator, draws=20)
        assert found.value.device.type == device.type
        assert abs(found.value.item() - expected) < 6 * found.standard_error.item()


# The estimators


class Centred(nn.Module):
    """Takes the mean over the batch away."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(7, 4).double()

    def forward(self, x: Tensor) -> Tensor:
        f = self.linear(x)
        return f - f.mean(0)


def diverged(net: nn.Module) -> nn.Module:
    with torch.no_grad():
        net[2].weight[0, 0] = torch.nan
    return net


REFUSED = {
    "needs targets": lambda net, x, y: fisher_trace(net, x, kind="empirical"),
    "must be named": lambda net, x, y: fisher_trace(net, x),
    "one target per example": lambda net, x, y: fisher_trace(net, x, y[:-1]),
    "classes from 4 to 4": lambda net, x, y: fisher_trace(net, x, torch.full_like(y, 4)),
    "needs integer classes": lambda net, x, y: fisher_trace(net, x, y.double(), likelihood="categorical"),
    "need targets of that shape": lambda net, x, y: fisher_trace(net, x, x),
    "targets from 0 to 1": lambda net, x, y: fisher_trace(
        net, x, 2 * torch.ones(50, 4), likelihood="bernoulli", kind="empirical"
    ),
    "counts from 0": lambda net, x, y: fisher_trace(net, x, -torch.ones(50, 4), likelihood="poisson"),
    "variance is positive": lambda net, x, y: fisher_trace(net, x, likelihood="gaussian", sigma2=0.0),
    "probe is empty": lambda net, x, y: fisher_trace(net, x[:0], y[:0]),
    "loader is empty": lambda net, x, y: fisher_trace(net, DataLoader(TensorDataset(x[:0], y[:0]))),
    "no example counts": lambda net, x, y: fisher_trace(net, x, torch.full_like(y, -100)),
    "probabilities, not logits": lambda net, x, y: fisher_trace(nn.Sequential(*net, nn.Softmax(-1)), x, y),
    "first axis is not": lambda net, x, y: fisher_trace(net, x, likelihood="poisson", output=lambda f: f.T),
    "depends on the other examples": lambda net, x, y: fisher_trace(Centred(), x, y),
    "parameter '2.weight' is not": lambda net, x, y: fisher_trace(diverged(net), x, y),
    "the input of the layer with 0.weight": lambda net, x, y: fisher_trace(net, x / 0, y),
    "no trainable parameter": lambda net, x, y: fisher_trace(net.requires_grad_(False), x, y),
    "must be one of": lambda net, x, y: fisher_trace(net, x, y, estimator="best"),
    "kind must be": lambda net, x, y: fisher_trace(net, x, y, kind="observed"),
    "likelihood must be": lambda net, x, y: fisher_trace(net, x, y, likelihood="cauchy"),
    "nothing to draw": lambda net, x, y: fisher_trace(net, x, y, kind="empirical", estimator="sampled"),
    "at least one draw": lambda net, x, y: fisher_trace(net, x, y, draws=0),
    "give fewer examples": lambda net, x, y: fisher_spectrum(net, x, y, max_memory=1000),
    "mark padding": lambda net, x, y: fisher_spectrum(net, x, torch.full_like(y, -100)),
    "the kernel is not finite: parameter '2.weight'": lambda net, x, y: fisher_spectrum(diverged(net), x, y),
}  # fmt: skip


@pytest.mark.parametrize("message", REFUSED)
def test_refusals_say_what_to_change(message):
    with pytest.raises(ValueError, match=message):
        REFUSED[message](*small())
