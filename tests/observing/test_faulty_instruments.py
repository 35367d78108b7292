"""Whatever an instrument does wrong is one warning with the reason; the loop never hears of it."""

from __future__ import annotations

import collections
import re
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from runs import bits
from scenes import EVERY_STEP, Outputs, batches, network
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset

import observatory
from observatory.looking import Look, Probe
from observatory.observing import Instrument
from observatory.observing.observer import Observer
from observatory.observing.schedule import Schedule
from observatory.observing.source import ProbeSource
from observatory.records import Quantity

UPDATES = 8


class Undeclared(Outputs):
    def observe(self, look: Look) -> dict[str, Any]:
        return {"other": torch.ones(())}


class NoQuantities(Outputs):
    def quantities(self) -> dict[str, Quantity]:
        return super(Outputs, self).quantities()


class Changing(Outputs):
    def observe(self, look: Look) -> dict[str, Any]:
        return {"norm": torch.ones(()), "outputs": torch.ones(2, 3 if look.step < 4 else 5)}


class Numbers(Outputs):
    def observe(self, look: Look) -> dict[str, Any]:
        return {"norm": 3.0}


class Silent(Outputs):
    def observe(self, look: Look) -> Any:
        return None


class Asked(Outputs):
    def samples_at(self, step: int, epoch: int) -> bool:
        raise RuntimeError("no idea")


class Sampling(Outputs):
    def samples_at(self, step: int, epoch: int) -> bool:
        return True

    def sample(self, look: Look) -> Any:
        raise RuntimeError("no hands")


class Concluding(Outputs):
    def conclude(self, history: Any) -> Any:
        raise RuntimeError("no opinion")


class Unnamed(Outputs):
    def coordinates(self) -> dict[str, list[str]]:
        raise RuntimeError("no names")


class Unwritable(Outputs):
    def settings(self) -> dict[str, Any]:
        return {"loss": torch.nn.functional.mse_loss}


class Wandering(Outputs):
    default_name = "../../outputs"


class Singular(Outputs):
    def observe(self, look: Look) -> dict[str, Any]:
        return {"norm": torch.linalg.cholesky(-torch.eye(3)).sum()}


class Undefined(Outputs):
    def observe(self, look: Look) -> dict[str, Any]:
        return {"norm": torch.linalg.eigvalsh(torch.full((3, 3), torch.nan)).sum()}


class Greedy(Outputs):
    def observe(self, look: Look) -> dict[str, Any]:
        return {"norm": torch.empty(2**55).sum()}


class OutOfMemory(Outputs):
    def observe(self, look: Look) -> dict[str, Any]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 80.00 GiB")


class OutOfHostMemory(Outputs):
    def observe(self, look: Look) -> dict[str, Any]:
        return {"norm": torch.from_numpy(np.ones((2**50,))).sum()}


FAULTS: dict[type[Outputs], tuple[str, int]] = {  # the reason, and how many looks are on record
    Undeclared: ("not recorded any more.*ValueError: 'other' is not declared by quantities", 0),
    NoQuantities: ("not recorded any more.*NotImplementedError: NoQuantities does not say which", 0),
    Changing: (r"not recorded any more.*holds values of shape \(2, 3\), got one of shape \(2, 5\)", 4),
    Numbers: ("switched off.*TypeError: it returned float for 'norm', not a tensor", 0),
    Silent: ("switched off.*TypeError: it returned NoneType, not a mapping", 0),
    Asked: ("switched off.*RuntimeError: no idea", 1),
    Sampling: ("switched off.*RuntimeError: no hands", 1),
    Concluding: ("switched off.*RuntimeError: no opinion", UPDATES + 1),
    Unnamed: ("not recorded any more.*RuntimeError: no names", 0),
    Unwritable: ("not recorded any more.*TypeError: Object of type function is not JSON serializable", 0),
    Wandering: (r"not recorded any more.*ValueError: '\.\./\.\./outputs' cannot be a name in a record", 0),
    Singular: ("switched off.*LinAlgError: linalg.cholesky: .*not positive-definite", 0),
    Undefined: ("switched off.*LinAlgError: linalg.eigh: .*failed to converge", 0),
    Greedy: ("switched off.*RuntimeError: .*(can't allocate|not enough) memory", 0),
    OutOfMemory: ("switched off.*OutOfMemoryError: CUDA out of memory", 0),
    OutOfHostMemory: ("switched off.*MemoryError", 0),
}


