"""The instrument at work: an observer, a bare training loop, a record."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from observatory.looking import Look, ModelFunction, Probe
from observatory.observing.observer import Observer
from observatory.observing.source import ProbeSource
from observatory.records import Run, open_run
from observatory.weights import Trajectory, analyze
from observatory.weights.instrument import WeightFluctuations

SETTING = {"batch_size": 8, "samples": 96, "sampling": "without replacement"}


def data() -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    y = torch.arange(96) % 3
    return torch.randn(96, 6, generator=generator) + y[:, None], y


def train(
    root: Path,
    instrument: WeightFluctuations,
    *,
    steps: int = 120,
    rate=lambda step: 0.05,
    optimizer: type = torch.optim.SGD,
    nan_from: int | None = None,
    sampled_from: int = 0,
    device: torch.device | str = "cpu",
) -> tuple[Run, list[dict[str, torch.Tensor]]]:
    """Train a small classifier; the record and all its snapshots of the middle layer."""
    torch.manual_seed(0)
    x, y = (t.to(device) for t in data())
    net = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3)).to(device)
    update = optimizer(net.parameters(), lr=0.05)
    observer = Observer([instrument], max_overhead=None, strict=True)
    dataset = TensorDataset(*data())
    source = ProbeSource(lambda split: DataLoader(dataset, 8))
    observer.start(net, source, directory=root / "observatory", optimizers=[update], total_steps=steps)
    seen = []
    for step in range(1, steps + 1):
        batch = torch.randperm(96)[:8]
        update.param_groups[0]["lr"] = rate(step)
        update.zero_grad()
        nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
        update.step()
        if nan_from is not None and step >= nan_from:
            net[2].weight.data.fill_(torch.nan)
        seen.append({"2.weight": net[2].weight.detach().clone()})
        if step >= sampled_from:
            observer.after_step(step, (step - 1) // 12)
    observer.finish(steps, (steps - 1) // 12)
    return open_run(root).instrument("weights"), [net, *seen]


def test_window_is_recorded_and_analysed_as_offline(tmp_path, device):
    one = WeightFluctuations(window=(41, 101), directions=6, select=r"^2\.weight", **SETTING)
    run, (net, *seen) = train(tmp_path, one, device=device)
    at = run["variance"].steps.tolist()
    assert at == [101]  # the first step after the window
    trajectory = Trajectory.of(seen[40:100], range(41, 101))
    # other layers moved on after the window: only the motion is the same offline
    offline = analyze(trajectory, net, tuple(t.to(device) for t in data()), directions=6)
    np.testing.assert_allclose(run["variance"].values[0], offline.motion.variance.cpu(), rtol=1e-5)
    np.testing.assert_allclose(
        run["integrated_time"].values[0], offline.motion.integrated_time.cpu(), rtol=1e-4
    )
    assert run["first_step"].values[0] == 41 and run["last_step"].values[0] == 100
    assert run["projections"].values[0].shape == (60, 6)
    assert np.isfinite(run["dissipation_ratio"].values).all() and np.isfinite(run["temperature"].values).all()
    assert run["storage"].coordinates["storage"] == ["full"]
    assert run["variant_exponent"].coordinates["variant"] == one.variants
    assert np.isfinite(run["variant_exponent"].values).all()
    assert run["loss"].steps.tolist()[0] == 0 and run["loss"].steps.tolist()[-1] == 120


def test_snapshots_may_be_kept_on_the_cpu(tmp_path, device):
    options = {"window": (41, 101), "directions": 4, "select": r"^2\.weight"}
    one, _ = train(tmp_path / "a", WeightFluctuations(**options), device=device)
    other, _ = train(tmp_path / "b", WeightFluctuations(keep_on="cpu", **options), device=device)
    np.testing.assert_allclose(one["variance"].values, other["variance"].values, rtol=1e-6)
    np.testing.assert_allclose(one["flatness"].values, other["flatness"].values, rtol=1e-2)


def test_window_at_the_end_of_the_run_matches_the_landscape_offline(tmp_path):
    one = WeightFluctuations(window=(61, 121), directions=6, select=r"^2\.weight")
    run, (net, *seen) = train(tmp_path, one)
    offline = analyze(Trajectory.of(seen[60:], range(61, 121)), net, data(), directions=6)
    np.testing.assert_allclose(run["curvature"].values[0], offline.terrain.curvature, rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(run["flatness"].values[0], offline.terrain.flatness, rtol=2e-3)
    assert run["exponent"].values[0] == pytest.approx(offline.relation.exponent, rel=0.02)
    assert np.isnan(run["temperature"].values).all()  # nothing was said of the batches


def test_shortest_window_of_three_snapshots_has_variances(tmp_path):
    run, _ = train(tmp_path, WeightFluctuations(window=(4, 7), directions=3, select=r"^2\."), steps=10)
    assert np.isfinite(run["variance"].values[0][:2]).all()  # three snapshots span two directions
    assert np.isnan(run["variance"].values[0][2]) and np.isnan(run["half_ratio"].values).all()
    WeightFluctuations.figures(run)
    assert all("nan" not in finding.text for finding in WeightFluctuations.findings(run))


@pytest.mark.parametrize("every", [1, 3])
def test_window_in_epochs_and_stride(tmp_path, every):
    one = WeightFluctuations(window=(4, 8), unit="epochs", every=every, directions=4, select=r"^2\.weight")
    run, _ = train(tmp_path, one)
    assert run["first_step"].values[0] == 49 and run["every"].values[0] == every
    assert run["last_step"].values[0] == 49 + every * (47 // every)
    assert np.isnan(run["dissipation_ratio"].values[0]) == (every > 1)


def test_automatic_window_begins_at_rest(tmp_path):
    one = WeightFluctuations(window="auto", rest=60, length=30, directions=4, select=r"^4\.bias")
    run, _ = train(tmp_path, one, steps=1500)
    assert run["last_step"].values[0] - run["first_step"].values[0] == 29
    assert run["first_step"].values[0] > 60
    assert run["variance"].steps[0] == run["last_step"].values[0] + 1


def test_automatic_window_that_never_comes_says_so(tmp_path):
    one = WeightFluctuations(window="auto", rest=500)
    with pytest.raises(ValueError, match="did not come to rest"):
        train(tmp_path, one, steps=40)


def test_window_that_is_not_reached_is_an_error(tmp_path):
    with pytest.raises(ValueError, match=r"\(500, 600\) in steps holds 0 snapshots"):
        train(tmp_path, WeightFluctuations(window=(500, 600)))


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="fewer than 3 snapshots"):
        WeightFluctuations(window=(10, 12))
    with pytest.raises(ValueError, match="'days'"):
        WeightFluctuations(window=(1, 20), unit="days")
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        WeightFluctuations(window=(1, 20), every=0)


def test_changed_learning_rate_drops_the_theory(tmp_path):
    one = WeightFluctuations(window=(41, 101), directions=4, **SETTING)
    with pytest.warns(UserWarning, match="learning rate changed inside the window"):
        run, _ = train(tmp_path, one, rate=lambda step: 0.05 if step < 70 else 0.01)
    assert np.isnan(run["temperature"].values).all() and np.isnan(run["learning_rate"].values).all()
    assert np.isnan(run["dissipation_ratio"].values).all() and np.isfinite(run["variance"].values).all()


def test_other_optimizers_have_variances_and_flatness_but_no_temperature(tmp_path):
    one = WeightFluctuations(window=(41, 101), directions=4, **SETTING)
    with pytest.warns(UserWarning, match="not plain SGD"):
        run, _ = train(tmp_path, one, optimizer=torch.optim.AdamW)
    assert np.isfinite(run["variance"].values).all() and np.isfinite(run["flatness"].values).any()
    assert np.isnan(run["temperature"].values).all()


def test_sampling_that_was_read_from_a_loader_asks_for_nothing(tmp_path):
    adam = WeightFluctuations(window=(41, 101), directions=4)
    adam.draws(8, 96, "without replacement")
    run, _ = train(tmp_path / "adam", adam, optimizer=torch.optim.AdamW)  # no warning
    assert np.isnan(run["temperature"].values).all()
    sgd = WeightFluctuations(window=(41, 101), directions=4, batch_size=4)
    sgd.draws(8, 96, "without replacement")
    run, _ = train(tmp_path / "sgd", sgd)
    assert np.isfinite(run["temperature"].values).all() and sgd.batch_size == 4


def test_diverged_run_is_recorded_as_nan(tmp_path):
    run, _ = train(tmp_path, WeightFluctuations(window=(41, 101), directions=4, select=r"^2\."), nan_from=70)
    assert run["diverged_at"].values[0] == 70 and np.isnan(run["variance"].values).all()
    (finding,) = WeightFluctuations.findings(run)
    assert finding.level == "warning" and "step 70" in finding.text
    assert WeightFluctuations.figures(run) == []


@pytest.mark.parametrize("storage", ["subset", "sketch", "directions"])
def test_other_storage_is_named_in_the_findings(tmp_path, storage):
    one = WeightFluctuations(
        window=(41, 101), directions=4, select=r"^2\.", storage=storage, memory=60 * 4 * 20
    )
    run, _ = train(tmp_path, one)
    assert run["storage"].coordinates["storage"] == [storage]
    assert np.isfinite(run["variance"].values).all()
    assert np.isnan(run["flatness"].values).all() == (storage == "sketch")
    assert any("recorded" in f.text or "were kept" in f.text for f in WeightFluctuations.findings(run))


def test_other_bases_need_all_snapshots(tmp_path):
    one = WeightFluctuations(window=(41, 101), basis="hessian", memory=100)
    with pytest.raises(ValueError, match="basis='hessian' needs all 60 snapshots"):
        train(tmp_path, one)


def test_figures_and_findings_of_a_record(tmp_path):
    one = WeightFluctuations(window=(41, 101), directions=6, select=r"^2\.weight", **SETTING)
    run, _ = train(tmp_path, one)
    panels = WeightFluctuations.figures(run)
    assert [panel.title for panel in panels] == [
        "Variance against flatness and curvature",
        "Spectrum and correlation times",
        "Motion along the leading directions",
        "Loss profiles",
        "How much of the exponent is a matter of choice",
    ]
    for panel in panels:
        panel.figure.savefig(tmp_path / "panel.png")
        assert "nan" not in panel.caption
    texts = [finding.text for finding in WeightFluctuations.findings(run)]
    assert any("ψ = " in text and "components" in text for text in texts)
    assert any("ranges from" in text for text in texts)
    assert not any("nan" in text for text in texts)


def test_state_of_an_open_window_is_its_snapshots(tmp_path):
    whole = WeightFluctuations(window=(41, 101), directions=4, select=r"^2\.weight")
    interrupted = WeightFluctuations(window=(41, 101), directions=4, select=r"^2\.weight")
    assert not whole.samples_at(40, 3) and whole.samples_at(41, 3) and not whole.samples_at(101, 8)
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "interrupted", interrupted, rate=_interrupt_at_70)
    state = interrupted.state_dict()
    torch.save(state, tmp_path / "state.pt")
    resumed = WeightFluctuations(window=(41, 101), directions=4, select=r"^2\.weight")
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert state["window"]["steps"] == list(range(41, 70))
    run, _ = train(tmp_path / "whole", whole)
    again, _ = train(tmp_path / "again", resumed, sampled_from=70)
    np.testing.assert_array_equal(again["variance"].values, run["variance"].values)


def _interrupt_at_70(step: int) -> float:
    if step == 70:
        raise KeyboardInterrupt
    return 0.05


@pytest.mark.slow
def test_a_snapshot_costs_less_than_three_per_cent_of_a_training_step():
    """Of the network of Feng and Tu, against the bare step without Lightning's own share."""
    torch.set_num_threads(1)
    net = nn.Sequential(nn.Linear(784, 50), nn.ReLU(), nn.Linear(50, 50), nn.ReLU(), nn.Linear(50, 10))
    optimizer = torch.optim.SGD(net.parameters(), lr=0.1)
    x, y = torch.randn(50, 784), torch.randint(10, (50,))
    model = ModelFunction.of(net, select=r"^2\.weight")
    looks = [Look(model, Probe(()), step, 0, optimizers=(optimizer,)) for step in range(500)]
    bare, own = [], []
    for _ in range(7):
        start = time.perf_counter()
        for _ in looks:
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(x), y).backward()
            optimizer.step()
        bare.append(time.perf_counter() - start)
        one = WeightFluctuations(window=(0, 500))
        start = time.perf_counter()
        for look in looks:
            one.sample(look)
        own.append(time.perf_counter() - start)
    assert min(own) < 0.03 * min(bare)
