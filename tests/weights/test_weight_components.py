"""Principal components of trajectories: exact ones, and those of a sketch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from observatory.weights import (
    CountSketch,
    FrequentDirections,
    StreamingCovariance,
    Trajectory,
    centred_gram,
    load_trajectory,
    principal_components,
)
from observatory.weights.components import components_of_gram, detrended, lift, project
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


def test_float32_snapshots_are_accumulated_in_float64(generator):
    rows = trajectory(60, 300_000, generator).float()
    exact = rows.double() - rows.double().mean(0)
    assert torch.allclose(centred_gram(rows), exact @ exact.T, rtol=1e-12, atol=1e-12)


def test_detrended_gram_is_that_of_the_detrended_trajectory(generator):
    rows = trajectory(50, 120, generator) + torch.arange(50)[:, None] * torch.randn(120, generator=generator)
    time_axis = torch.stack([torch.ones(50), torch.arange(50.0)], 1).double()
    rest = rows - time_axis @ torch.linalg.lstsq(time_axis, rows).solution
    assert torch.allclose(detrended(centred_gram(rows)), rest @ rest.T, atol=1e-8)


@pytest.mark.parametrize(("snapshots", "size"), [(40, 700), (300, 30)])
def test_components_without_the_trend_are_those_of_the_detrended_rows(
    snapshots, size, generator, monkeypatch
):
    monkeypatch.setattr("observatory.weights.components.BLOCK_BYTES", 0)  # blocks of 64 rows
    rows = trajectory(snapshots, size, generator) + torch.arange(snapshots)[:, None] / 10
    time_axis = torch.stack([torch.ones(snapshots), torch.arange(snapshots)], 1).double()
    rest = rows - time_axis @ torch.linalg.lstsq(time_axis, rows).solution
    seen, directions = principal_components(rows, 4, trend=False)
    expected, exact = principal_components(rest, 4)
    assert torch.allclose(seen.variance[:10], expected.variance[:10], rtol=1e-8)
    assert torch.allclose((directions * exact).sum(1).abs(), torch.ones(4).double(), atol=1e-6)
    assert torch.allclose(seen.projections.abs(), expected.projections.abs(), atol=1e-6)


def test_projection_on_the_components_gives_their_time_series(generator):
    rows = trajectory(50, 300, generator).float()
    found = components_of_gram(centred_gram(rows), count=5)
    directions = lift(rows, found.projections)
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
        centred_gram(torch.randn(400, size))
    assert counter.get_total_flops() == 1.25 * 400**2 * size  # 10 of 16 blocks, twice


@pytest.mark.slow
def test_a_million_weights_are_decomposed_in_half_a_minute_and_little_memory(tmp_path):
    import subprocess
    import sys

    program = (
        "import resource, time, torch\n"
        "from observatory.weights import principal_components\n"
        "rows = torch.randn(500, 10**6)\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "start = time.perf_counter()\n"
        "principal_components(rows, 20)\n"
        "after = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "print(time.perf_counter() - start, (after - before) * 1024)\n"
    )
    out = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    seconds, extra = map(float, out.stdout.split())
    assert seconds < 30
    assert extra < 0.2 * 500 * 10**6 * 4 + 2**28  # 1.2 × the trajectory; a quarter of a GB for the libraries
