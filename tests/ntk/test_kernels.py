"""Every kernel equals its definition, on every awkward network."""

from __future__ import annotations

import logging

import pytest
import torch
from cases import CASES, jacobian, make
from torch import Tensor, nn

from observatory.looking import ModelFunction
from observatory.ntk import empirical_ntk, empirical_ntk_by_layer, to_matrix

BY_DEFINITION = ("bypassed", "weight norm", "recurrent cell", "transposed convolution")
ONE_BY_ONE = (
    "recurrent layer",
    "gated recurrent layer",
    "long short-term memory",
    "packed sequences",
    "routed",
)
CONTRACTED = [name for name in CASES if name not in BY_DEFINITION + ONE_BY_ONE]


def full(module: nn.Module, x: Tensor) -> Tensor:
    j = jacobian(module, x)
    return torch.einsum("icp,jdp->icjd", j, j)


def assert_close(kernel: Tensor, expected: Tensor, tolerance: float = 1e-10) -> None:
    assert kernel.shape == expected.shape
    assert (kernel - expected).abs().max() <= tolerance * expected.abs().max()


@pytest.mark.parametrize("name", CASES)
def test_full_kernel_is_row_by_row_autograd(name):
    module, x = make(name)
    assert_close(empirical_ntk(module, x), full(module, x))


@pytest.mark.parametrize("name", CASES)
def test_trace_kernel_is_the_sum_over_outputs(name):
    module, x = make(name)
    assert_close(empirical_ntk(module, x, kind="trace"), torch.einsum("icjc->ij", full(module, x)))


@pytest.mark.parametrize("name", CASES)
def test_single_precision(name):
    module, x = make(name)
    expected = full(module, x)
    single = x.float() if x.is_floating_point() else x
    assert_close(empirical_ntk(module.float(), single).double(), expected, 1e-5)


@pytest.mark.parametrize(
    "name", ["mlp", "residual with batch norm", "transformer with tied embedding", "bypassed"]
)
@pytest.mark.parametrize("kind", ["full", "trace"])
def test_blocks_and_cross_kernels(name, kind):
    module, x = make(name)
    whole = empirical_ntk(module, x, kind=kind)
    assert_close(empirical_ntk(module, x, kind=kind, max_memory=1), whole)
    assert_close(
        empirical_ntk(module, x[:3], x[1:], kind=kind),
        whole[:3, ..., 1:, :] if kind == "full" else whole[:3, 1:],
    )
    assert_close(
        empirical_ntk(module, x[:3], x[1:], kind=kind, max_memory=1),
        whole[:3, ..., 1:, :] if kind == "full" else whole[:3, 1:],
    )


@pytest.mark.parametrize("name", ["mlp", "grouped", "tied", "attention"])
def test_contracted_kinds_follow_from_the_full_kernel(name):
    module, x = make(name)
    theta = full(module, x)
    c = theta.shape[1]
    assert_close(empirical_ntk(module, x, kind="mean"), torch.einsum("icjc->ij", theta) / c)
    assert_close(empirical_ntk(module, x, kind="sum_of_logits"), theta.sum((1, 3)) / c)
    assert_close(empirical_ntk(module, x, kind="output", index=1), theta[:, 1, :, 1])


def test_loss_kernel_is_the_gram_of_loss_gradients():
    module, x = make("mlp")
    y = torch.arange(6) % 3
    module.eval()
    rows = []
    for i in range(6):
        loss = nn.functional.cross_entropy(module(x[i : i + 1]), y[i : i + 1])
        rows.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(module.parameters()))]))
    gradients = torch.stack(rows)
    kernel = empirical_ntk(module, x, kind="loss", targets=y)
    assert_close(kernel, gradients @ gradients.T)
    mean = gradients.mean(0)
    assert kernel.sum() / 36 == pytest.approx((mean @ mean).item(), rel=1e-12)  # ‖∇L‖² = ΣK/N²


