"""Gram matrices and their roots: order, batches and workers do not matter; ill-conditioned features do."""

from __future__ import annotations

import copy

import pytest
import torch
from heads import DOUBLE

from observatory.uncertainty import Gram, Rigidity, Root

KINDS = pytest.mark.parametrize("kind", [Gram, Root])


def filled(kind, rows, sizes=(), weights=None):
    total = kind(rows.shape[1], device=rows.device)
    cuts = list(sizes) or [len(rows)]
    parts = rows.split(cuts)
    own = weights.split(cuts) if weights is not None else [None] * len(parts)
    for part, weight in zip(parts, own, strict=True):
        total.update(part, weight)
    return total


def gram_of(total) -> torch.Tensor:
    root = total.root(0.0)
    return root.mT @ root


@KINDS
def test_batches_order_and_workers_do_not_matter(kind, generator, device):
    rows = torch.randn(300, 150, generator=generator, dtype=DOUBLE).to(device)  # two column blocks of Gram
    weights = torch.rand(300, generator=generator, dtype=DOUBLE).to(device)
    expected = (rows.mT * weights) @ rows
    order = torch.randperm(300, generator=generator).to(device)
    split = filled(kind, rows[order], (7, 1, 92, 200), weights[order])
    one, other = filled(kind, rows[:111], (), weights[:111]), filled(kind, rows[111:], (), weights[111:])
    one.merge(other)
    for total in (filled(kind, rows, (), weights), split, one):
        error = (gram_of(total) - expected).norm() / expected.norm()
        assert error < 1e-12
        assert int(total.rows) == 300 and total.weight.item() == pytest.approx(weights.sum().item())
    values, vectors = one.spectrum()
    torch.testing.assert_close(vectors * values @ vectors.mT, expected, rtol=1e-11, atol=1e-11)


@KINDS
def test_rows_may_be_written_over_after_the_update(kind, generator):
    rows, total = torch.randn(40, 60, generator=generator, dtype=DOUBLE), kind(60)
    buffer = torch.empty(4, 60, dtype=DOUBLE)
    for part in rows.split(4):
        total.update(buffer.copy_(part))
    torch.testing.assert_close(gram_of(total), rows.mT @ rows, rtol=1e-9, atol=1e-9)


def test_products_in_float32_cost_nothing_as_long_as_the_sum_is_float64(generator):
    rows = torch.randn(20_000, 64, generator=generator)
    exact = rows.double().mT @ rows.double()
    error = (filled(Gram, rows, [100] * 200).gram() - exact).norm() / exact.norm()
    assert error < 1e-7  # a product of 2000 rows rounds by 6e-8, their sum by less


@KINDS
@pytest.mark.parametrize("sizes", [(300,), (100, 200), (1,) * 300, (250, 50)])
def test_last_entry_of_one_may_be_left_out(kind, sizes, generator):
    rows = torch.cat([torch.randn(300, 130, generator=generator, dtype=DOUBLE), torch.ones(300, 1)], 1)
    weights = torch.rand(300, generator=generator, dtype=DOUBLE)
    total = kind(131)
    for number, (part, weight) in enumerate(zip(rows.split(sizes), weights.split(sizes), strict=True)):
        whole = number % 3 == 1  # mixed with rows in which it is given
        total.update(part if whole else part[:, :-1], weight if number % 2 else None, short=not whole)
    counted = torch.cat([w if k % 2 else torch.ones_like(w) for k, w in enumerate(weights.split(sizes))])
    expected = (rows.mT * counted) @ rows
    assert (gram_of(total) - expected).norm() < 1e-12 * expected.norm()
    assert total.weight.item() == pytest.approx(counted.sum().item(), rel=1e-14)
    with pytest.raises(ValueError, match=r"shape \(4, 131\) do not fit into an accumulator of width 131"):
        total.update(rows[:4], short=True)


