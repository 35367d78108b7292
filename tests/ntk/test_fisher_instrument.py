"""The Fisher information at work: an observer, a bare training loop, a record."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from cases import jacobian, make
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from observatory.looking import Look, ModelFunction, Probe
from observatory.ntk import fisher_figures, fisher_findings
from observatory.ntk.fisher import fisher_trace
from observatory.ntk.fisher_gram import gradient_noise
from observatory.ntk.fisher_instrument import FisherInformation
from observatory.observing.observer import Observer
from observatory.observing.source import ProbeSource
from observatory.records import Run, open_run


def data(n: int = 96) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(7)
    y = torch.arange(n) % 3
    return torch.randn(n, 6, generator=generator) + y[:, None], y


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))


def train(
    root: Path, instrument: FisherInformation, *, steps: int = 60, nan_from: int | None = None
) -> tuple[Run, nn.Module]:
    x, y = data()
    net = network()
    update = torch.optim.SGD(net.parameters(), lr=0.1)
    observer = Observer([instrument], max_overhead=None, strict=True)
    source = ProbeSource(lambda split: DataLoader(TensorDataset(x, y), 8))
    observer.start(net, source, directory=root / "observatory", optimizers=[update], total_steps=steps)
    for step in range(1, steps + 1):
        batch = torch.randperm(len(x))[:8]
        update.zero_grad()
        nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
        update.step()
        if nan_from is not None and step >= nan_from:
            net[0].weight.data.fill_(torch.nan)
        observer.after_step(step, step // 12)
    observer.finish(steps, steps // 12)
    return open_run(root).instrument("fisher"), net


def look_of(net: nn.Module, step: int = 3, n: int = 24) -> Look:
    x, y = data(n)
    return Look(ModelFunction.of(net), Probe(x, y), step=step, epoch=0)


def test_what_is_recorded_is_what_the_functions_say():
    net = network()
    x, y = data(24)
    found = FisherInformation().observe(look_of(net))
    assert found["trace"].item() == pytest.approx(fisher_trace(net, x, y).value.item(), rel=1e-6)
    assert found["layers"].sum().item() == pytest.approx(found["trace"].item(), rel=1e-6)
    noise = gradient_noise(net, x, y)
    labelled = {"signal": noise.signal, "noise": noise.noise, "empirical_trace": noise.mean_square}
    for name, expected in labelled.items():
        assert found[name].item() == pytest.approx(expected.item(), rel=1e-5)
    assert found["loss"].item() == pytest.approx(nn.functional.cross_entropy(net(x), y).item(), rel=1e-6)
    assert found["trace_error"] == 0 and found["log_slope"].isnan()


@pytest.mark.parametrize("name", ["recurrent layer", "gated recurrent layer", "long short-term memory"])
def test_recurrent_networks(name):
    """Against Σ_y p_y ‖∇ ln p_y‖² and the labelled gradients, from the explicit Jacobian."""
    net, x = make(name)
    y = torch.tensor([2, 0, 1, 2, 0])
    found = FisherInformation().observe(Look(ModelFunction.of(net), Probe(x, y), step=0, epoch=0))
    j, p = jacobian(net, x), ModelFunction.of(net)(x).softmax(-1)
    scores = torch.einsum("iyc,icp->iyp", p[:, None] - torch.eye(3), j)
    labelled = scores[torch.arange(5), y]
    expected = {
        "trace": (p * scores.square().sum(2)).sum() / 5,
        "empirical_trace": labelled.square().sum() / 5,
        "signal": labelled.mean(0).square().sum(),
    }
    for key, value in expected.items():
        assert found[key].item() == pytest.approx(value.item(), rel=1e-10)


def test_run_is_recorded_drawn_and_described(tmp_path):
    run, _ = train(tmp_path, FisherInformation(probe=48))
    assert run["layers"].coordinates["layer"] == ["0", "2"]
    assert set(FisherInformation().quantities()) == set(run)
    np.testing.assert_allclose(run["layers"].values.sum(1), run["trace"].values, rtol=1e-6)
    np.testing.assert_allclose(
        run["noise"].values, run["empirical_trace"].values - run["signal"].values, rtol=1e-4
    )
    f, t = np.log(run["trace"].values), np.log1p(run["trace"].steps)
    np.testing.assert_allclose(run["log_slope"].values[1:], np.diff(f) / np.diff(t), rtol=1e-6)
    titles = [panel.title for panel in FisherInformation.figures(run)]
    assert titles == ["Fisher information", "Layers", "Gradient signal and noise"]
    text = " ".join(finding.text for finding in FisherInformation.findings(run))
    assert "went from" in text and "largest part" in text and "equal for batches of" in text


def test_outputs_too_many_for_all_are_sampled_and_differ_from_look_to_look():
    net = nn.Linear(6, 20)
    one, two = (FisherInformation().observe(look_of(net, step)) for step in (3, 4))
    again = FisherInformation().observe(look_of(net, 3))
    assert one["trace"] == again["trace"] != two["trace"]
    assert one["trace_error"] > 0


def test_targets_are_not_needed_for_the_true_trace():
    x, _ = data(24)
    look = Look(ModelFunction.of(network()), Probe(x), step=0, epoch=0)
    found = FisherInformation(likelihood="categorical").observe(look)
    assert found["trace"].isfinite() and found["empirical_trace"].isnan()
    with pytest.raises(ValueError, match="must be named"):
        FisherInformation().observe(look)


def test_diverged_network_is_recorded_as_nan(tmp_path):
    run, _ = train(tmp_path, FisherInformation(probe=16), nan_from=20)
    assert np.isnan(run["trace"].values[-1]) and np.isfinite(run["trace"].values[0])
    assert fisher_findings.sentences(run)[0].level == "warning"
    assert fisher_figures.panels(run)


def test_state_continues_the_slope():
    one, two = FisherInformation(), FisherInformation()
    net = network()
    one.observe(look_of(net, 3))
    two.load_state_dict(one.state_dict())
    with torch.no_grad():
        net[0].weight.mul_(1.5)
    assert one.observe(look_of(net, 9))["log_slope"] == two.observe(look_of(net, 9))["log_slope"]
    assert FisherInformation().state_dict() == {"before": None}


def test_estimators_of_whole_batches_have_no_layers():
    with pytest.raises(ValueError, match="no parts by layer"):
        FisherInformation(estimator="hutchinson")


def _on_rank(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    torch.set_num_threads(1)
    found = FisherInformation().observe(look_of(network(), n=25))
    torch.save(dict(found), f"{folder}/{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_are_one(tmp_path):
    mp.spawn(_on_rank, (str(tmp_path),), nprocs=2)
    expected = FisherInformation().observe(look_of(network(), n=25))
    for rank in range(2):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        for name, value in expected.items():
            torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-9, equal_nan=True)
