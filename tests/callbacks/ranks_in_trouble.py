"""Scenes for `ranks.py` in which one of two processes fails, or is slower than the other."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
from rank_runs import EVERY, Module, ParameterNorms, Shares, fit, instruments, probe
from torch import Tensor

from observatory.callbacks.callback import ObservingCallback
from observatory.looking import Look
from observatory.looking.ranks import rank


def budgeted(folder: Path) -> None:
    """Each rank's clock runs differently; the decisions are rank 0's."""

    class Slow(ParameterNorms):
        def observe(self, look: Look) -> dict[str, Tensor]:
            torch.nn.functional.relu(torch.ones(10 ** (3 + 3 * rank())))
            return super().observe(look)

    options = {"every_n_steps": 1, "max_overhead": 0.01, "strict": True}
    fit(folder, Module(), [ObservingCallback([Slow(probe=probe()), *instruments()[:1]], **options)])


def failing(folder: Path, before: bool = True) -> None:
    """One rank fails, in front of or behind a collective that the others are waiting in."""

    class Fails(ParameterNorms):
        def observe(self, look: Look) -> dict[str, Tensor]:
            if before and rank() == 1 and look.step == 4:
                raise RuntimeError("the lens of rank 1 is broken")
            found = super().observe(look)
            if not before and rank() == 1 and look.step == 4:
                raise RuntimeError("the lens of rank 1 is broken")
            return found

    options = EVERY | {"strict": False}
    both = [Fails(name="failing", probe=probe()), ParameterNorms(probe=probe())]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(folder, Module(), [ObservingCallback(both, **options)])
    reasons = [str(one.message) for one in caught if "switched off" in str(one.message)]
    (folder / f"warnings_{rank()}").write_text("\n".join(reasons))


def failing_late(folder: Path) -> None:
    failing(folder, before=False)


def no_probe(folder: Path) -> None:
    """The data set raises where the probe is drawn, which happens on rank 0 alone."""

    class Broken(Shares):
        training = False

        def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
            if not Broken.training:
                raise OSError("the disk with the data is gone")
            return super().__getitem__(k)

    class Begin(ObservingCallback):
        def on_train_start(self, *args: Any) -> None:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                super().on_train_start(*args)
            (folder / f"warnings_{rank()}").write_text("\n".join(str(one.message) for one in caught))
            Broken.training = True

    fit(folder, Module(), [Begin([ParameterNorms(probe=8)], **(EVERY | {"strict": False}))], data=Broken())
