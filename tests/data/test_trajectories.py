"""Recorded time series."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from observatory.data import MissingData, Trajectories, read_trajectories


@pytest.fixture
def cube() -> np.ndarray:
    """Five trajectories of twelve points in the plane; the values name trajectory, time and dimension."""
    p, t, d = np.ogrid[:5, :12, :2]
    return 100.0 * p + t + 0.5 * d


def test_npy_npz_and_csv_hold_the_same_trajectories(tmp_path: Path, cube: np.ndarray) -> None:
    times = 0.25 * np.arange(12)
    np.save(tmp_path / "a.npy", cube)
    np.savez(tmp_path / "b.npz", x=cube, t=times)
    np.savez(tmp_path / "c.npz", x=cube, dt=0.25)
    rows = [(p, t, *cube[p, k]) for k, t in enumerate(times) for p in range(5)]  # interleaved
    header = "trajectory,time,height,speed"
    np.savetxt(tmp_path / "d.csv", rows, delimiter=",", header=header, comments="")
    for name, dt in (("a.npy", 0.25), ("b.npz", None), ("c.npz", 0.25), ("d.csv", None)):
        found = read_trajectories(tmp_path / name, dt=dt)
        assert torch.equal(found.x, torch.from_numpy(cube))
        assert found.dt == pytest.approx(0.25, rel=1e-12)
    assert read_trajectories(tmp_path / "d.csv").names == ("height", "speed")
    assert read_trajectories(tmp_path / "a.npy").dt == 1.0


def test_a_nameless_csv_is_one_trajectory(tmp_path: Path) -> None:
    file = tmp_path / "x.csv"
    file.write_text("1,2\n3,4\n5,6\n")
    found = read_trajectories(file)
    assert found.x.tolist() == [[[1, 2], [3, 4], [5, 6]]]
    assert found.names == ("x0", "x1")


def test_windows_are_pieces_of_one_trajectory(tmp_path: Path, cube: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", cube)
    data = Trajectories(str(tmp_path / "x.npy"), window=4, stride=2, batch_size=100)
    data.setup("fit")
    (batch,) = data.train_dataloader()
    assert batch.shape == (4 * 5, 4, 2)  # four trajectories, beginnings at 0, 2, 4, 6, 8
    assert torch.equal(batch[:, 1:] - batch[:, :-1], torch.ones(20, 3, 2, dtype=torch.float64))
    assert sorted((batch[:, 0, 0] % 100).unique().tolist()) == [0, 2, 4, 6, 8]
    (held_out,) = data.val_dataloader()
    apart = {int(v) // 100 for v in batch[:, 0, 0]} | {int(v) // 100 for v in held_out[:, 0, 0]}
    assert apart == set(range(5)) and len(held_out) == 5


def test_pairs_are_a_lag_apart(tmp_path: Path, cube: np.ndarray) -> None:
    np.save(tmp_path / "x.npy", cube)
    data = Trajectories("x.npy", lag=3, validation=0.0, batch_size=100, root=tmp_path)
    data.setup("fit")
    ((now, later),) = data.train_dataloader()
    assert now.shape == (5 * 9, 2)
    assert torch.equal(later - now, torch.full_like(now, 3))
    assert data.val_dataloader() == []


def test_a_single_trajectory_is_split_in_time(tmp_path: Path) -> None:
    np.save(tmp_path / "x.npy", np.arange(100.0))
    data = Trajectories(str(tmp_path / "x.npy"), window=10)
    data.setup("fit")
    assert data.train.x[0, :, 0].tolist() == list(range(80))
    assert data.val.x[0, :, 0].tolist() == list(range(80, 100))
    data = Trajectories(str(tmp_path / "x.npy"), validation=0.0)
    data.setup("fit")
    (whole,) = data.train_dataloader()
    assert whole.shape == (1, 100, 1)


def test_what_cannot_be_read_is_refused_with_the_reason(tmp_path: Path, cube: np.ndarray) -> None:
    np.savez(tmp_path / "irregular.npz", x=cube, t=np.arange(12.0) ** 2)
    np.savez(tmp_path / "two.npz", u=cube, v=cube)
    np.savez(tmp_path / "slow.npz", x=cube, dt=0.5)
    np.save(tmp_path / "pickle.npy", np.array([{}], dtype=object), allow_pickle=True)
    (tmp_path / "ragged.csv").write_text("trajectory,x\n0,1\n0,2\n1,3\n")
    (tmp_path / "x.txt").write_text("1")
    for name, message in [
        ("irregular.npz", "not regular: steps 1 to 21"),
        ("two.npz", "holds u, v; store the trajectories as x"),
        ("slow.npz", "has time step 0.5, but dt=0.1 was given"),
        ("pickle.npy", "allow_pickle=False"),
        ("ragged.csv", "have 1 to 2 points: cut them equal"),
        ("x.txt", "from .csv, .npy, .npz and .xvg, not from x.txt"),
    ]:
        with pytest.raises(ValueError, match=message):
            read_trajectories(tmp_path / name, dt=0.1)
    with pytest.raises(MissingData, match=r"give path= of a \.csv"):
        read_trajectories(tmp_path / "nowhere.npy")
    with pytest.raises(ValueError, match="both window=3 and lag=1"):
        Trajectories("x.npy", window=3, lag=1)
    np.save(tmp_path / "x.npy", cube)
    short = Trajectories(str(tmp_path / "x.npy"), window=13)
    short.setup("fit")
    with pytest.raises(ValueError, match="trajectories of 12 points hold no window of 13"):
        short.train_dataloader()
