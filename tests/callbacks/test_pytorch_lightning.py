"""The same callbacks in a Trainer of the `pytorch_lightning` package, where that is installed."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from runs import bits, loaders
from torch import nn

from observatory.callbacks import CollectiveVariables
from observatory.records import open_run

pl = pytest.importorskip("pytorch_lightning", reason="the pytorch_lightning package is not installed")

EVERY = {"every_n_steps": 4, "max_overhead": None, "strict": True}


class Net(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.Dropout(0.3), nn.Linear(16, 3))

    def forward(self, x):
        return self.net(x)

    def training_step(self, batch, _):
        return nn.functional.cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters(), lr=1e-2)


def fit(root: Path, callbacks: list, *, epochs: int = 2, ckpt_path: Path | None = None, **kwargs) -> list:
    pl.seed_everything(5, verbose=False)
    module = Net()
    trainer = pl.Trainer(
        default_root_dir=root, callbacks=callbacks, max_epochs=epochs, accelerator="cpu",
        enable_progress_bar=False, enable_model_summary=False, **({"logger": False} | kwargs),
    )  # fmt: skip
    trainer.fit(module, loaders()[0], ckpt_path=ckpt_path)
    return bits([module.state_dict(), trainer.optimizers[0].state_dict(), torch.get_rng_state()])


def test_run_is_bit_identical_and_recorded(tmp_path):
    from observatory.callbacks.pytorch_lightning import Adapted

    plain = fit(tmp_path / "plain", [])
    watched = fit(
        tmp_path / "watched",
        [Adapted(CollectiveVariables(**EVERY))],
        logger=[pl.loggers.CSVLogger(tmp_path, "csv"), pl.loggers.TensorBoardLogger(tmp_path, "tb")],
    )
    assert watched == plain
    assert open_run(tmp_path / "csv/version_0")["ntk/trace"].steps.tolist() == list(range(0, 25, 4))
    assert "ntk/trace" in (tmp_path / "csv/version_0/metrics.csv").read_text().split("\n")[0]


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
@pytest.mark.filterwarnings("ignore:Be aware that when using `ckpt_path`, callbacks used to create")
def test_resumed_run_continues_the_record(tmp_path):
    from observatory.callbacks.pytorch_lightning import Adapted

    fit(tmp_path, [Adapted(CollectiveVariables(**EVERY))])
    (checkpoint,) = tmp_path.rglob("*.ckpt")
    fit(
        tmp_path,
        [Adapted(CollectiveVariables(**EVERY))],
        epochs=3,
        ckpt_path=checkpoint,
        enable_checkpointing=False,
    )
    assert open_run(tmp_path / "observatory/run_1")["ntk/trace"].steps.tolist() == list(range(0, 37, 4))


def test_environment_attaches(tmp_path, monkeypatch):
    from observatory.attach import from_environment_adapted

    monkeypatch.chdir(tmp_path)
    assert from_environment_adapted() == []
    Path("observe.yaml").write_text("observe: {mine: CollectiveVariables}")
    monkeypatch.setenv("OBSERVATORY", "observe.yaml")
    (adapted,) = from_environment_adapted()
    assert isinstance(adapted, pl.Callback)
    assert adapted.callback.observer.stations[0].instrument.name == "mine"