@KINDS
def test_rows_that_wait_move_and_are_copied_with_the_accumulator(kind, generator):
    rows = torch.randn(30, 8, generator=generator, dtype=DOUBLE)
    total = kind(8)
    total.update(rows[:10].float())  # precise to 6e-8, as given
    total.update(rows[10:20])
    copied = copy.deepcopy(total).double()
    for one in (total, copied):
        one.update(rows[20:])
        torch.testing.assert_close(gram_of(one), rows.mT @ rows, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(total.root(0.0), copied.root(0.0), rtol=1e-12, atol=1e-12)


@KINDS
def test_bad_rows_are_refused(kind):
    total = kind(3)
    with pytest.raises(ValueError, match=r"shape \(4, 2\) do not fit into an accumulator of width 3"):
        total.update(torch.ones(4, 2))
    with pytest.raises(ValueError, match="2 of 4 rows of features are NaN or infinite"):
        total.update(torch.tensor([[1.0, 2, 3], [torch.nan, 1, 1], [1, torch.inf, 1], [0, 0, 0]]))
    with pytest.raises(ValueError, match="none of them negative"):
        total.update(torch.ones(2, 3), torch.tensor([1.0, -1.0]))
    with pytest.raises(ValueError, match="cannot take in a"):
        total.merge(kind(4))
    assert int(total.rows) == 0


@KINDS
def test_half_precision_is_raised(kind, generator):
    rows = torch.randn(64, 5, generator=generator).bfloat16()
    expected = rows.double().mT @ rows.double()
    torch.testing.assert_close(gram_of(filled(kind, rows)), expected, rtol=1e-5, atol=1e-5)


def ill_conditioned(generator):
    """Rank 7 of 24, columns of scale 1 ... 10⁴, two dead ones; as float32 numbers."""
    scales = torch.logspace(0, 4, 24, dtype=DOUBLE)
    basis = torch.randn(7, 24, generator=generator, dtype=DOUBLE)

    def on_span(n):
        rows = torch.randn(n, 7, generator=generator, dtype=DOUBLE) @ basis * scales
        rows[:, [5, 17]] = 0
        return rows.float()

    off_span = (torch.randn(50, 24, generator=generator, dtype=DOUBLE) * scales).float()
    return on_span(200), off_span


def reference(rows, new, reg):
    """s² with 60 decimal digits."""
    import mpmath

    with mpmath.workdps(60):
        f = mpmath.matrix(rows.double().tolist())
        a = f.T * f + mpmath.mpf(reg) * mpmath.eye(f.cols)
        inverse = a**-1
        n = mpmath.matrix(new.double().tolist())
        product = n * inverse
        return torch.tensor(
            [float(mpmath.fsum(product[i, j] * n[i, j] for j in range(n.cols))) for i in range(n.rows)],
            dtype=DOUBLE,
        )


@pytest.fixture(scope="module")
def hard():
    rows, off_span = ill_conditioned(torch.Generator().manual_seed(0))
    reg = 1e-2
    return rows, off_span, reg, reference(rows, rows[:50], reg), reference(rows, off_span, reg)


def worst(total, new, reg, expected) -> float:
    rigidity = Rigidity(total.width, dtype=DOUBLE)
    rigidity.factorise(total, reg)
    found = rigidity.exact(new)
    fast = rigidity(new.double()).square()
    return max(float((value / expected - 1).abs().max()) for value in (found, fast))


def test_ill_conditioned_features(hard):
    rows, off_span, reg, on, off = hard
    gram, root = filled(Gram, rows.double()), filled(Root, rows)
    assert worst(gram, rows[:50], reg, on) < 1e-9
    assert worst(gram, off_span, reg, off) < 1e-4
    assert worst(root, rows[:50], reg, on) < 1e-11
    assert worst(root, off_span, reg, off) < 1e-11
    single = Root(24, dtype=torch.float32)
    for part in rows.split(32):
        single.update(part)
    assert worst(single, rows[:50], reg, on) < 5e-3
    matrix = rows.mT @ rows + reg * torch.eye(24)
    inverse = torch.linalg.inv(matrix)  # what not to do
    naive = ((rows[:50] @ inverse) * rows[:50]).sum(1)
    assert float((naive / on - 1).abs().max()) > 1


@pytest.mark.parametrize(("condition", "tolerance"), [(1e4, 1e-11), (1e8, 1e-8)])
def test_root_of_features_of_large_condition_number(condition, tolerance, generator):
    """At a Gram matrix of condition 10⁸, and 10¹⁶, an inverse in float32 is off by more than 100 %.

    The root is off by κ(F)ε, what rounding of the features themselves amounts to.
    """
    left, _ = torch.linalg.qr(torch.randn(400, 30, generator=generator, dtype=DOUBLE))
    right, _ = torch.linalg.qr(torch.randn(30, 30, generator=generator, dtype=DOUBLE))
    decay = condition ** -torch.linspace(0, 1, 30, dtype=DOUBLE)
    rows = left * decay @ right.mT
    reg = 1e-30
    new = torch.cat([torch.randn(20, 30, generator=generator, dtype=DOUBLE), rows[:20]])
    expected = reference(rows, new, reg)
    assert worst(filled(Root, rows, [50] * 8), new, reg, expected) < tolerance
    single = rows.float()
    naive = ((new.float() @ torch.linalg.inv(single.mT @ single)) * new.float()).sum(1)
    assert float((naive / expected - 1).abs().max()) > 1


@pytest.mark.parametrize("width", [2, 3, 128, 129, 257, 400])
def test_block_triangular_product_is_the_quadratic_form(width, generator):
    rows = torch.randn(2 * width, width, generator=generator, dtype=DOUBLE)
    rigidity = Rigidity(width, dtype=DOUBLE)
    rigidity.factorise(filled(Gram, rows), 0.1)
    new = torch.randn(9, width, generator=generator, dtype=DOUBLE)
    a = rows.mT @ rows + 0.1 * torch.eye(width, dtype=DOUBLE)
    expected = (new * torch.linalg.solve(a, new.mT).mT).sum(1)
    torch.testing.assert_close(rigidity(new).square(), expected, rtol=1e-9, atol=0)
    new[:, -1] = 1
    torch.testing.assert_close(rigidity(new[:, :-1]), rigidity(new), rtol=1e-9, atol=0)
    new = torch.randn(9, width, generator=generator, dtype=DOUBLE)
    expected = (new * torch.linalg.solve(a, new.mT).mT).sum(1)
    torch.testing.assert_close(rigidity.exact(new), expected, rtol=1e-9, atol=0)
    torch.testing.assert_close(rigidity.covariance(new, new).diagonal(), expected, rtol=1e-9, atol=0)


def test_vanishing_regulariser_is_refused_where_features_have_no_full_rank():
    rows = torch.ones(5, 2, dtype=DOUBLE)
    with pytest.raises(ValueError, match=r"rank 1 of 2; the smallest usable reg is 1e-11"):
        Rigidity(2).factorise(filled(Gram, rows), 0.0)
    with pytest.raises(ValueError, match="added to the diagonal, got -1"):
        Rigidity(2).factorise(filled(Gram, rows), -1.0)
