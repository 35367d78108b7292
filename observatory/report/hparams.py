"""TensorBoard's table of runs: where each began, beside where it ended."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from observatory.records import open_run

CHOSEN = (
    "seed_everything",
    "model",
    "data",
    "trainer.max_",
    "trainer.precision",
    "trainer.accumulate",
    "trainer.grad",
)


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


def initial_state(folder: Path) -> dict[str, float]:
    """The scalars of every instrument's first look at the run in this folder."""
    if not (folder / "observatory" / "run.json").is_file():
        return {}
    run = open_run(folder)
    return {name: float(run[name].values[0]) for name in run if run[name].values.ndim == 1 and len(run[name])}


def chosen(config: Mapping[str, Any]) -> dict[str, Any]:
    """What somebody may have chosen in a configuration of `observatory fit`: model, data, length, precision.

    Keys are dotted; a class stands at the key of what it makes, without class_path and init_args.
    """
    found = {key: value for key, value in flattened(config).items() if key.startswith(CHOSEN)}
    short = {key.replace(".init_args", "").removesuffix(".class_path"): v for key, v in found.items()}
    return {key: value for key, value in short.items() if value is not None and value != {}}


def flattened(value: Any, prefix: str = "") -> dict[str, Any]:
    """A nested mapping as dotted key to leaf; an empty mapping is a leaf."""
    if not isinstance(value, Mapping) or not value:
        return {prefix: value}
    return {
        full: leaf
        for key, inner in value.items()
        for full, leaf in flattened(inner, f"{prefix}.{key}" if prefix else str(key)).items()
    }
