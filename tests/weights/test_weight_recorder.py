"""What is kept of a window, and what can still be said then."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

from observatory.weights import principal_components
from observatory.weights.recorder import COORDINATES, Recorder, choose_storage


def walk(size: int, snapshots: int, generator: torch.Generator) -> torch.Tensor:
    """Weights about 1 with three strong directions."""
    directions = torch.linalg.qr(torch.randn(size, 3, generator=generator)).Q.T
    strong = torch.randn(snapshots, 3, generator=generator) * torch.tensor([3.0, 2.0, 1.0])
    return 1 + strong @ directions + 0.01 * torch.randn(snapshots, size, generator=generator)


def record(rows: torch.Tensor, **options) -> Recorder:
    parts = [{"a": row[:12].reshape(3, 4), "b": row[12:]} for row in rows]
    recorder = Recorder(parts[0], capacity=len(rows) // 2, **options)  # half as many as will come
    for step, theta in enumerate(parts):
        recorder.add(theta, 10 + 2 * step)
    return recorder


def test_full_storage_keeps_the_trajectory(generator, device):
    rows = walk(500, 40, generator).to(device)
    recorder = record(rows)
    trajectory = recorder.trajectory()
    assert torch.allclose(trajectory.reference + trajectory.differences, rows, atol=1e-6)
    assert (trajectory.names, trajectory.every, len(recorder), recorder.width) == (("a", "b"), 2, 40, 500)
    assert torch.allclose(recorder.center(), rows.mean(0), atol=1e-6)
    found, exact = principal_components(rows, 3)
    vectors, motion = recorder.principal_motion(3)
    assert torch.allclose(motion.variance, found.variance[:3], rtol=1e-5)
    assert torch.allclose((vectors * exact).sum(1).abs(), torch.ones(3, device=device), atol=1e-4)


def test_weights_are_copied_wherever_they_lie(generator):
    """In place, in another tensor, in another memory of the same tensor, in columns; read in between."""
    rows = walk(500, 12, generator)
    a, b = rows[0, :12].reshape(3, 4).clone(), rows[0, 12:].clone()
    recorder = Recorder({"a": a, "b": b}, capacity=4)
    for step, row in enumerate(rows):
        if step in (3, 8):
            a = a.clone()
        if step == 5:
            a = a.t().contiguous().t()
        if step == 7:
            b.data = b.data.clone()
        if step == 9:
            recorder.state_dict()
        a.copy_(row[:12].reshape(3, 4))
        b.copy_(row[12:])
        recorder.add({"a": a, "b": b}, step)
    assert torch.equal(recorder.trajectory().differences, rows - rows[0])


def test_bfloat16_differences_keep_small_fluctuations(generator):
    rows = 1 + 1e-5 * walk(500, 40, generator)  # raw bfloat16 weights would all be the same
    exact = principal_components(rows.double(), 3)[0].variance[:3]
    seen = record(rows, dtype=torch.bfloat16).principal_motion(3)[1].variance
    assert torch.allclose(seen, exact, rtol=0.02)  # 2⁻⁹ each, and float32 weights with 6e-8/1e-5


def test_frequent_directions_find_the_strong_directions(generator):
    rows = walk(500, 400, generator)
    found, exact = principal_components(rows, 3)
    recorder = record(rows, storage="directions")
    vectors, motion = recorder.principal_motion(3)
    assert torch.allclose(motion.variance, found.variance[:3], rtol=0.01)
    assert torch.allclose((vectors * exact).sum(1).abs(), torch.ones(3), atol=1e-3)
    assert torch.allclose(recorder.center(), rows.mean(0), atol=1e-5)
    assert motion.integrated_time.isnan().all() and motion.total.item() == pytest.approx(
        found.total.item(), rel=1e-4
    )
    with pytest.raises(ValueError, match="keep no snapshots"):
        recorder.trajectory()


def test_sketch_keeps_variances_but_no_directions(generator):
    rows = walk(20_000, 60, generator)
    found, _ = principal_components(rows, 3)
    recorder = record(rows, storage="sketch")
    vectors, motion = recorder.principal_motion(3)
    assert vectors is None and recorder.width == COORDINATES
    assert torch.allclose(motion.variance, found.variance[:3], rtol=5 * (2 / COORDINATES) ** 0.5)


def test_subset_lifts_its_directions_into_the_whole_space(generator):
    rows = walk(500, 60, generator)
    recorder = record(rows, storage="subset", memory=4 * 30 * 100)  # 100 weights of the expected 30 snapshots
    vectors, motion = recorder.principal_motion(3)
    assert recorder.width == 100 and (vectors != 0).sum(1).max() <= 100
    along = (rows - rows.mean(0)) @ vectors.T
    assert torch.allclose(along.double(), motion.projections, atol=1e-4)
    assert torch.allclose(recorder.center()[vectors[0] != 0], rows.mean(0)[vectors[0] != 0], atol=1e-5)


def test_budget_decides_what_is_kept():
    assert choose_storage(1000, 10**6, memory=4e9, item=4) == "full"
    assert choose_storage(1000, 10**6, memory=2e9, item=4) == "directions"
    assert choose_storage(1000, 10**7, memory=2e9, item=4) == "subset"


def test_interrupted_window_continues(generator):
    rows = walk(500, 40, generator)
    whole, first = record(rows), record(rows[:25])
    rest = Recorder({"a": rows[25, :12].reshape(3, 4), "b": rows[25, 12:]}, capacity=10)
    rest.load_state_dict(first.state_dict())
    for k in range(25, 40):
        rest.add({"a": rows[k, :12].reshape(3, 4), "b": rows[k, 12:]}, 10 + 2 * k)
    assert torch.equal(rest.trajectory().differences, whole.trajectory().differences)
    assert torch.equal(rest.trajectory().steps, whole.trajectory().steps)


def test_step_of_divergence_is_named(generator):
    rows = walk(500, 10, generator)
    rows[6, 3] = torch.inf
    assert record(rows).diverged_at() == 22


def test_repeated_snapshots_are_those_of_the_moment(generator):
    rows = walk(500, 9, generator)
    a, b = rows[0, :12].reshape(3, 4).clone(), rows[0, 12:].clone()
    recorder = Recorder({"a": a, "b": b}, capacity=4)
    for step, row in enumerate(rows):
        a.copy_(row[:12].reshape(3, 4))
        b.copy_(row[12:])
        if not (step and recorder.repeat(step)):  # 4 is the first without room
            recorder.add({"a": a, "b": b}, step)
            assert step in (0, 4)
    assert torch.equal(recorder.trajectory().differences, rows - rows[0])


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda one: pickle.loads(pickle.dumps(one))])
def test_a_copy_of_a_recorder_goes_on_by_itself(copied):
    weights = torch.arange(6.0)
    recorder = Recorder({"a": weights}, capacity=4)
    recorder.add({"a": weights}, 0)
    other = copied(recorder)
    assert not other.repeat(1)  # its weights are others
    other.add({"a": weights + 2}, 1)
    weights += 1
    assert recorder.repeat(1)
    assert recorder._differences().tolist() == [[0.0] * 6, [1.0] * 6]
    assert other._differences().tolist() == [[0.0] * 6, [2.0] * 6]


def test_weights_can_be_resized_while_they_are_recorded():
    """As FSDP does with the memory of its weights; what numpy has seen cannot."""
    weights = torch.arange(6.0)
    recorder = Recorder({"a": weights}, capacity=4)
    recorder.add({"a": weights}, 0)
    assert recorder.repeat(1)
    weights.untyped_storage().resize_(0)
    assert weights.data_ptr() == 0


@pytest.mark.parametrize(
    "other", [torch.zeros(7), torch.zeros(6, device="meta")], ids=["of another size", "elsewhere"]
)
def test_weights_that_do_not_fit_a_row_are_not_copied_as_bytes(other):
    recorder = Recorder({"a": torch.zeros(6)}, capacity=4)
    with pytest.raises((RuntimeError, NotImplementedError), match=r"size|meta"):
        recorder.add({"a": other}, 0)
    assert not recorder.repeatable


def test_weights_of_another_type_are_converted():
    recorder = Recorder({"a": torch.zeros(6)}, capacity=4)
    for step in range(3):
        recorder.add({"a": step * torch.arange(6)}, step)
    assert not recorder.repeatable
    assert recorder.trajectory().differences[2].tolist() == [0, 2, 4, 6, 8, 10]
