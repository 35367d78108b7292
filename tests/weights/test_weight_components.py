"""Principal components of trajectories: exact ones, and those of a sketch."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

from observatory.weights import (
    CountSketch,
    FrequentDirections,
    Scatter,
    StreamingCovariance,
    Trajectory,
    load_trajectory,
    principal_components,
)
from observatory.weights.components import lift, project
from observatory.weights.sketches import random_coordinates


def trajectory(snapshots: int, size: int, generator: torch.Generator) -> torch.Tensor:
    """Strongly anisotropic fluctuations about a mean of 3."""
    scale = torch.arange(1, size + 1).double() ** -0.7
    return 3 + torch.randn(snapshots, size, generator=generator, dtype=torch.float64) * scale


@pytest.mark.parametrize(("snapshots", "size"), [(40, 700), (200, 1500), (90, 30)])
def test_components_equal_those_of_a_full_svd(snapshots, size, generator, device):
    from sklearn.decomposition import PCA

    rows = trajectory(snapshots, size, generator)
    found, directions = principal_components(rows.to(device))
    peer = PCA(svd_solver="full").fit(rows.numpy())
    rank = min(snapshots - 1, size)
    np.testing.assert_allclose(found.variance.cpu(), peer.explained_variance_[:rank], rtol=1e-8)
    overlap = (directions.double().cpu().numpy() * peer.components_[:rank]).sum(1)
    np.testing.assert_allclose(np.abs(overlap), 1, atol=1e-8)
    np.testing.assert_allclose(
        found.projections.cpu().numpy() * np.sign(overlap), peer.transform(rows.numpy())[:, :rank], atol=1e-8
    )
    assert found.total.item() == pytest.approx(rows.var(0).sum().item(), rel=1e-12)


@pytest.mark.parametrize("shape", [(60, 300_000), (300_000, 60)])
def test_float32_snapshots_are_accumulated_in_float64(shape, generator):
    rows = trajectory(*shape, generator).float()
    exact = rows.double() - rows.double().mean(0)
    expected = exact @ exact.T if shape[0] < shape[1] else exact.T @ exact
    # 60 entries are sums of 3·10⁵ terms: √(3·10⁵)·10⁻¹⁶ of their size if all were of one sign
    scale = expected.diagonal().max().item()
    assert torch.allclose(Scatter(rows).matrix(), expected, rtol=1e-12, atol=1e-12 * scale)


def without_trend(rows: torch.Tensor) -> torch.Tensor:
    time_axis = torch.stack([torch.ones(len(rows)), torch.arange(len(rows))], 1).double()
    return rows - time_axis @ torch.linalg.lstsq(time_axis, rows).solution


@pytest.mark.parametrize(("snapshots", "size"), [(50, 120), (90, 40), (200, 170)])
@pytest.mark.parametrize("trend", [True, False])
def test_the_scatter_is_the_same_as_a_matrix_as_an_operator_and_in_strips(
    snapshots, size, trend, generator, device
):
    rows = trajectory(snapshots, size, generator) + torch.arange(snapshots)[:, None] / 10
    z = rows - rows.mean(0) if trend else without_trend(rows)
    expected = (z @ z.T if snapshots <= size else z.T @ z).to(device)
    scatter = Scatter(rows.to(device), trend)
    vectors = torch.randn(len(expected), 3, dtype=torch.float64, generator=generator).to(device)
    assert torch.allclose(scatter.matrix(), expected, atol=1e-10)
    assert torch.allclose(scatter.times(vectors), expected @ vectors, atol=1e-10)
    trace, square = scatter.moments()
    assert trace.item() == pytest.approx(expected.trace().item(), rel=1e-12)
    assert square.item() == pytest.approx((expected @ expected).trace().item(), rel=1e-12)


@pytest.mark.parametrize(("snapshots", "size"), [(40, 700), (300, 30), (300, 320), (320, 300)])
def test_components_without_the_trend_are_those_of_the_detrended_rows(snapshots, size, generator):
    rows = trajectory(snapshots, size, generator) + torch.arange(snapshots)[:, None] / 10
    seen, directions = principal_components(rows, 4, trend=False)
    expected, exact = principal_components(without_trend(rows), 4)
    assert torch.allclose(seen.variance[:4], expected.variance[:4], rtol=1e-8)
    assert torch.allclose((directions * exact).sum(1).abs(), torch.ones(4).double(), atol=1e-6)
    assert torch.allclose(seen.projections.abs(), expected.projections.abs(), atol=1e-6)


@pytest.mark.parametrize(("snapshots", "size"), [(400, 900), (900, 400)])
@pytest.mark.parametrize("kind", ["a drift", "isotropic"])
def test_leading_components_without_the_matrix_are_those_of_a_full_svd(snapshots, size, kind, generator):
    """Isotropic noise is the slow case: nothing stands out."""
    rows = torch.randn(snapshots, size, generator=generator, dtype=torch.float64)
    if kind == "a drift":
        rows = rows / 10 + rows.cumsum(0)
    found, directions = principal_components(rows, 10)
    z = rows - rows.mean(0)
    values, axes = torch.linalg.svd(z, full_matrices=False)[1:]
    variance = values.square() / (snapshots - 1)
    assert len(found.variance) == 10  # the matrix is not small beside the rows: it was not formed
    torch.testing.assert_close(found.variance, variance[:10], rtol=1e-10, atol=0)
    # residuals of 10⁻⁸ over relative gaps of some 10⁻³ between neighbours
    torch.testing.assert_close(
        (directions * axes[:10]).sum(1).abs(), torch.ones(10).double(), rtol=0, atol=1e-8
    )
    torch.testing.assert_close(found.projections, z @ directions.mT, rtol=0, atol=1e-5)
    assert found.total.item() == pytest.approx(variance.sum().item(), rel=1e-12)
    ratio = (variance.sum().square() / variance.square().sum()).item()
    assert found.participation_ratio.item() == pytest.approx(ratio, rel=1e-12)


def test_components_are_found_in_a_fifth_of_the_memory_of_their_trajectory(generator):
    """1.2 times the float32 trajectory, itself included, at its peak; 20 directions and motions are 0.036."""
    rows = torch.randn(1000, 2500, generator=generator).cumsum_(0)
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        principal_components(rows, 20)
    live = np.cumsum([e.nbytes() for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"])
    assert 0.1 < live.max() / (4 * rows.numel()) < 0.2  # blocks of columns 0.05, Lanczos vectors 0.06, ...


def test_projection_on_the_components_gives_their_time_series(generator):
    rows = trajectory(50, 300, generator).float()
    found, directions = principal_components(rows, 5)
    assert torch.equal(lift(rows, found.projections), directions)
    assert torch.allclose(directions @ directions.T, torch.eye(5), atol=1e-6)  # float32 directions
    assert torch.allclose(project(rows, directions), found.projections, atol=1e-5)


def test_participation_ratio_counts_equal_directions():
    six = torch.eye(6, 40).double()  # there and back along six axes
    found, _ = principal_components(torch.cat([six, -six]))
    assert found.participation_ratio.item() == pytest.approx(6)


def test_streaming_covariance_equals_the_direct_one(generator):
    rows = trajectory(200, 30, generator)
    stream = StreamingCovariance(30)
    for part in rows.split(64):
        stream.update(part)
    assert torch.allclose(stream.covariance, rows.T.cov(), rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rows_kept", [8, 20])
def test_frequent_directions_keep_their_bound(rows_kept, generator):
    rows = trajectory(300, 200, generator)
    sketch = FrequentDirections(200, rows_kept, dtype=torch.float64)
    for part in rows.split(37):
        sketch.update(part)
    centred = rows - rows.mean(0)
    scatter = centred.T @ centred
    values, directions = sketch.components(rows_kept)
    approximation = directions.T @ ((len(rows) - 1) * values[:, None] * directions)
    spectrum = torch.linalg.eigvalsh(scatter).flip(0)
    bound = min((spectrum[k:].sum() / (rows_kept - k)).item() for k in range(rows_kept))
    miss = torch.linalg.matrix_norm(scatter - approximation, ord=2).item()
    # dropping the last of the kept rows may add its own weight, which the bound covers as well
    assert miss <= bound * (1 + 1e-9)
    assert torch.allclose(sketch.mean, rows.mean(0)) and torch.allclose(sketch.total, scatter.trace())


def test_frequent_directions_are_exact_below_their_rank(generator):
    rows = trajectory(30, 500, generator)
    sketch = FrequentDirections(500, 32, dtype=torch.float64)
    sketch.update(rows)
    values, directions = sketch.components(5)
    found, exact = principal_components(rows, 5)
    assert torch.allclose(values, found.variance[:5], rtol=1e-10)
    assert torch.allclose((directions * exact).sum(1).abs(), torch.ones(5).double(), atol=1e-8)


def test_count_sketch_keeps_inner_products(generator):
    rows = trajectory(40, 20_000, generator)
    rows = rows - rows.mean(0)
    exact = rows @ rows.T
    sketched = CountSketch(20_000, 4096, generator=generator)(rows)
    miss = (sketched @ sketched.T - exact).abs().max() / exact.diagonal().max()
    assert miss.item() < 5 * (2 / 4096) ** 0.5  # standard deviation of one entry ≤ √(2/m) of the trace


def test_random_coordinates_are_distinct(generator):
    drawn = random_coordinates(1000, 50, generator=generator)
    assert len(set(drawn.tolist())) == 50 and bool((drawn.diff() > 0).all())
    with pytest.raises(ValueError, match="between 1 and 10"):
        random_coordinates(10, 11, generator=generator)


def test_too_short_uneven_and_diverged_trajectories_are_refused():
    names, shapes = ("w",), (torch.Size([2]),)
    with pytest.raises(ValueError, match="at least 3 snapshots, got 2"):
        Trajectory(torch.zeros(2, 2), torch.zeros(2), torch.arange(2), names, shapes)
    with pytest.raises(ValueError, match=r"evenly spaced in steps; these are \[1, 2\] apart"):
        Trajectory(torch.zeros(3, 2), torch.zeros(2), torch.tensor([0, 1, 3]), names, shapes)
    broken = torch.zeros(3, 2)
    broken[1, 0] = torch.nan
    with pytest.raises(ValueError, match="not finite at step 8"):
        Trajectory(broken, torch.zeros(2), torch.tensor([7, 8, 9]), names, shapes).check_finite()


def test_checkpoints_become_a_trajectory(tmp_path):
    weights = [torch.full((2, 2), 1.0 + k) for k in range(3)]
    files = []
    for k, weight in enumerate(weights):
        files.append(tmp_path / f"{k}.ckpt")
        state = {"net.weight": weight, "net.bias": torch.zeros(2), "count": torch.tensor(k)}
        torch.save({"state_dict": state, "global_step": 10 * k}, files[-1])
    found = load_trajectory(files, select="weight")
    assert (found.names, found.steps.tolist(), found.every) == (("net.weight",), [0, 10, 20], 10)
    assert torch.equal(found.mean(), torch.full((4,), 2.0))
    assert load_trajectory(files).size == 6
    with pytest.raises(ValueError, match="no weight matches 'conv'"):
        load_trajectory(files, select="conv")
    with pytest.raises(ValueError, match="give steps="):
        load_trajectory([{"w": torch.zeros(2)}] * 3)


@pytest.mark.parametrize("size", [1000, 30_000])
def test_gram_takes_five_quarters_of_an_operation_for_each_weight_and_pair(size):
    def operations(_, a, b, **__):
        return 2 * a[0] * a[1] * b[1]

    with FlopCounterMode(display=False, custom_mapping={torch.ops.aten.addmm_: operations}) as counter:
        Scatter(torch.randn(400, size)).matrix()
    assert counter.get_total_flops() == 1.25 * 400**2 * size  # 10 of 16 blocks, twice


@pytest.mark.slow
def test_a_million_weights_are_decomposed_in_half_a_minute_and_little_memory():
    """The peak of the whole process, libraries and all, from when the rows stand there alone."""
    program = r"""
import re, time, torch
from observatory.weights import principal_components
rows = torch.randn(500, 10**6)
resident = lambda name: int(re.search(name + r":\s+(\d+)", open("/proc/self/status").read())[1])
with open("/proc/self/clear_refs", "w") as reset:
    reset.write("5")
before, start = resident("VmRSS"), time.perf_counter()
principal_components(rows, 20)
print(time.perf_counter() - start, (resident("VmHWM") - before) * 1024)
"""
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, extra = map(float, out.stdout.split())
    assert seconds < 30
    assert extra < 0.2 * 500 * 10**6 * 4


def test_means_and_checks_of_a_trajectory_do_not_copy_it(generator):
    """torch converts the whole of what it sums into another type."""
    rows = torch.randn(300, 40_000, generator=generator)
    kept = Trajectory(rows, torch.zeros(40_000), torch.arange(300), ("w",), (torch.Size([40_000]),))
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        mean = kept.mean()
        kept.check_finite()
    live = np.cumsum([e.nbytes() for e in seen.profiler.kineto_results.events() if e.name() == "[memory]"])
    assert live.max() < 0.15 * 4 * rows.numel()
    torch.testing.assert_close(mean, rows.double().mean(0).float(), rtol=1e-6, atol=1e-8)
