"""Fisher traces and spectra against closed forms, the explicit Fisher matrix, and their own error bars."""

from __future__ import annotations

import math

import pytest
import torch
from cases import CASES, jacobian, make
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from observatory.looking import ModelFunction
from observatory.ntk.fisher import fisher_trace, fisher_trace_by_layer
from observatory.ntk.fisher_estimators import FisherDirections, whole_batch_values
from observatory.ntk.fisher_gram import fisher_spectrum, gradient_noise
from observatory.ntk.fisher_likelihoods import Likelihood, output_likelihood
from observatory.ntk.norms import squared_gradient_norms

NAMES: tuple[Likelihood, ...] = ("categorical", "bernoulli", "poisson", "gaussian")


def curvature(name: Likelihood, f: Tensor, sigma2: float = 1.0) -> Tensor:
    """H_i = -∂² ln p/∂f², (N, C', C'), by automatic differentiation of -ln p."""
    shape = f.shape[1:]

    def loss(one: Tensor) -> Tensor:
        one = one.reshape(shape)
        if name == "categorical":
            return one.logsumexp(-1).sum()
        if name == "bernoulli":
            return nn.functional.softplus(one).sum()
        return one.exp().sum() if name == "poisson" else one.square().sum() / (2 * sigma2)

    hessian = torch.func.jacrev(torch.func.grad(loss))
    return torch.func.vmap(hessian)(f.detach().flatten(1) if f.ndim > 1 else f.detach()[:, None])


def targets_for(name: Likelihood, f: Tensor) -> Tensor:
    if name == "categorical":
        return torch.randint(f.shape[-1], f.shape[:-1])
    if name == "gaussian":
        return torch.randn(f.shape, dtype=torch.float64)
    return torch.randint(2, f.shape).double()


def explicit(module: nn.Module, x: Tensor, name: Likelihood) -> Tensor:
    """F = (1/N) Σ J_iᵀ H_i J_i, (P, P)."""
    j, f = jacobian(module, x), ModelFunction.of(module)(x)
    return torch.einsum("icp,icd,idq->pq", j, curvature(name, f), j) / len(x)


def small(n: int = 50) -> tuple[nn.Module, Tensor, Tensor]:
    """A 7-6-4 tanh network of moderately certain predictions."""
    net = nn.Sequential(nn.Linear(7, 6), nn.Tanh(), nn.Linear(6, 4)).double()
    with torch.no_grad():
        net[2].weight.mul_(3)
    return net, torch.randn(n, 7, dtype=torch.float64), torch.randint(4, (n,))


# Values


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


def gram(net: nn.Module, x: Tensor) -> Tensor:
    """A = L_iᵀ Θ_ij L_j, (N, C, N, C), from the explicit Jacobian."""
    f = ModelFunction.of(net)(x).detach()
    p = f.softmax(-1)
    root = torch.diag_embed(p.sqrt()) - p[:, :, None] * p.sqrt()[:, None, :]
    rows = torch.einsum("icp,ica->iap", jacobian(net, x), root)
    return torch.einsum("iap,jbp->iajb", rows, rows)