def test_fisher_gram_has_the_spectrum_of_the_fisher_matrix():
    module, x = make("mlp")
    j, module = jacobian(module, x), module.eval()
    p = module(x).softmax(-1).detach()
    h = torch.diag_embed(p) - p[:, :, None] * p[:, None, :]
    fisher = torch.einsum("icp,icd,idq->pq", j, h, j) / 6
    gram = to_matrix(empirical_ntk(module, x, kind="fisher"))
    one, other = torch.linalg.eigvalsh(fisher).flip(0), torch.linalg.eigvalsh(gram).flip(0)
    rank = 6 * 2
    assert (one[:rank] - other[:rank]).abs().max() < 1e-12 * one[0]
    assert other[rank:].abs().max() < 1e-12 * one[0]


@pytest.mark.parametrize("kind", ["full", "trace", "mean"])
def test_sites_as_examples(kind):
    module, x = make("attention")
    theta = full(module, x)  # (4, 3·2, 4, 3·2)
    sites = theta.reshape(4, 3, 2, 4, 3, 2).reshape(12, 2, 12, 2)
    expected = {
        "full": sites,
        "trace": torch.einsum("icjc->ij", sites),
        "mean": torch.einsum("icjc->ij", sites) / 2,
    }
    assert_close(empirical_ntk(module, x, kind=kind, outputs="per_site"), expected[kind])


@pytest.mark.parametrize("name", ["residual with batch norm", "tied", "bypassed"])
def test_layers_add_up_and_can_be_scaled(name):
    module, x = make(name)
    parts = empirical_ntk_by_layer(module, x, kind="trace")
    assert_close(torch.stack(list(parts.values())).sum(0), empirical_ntk(module, x, kind="trace"))
    layer = next(iter(parts))
    scaled = empirical_ntk(module, x, kind="trace", layer_scale={layer: 3.0})
    assert_close(scaled, empirical_ntk(module, x, kind="trace") + 2 * parts[layer])
    with pytest.raises(ValueError, match="layer_scale names 'nowhere', which is none of"):
        empirical_ntk(module, x, layer_scale={"nowhere": 2.0})


def test_ntk_parameterisation_is_a_layer_scale():
    module, x = make("mlp")
    scaled = empirical_ntk(module, x, kind="trace", layer_scale={"0": 1 / 5, "3": 1 / 7}, select="weight")
    first, second = (empirical_ntk(module, x, kind="trace", select=f"{k}.weight") for k in "03")
    assert_close(scaled, first / 5 + second / 7)


@pytest.mark.parametrize("name", CONTRACTED)
def test_everything_else_is_covered_by_rules(name, caplog):
    module, x = make(name)
    with caplog.at_level(logging.INFO, "observatory.ntk"):
        empirical_ntk(module, x, kind="trace")
    named = " ".join(record.getMessage() for record in caplog.records)
    for parameter in ModelFunction.of(module).selected:
        assert (parameter in named) == parameter.startswith("positions")  # the same for all examples


@pytest.mark.parametrize("name", ONE_BY_ONE)
def test_examples_that_cannot_be_batched_are_looked_at_one_by_one(name, caplog):
    module, x = make(name)
    function = ModelFunction.of(module)
    with caplog.at_level(logging.INFO, "observatory.ntk"):
        empirical_ntk(function, x, kind="trace")
        empirical_ntk(function, x, kind="trace")  # it is known by now
    named = [record.getMessage() for record in caplog.records]
    assert sum(message.startswith("examples are looked at one by one") for message in named) == 1


@pytest.mark.parametrize("name", BY_DEFINITION)
def test_what_no_rule_covers_is_named_once(name, caplog):
    module, x = make(name)
    with caplog.at_level(logging.INFO, "observatory.ntk"):
        empirical_ntk(module, x, kind="trace")
    (record,) = caplog.records
    expected = {
        "bypassed": "no rule for one.weight, scale:",
        "weight norm": "no rule for "
        + ", ".join(f"0.parametrizations.weight.original{k}" for k in (0, 1))
        + ":",
        "recurrent cell": "no rule for cell.weight_ih, cell.weight_hh, cell.bias_ih, cell.bias_hh:",
        "transposed convolution": "no rule for 0.weight, 0.bias:",
    }[name]
    assert sorted(expected[:-1].removeprefix("no rule for ").split(", ")) == sorted(
        record.getMessage().split(":")[0].removeprefix("no rule for ").split(", ")
    )


