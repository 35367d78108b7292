"""TensorBoard's table of runs: where each began, beside where it ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any


def write_hparams(
    folder: Path, point: Mapping[str, Any], initial: Mapping[str, float], final: Mapping[str, float]
) -> None:
    """Add the run to the HPARAMS tab of TensorBoard.

    Columns of hyperparameters are the swept values and, as `initial/ntk/entropy`, the collective variables
    before the first step; columns of metrics are the final values, as `final/test/loss`.

    Args:
        folder: of the run's events.
        point: dotted key to value.
        initial: scalars of the first look.
        final: metrics at the end.
    """
    from torch.utils.tensorboard import SummaryWriter
    from torch.utils.tensorboard.summary import hparams

    columns = {key: v if isinstance(v, bool | int | float | str) else str(v) for key, v in point.items()}
    columns |= {f"initial/{name}": value for name, value in initial.items()}
    metrics = {f"final/{name}": value for name, value in final.items()}
    with SummaryWriter(str(folder), filename_suffix=".hparams") as writer:
        for summary in hparams(columns, metrics):
            writer.file_writer.add_summary(summary)
        for name, value in metrics.items():
            writer.add_scalar(name, value)