def draws_of(estimator: str, net: nn.Module, x: Tensor, draws: int) -> Tensor:
    """Independent estimates of Tr F."""
    whom = lambda outputs: output_likelihood("categorical", None, outputs)  # noqa: E731
    generator = torch.Generator().manual_seed(3)
    function = ModelFunction.of(net)
    if estimator in ("summed", "hutchinson"):
        return whole_batch_values(estimator, function, x, whom, None, draws, generator)[0] / len(x)
    parts = [FisherDirections(estimator, whom, None, 250, generator) for _ in range(draws // 250)]
    return torch.cat([squared_gradient_norms(function, x, part).mean(1) for part in parts])


@pytest.mark.parametrize("estimator", ["sampled", "rademacher", "summed", "hutchinson"])
def test_estimators_are_unbiased_with_the_variance_of_the_table(estimator, n=50, draws=2000):
    net, x, _ = small(n)
    a, p = gram(net, x), net(x).softmax(-1).detach()
    blocks = a[range(n), :, range(n), :]
    trace = blocks.diagonal(dim1=1, dim2=2).sum() / n
    fisher = explicit(net, x, "categorical")
    labels = torch.eye(4, dtype=torch.float64) - p[:, None, :]  # (i, y, c): score of every label
    n_iy = torch.einsum("iyc,icp->iyp", labels, jacobian(net, x)).square().sum(-1)
    off = blocks.square().sum() - blocks.diagonal(dim1=1, dim2=2).square().sum()
    matrix = a.reshape(4 * n, 4 * n)
    variance = {
        "sampled": ((p * n_iy.square()).sum(1) - (p * n_iy).sum(1).square()).sum() / n**2,
        "rademacher": 2 * off / n**2,
        "summed": 2 * (matrix.square().sum() - matrix.diagonal().square().sum()) / n**2,
        "hutchinson": 2 * (fisher.square().sum() - fisher.diagonal().square().sum()),
    }[estimator]
    values = draws_of(estimator, net, x, draws)
    assert abs(values.mean() - trace) < 4 * (variance / draws).sqrt()
    assert values.var().item() == pytest.approx(variance.item(), rel=0.1 if estimator != "summed" else 0.2)


@pytest.mark.parametrize("estimator", ["sampled", "rademacher", "summed", "hutchinson"])
def test_standard_errors_cover_the_exact_value(estimator):
    net, x, _ = small()
    exact = fisher_trace(net, x, likelihood="categorical").value
    draws = 2 if estimator in ("sampled", "rademacher") else 40
    inside = 0
    for seed in range(200):
        found = fisher_trace(
            net, x, likelihood="categorical", estimator=estimator, draws=draws,
            generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        inside += bool(abs(found.value - exact) < 2 * found.standard_error)
    assert 180 <= inside <= 198


@pytest.mark.parametrize("estimator", ["exact", "sampled"])
def test_sampling_errors_cover_the_value_of_the_population(estimator):
    net, everything, _ = small(20_000)
    exact = fisher_trace(net, everything, likelihood="categorical").value
    inside = 0
    for seed in range(200):
        found = fisher_trace(
            net, everything[100 * seed : 100 * seed + 100], likelihood="categorical", estimator=estimator,
            draws=1, generator=torch.Generator().manual_seed(seed),
        )  # fmt: skip
        inside += bool(abs(found.value - exact) < 2 * found.sampling_error)
    assert 180 <= inside <= 198


def test_many_outputs_are_sampled_by_default():
    net, x = nn.Linear(5, 40).double(), torch.randn(30, 5, dtype=torch.float64)
    found, exact = (fisher_trace(net, x, likelihood="categorical", estimator=e) for e in ("auto", "exact"))
    assert found.standard_error > 0 and exact.standard_error == 0
    assert abs(found.value - exact.value) < 5 * found.standard_error


@pytest.mark.parametrize("name", NAMES)
def test_sampled_labels_follow_every_likelihood(name):
    net, x, _ = small(400)
    exact = fisher_trace(net, x, likelihood=name, sigma2=0.5)
    found = fisher_trace(net, x, likelihood=name, sigma2=0.5, estimator="sampled", draws=4)
    assert abs(found.value - exact.value) < 5 * found.standard_error


def test_same_generator_same_estimate_and_no_stream_moves():
    net, x, _ = small()
    before = torch.get_rng_state()
    one, two = (fisher_trace(net, x, likelihood="categorical", estimator="sampled") for _ in range(2))
    assert one.value == two.value and torch.equal(before, torch.get_rng_state())
    assert all(p.grad is None for p in net.parameters())


# Data sets


def test_loader_is_the_sum_of_its_batches():
    net, x, y = small(70)
    loader = DataLoader(TensorDataset(x, y), 16, shuffle=True)
    before = torch.get_rng_state()
    for kind in ("true", "empirical"):
        streamed, whole = fisher_trace(net, loader, kind=kind), fisher_trace(net, x, y, kind=kind)
        assert streamed.examples == 70
        assert streamed.value.item() == pytest.approx(whole.value.item(), rel=1e-12)
        assert streamed.sampling_error.item() == pytest.approx(whole.sampling_error.item(), rel=1e-9)
    assert torch.equal(before, torch.get_rng_state())


def test_first_examples_of_a_loader():
    net, x, y = small(70)
    streamed = fisher_trace(net, DataLoader(TensorDataset(x, y), 16), max_examples=40)
    assert streamed.examples == 40
    assert streamed.value.item() == pytest.approx(fisher_trace(net, x[:40], y[:40]).value.item(), rel=1e-12)
    named = DataLoader([{"image": a, "label": b} for a, b in zip(x, y, strict=True)], 16)
    found = fisher_trace(net, named, inputs=lambda b: b["image"], targets=lambda b: b["label"])
    assert found.value.item() == pytest.approx(fisher_trace(net, x, y).value.item(), rel=1e-12)


# The spectrum


@pytest.mark.parametrize("name", NAMES)
def test_spectrum_is_that_of_the_explicit_matrix(name):
    net, x, _ = small(6)
    expected = torch.linalg.eigvalsh(explicit(net, x, name)).flip(0)
    found = fisher_spectrum(net, x, likelihood=name)
    size = min(len(expected), len(found.eigenvalues))
    assert (found.eigenvalues[:size] - expected[:size]).abs().max() <= 1e-12 * expected[0]
    assert found.frobenius.item() == pytest.approx(explicit(net, x, name).norm().item(), rel=1e-12)
    trace = fisher_trace(net, x, likelihood=name).value
    assert found.trace.item() == pytest.approx(trace.item(), rel=1e-12)


@pytest.mark.parametrize("name", ["categorical", "poisson"])
def test_empirical_and_centred_spectrum(name):
    net, x, _ = small(12)
    f = ModelFunction.of(net)(x).detach()
    y = targets_for(name, f)
    whom = output_likelihood(name, y, 4)
    scores = torch.einsum("ic,icp->ip", whom.score(f, y), jacobian(net, x))
    second = scores.T @ scores / 12
    covariance = second - torch.outer(scores.mean(0), scores.mean(0))
    for kind, matrix in (("empirical", second), ("covariance", covariance)):
        expected = torch.linalg.eigvalsh(matrix).flip(0)[:12]
        found = fisher_spectrum(net, x, y, kind=kind, likelihood=name).eigenvalues
        assert (found - expected).abs().max() <= 1e-12 * expected[0]


def test_signal_and_noise_of_the_gradient():
    net, x, y = small(12)
    rows = torch.stack(
        [
            torch.cat(
                [g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()), retain_graph=True)]
            )
            for loss in nn.functional.cross_entropy(net(x), y, reduction="none")
        ]
    )
    found = gradient_noise(net, x, y)
    mean = rows.mean(0)
    assert found.signal.item() == pytest.approx(mean.square().sum().item(), rel=1e-12)
    assert found.signal.item() == pytest.approx((rows @ rows.T).sum().item() / 144, rel=1e-12)
    noise = (rows - mean).square().sum(1).mean().item()
    assert found.noise.item() == pytest.approx(noise, rel=1e-12)
    assert found.noise_scale.item() == pytest.approx(noise / mean.square().sum().item(), rel=1e-12)
    assert found.mean_square.item() == pytest.approx(
        fisher_trace(net, x, y, kind="empirical").value.item(), rel=1e-12
    )
    assert found.noise.item() == pytest.approx(
        fisher_spectrum(net, x, y, kind="covariance").trace.item(), rel=1e-10
    )


# What is refused


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
