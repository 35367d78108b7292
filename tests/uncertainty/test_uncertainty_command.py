"""`observatory uncertainty`: a checkpoint gets error bars that are those of the library."""

from __future__ import annotations

import copy

import lightning.pytorch as pl
import pytest
import torch
import yaml

from observatory.cli import main
from observatory.data import UCI
from observatory.records import open_run
from observatory.training import MLP, Supervised
from observatory.uncertainty import LastLayerGP

CONFIG = {
    "model": {
        "class_path": "observatory.training.Supervised",
        "init_args": {
            "network": {"class_path": "observatory.training.MLP", "init_args": {"widths": [10, 16, 1]}},
            "loss": "mse",
        },
    },
    "data": {"class_path": "observatory.data.UCI", "init_args": {"batch_size": 64}},
    "trainer": {"accelerator": "cpu", "logger": False},
}

pytestmark = pytest.mark.filterwarnings("ignore:LightningCLI's args parameter is intended")


@pytest.fixture
def checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    pl.seed_everything(0, verbose=False)
    model = Supervised(MLP([10, 16, 1]), loss="mse")
    trainer = pl.Trainer(
        accelerator="cpu", logger=False, max_epochs=5, enable_progress_bar=False,
        enable_model_summary=False, enable_checkpointing=False,
    )  # fmt: skip
    trainer.fit(model, UCI(batch_size=64))
    trainer.save_checkpoint("end.ckpt")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump(CONFIG))
    return model


def test_equipped_checkpoint_predicts_like_the_library(checkpoint, tmp_path, capsys):
    arguments = ["--config", "config.yaml", "end.ckpt", "--out", "bars", "--noise", "additive"]
    assert main(["uncertainty", *arguments]) == 0
    assert capsys.readouterr().out.strip().endswith("report: bars/uncertainty.html")
    fresh = LastLayerGP(Supervised(MLP([10, 16, 1]), loss="mse"))
    fresh.load_state_dict(torch.load("bars/uncertainty.pt", weights_only=True))
    data = UCI(batch_size=64)
    network = copy.deepcopy(checkpoint).eval()
    expected = LastLayerGP(network, noise="additive").fit(data.train_dataloader())
    expected.calibrate(data.val_dataloader())
    x = data.dataset("test").tensors[0]
    one, other = fresh.predict(x), expected.predict(x)
    torch.testing.assert_close(one.mean, other.mean)
    torch.testing.assert_close(one.std, other.std, rtol=1e-4, atol=0)
    page = (tmp_path / "bars/uncertainty.html").read_text()
    assert "than one σ for all inputs" in page and "Errors against error bars" in page


def test_replay_passes_over_the_training_data_of_the_experiment(checkpoint):
    instrument = {"class_path": "observatory.callbacks.LastLayerUncertainty", "init_args": {"probe": 44}}
    with open("config.yaml", "w") as file:
        yaml.safe_dump(CONFIG | {"observe": {"uncertainty": instrument}}, file)
    assert main(["replay", "--config", "config.yaml", "end.ckpt", "--out", "again"]) == 0
    found = open_run("again").instrument("uncertainty")
    expected = LastLayerGP(copy.deepcopy(checkpoint).eval()).fit(UCI(batch_size=64).train_dataloader())
    spectrum = expected.fitted.spectrum
    assert found["effective_dimension"].values.tolist() == pytest.approx(
        [spectrum.effective_dimension.item()]
    )
    assert found["spectrum"].values[0] == pytest.approx(spectrum.eigenvalues.numpy(), rel=1e-4)
    assert found["nll"].values[0] != found["constant_nll"].values[0]


def test_unknown_layer_is_refused(checkpoint, capsys):
    with pytest.raises(SystemExit):
        main(["uncertainty", "--config", "config.yaml", "end.ckpt", "--last-layer", "network.2"])
    assert "is a ReLU; Linear layers are network.1, network.3" in capsys.readouterr().err
