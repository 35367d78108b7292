"""The setting of SGD, read or given, and what its noise makes of a landscape."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from observatory.weights import (
    SgdSetting,
    batch_sampling,
    lyapunov_residual,
    temperature,
)
from observatory.weights.noise import sgd_coefficients


def test_setting_of_sgd_and_its_temperature():
    setting = SgdSetting(learning_rate=0.1, batch_size=10, samples=100, momentum=0.9)
    assert setting.noise_scale == pytest.approx(90 / 99 / 10)
    # η/(1 - β) c f/(2S) with c = 3
    assert temperature(torch.tensor(3.0), setting).item() == pytest.approx(1.0 * 3 * 90 / 99 / 20)


def test_lyapunov_residual_vanishes_for_its_own_solution(generator):
    from observatory.solvable.online_regression import stationary_covariance

    root = torch.randn(2, 4, 4, generator=generator, dtype=torch.float64)
    hessian, noise = root[0] @ root[0].T / 10 + torch.eye(4) / 5, root[1] @ root[1].T
    setting = SgdSetting(learning_rate=0.2, batch_size=5, samples=50, sampling="with replacement")
    sigma = stationary_covariance(hessian, noise / 5, 0.2)
    assert lyapunov_residual(hessian, sigma, noise, setting).item() < 1e-12
    assert lyapunov_residual(hessian, 2 * sigma, noise, setting).item() == pytest.approx(1, abs=1e-12)


def test_sampling_is_read_from_the_loader():
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

    data = TensorDataset(torch.zeros(40, 1))
    assert batch_sampling(DataLoader(data, 8, shuffle=True)) == (8, 40, "without replacement")
    drawn = DataLoader(data, 8, sampler=RandomSampler(data, replacement=True))
    assert batch_sampling(drawn) == (8, 40, "with replacement")
    with pytest.raises(ValueError, match="give batch_size="):
        batch_sampling(DataLoader(data, batch_sampler=BatchSampler(RandomSampler(data), 8, False)))


def test_coefficients_are_those_of_plain_sgd_only():
    weights = [nn.Parameter(torch.zeros(2))]
    sgd = torch.optim.SGD(weights, lr=0.1, momentum=0.9, weight_decay=1e-3)
    assert sgd_coefficients(sgd.param_groups[0], sgd) == (0.1, 0.9, 1e-3)
    for other in (torch.optim.Adam(weights), torch.optim.SGD(weights, lr=0.1, momentum=0.9, nesterov=True)):
        with pytest.raises(ValueError, match="hold for SGD without"):
            sgd_coefficients(other.param_groups[0], other)
