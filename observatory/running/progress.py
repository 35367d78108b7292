"""One line of progress over all runs of a study."""

from __future__ import annotations

from types import TracebackType
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from typing_extensions import override

FORMAT = "{desc}: {percentage:3.0f}%|{bar}| {n:.1f}/{total} runs [{elapsed}<{remaining}{postfix}]"


class Progress:
    """A bar that also moves within a run.

    Args:
        name: of the study.
        total: number of runs.
        done: of them before.
    """

    def __init__(self, name: str, *, total: int, done: int) -> None:
        from tqdm.auto import tqdm  # type: ignore[import-untyped]

        self._bar = tqdm(total=total, desc=name, initial=done, bar_format=FORMAT)

    def __enter__(self) -> Progress:
        return self

    def of(self, name: str, runs: int) -> Callback:
        """What follows the training of one run, or of several in one stack."""
        self._bar.set_postfix_str(name)
        return _Follow(self._bar, runs)

    def finished(self, runs: int) -> None:
        """So many runs are done, elsewhere."""
        self._bar.update(runs)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.close()


class _Follow(Callback):
    def __init__(self, bar: Any, runs: int) -> None:
        self._bar, self._runs = bar, runs
        self._told, self._steps = 0.0, 1.0

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._steps = max(float(trainer.estimated_stepping_batches), 1.0)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._tell(trainer.global_step / self._steps)

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tell(1.0)

    def _tell(self, share: float) -> None:
        step = self._runs * (share - self._told)
        self._bar.update(min(step, self._bar.total - self._bar.n))  # round-off may add up to more
        self._told = share
