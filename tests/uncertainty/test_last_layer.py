"""The last layer is found, or the reason why not is said; bad input is refused."""

from __future__ import annotations

import pytest
import torch
from heads import DOUBLE, loader, mlp, table
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from observatory.uncertainty import LastLayerGP


class Wrapped(nn.Module):
    """Two linear layers, and something behind them."""

    def __init__(self, after=lambda y: y) -> None:
        super().__init__()
        self.first, self.last, self.after = nn.Linear(3, 8).double(), nn.Linear(8, 2).double(), after

    def forward(self, x):
        return self.after(self.last(torch.relu(self.first(x))))


@pytest.mark.parametrize("after", [lambda y: y, lambda y: y.flatten(), lambda y: y[:, None]])
def test_reshaped_output_is_the_layers_own(after):
    gp = LastLayerGP(Wrapped(after)).fit(loader(*table(40)))
    assert gp.layer.name == "last" and gp.layer.width == 9


@pytest.mark.parametrize(
    ("after", "what"),
    [
        (lambda y: torch.softmax(y, 1), "a tensor of shape"),
        (lambda y: 2 * y + 1, "a tensor of shape"),
        (lambda y: {"energy": y}, "a dict of 'energy'"),
        (lambda y: (y, y), "a tuple"),
    ],
)
def test_what_follows_the_layer_is_not_overlooked(after, what):
    with pytest.raises(
        ValueError, match=f"returns {what}.* not the output of 'last'.*execution: first, last"
    ):
        LastLayerGP(Wrapped(after)).fit(loader(*table(40)))


def test_part_of_the_return_value_is_named():
    x, y = table(40)
    model = Wrapped(lambda y: {"energy": y, "forces": -y})
    gp = LastLayerGP(model, output=lambda out: out["energy"]).fit(loader(x, y)).calibrate(loader(x, y))
    assert torch.equal(gp.predict(x).mean, model.last(torch.relu(model.first(x))))


def test_batches_may_be_dictionaries():
    x, y = table(40)
    batches = [{"x": x[:20], "y": y[:20]}, {"x": x[20:], "y": y[20:]}]
    gp = LastLayerGP(mlp(), inputs=lambda b: b["x"], targets=lambda b: b["y"]).fit(batches)
    other = LastLayerGP(mlp()).fit(loader(x, y))
    torch.testing.assert_close(gp.calibrate(batches).alpha, other.calibrate(loader(x, y)).alpha)
    with pytest.raises(ValueError, match="a batch of type dict is not"):
        LastLayerGP(mlp()).fit(batches)


def test_networks_without_a_linear_layer_or_name_are_refused():
    x, y = table(20)
    with pytest.raises(
        ValueError, match=r"executes no nn\.Linear; Linear layers in order of execution: none"
    ):
        LastLayerGP(nn.Sequential(nn.Tanh())).fit(loader(x, y))
    with pytest.raises(ValueError, match="last_layer='head' is no submodule; Linear layers are 0, 2"):
        LastLayerGP(mlp(), last_layer="head").fit(loader(x, y))
    with pytest.raises(ValueError, match=r"pool= made \(20, 4, 13\) of features"):
        LastLayerGP(mlp(), pool=lambda f: f).fit([(x[:, None].expand(-1, 4, -1), y)])


def test_wrong_order_of_calls_is_explained():
    x, y = table(20)
    gp = LastLayerGP(mlp())
    with pytest.raises(RuntimeError, match=r"call fit\(training_loader\) first"):
        gp.calibrate(loader(x, y))
    with pytest.raises(RuntimeError, match=r"call calibrate\(validation_loader\) first"):
        gp.fit(loader(x, y)).predict(x)
    with pytest.raises(RuntimeError, match="call fit or update first"):
        LastLayerGP(mlp()).factorise()


def test_fitting_again_forgets_the_scale():
    x, y = table(40)
    gp = LastLayerGP(mlp()).fit(loader(x, y)).calibrate(loader(x, y))
    gp.fit(loader(x, y))
    with pytest.raises(RuntimeError, match="call calibrate"):
        gp.predict(x)


