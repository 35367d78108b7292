"""Profiles of networks: which layers there are, what feeds what, and what each of them is."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from networks_of_all_kinds import Attention, Gated, Residual, Twice
from torch import Tensor, nn

import observatory
from observatory import Probe
from observatory.dimension import (
    LayerDimensionality,
    find_structure,
    levina_bickel,
    node_shares,
    participation_ratio,
    path_weights,
    profile,
    two_nn,
    weight_spectrum,
    weight_strengths,
)
from observatory.dimension.representations import HiddenLayer, hidden_layers, representations
from observatory.looking.model import ModelFunction


@pytest.fixture
def x(generator) -> Tensor:
    return torch.randn(120, 12, generator=generator)


def mlp() -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(12, 16), nn.ReLU(inplace=True), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 8), nn.ReLU(),
        nn.Linear(8, 3),
    )  # fmt: skip


def convolutional() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(6, 4, 3, padding=1, groups=2), nn.ReLU(), nn.Flatten(), nn.Linear(36, 5),
    )  # fmt: skip


def test_profile_of_a_chain_is_what_its_parts_give(x):
    network = mlp().train()
    found = profile(network, x)
    assert network.training
    assert found.layers == ["0", "2", "4"] and found.weights == ["0", "2", "4", "6"]
    assert found["depth"].tolist() == [0.25, 0.5, 0.75]
    hidden = [network[: k + 2](x.clone()).detach() for k in (0, 2, 4)]
    for k, h in enumerate(hidden):
        assert found["two_nn"][k].item() == pytest.approx(two_nn(h.double()).value.item(), rel=1e-9)
        mle = levina_bickel(h.double()).value.item()
        assert found["levina_bickel"][k].item() == pytest.approx(mle, rel=1e-9)
        assert found["participation_ratio"][k].item() == pytest.approx(
            participation_ratio(h).item(), rel=1e-6
        )
    weights = [network[k].weight for k in (0, 2, 4, 6)]
    paths = path_weights([weight_strengths(w) for w in weights])
    assert found.log_total.item() == pytest.approx(paths.log_total[0].item(), rel=1e-12)
    for k in range(3):
        assert found["path_focusing"][k].item() == pytest.approx(paths.nodes[k + 1].focusing.item(), rel=1e-9)
        entering = weights[k].double().square().sum(1) + network[2 * k].bias.double().square()
        difference = entering - weights[k + 1].double().square().sum(0)
        torch.testing.assert_close(found.differences[k], difference.detach())
    assert found["alpha"][1].item() == pytest.approx(weight_spectrum(weights[1]).tail.alpha)


def test_paths_through_active_nodes_weigh_them_by_their_activity(x):
    network = nn.Sequential(nn.Linear(12, 16), nn.ReLU(), nn.Linear(16, 3))
    strengths = [weight_strengths(network[k].weight) for k in (0, 2)]
    activity = (network[0](x) > 0).double().mean(0)
    expected = node_shares(strengths[0].sum(1) * activity * strengths[1].sum(0)).focusing
    assert profile(network, x)["active_path_focusing"].item() == pytest.approx(expected.item(), rel=1e-12)


@pytest.mark.parametrize("fold_bn", [True, False])
def test_convolutions_count_channels_and_fold_their_batch_norm(fold_bn, generator):
    network, images = convolutional(), torch.randn(60, 2, 6, 6, generator=generator)
    network(images)  # moves the running variance
    nn.init.uniform_(network[1].weight, 0.5, 2)
    found = profile(network, images, fold_bn=fold_bn)
    assert found["nodes"].tolist() == [6, 4] and found["units"].tolist() == [54, 36]
    scale = network[1].weight / (network[1].running_var + network[1].eps).sqrt()
    first = weight_strengths(network[0].weight, scale=scale if fold_bn else None)
    second = weight_strengths(network[4].weight, groups=2)
    last = weight_strengths(network[7].weight).view(5, 4, 9).sum(2)  # positions of a channel
    nodes = path_weights([first, second, last]).nodes
    expected = torch.stack([nodes[1].effective_nodes, nodes[2].effective_nodes])
    torch.testing.assert_close(found["path_effective_nodes"], expected)
    assert found["imbalance"].isnan().tolist() == [True, False]  # a batch norm scales what flow keeps


def test_pooled_and_subsampled_representations(generator):
    network, images = convolutional(), torch.randn(60, 2, 6, 6, generator=generator)
    found = profile(network, images, pool="mean")
    assert found["units"].tolist() == [6, 4]
    with torch.no_grad():
        maps = network.eval()[:6](images)
    linear = participation_ratio(maps.mean((2, 3))).item()
    assert found["participation_ratio"][1].item() == pytest.approx(linear, rel=1e-6)
    assert profile(network, images, max_features=40)["units"].tolist() == [40, 36]
    before = profile(network, images, activation="pre")["units"]
    assert before.tolist() == [6 * 36, 36]


def test_residual_block_skips_and_joins(x):
    network = Residual()
    structure = find_structure(ModelFunction.of(network), x)
    assert [layer.name for layer in structure.layers] == ["first", "shortcut", "one", "two", "last"]
    assert [layer.sources for layer in structure.layers] == [(0,), (1,), (1,), (3,), (2, 4)]
    assert structure.depths == [1, 2, 2, 3, 4]
    found = profile(network, x)
    assert found.layers == ["first", "one", "two"]  # the shortcut ends where `two` does
    a = {
        name: weight_strengths(getattr(network, name).weight)
        for name in ("first", "shortcut", "one", "two", "last")
    }
    total = a["last"] @ (a["shortcut"] + a["two"] @ a["one"]) @ a["first"]
    assert found.log_total.exp().item() == pytest.approx(total.sum().item(), rel=1e-12)


def test_shared_module_is_two_layers(x):
    found = profile(Twice(), x)
    assert found.layers == ["inner", "inner#2"] and found.weights == ["inner", "inner#2", "last"]


@pytest.mark.parametrize("network", [Attention(), Gated()], ids=lambda n: type(n).__name__)
def test_no_path_leads_through_products_of_activations(network, x):
    found = profile(network, x)
    assert found.log_total.isnan() and found["path_focusing"].isnan().all()
    assert found["in_focusing"].isfinite().all() and found["two_nn"].isfinite().all()


def test_layers_are_chosen_by_name_of_weights_or_of_other_modules(x):
    network = mlp()
    assert profile(network, x, layers="^[24]$").layers == ["2", "4"]
    found = profile(network, x, layers="[13]", estimators=["two_nn"])
    assert found.layers == ["1", "3"] and found["path_focusing"].isnan().all()
    whole = profile(network, x, estimators=["two_nn"])
    torch.testing.assert_close(found["two_nn"], whole["two_nn"][:2])


def test_few_layers_are_held_at_a_time(x):
    function = ModelFunction.of(mlp())
    structure = find_structure(function, x)
    layers = hidden_layers(structure, function)

    def taken(kept_bytes: int) -> list[tuple[HiddenLayer, Tensor]]:
        return list(representations(function, x, layers, structure, kept_bytes=kept_bytes))

    for (one, h), (other, g) in zip(taken(2**30), taken(1), strict=True):
        assert one == other and torch.equal(h, g)


def test_dead_layer_has_no_dimension(x):
    network = mlp()
    with torch.no_grad():
        network[2].weight.zero_()
    found = profile(network, x)
    assert found["two_nn"].tolist()[1:] == [0, 0] and found["participation_ratio"].tolist()[1:] == [0, 0]
    assert found["points"].tolist()[1:] == [1, 1] and found["dropped"].tolist()[1:] == [119, 119]
    assert found.log_total.isinf() or found.log_total.isnan()


def test_classes_apart_are_pure_and_of_their_own_dimension(generator):
    y = torch.arange(300) % 3
    plane = torch.randn(300, 2, generator=generator) @ torch.randn(2, 12, generator=generator)
    x = plane + 100 * torch.nn.functional.one_hot(y, 12)
    network = nn.Sequential(nn.Linear(12, 12), nn.Identity(), nn.Linear(12, 3))
    found = profile(network, x, y, estimators=["per_class", "local_pca", "correlation_dimension"])
    assert found["class_purity"].tolist() == [1]
    assert found["class_two_nn"].item() == pytest.approx(2, abs=0.3)  # 2/√300, three times
    assert found["local_pca"].item() == pytest.approx(2, abs=1e-9)
    assert found["correlation_dimension"].item() == pytest.approx(2, abs=0.4)
    assert "two_nn" not in found.values


def test_profile_is_saved_as_a_tidy_table(x, tmp_path):
    found = profile(mlp(), x)
    for name in ("profile.csv", "profile.json"):
        found.save(tmp_path / name)
    with (tmp_path / "profile.csv").open() as file:
        rows = list(csv.DictReader(file))
    same = json.loads((tmp_path / "profile.json").read_text())
    assert len(rows) == len(same) == sum(v.numel() for v in found.values.values())
    wanted = [r for r in rows if (r["layer"], r["quantity"], r["index"]) == ("2", "gride", "3")]
    assert float(wanted[0]["value"]) == pytest.approx(found["gride"][1, 3].item())
    with pytest.raises(ValueError, match=r"as .csv or .json"):
        found.save(tmp_path / "profile.parquet")


def test_dashboard_maps_layers_against_time_from_the_second_look_on(x, tmp_path):
    model, one = mlp(), LayerDimensionality(probe=Probe(x))
    options = {"every_n_steps": 1, "max_overhead": None, "strict": True}
    with observatory.watch(model, instruments=[one], out=tmp_path, **options) as watch:
        for _ in range(2):
            watch.step()
    run = observatory.open_run(tmp_path).instrument("dimension")
    last = {name: torch.tensor(run[name].values[-1]) for name in run}
    panel = next(p for p in one.dashboard(last) if p.title == "Layers against time")
    (image, _), steps = (
        (axis.images for axis in panel.figure.axes[:2]),
        panel.figure.axes[0].get_xticklabels(),
    )
    assert [tick.get_text() for tick in steps] == ["0", "1", "2"]
    np.testing.assert_array_equal(image[0].get_array(), run["levina_bickel"].values.T)
    again = LayerDimensionality(probe=Probe(x))
    again.load_state_dict(one.state_dict())  # a resumed run goes on with the map
    assert list(again._past) == [0, 1, 2]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda x: profile(nn.Sequential(nn.Linear(12, 3)), x), "no hidden layer, only 0"),
        (lambda x: profile(nn.BatchNorm1d(12), x), "no module with weights"),
        (lambda x: profile(mlp(), x, layers="encoder"), r"'encoder' finds no hidden layer; .* 0, 2, 4, 6"),
        (lambda x: profile(mlp(), x[:20]), "k=20 neighbours are asked of 20 inputs"),
        (lambda x: profile(mlp(), x * torch.nan), "layer 0: 120 of 120 representations are not finite"),
        (lambda x: profile(mlp(), x, estimators=["mle"]), "unknown estimator 'mle'; there are participation"),
        (lambda x: profile(mlp(), x, activation="none"), "activation must be one of"),
        (lambda x: profile(mlp(), x, precision="half"), "precision must be"),
        (lambda x: profile(mlp(), x, k=2), "3 ≤ k ≤ 64"),
    ],
)
def test_complaints_say_what_was_given(call, message, x):
    with pytest.raises(ValueError, match=message):
        call(x)