def test_half_precision_inputs_of_a_half_precision_network():
    module, x = make("mlp", torch.float32)
    expected = empirical_ntk(module.bfloat16().float(), x.bfloat16().float(), kind="trace")
    from observatory.looking import Probe
    from observatory.looking.live import LiveModel

    half = LiveModel(module.bfloat16()).function()
    probe = Probe(x.bfloat16()).to(torch.device("cpu"))
    assert_close(empirical_ntk(half, probe.inputs, kind="trace"), expected, 1e-6)


class BatchWide(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x - x.mean(0))


def test_outputs_that_are_not_per_example_are_refused():
    x = torch.randn(6, 5)
    with pytest.raises(ValueError, match=r"whose first axis is not the examples'; say which part .* output="):
        empirical_ntk(nn.Sequential(nn.Linear(5, 3), nn.Flatten(0)), x)
    with pytest.raises(ValueError, match="depends on the other examples of the batch"):
        empirical_ntk(BatchWide(5, 3), x)


def test_unknown_kinds_and_missing_arguments_are_refused():
    module, x = make("mlp")
    for arguments, message in (
        ({"kind": "fool"}, "kind must be one of full, trace, mean"),
        ({"kind": "output"}, "needs index= between 0 and 2, got None"),
        ({"kind": "output", "index": 3}, "between 0 and 2, got 3"),
        ({"kind": "loss"}, "needs targets="),
        ({"kind": "loss", "targets": torch.zeros(4, dtype=torch.long)}, "6 examples and 4 targets"),
        (
            {"kind": "loss", "targets": torch.full((6,), 3)},
            "class 3 among the targets, but the model has 3 outputs",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            empirical_ntk(module, x, **arguments)
    attention, z = make("attention")
    with pytest.raises(ValueError, match="per_site"):
        empirical_ntk(attention, z, kind="sum_of_logits", outputs="per_site")


def test_integers_into_a_layer_of_real_numbers_name_the_cure():
    module, _ = make("mlp")
    with pytest.raises(ValueError, match=r"integer inputs .* need an embedding"):
        empirical_ntk(module, torch.randint(3, (6, 5)))


def test_empty_probe_is_refused():
    module, x = make("mlp")
    with pytest.raises(ValueError, match="no examples"):
        empirical_ntk(module, x[:0])


def test_kernel_that_is_too_large_tells_its_size_and_what_to_ask_for_instead():
    module, x = make("mlp")  # 6 examples, 3 outputs
    assert empirical_ntk(module, x, max_kernel=6 * 6 * 9 * 8).shape == (6, 3, 6, 3)
    with pytest.raises(ValueError, match=r"6 × 6 examples with 3 outputs takes 2\.59e-06 .*kind='trace'"):
        empirical_ntk(module, x, max_kernel=6 * 6 * 9 * 8 - 1)
    assert empirical_ntk(module, x, kind="trace", max_kernel=6 * 6 * 8).shape == (6, 6)


def test_network_that_has_diverged_is_refused_and_the_place_is_named():
    module, x = make("mlp")
    bad = x.clone()
    bad[2, 3] = torch.nan
    with pytest.raises(
        ValueError, match=r"the kernel is not finite: the input of the layer with 0\.weight, 0\.bias"
    ):
        empirical_ntk(module, bad)
    with torch.no_grad():
        module[0].bias.fill_(1e308)
        module[0].weight.fill_(1e308)
    with pytest.raises(ValueError, match=r"the kernel is not finite: the input of the layer with 3\.weight"):
        empirical_ntk(module, x.abs() + 1, kind="trace")
    kernel = empirical_ntk(module, x.abs() + 1, kind="trace", allow_nonfinite=True)
    assert not kernel.isfinite().all()
    with torch.no_grad():
        module[3].weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"parameter '3\.weight' is not; has the network diverged\?"):
        empirical_ntk(module, x, kind="trace")


def test_inference_mode_is_refused_and_no_grad_is_not():
    module, x = make("mlp")
    expected = empirical_ntk(module, x)
    with torch.no_grad():
        assert_close(empirical_ntk(module, x), expected, 0.0)
    with torch.inference_mode(), pytest.raises(RuntimeError, match=r"outside of it, or within torch.no_grad"):
        empirical_ntk(module, x)
