"""The last layer as a Gaussian process: closed forms, scikit-learn's regressor, refits without a row."""

from __future__ import annotations

import math

import pytest
import torch
from heads import DOUBLE, linear_head, loader, mlp, ridge, table
from torch import nn

from observatory.uncertainty import LastLayerGP
from observatory.uncertainty.metrics import gaussian_nll


def unit_scale(gp: LastLayerGP, alpha: float) -> LastLayerGP:
    """Set α by hand."""
    outputs = gp.layer.outputs
    gp.alpha = torch.full((outputs,), alpha, dtype=DOUBLE)
    gp.sigma_n = torch.zeros_like(gp.alpha)
    gp.covariance_of_outputs = alpha**2 * torch.eye(outputs, dtype=DOUBLE)
    return gp


@pytest.mark.parametrize("accumulator", ["gram", "sqrt"])
@pytest.mark.parametrize("weighted", [False, True])
def test_variance_of_a_ridge_head_is_that_of_a_gaussian_process(accumulator, weighted):
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import ConstantKernel, DotProduct

    x, y = table(60, inputs=5, outputs=1)
    new, _ = table(17, inputs=5, seed=2)
    alpha, reg = 0.3, 0.05
    omega = 0.2 + torch.rand(60, dtype=DOUBLE, generator=torch.Generator().manual_seed(3))
    omega = omega if weighted else torch.ones_like(omega)
    head = linear_head(ridge(x, y, reg, omega).mT)
    gp = LastLayerGP(head, reg=reg, accumulator=accumulator)
    gp.fit(loader(x, y, omega, batch_size=60), weights=lambda batch: batch[2])
    prediction = unit_scale(gp, alpha).predict(new)
    kernel = ConstantKernel(alpha**2 / reg, "fixed") * DotProduct(0.0, "fixed")
    noise = (alpha**2 / omega).numpy()
    other = GaussianProcessRegressor(kernel, alpha=noise, optimizer=None).fit(x.numpy(), y.numpy()[:, 0])
    mean, std = other.predict(new.numpy(), return_std=True)
    torch.testing.assert_close(prediction.mean[:, 0], torch.from_numpy(mean), rtol=1e-9, atol=1e-10)
    torch.testing.assert_close(prediction.std[:, 0], torch.from_numpy(std), rtol=1e-9, atol=0)
    covariance = gp.covariance(new, new)[..., 0]
    _, expected = other.predict(new.numpy(), return_cov=True)
    torch.testing.assert_close(covariance, torch.from_numpy(expected), rtol=1e-8, atol=1e-12)


def test_leverage_of_a_straight_line():
    x = torch.linspace(-1, 4, 23, dtype=DOUBLE)[:, None] ** 2
    gp = LastLayerGP(linear_head(torch.ones(1, 1, dtype=DOUBLE), torch.zeros(1, dtype=DOUBLE)), reg=0.0)
    gp.fit(loader(x))
    new = torch.tensor([[-3.0], [0.1], [50.0]], dtype=DOUBLE)
    expected = 1 / len(x) + (new - x.mean()).square()[:, 0] / (x - x.mean()).square().sum()
    torch.testing.assert_close(gp.raw_variance(new), expected, rtol=1e-10, atol=0)


@pytest.mark.parametrize("accumulator", ["gram", "sqrt"])
def test_leverages_sum_to_the_effective_dimension(accumulator):
    x, y = table(80)
    gp = LastLayerGP(mlp(), reg=0.3, accumulator=accumulator).fit(loader(x, y))
    leverage = gp.raw_variance(x)
    assert bool((leverage > 0).all()) and bool((leverage < 1).all())
    assert leverage.sum().item() == pytest.approx(gp.fitted.spectrum.effective_dimension.item(), rel=1e-10)
    assert leverage.sum().item() < gp.fitted.spectrum.rank.item() == 13


