"""Observed trajectories of dynamical systems: from a file, or simulated where the truth has to be known."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

import torch
from lightning.pytorch import LightningDataModule
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from observatory.data.files import data_root
from observatory.data.loading import evaluation_loader, training_loader
from observatory.data.recordings import read_trajectories
from observatory.numerics.ode import integrate, uniform_grid


class Observed(Dataset):
    """Trajectories with their numbers; an item is ((number, times (T,)), values (T, F)), NaN not observed."""

    def __init__(self, times: Tensor, values: Tensor) -> None:
        self.times, self.values = times, values  # (T,) and (B, T, F)

    def __len__(self) -> int:
        return len(self.values)

    def __getitem__(self, index: int) -> tuple[tuple[Tensor, Tensor], Tensor]:
        return (torch.tensor(index), self.times), self.values[index]


class _Assimilated(LightningDataModule):
    """All trajectories in order in every batch, which is what Gauss-Newton steps need."""

    repeats: int
    observed: Observed

    def train_dataloader(self) -> DataLoader:
        index = list(range(len(self.observed))) * self.repeats
        dataset = torch.utils.data.Subset(self.observed, index)
        return training_loader(dataset, len(self.observed), shuffle=False)

    def val_dataloader(self) -> DataLoader:
        return evaluation_loader(self.observed, len(self.observed))


class ObservedTrajectories(_Assimilated):
    """Trajectories of a file for `Assimilation`: a batch is ((numbers (B,), times (B, T)), values (B, T, F)).

    Args:
        path: .csv, .npy or .npz, see `read_trajectories`, or the name of a file shipped with the experiments;
            a cell of a CSV file that says nan was not observed.
        columns: which columns were observed, in the order of the model's `observed`; default all.
        dt: time step where the file does not tell.
        repeats: batches in an epoch, each with all trajectories.
        root: folder of the data sets, for a path that does not exist as given.
    """

    def __init__(
        self,
        path: str,
        columns: Sequence[str] | None = None,
        dt: float | None = None,
        repeats: int = 1,
        root: str | os.PathLike[str] | None = None,
    ) -> None:
        super().__init__()
        shipped = Path(str(files("observatory.experiments") / path))
        places = (Path(path), data_root(root) / path, shipped)
        self.path = next((place for place in places if place.is_file()), places[0])
        self.columns, self.dt, self.repeats = columns, dt, repeats

    def setup(self, stage: str) -> None:
        whole = read_trajectories(self.path, dt=self.dt)
        columns = list(self.columns or whole.names)
        if unknown := set(columns) - set(whole.names):
            raise ValueError(f"{self.path} has no column {unknown.pop()!r}; it has {', '.join(whole.names)}")
        values = whole.x[..., [whole.names.index(name) for name in columns]]
        self.observed = Observed(torch.arange(values.shape[1], dtype=torch.float64) * whole.dt, values)


class SimulatedTrajectories(_Assimilated):
    """A twin experiment: trajectories of a system with known parameters, observed with noise.

    Args:
        system: a module with `rhs(t, y)` and `components`; its parameters are the truth unless drawn.
        trajectories: how many.
        times: number of observations of each.
        duration: from the first to the last.
        initial_state: lowest and highest value of each component at the beginning, drawn uniformly between.
        parameters: by name the lowest and highest value, drawn uniformly for each trajectory.
        transient: time that passes before the first observation.
        noise: standard deviation of the noise, as a share of that of each component.
        step: largest step of the simulation.
        observed: components; default all.
        seed: of everything that is drawn.
        repeats: batches in an epoch, each with all trajectories.
    """

    def __init__(
        self,
        system: nn.Module,
        trajectories: int,
        times: int,
        duration: float,
        initial_state: Sequence[tuple[float, float]],
        parameters: Mapping[str, tuple[float, float]] | None = None,
        transient: float = 0.0,
        noise: float = 0.01,
        step: float = 0.01,
        observed: Sequence[str] | None = None,
        seed: int = 0,
        repeats: int = 1,
    ) -> None:
        super().__init__()
        self.system, self.trajectories, self.times, self.duration = system, trajectories, times, duration
        self.initial_state, self.parameters, self.transient = initial_state, parameters or {}, transient
        self.noise, self.step, self.seed, self.repeats = noise, step, seed, repeats
        self.kept = list(observed or system.components)  # type: ignore[arg-type]

    @torch.no_grad()
    def setup(self, stage: str) -> None:
        generator = torch.Generator().manual_seed(self.seed)

        def drawn(bounds: Sequence[float]) -> Tensor:
            low, high = bounds
            return low + (high - low) * torch.rand(
                self.trajectories, generator=generator, dtype=torch.float64
            )

        self.truth = {name: drawn(bounds) for name, bounds in self.parameters.items()}
        y = torch.stack([drawn(bounds) for bounds in self.initial_state], -1)
        if self.transient > 0:
            before = torch.tensor([0.0, self.transient], dtype=torch.float64)
            y = integrate(self.system, y, uniform_grid(before, self.step), self.truth)[-1]
        times = torch.linspace(0, self.duration, self.times, dtype=torch.float64)
        self.states = integrate(self.system, y, uniform_grid(times, self.step), self.truth).movedim(0, 1)
        columns = [list(self.system.components).index(name) for name in self.kept]  # type: ignore[arg-type]
        clean = self.states[..., columns]
        noise = torch.randn(clean.shape, generator=generator, dtype=torch.float64)
        self.observed = Observed(times, clean + self.noise * clean.std(1, keepdim=True) * noise)
