"""A long run costs at its end what it cost at its beginning: time per look, memory, file handles."""

from __future__ import annotations

import os
import resource

import numpy as np
import pytest
import torch
from everything import every_instrument
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.tensorboard import SummaryWriter

import observatory
from observatory.looking import ProbeRequest

STEPS, EVERY, EARLY = 20_000, 10, 4_000


def instruments() -> list[observatory.Instrument]:
    """One of each that looks at any network; enough examples for neighbourhoods of 20."""
    callbacks = every_instrument(probe=ProbeRequest(24))
    return [station.instrument for callback in callbacks for station in callback.observer.stations]


def megabytes() -> float:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize() / 2**20


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/fd"), reason="reads /proc")
def test_20_000_steps_with_a_look_every_10(tmp_path):
    torch.manual_seed(0)
    x = torch.randn(256, 6)
    y = (x[:, 0] > 0).long() + (x[:, 1] > 0).long()
    model = nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.Linear(16, 3))
    optimizer = torch.optim.SGD(model.parameters(), 0.01)
    memory, handles = {}, {}
    loader = DataLoader(TensorDataset(x, y), 32)
    with SummaryWriter(tmp_path / "tb") as writer, observatory.watch(
        model, optimizer, probe=loader, instruments=instruments(), out=tmp_path,
        writer=writer, every_n_steps=EVERY, max_overhead=None, strict=True,
    ) as watch:  # fmt: skip
        for step in range(1, STEPS + 1):
            batch = torch.randint(256, (32,))
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x[batch]), y[batch]).backward()
            optimizer.step()
            watch.step()
            if step in (EARLY, STEPS):
                memory[step], handles[step] = megabytes(), len(os.listdir("/proc/self/fd"))
    run = observatory.open_run(tmp_path)
    assert len(run.instruments) >= 5
    for name in run.instruments:
        looks = [e for e in run.events(name) if e["event"] == "look"]
        assert [e["step"] for e in looks] == list(range(0, STEPS + 1, EVERY))
        seconds = np.array([e["seconds"] for e in looks])
        # medians of 400 looks; other processes of the machine move them by some tens of percent
        assert np.median(seconds[-400:]) < 1.5 * np.median(seconds[100:500]), name
    assert handles[STEPS] == handles[EARLY]
    # a leak of 1 kB per look of one instrument would be 1.6 MB; allocators keep a few
    assert memory[STEPS] - memory[EARLY] < 8, memory