def test_leave_one_out_formulas_are_those_of_refits():
    x, y = table(40, inputs=4, outputs=2)
    reg, omega = 0.2, torch.linspace(0.5, 2, 40, dtype=DOUBLE)
    gp = LastLayerGP(linear_head(ridge(x, y, reg, omega).mT), reg=reg)
    gp.fit(loader(x, y, omega, batch_size=40), weights=lambda batch: batch[2])
    h = omega * gp.raw_variance(x)
    residual = y - gp.model(x)
    for i in (0, 7, 39):
        rest = torch.arange(40) != i
        w = ridge(x[rest], y[rest], reg, omega[rest])
        a = (x[rest].mT * omega[rest]) @ x[rest] + reg * torch.eye(4, dtype=DOUBLE)
        left = y[i] - x[i] @ w
        torch.testing.assert_close(residual[i] / (1 - h[i]), left, rtol=1e-8, atol=1e-10)
        raw = omega[i] * x[i] @ torch.linalg.solve(a, x[i])
        torch.testing.assert_close(h[i] / (1 - h[i]), raw, rtol=1e-8, atol=0)
    gp.calibrate(loader(x, y), method="loo")
    h = gp.raw_variance(x)  # calibration counts every row once
    expected = (residual.square() / (h * (1 - h))[:, None]).mean(0).sqrt()
    torch.testing.assert_close(gp.alpha, expected.detach(), rtol=1e-10, atol=0)


def test_mean_raw_variance_of_gaussian_features():
    d, n = 20, 400  # E s² = tr E[(FᵀF)⁻¹] = d/(N - d - 1), the inverse of a Wishart matrix
    generator = torch.Generator().manual_seed(0)
    head = linear_head(torch.ones(1, d, dtype=DOUBLE))
    new = torch.randn(20_000, d, generator=generator, dtype=DOUBLE)
    values = [
        LastLayerGP(head, reg=0.0)
        .fit(loader(torch.randn(n, d, generator=generator, dtype=DOUBLE), batch_size=n))
        .raw_variance(new)
        .mean()
        for _ in range(20)
    ]
    # over training sets E s² scatters by 2 %·√(2/d)..., 20 of them leave less than 0.5 %
    assert torch.stack(values).mean().item() == pytest.approx(d / (n - d - 1), rel=0.01)


def teacher(n: int, seed: int) -> dict[str, float]:
    """Least squares on n rows of a linear teacher, σ_n = 0.5; calibrated and tested on 4000 others each."""
    generator = torch.Generator().manual_seed(seed)
    w = torch.randn(20, 1, generator=generator, dtype=DOUBLE)

    def rows(count: int):
        x = torch.randn(count, 20, generator=generator, dtype=DOUBLE)
        return x, x @ w + 0.5 * torch.randn(count, 1, generator=generator, dtype=DOUBLE)

    train, val, test = rows(n), rows(4000), rows(4000)
    head = linear_head(torch.linalg.lstsq(*train).solution.mT)
    gp = LastLayerGP(head, reg=0.0).fit(loader(*train, batch_size=4000))
    residual = test[1] - head(test[0]).detach()
    found = {}
    for noise in ("none", "additive", "constant"):
        gp.noise = noise
        gp.calibrate(loader(*val, batch_size=4000))
        found[noise] = gaussian_nll(residual, gp.predict(test[0]).std).mean().item()
        found[f"{noise}/alpha"], found[f"{noise}/sigma"] = gp.alpha.item(), gp.sigma_n.item()
    return found


@pytest.mark.parametrize(
    ("n", "alpha", "sigma", "nll"),
    [
        (60, (0.892, 0.040), (0.502, 0.034), (0.936, 0.915, 0.919)),
        (400, (2.355, 0.039), (0.497, 0.015), (0.777, 0.753, 0.753)),
        (4000, (7.46, 0.11), (0.494, 0.012), (0.757, 0.731, 0.731)),
    ],
)
def test_scale_is_no_noise_level_and_additive_noise_is(n, alpha, sigma, nll):
    seeds = 10
    runs = [teacher(n, seed) for seed in range(seeds)]
    mean = {name: sum(run[name] for run in runs) / seeds for name in runs[0]}
    error = 5 * math.sqrt(1 / seeds + 1 / 20)  # the figures are means over 20 seeds; 5 σ
    assert mean["none/alpha"] == pytest.approx(alpha[0], abs=error * alpha[1])
    assert mean["additive/sigma"] == pytest.approx(sigma[0], abs=error * sigma[1])
    # per set of 4000 rows the mean scatters by 0.012, and by as much again through 60 training rows
    tolerance = error * (0.02 if n == 60 else 0.012)
    for noise, expected in zip(("none", "additive", "constant"), nll, strict=True):
        assert mean[noise] == pytest.approx(expected, abs=tolerance)
    # differences on the same rows are sharper: pure s² loses where noise dominates
    assert mean["none"] - mean["additive"] == pytest.approx(nll[0] - nll[1], abs=0.006)


