"""A whole window: a linear model whose theory is known, and a network on real digits."""

from __future__ import annotations

import math
from functools import cache

import numpy as np
import pytest
import torch
from torch import nn

from observatory.weights import SgdSetting, Trajectory, analyze, landscape_of, load_trajectory
from observatory.weights.variants import exponents_by_choice, exponents_by_range

ETA, SIZE, SAMPLES = 0.1, 4, 200


@cache
def regression() -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor], Trajectory]:
    """Five weights fitted to noisy labels by SGD with replacement, every step of 20 000 recorded."""
    generator = torch.Generator().manual_seed(3)
    kind = {"generator": generator, "dtype": torch.float64}
    x = torch.randn(SAMPLES, 5, **kind) * torch.tensor([1.5, 1.2, 1.0, 0.8, 0.6]).double()
    y = x.sum(1, keepdim=True) + torch.randn(SAMPLES, 1, **kind)
    net = nn.Linear(5, 1, bias=False).double()
    weight = torch.linalg.lstsq(x, y).solution.T
    batches = torch.randint(SAMPLES, (20_500, SIZE), generator=generator)
    snapshots = []
    for batch in batches:
        weight = weight - ETA / SIZE * (x[batch] @ weight.T - y[batch]).T @ x[batch]
        snapshots.append(weight)
    net.weight.data = weight
    rows = [{"weight": w} for w in snapshots[500:]]
    return net, (x, y), Trajectory.of(rows, range(500, 20_500))


SETTING = SgdSetting(ETA, SIZE, SAMPLES, sampling="with replacement")


def test_linear_model_is_in_equilibrium_with_its_noise():
    net, data, trajectory = regression()
    seen = analyze(trajectory, net, data, setting=SETTING)
    motion, terrain = seen.motion, seen.terrain
    hessian = data[0].T @ data[0] / SAMPLES  # loss ½(f - y)²
    assert terrain.curvature.sum().item() == pytest.approx(hessian.trace().item(), rel=1e-5)
    assert seen.dissipation_ratio.item() == pytest.approx(1, abs=0.01)
    # κσ² = T(1 + O(ηh)); 20 000 steps hold 20 000/(2·14) independent samples of the slowest direction: 5 %,
    # and the feedback of the fluctuations on the noise adds κ̂ = (η/2S) Tr H = 8 %
    ratio = terrain.curvature * motion.variance / seen.temperature
    assert ratio.tolist() == pytest.approx([1.1] * 5, abs=0.25)
    assert seen.residual.item() < 0.3
    assert motion.resolved.all() and not motion.drift
    assert abs(seen.relation.exponent) < 1  # isotropic: σ² hardly depends on F
    assert 0 <= seen.irreversibility.entropy_production < 0.1


@pytest.mark.parametrize("basis", ["hessian", "random"])
def test_other_bases_see_the_same_total_variance(basis):
    net, data, trajectory = regression()
    seen = analyze(trajectory, net, data, basis=basis, directions=5)
    assert seen.motion.variance.sum().item() == pytest.approx(seen.motion.total.item(), rel=1e-9)
    assert seen.temperature is None and seen.irreversibility is None
    if basis == "hessian":
        hessian = data[0].T @ data[0] / SAMPLES
        values = torch.linalg.eigvalsh(hessian).flip(0)
        assert torch.allclose(seen.terrain.curvature, values, rtol=1e-5)
        assert torch.allclose(seen.terrain.hessian, torch.diag(values), atol=1e-4)
        # ρ(τ) = 1/e is known to √(2τ/T) = 5 % for the slowest, with a slope of 1/τ
        expected = -1 / torch.log(1 - ETA * values)
        assert seen.motion.decay_time.tolist() == pytest.approx(expected.tolist(), rel=0.25)


def test_result_is_saved_with_its_window(tmp_path):
    net, data, trajectory = regression()
    seen = analyze(trajectory.between(0, 300), net, data, setting=SETTING)
    seen.save(tmp_path / "window.npz")
    with np.load(tmp_path / "window.npz", allow_pickle=False) as saved:
        assert saved["steps"].tolist() == list(range(500, 800))
        np.testing.assert_array_equal(saved["motion.variance"], seen.motion.variance)
        np.testing.assert_array_equal(saved["terrain.flatness"], seen.terrain.flatness)
        assert float(saved["relation.exponent"]) == seen.relation.exponent