def trained(out: Path | None, instruments: list[Any], **options: Any) -> list:
    """The bits of a model after some updates, and of the random streams."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    with observatory.watch(
        model, optimizer, instruments=instruments, out=out,
        **({"probe": batches()[0]} | EVERY_STEP | options),
    ) as watch:  # fmt: skip
        for x, y in batches(UPDATES):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            watch.step()
    return bits([model.state_dict(), torch.get_rng_state()])


@pytest.fixture(scope="module")
def unwatched() -> list:
    torch.manual_seed(0)
    return trained(None, [])


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_a_fault_is_one_warning_and_the_others_go_on(tmp_path, unwatched, fault):
    reason, looks = FAULTS[fault]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        watched = trained(tmp_path, [fault(), Outputs(name="healthy")], strict=False)
    assert watched == unwatched
    (said,) = [str(one.message).replace("\n", " ") for one in caught]
    assert re.search(reason, said), said
    run = observatory.open_run(tmp_path)
    assert run["healthy/norm"].steps.tolist() == list(range(UPDATES + 1))
    name = f"{fault.default_name}/norm"
    assert (run[name].steps.tolist() if name in run else []) == list(range(looks))


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: fault.__name__)
def test_strict_raises_the_error_itself(tmp_path, fault):
    reason = FAULTS[fault][0].split(".*")[1]  # as in "switched off.*LinAlgError: ..."
    with pytest.raises(Exception) as raised:
        trained(tmp_path, [fault()])
    assert re.search(reason, f"{type(raised.value).__name__}: {raised.value}".replace("\n", " "))


class Stateful(Outputs):
    """Counts its looks; `kept` is what it hands over."""

    def __init__(self, kept: Any = None, **options: Any) -> None:
        super().__init__(**options)
        self.looks, self.kept = 0, kept

    def observe(self, look: Look) -> dict[str, Any]:
        self.looks += 1
        return {"norm": torch.tensor(float(self.looks))}

    def state_dict(self) -> dict[str, Any]:
        return {"looks": self.looks} if self.kept is None else {"looks": self.looks, "kept": self.kept}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.looks = state["looks"]


UNLOADABLE = {
    "array": np.ones(3),
    "numpy scalar": {"a": [np.float64(2)]},
    "deque": collections.deque([1]),
    "path": (Path("a"),),
    "key": {(1, 2): 3},
}


@pytest.mark.parametrize("kept", UNLOADABLE)
def test_state_that_would_make_a_checkpoint_unloadable_is_left_out_of_it(tmp_path, kept):
    said = r"leaves no state in checkpoints and begins afresh when resumed.*state_dict\(\) holds a .* at kept"
    with pytest.warns(UserWarning, match=said) as caught:
        watch = observatory.watch(
            network(), probe=batches()[0], instruments=[Stateful(UNLOADABLE[kept])], max_overhead=None
        )
        with watch:
            torch.save(watch.state_dict(), tmp_path / "a.pt")
            torch.save(watch.state_dict(), tmp_path / "a.pt")
    assert len(caught) == 1
    torch.load(tmp_path / "a.pt", weights_only=True)


def test_state_of_another_version_is_not_used(tmp_path):
    def begin(**options: Any) -> observatory.observing.watching.Watch:
        return observatory.watch(
            network(), probe=batches()[0], instruments=[Stateful()], out=tmp_path, **(EVERY_STEP | options)
        )

    with begin() as watch:
        watch.step()
        state = watch.state_dict()
    state["observer"]["stations"]["outputs"]["instrument"] = {"looked": 2}
    again = begin(strict=False)
    with pytest.warns(UserWarning, match="cannot use its state of the checkpoint.*KeyError: 'looks'"):
        again.load_state_dict(state)
    with again:
        again.step()
    assert observatory.open_run(tmp_path)["outputs/norm"].values.tolist() == [1, 2, 1]


def test_what_a_fresh_run_begins_with_is_not_changed_by_the_last_one(tmp_path):
    class Remembers(Stateful):
        def observe(self, look: Look) -> dict[str, Any]:
            self.kept.append(look.step)
            return {"norm": torch.tensor(float(len(self.kept)))}

        def load_state_dict(self, state: Mapping[str, Any]) -> None:
            self.kept = state["kept"]

    watch = observatory.watch(
        network(), probe=batches()[0], instruments=[Remembers([])], out=tmp_path, **EVERY_STEP
    )
    with watch:
        watch.step()
    watch.updates = 0
    with pytest.warns(UserWarning, match="held the record of another run"), watch:
        watch.step()
    assert observatory.open_run(tmp_path)["outputs/norm"].values.tolist() == [1, 2]


def test_a_log_that_refuses_costs_nothing_but_itself(tmp_path, unwatched):
    def refuse(values: dict[str, float], step: int) -> None:
        raise OSError("quota exceeded")

    with pytest.warns(UserWarning, match="cannot be shown by a logger.*OSError: quota exceeded") as caught:
        watched = trained(tmp_path, [Outputs()], log=refuse, strict=False)
    assert len(caught) == 1 and watched == unwatched
    assert len(observatory.open_run(tmp_path)["outputs/norm"]) == UPDATES + 1


def test_the_unforeseen_ends_the_watching_and_not_the_training(tmp_path, unwatched, monkeypatch):
    monkeypatch.setattr(Schedule, "next_after", lambda *_: 1 / 0)
    with pytest.warns(UserWarning, match="does not watch this run, training goes on: ZeroDivision") as caught:
        watched = trained(tmp_path, [Outputs()], strict=False)
    assert len(caught) == 1 and watched == unwatched


def test_data_set_that_raises_is_one_warning(tmp_path, unwatched):
    class Broken(Dataset):
        def __len__(self) -> int:
            return 100

        def __getitem__(self, index: int) -> Any:
            raise OSError("the disk with the data is gone")

    with pytest.warns(UserWarning, match="switched off.*OSError: the disk with the data is gone") as caught:
        watched = trained(
            tmp_path, [Outputs(), Outputs(name="given", probe=Probe(batches()[0][0]))],
            probe=Broken(), strict=False,
        )  # fmt: skip
    assert len(caught) == 1 and watched == unwatched
    assert observatory.open_run(tmp_path)["given/norm"].steps.tolist() == list(range(UPDATES + 1))


def test_batches_are_kept_for_a_probe_and_for_nothing_else():
    """An instrument that only concludes would otherwise keep every batch of the run."""

    class Concludes(Outputs):
        observe = Instrument.observe

        def conclude(self, history: Any) -> dict[str, Any]:
            return {"outputs": history.look.model(history.look.probe.inputs)}

    class Stream(IterableDataset):
        def __iter__(self):
            return iter(batches())

    for source, kept in ((DataLoader(TensorDataset(*batches()[0])), 0), (Stream(), 2)):
        observer = Observer([Concludes(probe=16)], strict=True)
        observer.start(network(), ProbeSource(lambda _, source=source: source))
        waiting = []
        for step, batch in enumerate(batches(), start=1):
            observer.offer_batch(batch)
            waiting.append(len(observer._source._passed))
            observer.after_step(step, 0)
        assert max(waiting) == kept and waiting[-1] == 0
        observer.finish(20, 0)
