"""Compiled code that is called past its checks returns what the function returns."""

from __future__ import annotations

import pytest
import torch

from observatory.numerics.ode import compiled, integrate, uniform_grid
from observatory.numerics.ode.compiled import Compiled, Repeated


@pytest.fixture(autouse=True)
def _without_a_c_compiler(monkeypatch):
    monkeypatch.setattr(compiled, "BACKEND", "aot_eager")


class Counted(Compiled):
    """Counts the calls that are checked."""

    checked = 0

    def __call__(self, *tensors):
        self.checked += 1
        return super().__call__(*tensors)


def lanes(n, *, transposed=False, seed=0):
    generator = torch.Generator().manual_seed(seed)
    shape = (3, n) if transposed else (n, 3)
    x = torch.randn(shape, dtype=torch.float64, generator=generator)
    return x.T if transposed else x


def test_only_new_layouts_are_checked():
    constant = torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)

    def function(x, y):
        return x * y.sum(0) + len(x), y - constant

    counted = Counted(function)
    repeated = Repeated(counted)
    calls = [(4, False, 1), (4, False, 1), (5, False, 2), (5, False, 2), (4, False, 3), (4, True, 4)]
    for seed, (n, transposed, checked) in enumerate([*calls, (4, True, 4), (1, False, 5), (1, False, 5)]):
        x, y = lanes(n, seed=seed, transposed=transposed), lanes(n, seed=seed + 10)
        for found, expected in zip(repeated(x, y), function(x, y), strict=True):
            assert torch.equal(found, expected)
        assert counted.checked == checked
    assert counted.reached is None  # no state is kept alive


def test_what_the_code_was_not_made_for_is_always_checked():
    twice = Counted(lambda x, y: (x - y,))
    repeated, x = Repeated(twice), lanes(4)
    assert not repeated(x, x)[0].any()  # one tensor as both: the code may have but one argument
    assert torch.equal(repeated(x, 2 * x)[0], -x)
    assert twice.checked == 2
    through = Counted(lambda x, y: (x, x + y))
    repeated = Repeated(through)
    for seed in range(3):
        x, y = lanes(4, seed=seed), lanes(4, seed=seed + 10)
        found = repeated(x, y)
        assert torch.equal(found[0], x) and torch.equal(found[1], x + y)
    assert through.checked == 3


def test_other_types_are_checked():
    counted = Counted(lambda x: (x + 1,))
    repeated = Repeated(counted)
    assert repeated(lanes(2))[0].dtype == torch.float64
    assert repeated(lanes(2).float())[0].dtype == torch.float32
    assert counted.checked == 2


def test_results_are_known_only_where_they_went_before():
    def function(x, y):
        return x + len(y), y - x.sum()

    counted = Counted(function)
    repeated, x, y = Repeated(counted), lanes(4), lanes(5, seed=1)
    for checked in (1, 2):
        for _ in range(4):
            expected = function(x, y)
            x, y = repeated(x, y)
            assert torch.equal(x, expected[0]) and torch.equal(y, expected[1])
            assert counted.checked == checked
        x, y = y, x  # of other sizes


def test_any_number_of_functions_of_the_same_lines():
    """Torch keeps eight pieces of compiled code with the Python code that they come from."""
    x = lanes(1)
    for power in range(1, 12):
        (found,) = Compiled(lambda x, power=power: (x**power,))(x)
        assert torch.allclose(found, x**power, rtol=1e-14, atol=0)


def test_two_fields_that_begin_as_one_tensor():
    """The first step sees one tensor twice, the others do not."""

    class Rotation(torch.nn.Module):
        def rhs(self, t, y):
            return {"u": -y["v"], "v": y["u"]}

    start = lanes(2)
    grid = uniform_grid(torch.tensor([0.0, 1.0], dtype=torch.float64), 0.1)
    options = {"method": "euler", "gradient": "checkpointed"}
    expected = integrate(Rotation(), {"u": start, "v": start}, grid, **options)
    found = integrate(Rotation(), {"u": start, "v": start}, grid, compiled=True, **options)
    for name in expected:
        assert torch.allclose(found[name], expected[name], rtol=1e-14, atol=1e-14)