def test_checkpoints_of_part_of_a_network_are_analysed_offline(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    x = torch.randn(120, 6)
    y = (x[:, :3] + 0.5 * torch.randn(120, 3)).argmax(1)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    files = []
    for step in range(60):
        batch = torch.randint(120, (12,))
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
        optimizer.step()
        if step % 2 == 0:
            files.append(tmp_path / f"{step}.ckpt")
            torch.save({"state_dict": net.state_dict(), "global_step": step}, files[-1])
    trajectory = load_trajectory(files, select=r"^2\.weight")
    seen = analyze(trajectory, net, (x, y), directions=6, batch_size=50)
    assert trajectory.every == 2 and len(seen.motion.variance) == 6 and seen.terrain.flatness.shape == (6,)
    center = net[2].weight.detach().clone()
    net[2].weight.data = trajectory.mean().reshape(8, 8)
    loss = nn.functional.cross_entropy(net(x), y)
    net[2].weight.data = center
    assert seen.terrain.loss.item() == pytest.approx(loss.item(), rel=1e-5)


def test_foreign_trajectories_are_refused():
    _, data, trajectory = regression()
    with pytest.raises(ValueError, match=r"no such parameters: \{'weight': \(1, 5\)\}"):
        analyze(trajectory, nn.Linear(4, 1).double(), data)
    with pytest.raises(ValueError, match="'fourier'"):
        analyze(trajectory, regression()[0], data, basis="fourier")


def test_flatness_of_an_interpolating_model_is_undefined_but_its_curvature_is_not():
    net, (x, _), trajectory = regression()
    exact = x @ trajectory.mean().reshape(5, 1)
    with pytest.warns(UserWarning, match="use the curvature"):
        seen = analyze(trajectory, net, (x, exact), loss=lambda f, t: 0 * (f - t).square().mean())
    assert seen.terrain.flatness.isnan().all() and math.isnan(seen.relation.exponent)
    assert seen.relation.excluded == (1, 2, 3, 4, 5)


def digits_run(
    *, replacement: bool, seed: int = 0
) -> tuple[nn.Module, tuple[torch.Tensor, torch.Tensor], Trajectory]:
    """64-50-50-10 ReLU on scikit-learn's digits, SGD η = 0.1, S = 50, the middle layer in epochs 190-220."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    x, y = torch.tensor(raw.data / 16, dtype=torch.float32), torch.tensor(raw.target)
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(64, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    generator = torch.Generator().manual_seed(seed)
    count, batches = len(x), len(x) // 50
    snapshots = []
    for epoch in range(220):
        order = torch.randperm(count, generator=generator)
        if replacement:
            order = torch.randint(count, (count,), generator=generator)
        for batch in order[: batches * 50].view(batches, 50):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimizer.step()
            if epoch >= 190:
                snapshots.append({"2.weight": net[2].weight.detach().clone()})
    return net, (x, y), Trajectory.of(snapshots, range(190 * batches, 220 * batches))


@pytest.mark.slow
def test_digits_show_an_inverse_variance_flatness_relation_that_depends_on_range_window_and_basis():
    net, data, trajectory = digits_run(replacement=False)
    seen = analyze(trajectory, net, data, directions=40, setting=SgdSetting(0.1, 50, 1797))
    assert seen.motion.drift and (seen.motion.variance[0] / seen.motion.total).item() > 0.9
    assert 1.5 < seen.relation.exponent < 3 and seen.relation.correlation < -0.9
    assert seen.relation.excluded == (1,) and seen.relation.ranks == tuple(range(2, 41))
    assert seen.relation.low < seen.relation.exponent < seen.relation.high
    assert 0.9 < seen.dissipation_ratio.item() < 1.1
    by_range = exponents_by_range(seen, 40)
    assert [round(fit.exponent, 1) for fit in by_range.values()] == pytest.approx([1.9, 1.9, 2.3], abs=0.5)
    by_choice = exponents_by_choice(trajectory, landscape_of(trajectory, net, data), 40)
    assert by_choice["Hessian basis"].exponent < by_choice["detrended"].exponent - 1
    assert by_choice["first half"].exponent == pytest.approx(by_choice["second half"].exponent, abs=0.5)


@pytest.mark.slow
def test_digits_drawn_with_replacement_show_the_relation_too():
    net, data, trajectory = digits_run(replacement=True)
    seen = analyze(trajectory, net, data, directions=60)
    exponents = [fit.exponent for fit in exponents_by_range(seen, 60).values()]
    assert exponents[1:] == sorted(exponents[1:])  # 2-20, 2-40, 2-60: steeper with every component added
    assert exponents[2] == pytest.approx(2.7, abs=0.5) and exponents[3] == pytest.approx(3.1, abs=0.5)
