"""Loops that nobody but their author knows."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from runs import bits
from scenes import EVERY_STEP, Outputs, batches, network
from torch import nn
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import observatory
from observatory.ntk import CollectiveVariables
from observatory.observing.watching import Watch


def loop(model: nn.Module, optimizer: torch.optim.Optimizer, watch: Watch | None = None, n: int = 20) -> None:
    """Somebody's training loop."""
    torch.manual_seed(3)
    for x, y in batches(n):
        optimizer.zero_grad()
        cross_entropy(model(x), y).backward()
        optimizer.step()
        if watch is not None:
            watch.step()


def everything(model: nn.Module, optimizer: torch.optim.Optimizer) -> list:
    return bits([model.state_dict(), optimizer.state_dict(), torch.get_rng_state()])


def test_watched_loop_is_bit_identical_and_leaves_a_record(tmp_path):
    plain = network()
    sgd = torch.optim.SGD(plain.parameters(), 0.1, momentum=0.9)
    loop(plain, sgd)
    expected = everything(plain, sgd)

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    instruments = [CollectiveVariables(), Outputs()]
    seen = {}
    with observatory.watch(
        model, optimizer, probe=batches()[0], instruments=instruments, out=tmp_path,
        log=lambda values, step: seen.setdefault(step, {}).update(values), **EVERY_STEP,
    ) as watch:  # fmt: skip
        loop(model, optimizer, watch)
    assert everything(model, optimizer) == expected
    run = observatory.open_run(tmp_path)
    assert run["ntk/trace"].steps.tolist() == run["outputs/norm"].steps.tolist() == list(range(21))
    last = model.eval()(batches()[0][0])
    np.testing.assert_allclose(run["outputs/outputs"].values[-1], last.detach(), rtol=1e-6, atol=1e-6)
    assert seen[20]["outputs/norm"] == pytest.approx(float(run["outputs/norm"].values[-1]))
    assert watch.latest["outputs/norm"] == seen[20]["outputs/norm"]


@pytest.mark.parametrize("kind", ["probe", "tuple", "inputs", "loader", "data set"])
def test_what_a_probe_can_be_given_as(kind):
    x, y = batches()[0]
    data = TensorDataset(x, y)
    probe = {
        "probe": observatory.Probe(x, y),
        "tuple": (x, y),
        "inputs": x,
        "loader": DataLoader(data, 2, shuffle=True),
        "data set": data,
    }[kind]
    model = network()
    before = torch.get_rng_state()
    with observatory.watch(model, probe=probe, instruments=[Outputs(probe=8)], **EVERY_STEP) as watch:
        pass
    assert torch.equal(torch.get_rng_state(), before)
    assert watch.latest["outputs/norm"] > 0


def test_without_a_probe_the_warning_names_the_argument():
    with (
        pytest.warns(UserWarning, match=r"'outputs' is switched off, training goes on: .*give probe="),
        observatory.watch(network(), instruments=[Outputs()]) as watch,
    ):
        watch.step()


class Endless(IterableDataset):
    def __iter__(self):
        return iter(batches())


@pytest.mark.parametrize("stream", [Endless(), DataLoader(Endless())], ids=["data set", "loader"])
def test_stream_is_refused_where_no_batch_is_seen_passing_by(stream):
    with pytest.raises(ValueError, match=r"a stream has no examples to draw .*: give probe=\(x, y\)"):
        observatory.watch(network(), probe=stream, instruments=[Outputs()])


def test_an_instrument_keeps_the_probe_it_was_made_with(tmp_path):
    own = observatory.Probe(torch.zeros(2, 6))
    instruments = [Outputs(probe=own), Outputs(name="given")]
    with observatory.watch(
        network(), probe=batches()[0], instruments=instruments, out=tmp_path, **EVERY_STEP
    ):
        pass
    run = observatory.open_run(tmp_path)
    assert run["outputs/outputs"].values.shape[1:] == (2, 3)
    assert run["given/outputs"].values.shape[1:] == (8, 3)


def test_epochs_are_looked_at_when_the_loop_says_so(tmp_path):
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with observatory.watch(
        model, probe=batches()[0], instruments=[Outputs()], out=tmp_path, every_n_epochs=2, max_overhead=None
    ) as watch:
        for _ in range(5):
            loop(model, optimizer, watch, n=3)
            watch.end_epoch()
    assert observatory.open_run(tmp_path)["outputs/norm"].steps.tolist() == [0, 6, 12, 15]


def test_interrupted_loop_keeps_its_record_and_is_continued(tmp_path):
    def begin(model: nn.Module) -> Watch:
        return observatory.watch(
            model, probe=batches()[0], instruments=[CollectiveVariables()], out=tmp_path, **EVERY_STEP
        )

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with pytest.raises(KeyboardInterrupt), begin(model) as watch:
        loop(model, optimizer, watch, n=6)
        torch.save({"model": model.state_dict(), "watch": watch.state_dict()}, tmp_path / "at6.pt")
        loop(model, optimizer, watch, n=3)
        raise KeyboardInterrupt
    assert observatory.open_run(tmp_path)["ntk/trace"].steps.tolist() == list(range(10))

    saved = torch.load(tmp_path / "at6.pt", weights_only=True)
    model.load_state_dict(saved["model"])
    watch = begin(model)
    watch.load_state_dict(saved["watch"])
    with watch:
        loop(model, torch.optim.SGD(model.parameters(), 0.1), watch, n=5)
    trace = observatory.open_run(tmp_path)["ntk/trace"]
    assert trace.steps.tolist() == list(range(12))


def test_figures_and_scalars_go_to_a_writer(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    from torch.utils.tensorboard import SummaryWriter

    with (
        SummaryWriter(tmp_path) as writer,
        observatory.watch(
            network(), probe=batches()[0], instruments=[CollectiveVariables()], writer=writer
        ) as watch,
    ):
        watch.step()
    events = EventAccumulator(str(tmp_path)).Reload().Tags()
    assert "ntk/trace" in events["scalars"] and events["images"]


def test_lazy_module_is_looked_at_as_soon_as_it_has_weights(tmp_path):
    model = nn.Sequential(nn.LazyLinear(16), nn.ReLU(), nn.LazyLinear(3))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with observatory.watch(
        model, optimizer, probe=batches()[0], instruments=[Outputs()], out=tmp_path, **EVERY_STEP
    ) as watch:
        loop(model, optimizer, watch, n=3)
    assert observatory.open_run(tmp_path)["outputs/norm"].steps.tolist() == [1, 2, 3]


@pytest.mark.parametrize("wrap", ["compiled", "data parallel"])
def test_wrapped_model_is_looked_at_inside(wrap):
    inner = network()
    model = torch.compile(inner, backend="eager") if wrap == "compiled" else nn.DataParallel(inner)
    names = []

    class Names(Outputs):
        def observe(self, look):
            names.extend(look.model.theta)
            return super().observe(look)

    with observatory.watch(model, probe=batches()[0], instruments=[Names()], **EVERY_STEP):
        pass
    assert names == [name for name, _ in inner.named_parameters()]


def test_double_precision_model_is_looked_at_in_double_precision(tmp_path):
    model = network().double()
    with observatory.watch(model, probe=batches()[0], instruments=[Outputs()], out=tmp_path, **EVERY_STEP):
        pass
    values = observatory.open_run(tmp_path)["outputs/outputs"].values[-1]
    expected = model.eval()(batches()[0][0].double()).detach()
    np.testing.assert_allclose(values, expected, rtol=1e-12)
