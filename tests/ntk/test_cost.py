"""What a kernel costs, in multiplications and in memory: numbers that do not depend on the machine."""

from __future__ import annotations

from typing import Any

import torch
from networks import cnn, examples, mlp
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from observatory.looking import ModelFunction
from observatory.ntk import empirical_ntk


def _added(_: Any, one: torch.Size, other: torch.Size, **__: Any) -> int:
    """Of out += one · other, which PyTorch's counter leaves out."""
    return 2 * one.numel() * other[-1]


def _summed(table: torch.Size, indices: torch.Size, *_: Any, **__: Any) -> int:
    """Of sums of chosen rows with weights, which it does not know either."""
    return 2 * indices.numel() * table[-1]


LEFT_OUT = {
    torch.ops.aten.addmm_: _added,
    torch.ops.aten.baddbmm_: _added,
    torch.ops.aten._embedding_bag_forward_only: _summed,
}


def multiplications(net: nn.Module, x: Tensor, kind: str) -> float:
    """Of one kernel, once the twin is made."""
    function = ModelFunction.of(net)
    empirical_ntk(function, x, kind=kind)
    with FlopCounterMode(display=False, custom_mapping=LEFT_OUT) as counter:
        empirical_ntk(function, x, kind=kind)
    return counter.get_total_flops() / 2


class Largest(TorchDispatchMode):
    """Numbers in the largest storage that an operation returned."""

    numbers = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        known = {t.untyped_storage()._cdata for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)}
        for t in tree_leaves(out):
            if isinstance(t, Tensor) and t.untyped_storage()._cdata not in known:
                self.numbers = max(self.numbers, t.untyped_storage().nbytes() // t.element_size())
        return out


def classifier(outputs: int) -> nn.Module:
    return nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, outputs))


def test_trace_kernel_is_linear_in_the_outputs_beyond_the_last_layer():
    """Differences to the same network with fewer outputs: C backward passes, each over C outputs."""
    x = torch.randn(8, 30)
    counts = [multiplications(classifier(c), x, "trace") for c in (4, 8, 12, 16)]
    last = [8 * 40 * c + 8 * 40 * c * c + 8 * 8 * c * c for c in (4, 8, 12, 16)]  # forward, backward, Gram
    rest = [count - mine for count, mine in zip(counts, last, strict=True)]
    assert rest[1] - rest[0] == rest[2] - rest[1] == rest[3] - rest[2] > 0


def test_trace_kernel_is_quadratic_in_the_examples_with_a_small_constant():
    """f(N) = aN + bN², with bN² a small part at N = 32."""
    counts = {n: multiplications(mlp(), examples("mlp", n), "trace") for n in (8, 16, 32)}
    each = {n: count / n for n, count in counts.items()}
    assert each[32] - each[16] == 2 * (each[16] - each[8]) > 0
    b = (each[16] - each[8]) / 8
    assert b * 32**2 < 0.25 * counts[32]


def test_full_kernel_of_an_mlp_takes_a_hundredth_of_the_jacobians_multiplications():
    """Contracting the explicit Jacobian alone takes N²C²P."""
    net, n, c = mlp(), 32, 10
    p = sum(parameter.numel() for parameter in net.parameters())
    assert multiplications(net, examples("mlp", n), "full") < (n * c) ** 2 * p / 100


def test_full_kernel_of_a_cnn_takes_hardly_more_than_what_cannot_be_avoided():
    """C backward passes, gradients in every direction, half of their Gram matrix (blocks are more).

    Of each four sites of a pooled convolution one has a gradient.
    """
    n, c = 32, 10
    layers = {
        "first": (1024, 27, 32),
        "second": (256, 288, 64),
        "third": (64, 576, 64),
    }  # sites, inputs, outputs
    forward = n * sum(s * i * o for s, i, o in layers.values())
    backward = n * c * sum(s * i * o for name, (s, i, o) in layers.items() if name != "first")
    forming = n * c * sum(s // 4 * i * o for s, i, o in layers.values())
    gram = (n * c) ** 2 // 2 * sum(i * o for _, i, o in layers.values())
    unavoidable = forward + backward + forming + gram
    assert unavoidable < multiplications(cnn(), examples("cnn", n), "full") < 1.2 * unavoidable


def test_kernel_of_an_mlp_never_holds_as_many_numbers_as_it_has_parameters():
    net = nn.Sequential(nn.Linear(20, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 4))
    function, x = ModelFunction.of(net), torch.randn(8, 20)
    for kind in ("full", "trace"):
        with Largest() as seen:
            empirical_ntk(function, x, kind=kind)
        assert seen.numbers <= 8 * 4 * 512  # B of a layer in all directions; P = 275 000, N·C·P = 8.8 million


def test_kernel_of_a_cnn_holds_no_more_than_a_few_times_its_largest_activation():
    net, n, c = cnn(), 8, 10
    function, x = ModelFunction.of(net), examples("cnn", n)
    empirical_ntk(function, x, kind="trace")
    with Largest() as seen:
        empirical_ntk(function, x, kind="trace")
    p = sum(parameter.numel() for parameter in net.parameters())
    assert seen.numbers <= n * 256 * 304  # patches of the second convolution, in whole cache lines
    assert seen.numbers < n * c * p / 7
