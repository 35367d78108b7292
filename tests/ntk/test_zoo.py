"""Networks as people use them: the record of one line equals the explicit Jacobian."""

from __future__ import annotations

import logging

import pytest
import torch
from cases import jacobian
from torch import nn
from zoo import ZOO, inputs

import observatory
from observatory.ntk import CollectiveVariables, collective_variables

BY_DEFINITION = {  # what no rule covers: parameters that are added to something, or the same for all examples
    "vit_b_16 reduced": ("class_token", "encoder.pos_embedding"),
    "swin_t reduced": ("relative_position_bias_table",),
}


# PyTorch has no fast convolutions in float64
SLOW = ("resnet18", "vgg11_bn", "mobilenet_v3_small")
NAMES = [pytest.param(name, marks=[pytest.mark.slow] * (name in SLOW)) for name in ZOO]


@pytest.mark.parametrize("name", NAMES)
def test_recorded_kernel_is_that_of_the_explicit_jacobian(name, tmp_path, caplog):
    torch.manual_seed(1)
    net = ZOO[name](3).double()
    with torch.no_grad():
        for p in net.parameters():
            p.add_(0.02 * torch.randn_like(p))  # some are zero at the start
    x, y = inputs(name, 2, 3), torch.tensor([0, 2])
    x = x if x.dtype == torch.int64 else x.double()
    batch = inputs(name, 4, 3).to(x.dtype)
    optimizer = torch.optim.SGD(net.parameters(), 1e-3)
    with (
        caplog.at_level(logging.INFO, "observatory.ntk"),
        observatory.watch(
            net,
            optimizer,
            probe=(x, y),
            instruments=[CollectiveVariables()],
            out=tmp_path,
            at=[1],
            strict=True,
        ) as watch,
    ):
        nn.functional.cross_entropy(net(batch), torch.tensor([0, 1, 2, 0])).backward()
        optimizer.step()
        watch.step()
    run = observatory.open_run(tmp_path)
    j = jacobian(net, x)
    expected = torch.einsum("icp,jcp->ij", j, j)
    kernel = torch.tensor(run["ntk/kernel"].values[-1])
    assert run["ntk/kernel"].steps[-1] == 1
    assert (kernel - expected).abs().max() <= 1e-10 * expected.abs().max()
    variables = collective_variables(expected, targets=y)
    for quantity in ("trace", "entropy", "alignment"):
        recorded = float(run[f"ntk/{quantity}"].values[-1])
        assert recorded == pytest.approx(float(getattr(variables, quantity)), rel=1e-9)
    named = {name for record in caplog.records for name in _names(record.getMessage())}
    allowed = BY_DEFINITION.get(name, ())
    assert all(any(part in one for part in allowed) for one in named)
    assert bool(named) == bool(allowed)


def _names(message: str) -> list[str]:
    return message.removeprefix("no rule for ").split(":")[0].split(", ")