def test_standard_deviation_has_the_shape_of_the_mean():
    x, y = table(50)

    class Tokens(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp()

        def forward(self, x):
            return self.net(x[:, None].expand(-1, 4, -1))  # (B, 4, O)

    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(outputs=1)

        def forward(self, x):
            return self.net(x)[:, 0]

    tokens = LastLayerGP(Tokens()).fit(loader(x)).calibrate(loader(x, y[:, None].expand(-1, 4, -1)))
    prediction = tokens.predict(x[:5])
    assert prediction.mean.shape == prediction.std.shape == (5, 4, 2)
    squeezed = LastLayerGP(Squeezed()).fit(loader(x)).calibrate(loader(x, y[:, 0]))
    assert squeezed.predict(x[:5]).mean.shape == squeezed.predict(x[:5]).std.shape == (5,)


def test_sum_over_atoms_is_the_sum_of_their_features():
    atoms = table(120)[0].view(30, 4, 3)

    class Molecule(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = mlp(outputs=1)

        def forward(self, x):
            return self.net(x).sum(1)

    model = Molecule()
    gp = LastLayerGP(model, reg=0.1, pool=lambda f: f.sum(1)).fit(loader(atoms))
    hidden = model.net[:2](atoms)
    f = torch.cat([hidden.sum(1), torch.full((30, 1), 4.0, dtype=DOUBLE)], 1).detach()  # bias: the count
    a = f.mT @ f + 0.1 * torch.eye(13, dtype=DOUBLE)
    expected = (f * torch.linalg.solve(a, f.mT).mT).sum(1)
    torch.testing.assert_close(gp.raw_variance(atoms), expected, rtol=1e-9, atol=0)
    # the sum of outputs of a network without pooling has the same covariance
    single = LastLayerGP(model.net, reg=0.1)
    single.update(f)
    single.factorise()
    single.layer = gp.layer.__class__(gp.layer.name.removeprefix("net."), gp.layer.module)
    joint = unit_scale(single, 1.0).covariance(atoms[3], atoms[3]).sum()
    torch.testing.assert_close(joint, gp.raw_variance(atoms[3:4])[0], rtol=1e-9, atol=0)


def test_gradients_of_the_error_bar_are_exact():
    x, y = table(60)
    gp = LastLayerGP(mlp(), reg=0.1).fit(loader(x, y)).calibrate(loader(*table(40, seed=4)))
    assert torch.autograd.gradcheck(gp, x[:3].clone().requires_grad_())


def test_state_predicts_identically_in_a_fresh_object(tmp_path):
    x, y = table(60)
    for accumulator in ("gram", "sqrt"):
        gp = LastLayerGP(mlp(), noise="additive", accumulator=accumulator).fit(loader(x, y))
        gp.calibrate(loader(*table(40, seed=4))).conformalise(loader(*table(40, seed=5)))
        torch.save(gp.state_dict(), tmp_path / "gp.pt")
        fresh = LastLayerGP(mlp(seed=3))
        fresh.load_state_dict(torch.load(tmp_path / "gp.pt", weights_only=True))
        one, other = gp.predict(x), fresh.predict(x)
        for name in ("mean", "std", "epistemic", "aleatoric"):
            assert torch.equal(getattr(one, name), getattr(other, name))
        assert torch.equal(torch.stack(one.interval), torch.stack(other.interval))
        assert fresh.noise == "additive" and fresh.kind == accumulator
        fresh.update(torch.ones(1, 13, dtype=DOUBLE))  # accumulation can go on
        assert int(fresh.gram.rows) == 61


def test_network_keeps_its_mode_and_its_hooks():
    x, y = table(40)
    model = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 2)).to(DOUBLE)
    model.train()
    model[1].eval()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    gp = LastLayerGP(model).fit(loader(x, y)).calibrate(loader(x, y))
    with pytest.warns(UserWarning, match="training mode"):
        gp.predict(x)
    assert [m.training for m in model] == [True, False, True, True] and model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert not any(m._forward_pre_hooks or m._forward_hooks for m in model.modules())


def test_deployed_predictions_compile_and_export():
    x, y = table(60)
    gp = LastLayerGP(mlp(), reg=0.1).fit(loader(x, y)).calibrate(loader(x, y))
    deployed = gp.deployed()
    compiled = torch.compile(deployed, backend="aot_eager", fullgraph=True)(x)
    exported = torch.export.export(deployed, (x,)).module()(x)
    for other in (deployed(x), compiled, exported):
        torch.testing.assert_close(other, gp(x), rtol=1e-12, atol=1e-14)
    assert not any(m._forward_pre_hooks for m in gp.model.modules())