def test_bad_batches_are_named():
    x, y = table(40)
    bad = x.clone()
    bad[25] = torch.nan
    with pytest.raises(ValueError, match="batch 2: 1 of 10 rows of features are NaN or infinite"):
        LastLayerGP(mlp()).fit(loader(bad, y, batch_size=10))
    gp = LastLayerGP(mlp()).fit(loader(x, y))
    with pytest.raises(ValueError, match="batch 2: 2 residuals are NaN or infinite"):
        gp.calibrate(loader(x, torch.where(bad[:, :1].isnan(), torch.nan, y), batch_size=10))
    with pytest.raises(ValueError, match=r"targets of shape \(40, 1\) for outputs of shape \(40, 2\)"):
        gp.calibrate(loader(x, y[:, :1], batch_size=40))
    with pytest.raises(ValueError, match="the loader is empty"):
        LastLayerGP(mlp()).fit([])
    with pytest.raises(ValueError, match="number ς² ≥ 0"):
        LastLayerGP(mlp(), reg=-1.0)
    with pytest.raises(ValueError, match="noise must be one of none, additive, constant"):
        LastLayerGP(mlp(), noise="some")
    with pytest.raises(ValueError, match="all features are zero"):
        LastLayerGP(nn.Linear(3, 1, bias=False).double()).fit([(0 * x, y)])


def test_missing_rows_are_noticed():
    x, y = table(45)
    with pytest.warns(UserWarning, match="40 examples were seen of 45 in the data set; .*drop_last=False"):
        LastLayerGP(mlp()).fit(DataLoader(TensorDataset(x, y), 10, drop_last=True))
    with pytest.warns(UserWarning, match="10 rows for 13 features"):
        LastLayerGP(mlp()).fit(loader(x[:10], y[:10]))


def test_half_precision_networks_are_raised():
    x, y = (t.bfloat16() for t in table(60))
    gp = LastLayerGP(mlp().bfloat16(), reg=0.1).fit(loader(x, y)).calibrate(loader(x, y))
    prediction = gp.predict(x)
    assert prediction.std.dtype == torch.bfloat16 and bool(torch.isfinite(prediction.std).all())
    exact = LastLayerGP(mlp(), reg=0.1).fit(loader(x.to(DOUBLE), y.to(DOUBLE)))
    # weights and activations of 8 bits
    assert gp.raw_variance(x).sum().item() == pytest.approx(
        exact.raw_variance(x.to(DOUBLE)).sum().item(), rel=0.02
    )


def test_gradients_of_a_linear_head_are_its_features():
    x, y = table(50)
    usual = LastLayerGP(mlp(), reg=0.3).fit(loader(x, y))
    general = LastLayerGP(mlp(), reg=0.3, last_layer="2", jacobian=True).fit(loader(x, y))
    assert general.layer.width == 26 and int(general.gram.rows) == 100
    raw = general.raw_variance(x).view(50, 2)
    torch.testing.assert_close(raw, usual.raw_variance(x)[:, None].expand(50, 2), rtol=1e-9, atol=0)
    covariance = general.calibrate(loader(x, y)).covariance(x[:1], x[:1])[..., 0]
    assert covariance[0, 1].abs().item() < 1e-12 * covariance[0, 0].item()


def test_convolutional_head_has_error_bars_of_every_pixel(tmp_path):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(1, 6, 3, padding=1), nn.Tanh(), nn.Conv2d(6, 2, 1)).double()
    x = torch.randn(20, 1, 4, 4, dtype=DOUBLE)
    y = torch.randn(20, 2, 4, 4, dtype=DOUBLE)
    gp = LastLayerGP(model, reg=0.3, last_layer="2", jacobian=True).fit(loader(x, y)).calibrate(loader(x, y))
    prediction = gp.predict(x[:3])
    assert prediction.std.shape == prediction.mean.shape == (3, 2, 4, 4)
    hidden = model[:2](x).movedim(1, -1).reshape(-1, 6)  # a 1 × 1 convolution is a Linear at every pixel
    f = torch.cat([hidden, torch.ones(len(hidden), 1, dtype=DOUBLE)], 1).detach()
    a = f.mT @ f + 0.3 * torch.eye(7, dtype=DOUBLE)
    expected = (f * torch.linalg.solve(a, f.mT).mT).sum(1).view(20, 4, 4)[:3, None].expand(3, 2, 4, 4)
    torch.testing.assert_close(prediction.std.square() / gp.alpha**2, expected, rtol=1e-9, atol=0)
    torch.save(gp.state_dict(), tmp_path / "state.pt")
    fresh = LastLayerGP(model)
    fresh.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert torch.equal(fresh.predict(x[:3]).std, prediction.std)
    with pytest.raises(ValueError, match="there is no ensemble to draw"):
        gp.sample(3)
    with pytest.raises(ValueError, match="needs the head as last_layer=; None is no submodule"):
        LastLayerGP(model, jacobian=True).fit(loader(x, y))
    with pytest.raises(ValueError, match="does not return the output of '0'"):
        LastLayerGP(model, last_layer="0", jacobian=True).fit(loader(x, y))
