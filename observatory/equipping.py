"""`observatory uncertainty`: a finished checkpoint, equipped with error bars."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningDataModule, LightningModule
from torch import Tensor, nn

from observatory.callbacks.callback import loader_of
from observatory.fitting import ObservatoryCLI, has_test, quiet
from observatory.observing.checkpoints import load_weights
from observatory.records import Finding
from observatory.report import Section, write_page
from observatory.uncertainty import LastLayerClassifier, LastLayerGP
from observatory.uncertainty.examples import Examples
from observatory.uncertainty.figures import normal_panel, parity_panel, scores_panel, spectrum_panel
from observatory.uncertainty.gp import Noise
from observatory.uncertainty.judging import Judged, judge_classes, judge_numbers
from observatory.uncertainty.posterior import LastLayerPosterior

STATE = "uncertainty.pt"
BASELINES = {  # prefix of their scores
    "constant/": "one σ for all inputs", "additive/": "with σ_n added", "profiled/": "ς² profiled",
    "plain/": "the network itself", "temperature/": "one temperature",
}  # fmt: skip


def equip(
    config: str | Path,
    checkpoint: str | Path,
    out: str | Path,
    *,
    reg: float | str = "auto",
    noise: Noise = "none",
    last_layer: str | None = None,
) -> Path:
    """Fit error bars to the last layer of a checkpoint with the data of `config`, and judge them.

    The training split is passed over once, the validation split calibrates, and the test split judges
    (without one, half of the validation rows). `uncertainty.pt` in `out` holds the `state_dict` of the
    `LastLayerGP` or `LastLayerClassifier`, network included.

    Args:
        config: as for `observatory fit`: its model and its data.
        checkpoint: file of Lightning or of a `state_dict`.
        out: folder to write to.
        reg, noise, last_layer: see `LastLayerGP`.

    Returns:
        The page.

    Raises:
        ValueError: if the checkpoint does not fit the model, or its last layer cannot be found.
    """
    quiet()
    cli = ObservatoryCLI(
        LightningModule, LightningDataModule, subclass_mode_model=True, subclass_mode_data=True,
        run=False, save_config_callback=None, args=["--config", str(config)],
    )  # fmt: skip
    cli.model.configure_model()
    load_weights(cli.model, Path(checkpoint))
    started = time.perf_counter()
    posterior, judged = _judged(cli.model, cli.datamodule or cli.model, reg, noise, last_layer)
    folder = Path(out)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(posterior.state_dict(), folder / STATE)
    seconds = time.perf_counter() - started
    return _page(posterior, judged, Path(checkpoint), folder, seconds)


def _judged(
    model: nn.Module, data: Any, reg: float | str, noise: Noise, last_layer: str | None
) -> tuple[LastLayerPosterior, Judged]:
    data.prepare_data()
    data.setup("fit")
    data.setup("test")
    train = _batches(data.train_dataloader())
    if has_test(data):
        val, test = _batches(data.val_dataloader()), _batches(data.test_dataloader())
    else:
        rows = _batches(data.val_dataloader())
        val, test = _every_other(rows, 0), _every_other(rows, 1)
    if _integers(test):
        if noise != "none" or reg in ("profile", "evidence"):
            raise ValueError("noise= and a chosen reg= are of regression; the targets here are classes")
        classifier = LastLayerClassifier(model, reg=reg, last_layer=last_layer)  # type: ignore[arg-type]
        return classifier, judge_classes(classifier, train, val, test)
    gp = LastLayerGP(model, reg=reg, noise=noise, last_layer=last_layer)
    judged = judge_numbers(gp, train, val, test, unit=float(getattr(data, "target_std", 1.0)))
    return gp.calibrate(val), judged


def _batches(loader: Any) -> list[Any]:
    return list(Examples(loader_of(loader)).batches(torch.device("cpu"), None))


def _every_other(batches: list[Any], first: int) -> list[Any]:
    return [(x[first::2], y[first::2]) for x, y in batches]


def _integers(batches: list[Any]) -> bool:
    targets = batches[0][1]
    return isinstance(targets, Tensor) and not targets.is_floating_point()


def _page(
    posterior: LastLayerPosterior, judged: Judged, checkpoint: Path, folder: Path, seconds: float
) -> Path:
    rows = judged.rows
    spectrum = posterior.fitted.spectrum
    panels = [spectrum_panel(spectrum.eigenvalues.cpu().numpy()[None], [0], spectrum.reg)]
    if "residual" in rows:
        residual, std = rows["residual"].flatten(), rows["std"].flatten()
        panels = [parity_panel(residual, std), normal_panel(residual / std), *panels]
    else:
        doubt, right = rows["here_entropy"], rows["here_right"].bool()
        names = ("right", "wrong")
        panels = [scores_panel({"entropy (nat)": (doubt[right], doubt[~right])}, "Doubt", names), *panels]
    code = (
        f"posterior = {type(posterior).__name__}(model)\n"
        f'posterior.load_state_dict(torch.load("{folder / STATE}"))\n'
        "posterior.predict(x)"
    )
    assert posterior.layer is not None and posterior.gram is not None
    text = (
        f"Last layer {posterior.layer.name!r} with {posterior.gram.width} features, "
        f"{int(posterior.gram.rows)} rows passed over; effective dimension "
        f"{float(spectrum.effective_dimension):.1f}, ς² = {spectrum.reg:.3g}; {seconds:.1f} s in all."
    )
    sections = [
        Section("Error bars", text, findings=[_verdict(judged.scores)], panels=panels, code=code),
        _table(judged.scores),
    ]
    return write_page(f"Uncertainty of {checkpoint.name}", sections, folder / "uncertainty.html")


def _verdict(scores: dict[str, float]) -> Finding:
    own = scores["nll"]
    what, other = next((what, scores[f"{p}nll"]) for p, what in BASELINES.items() if f"{p}nll" in scores)
    verdict = "better" if own < other else "worse"
    return Finding(f"Log loss {own:.4g} nat per test row, {abs(own - other):.2g} {verdict} than {what}.")


def _table(scores: dict[str, float]) -> Section:
    """One row per score; the baselines beside it."""
    columns = {"": "here"} | {
        prefix: what for prefix, what in BASELINES.items() if any(name.startswith(prefix) for name in scores)
    }
    names = dict.fromkeys(
        name.removeprefix(next((p for p in BASELINES if name.startswith(p)), "")) for name in scores
    )
    rows = [
        [name, *(f"{scores[p + name]:.4g}" if p + name in scores else "" for p in columns)] for name in names
    ]
    header = ["score", *columns.values()]
    return Section("Scores", "Of rows that calibrated nothing.", header=header, rows=rows)
