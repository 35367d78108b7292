"""The twin has the code of a module, none of its storage, and nothing done with it reaches the module."""

from __future__ import annotations

import threading

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from observatory.looking import ModelFunction, weightless_twin
from observatory.looking.live import LiveModel

# the compiler's own
pytestmark = pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf")


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(7, 5)
        self.head = nn.Linear(5, 7, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.embed(tokens))


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(3, 4, batch_first=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x)[0][:, -1])


class Uncopyable(nn.Module):
    """Plain attributes that `copy.deepcopy` refuses."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Linear(3, 2)
        self.lock = threading.Lock()
        self.stream = iter(range(3))
        self.cached = (self.net.weight * 2).sum()  # not a leaf

    def forward(self, x: Tensor) -> Tensor:
        with self.lock:
            return self.net(x)


class OwnFunctions(nn.Module):
    """Functions in attributes that refer to the module itself, which `copy.deepcopy` does not follow."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
        self.encode = torch.compile(self.encode, backend="eager")
        self.decode = lambda x: self.net[3](x)
        self.act = torch.compile(torch.tanh, backend="eager")

    def encode(self, x: Tensor) -> Tensor:
        return self.net[2](self.net[1](self.net[0](x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.act(self.decode(self.encode(x)))


def old_weight_norm() -> nn.Module:
    return nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.Tanh(), nn.Linear(4, 2))


CASES = {
    "batch norm and dropout": (
        lambda: nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2)),
        lambda: torch.randn(6, 3),
    ),
    "tied": (Tied, lambda: torch.randint(7, (6, 4))),
    "recurrent": (Recurrent, lambda: torch.randn(6, 5, 3)),
    "parametrised": (old_weight_norm, lambda: torch.randn(6, 3)),
    "own functions": (OwnFunctions, lambda: torch.randn(6, 3)),
    "uncopyable": (Uncopyable, lambda: torch.randn(6, 3)),
    "transformer": (
        lambda: nn.TransformerEncoderLayer(8, 2, 16, batch_first=True),
        lambda: torch.randn(6, 5, 8),
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_function_of_the_twin_is_the_module_in_evaluation_mode(case):
    make, draw = CASES[case]
    module, x = make(), draw()
    module.train()
    function = ModelFunction.of(module)
    y = function(x)
    assert module.training
    torch.testing.assert_close(y, module.eval()(x), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_gradients_of_the_function_are_those_of_the_module(case):
    make, draw = CASES[case]
    module, x = make(), draw()
    function = ModelFunction.of(module)
    gradients = torch.func.grad(lambda theta: function(x, theta).square().sum())(function.theta)
    assert all(p.grad is None for p in module.parameters())
    module.eval()(x).square().sum().backward()
    for name, parameter in module.named_parameters():
        torch.testing.assert_close(gradients[name], parameter.grad, rtol=1e-5, atol=1e-6)


def test_functions_kept_in_attributes_do_not_reach_the_module():
    """Called through the twin they would run in the module's mode, and move its statistics."""
    module = OwnFunctions()
    before = [b.clone() for b in module.buffers()]
    stream = torch.get_rng_state()
    ModelFunction.of(module)(torch.randn(6, 3, generator=torch.Generator().manual_seed(0)))
    assert all(torch.equal(b, c) for b, c in zip(module.buffers(), before, strict=True))
    assert torch.equal(torch.get_rng_state(), stream)


def test_twin_holds_no_storage_and_keeps_ties():
    twin = weightless_twin(Tied())
    assert all(p.is_meta for p in twin.parameters())
    assert twin.head.weight is twin.embed.weight


@pytest.mark.parametrize("how", ["wrapped", "in place"])
def test_compiled_module_is_looked_at_eagerly(how):
    net, x = nn.Sequential(nn.Linear(3, 4), nn.Tanh()), torch.randn(5, 3)
    if how == "wrapped":
        module = torch.compile(net, backend="eager")
    else:
        module = net
        module.compile(backend="eager")
    expected = module(x)
    assert torch.equal(ModelFunction.of(module)(x), expected)
    assert list(ModelFunction.of(module).parameters) == ["0.weight", "0.bias"]


def test_looking_leaves_mode_buffers_gradients_and_streams_alone():
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(), nn.Linear(4, 2))
    net[1].eval()
    net(torch.randn(6, 3)).sum().backward()
    grads = [p.grad for p in net.parameters()]
    buffers = [b.clone() for b in net.buffers()]
    stream = torch.get_rng_state()
    function = ModelFunction.of(net)
    torch.func.grad(lambda theta: function(torch.zeros(2, 3), theta).sum())(function.theta)
    assert [m.training for m in net] == [True, False, True, True]
    assert all(p.grad is g for p, g in zip(net.parameters(), grads, strict=True))
    assert all(torch.equal(b, c) for b, c in zip(net.buffers(), buffers, strict=True))
    assert torch.equal(torch.get_rng_state(), stream)


def test_lazy_module_before_its_first_batch_is_refused():
    with pytest.raises(ValueError, match=r"'0.weight' of Sequential is not initialised yet; run one batch"):
        weightless_twin(nn.Sequential(nn.LazyLinear(3)))


def test_function_follows_the_live_weights():
    net, x = nn.Linear(3, 2), torch.randn(4, 3)
    function = ModelFunction.of(net)
    with torch.no_grad():
        net.weight.mul_(2)
    assert torch.equal(function(x), net(x))


def test_selection_by_pattern_and_of_nothing():
    net = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 2))
    net[0].requires_grad_(False)
    assert ModelFunction.of(net).selected == ("1.weight", "1.bias")
    assert ModelFunction.of(net, select="bias").selected == ("1.bias",)
    with pytest.raises(
        ValueError, match=r"no trainable parameter is selected by '0\.' out of 2: 1.weight, 1.bias"
    ):
        ModelFunction.of(net, select="0.")
    with pytest.raises(ValueError, match="all are frozen"):
        ModelFunction.of(net.requires_grad_(False))


def test_output_that_is_no_tensor_names_the_argument_to_set():
    class Two(nn.Linear):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return super().forward(x), x

    net, x = Two(3, 2), torch.randn(4, 3)
    with pytest.raises(
        TypeError, match=r"Two returned tuple, not a tensor; name the part that is meant with output="
    ):
        ModelFunction.of(net)(x)
    assert torch.equal(ModelFunction.of(net, output=lambda out: out[0])(x), net(x)[0])
    assert torch.equal(ModelFunction.of(net, forward=lambda module, x: module(2 * x)[0])(x), net(2 * x)[0])


def test_half_precision_is_raised_to_single():
    net = nn.Linear(3, 2).bfloat16()
    function = LiveModel(net).function()
    assert {p.dtype for p in function.parameters.values()} == {torch.float32}
    assert net.weight.dtype == torch.bfloat16


def test_twin_is_rebuilt_when_the_parameters_have_changed():
    net = nn.Sequential(nn.Linear(3, 2))
    live = LiveModel(net)
    assert live.function()(torch.zeros(1, 3)).shape == (1, 2)
    net.append(nn.Linear(2, 5))
    assert live.function()(torch.zeros(1, 3)).shape == (1, 5)


def test_function_of_something_else_is_refused():
    with pytest.raises(TypeError, match=r"expected a torch\.nn\.Module, got function"):
        ModelFunction.of(lambda x: x)


def test_module_of_a_function_shares_parameters_and_survives_what_cannot_be_copied(tmp_path):
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))
    with (tmp_path / "log").open("w") as net.log:  # deepcopy refuses an open file
        function = ModelFunction.of(net)
        module = function.module()
        assert module[0].weight.data_ptr() == net[0].weight.data_ptr()
        assert not module[0].weight.requires_grad and not module.training and net.training
        assert module[1].running_mean.data_ptr() != net[1].running_mean.data_ptr()
        x = torch.randn(5, 3)
        assert torch.equal(module(x), function(x))


@pytest.mark.parametrize("case", CASES)
def test_module_of_a_function_is_that_function(case):
    make, draw = CASES[case]
    function, x = ModelFunction.of(make()), draw()
    assert torch.equal(function.module()(x), function(x))


def test_module_of_a_function_is_not_compiled_again():
    """Deep copies of `torch.compile(net)` share its compiled code: calling one would compile it anew."""
    compiled = []

    def backend(graph, inputs):
        compiled.append(graph)
        return graph.forward

    net = nn.Sequential(torch.compile(nn.Linear(3, 4), backend=backend), nn.Tanh())
    net(torch.randn(2, 3))
    assert len(compiled) == 1
    for batch in (2, 5, 7):
        with torch.no_grad():
            ModelFunction.of(net).module()(torch.randn(batch, 3))
    assert len(compiled) == 1


class Noting(Recurrent):
    """Notes whether cuDNN may be used."""

    allowed: bool | None = None

    def forward(self, x: Tensor) -> Tensor:
        Noting.allowed = torch.backends.cudnn.enabled
        return super().forward(x)


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_recurrent_layers_have_derivatives_in_evaluation_mode(device):
    """Those of cuDNN have none, so that they are not used, and only while the model runs."""
    if device == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    net, x = Noting().to(device), torch.randn(3, 5, 3, device=device)
    function = ModelFunction.of(net)
    theta = {name: p.clone().requires_grad_() for name, p in function.theta.items()}
    before = torch.backends.cudnn.enabled
    found = torch.autograd.grad(function(x, theta).sum(), list(theta.values()))
    assert Noting.allowed is False and torch.backends.cudnn.enabled == before
    expected = torch.autograd.grad(net(x).sum(), list(net.parameters()))  # in training mode
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)
