"""Fluctuations of the weights as an instrument: a window of snapshots, and what they say at its end."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor

from observatory.looking.likelihood import likelihood_loss
from observatory.looking.look import Look
from observatory.looking.probe import ProbeRequest
from observatory.looking.ranks import rank, warn
from observatory.numerics.curvature import ravel
from observatory.observing import Histogram, History, Instrument
from observatory.records import Quantity
from observatory.solvable.online_regression import Sampling
from observatory.weights import figures, findings
from observatory.weights.analysis import Basis
from observatory.weights.conclusion import conclude_window
from observatory.weights.landscape import Landscape
from observatory.weights.noise import SgdSetting, sgd_group
from observatory.weights.quantities import declared, scalar
from observatory.weights.recorder import Recorder, Storage, choose_storage
from observatory.weights.stationarity import StationarityMonitor
from observatory.weights.variants import CHOICES, range_names
from observatory.weights.window import Window

if TYPE_CHECKING:
    from observatory.records import Finding, Panel, Run

STATE_BYTES = 2**26  # larger windows are not carried over in a checkpoint


class WeightFluctuations(Instrument):
    """Variance, correlation time, curvature, flatness and noise of the weights along leading directions.

    Snapshots of the selected weights are taken during a window; at its end they are decomposed, and the loss
    on the probe is surveyed about their mean. The exponent ψ of σ² ∝ F^(-ψ) is given with its range of
    components, and again for other ranges, windows and bases. (Feng, Tu 2021, PNAS 118 e2015617118; Gross,
    Raulf, Räth 2024, arXiv:2311.14120.)

    Args:
        window: (start, stop) in `unit`, stop not included, or "auto": `length` snapshots from when the
            run has come to rest, that is when r_FDR has stayed within 0.9 and 1.1 over `rest` steps and
            the loss has no slope beyond two standard errors (plain SGD only).
        unit: of the window, "steps" or "epochs".
        every: steps between snapshots.
        length: snapshots of an "auto" window.
        rest: steps of the stationarity test of an "auto" window.
        directions: number of directions.
        basis: "components" of the trajectory, leading eigenvectors of the "hessian", or "random" directions.
        storage: "auto" keeps all snapshots if they fit into `memory`; "subset", "sketch" and
            "directions" keep less (see `observatory.weights.recorder`).
        memory: bytes for the snapshots.
        precision: of the stored differences.
        keep_on: "device" of the weights, or "cpu".
        batch_size: S, over all processes; with `samples` and `sampling` needed for temperatures and
            irreversibility, which are NaN without.
        samples: N, examples in the training set.
        sampling: how the examples of a batch are drawn.
        first, last: range of components in the fit of ψ; default all, without the first if it is a drift.
        seed: of random directions, coordinates and resampling.
        options: see `Instrument`; `select` chooses the weights, and `loss` must be the training loss with its
            own normalisation (`torch.nn.MSELoss` is 2/n_out times the default ½‖f - y‖²) if curvatures and
            temperatures are to be those of the training. Clipped gradients invalidate the temperatures.

    Raises:
        ValueError: if the window is empty or too short.
    """

    default_name = "weights"
    default_probe = ProbeRequest(size=1000)

    def __init__(
        self,
        *,
        window: tuple[int, int] | Literal["auto"] = "auto",
        unit: Literal["steps", "epochs"] = "steps",
        every: int = 1,
        length: int = 1000,
        rest: int = 500,
        directions: int = 20,
        basis: Basis = "components",
        storage: Storage | Literal["auto"] = "auto",
        memory: float = 2.0**31,
        precision: Literal["float32", "bfloat16"] = "float32",
        keep_on: Literal["device", "cpu"] = "device",
        batch_size: int | None = None,
        samples: int | None = None,
        sampling: Sampling | None = None,
        first: int | None = None,
        last: int | None = None,
        seed: int = 0,
        **options: Any,
    ) -> None:
        super().__init__(**options)
        if directions < 1:
            raise ValueError(f"there must be at least one direction, got directions={directions}")
        self.window, self.rest = Window(window, unit, every, length), rest
        self.directions, self.basis, self.storage, self.memory = directions, basis, storage, memory
        self.precision, self.keep_on = precision, keep_on
        self.batch_size, self.samples, self.sampling = batch_size, samples, sampling
        self.first, self.last, self.seed = first, last, seed
        self._asked = None not in (batch_size, samples, sampling)
        self.variants = [*range_names(directions), *CHOICES]
        self._monitor = StationarityMonitor(rest) if self.window.auto else None
        self._recorder: Recorder | None = None
        self._pending: Mapping[str, Any] | None = None  # a window that a checkpoint interrupted
        self._group: Mapping[str, Any] | None = None  # of the optimizer, that the weights belong to
        self._coefficients: tuple[float, float, float] | None = None  # η, β, λ at the first snapshot
        self._steady = True  # the learning rate has not changed
        self._done = False
        self._stored = "none"

    def quantities(self) -> dict[str, Quantity]:
        return declared(self.variants)

    def coordinates(self) -> dict[str, list[str]]:
        return {"variant": self.variants, "storage": [self._stored]} if self._done else {}

    def settings(self) -> dict[str, Any]:
        return self.window.settings() | {
            name: getattr(self, name)
            for name in ("basis", "select", "directions", "batch_size", "samples", "sampling", "precision")
        }

    def observe(self, look: Look) -> Mapping[str, Tensor]:
        landscape = Landscape(look.model, (look.probe.inputs, look.probe.targets), loss=self._loss(look))
        return {"loss": landscape.value(), "norm": ravel(look.model.theta).double().norm()}

    # Recording

    def draws(self, batch_size: int, samples: int, sampling: Sampling) -> None:
        """How batches are drawn, as read from a loader (`batch_sampling`), for what was not given."""
        self.batch_size = batch_size if self.batch_size is None else self.batch_size
        self.samples = samples if self.samples is None else self.samples
        self.sampling = sampling if self.sampling is None else self.sampling

    def samples_at(self, step: int, epoch: int) -> bool:
        return not self._done and self.window.holds(step, epoch)

    def sample(self, look: Look) -> Mapping[str, Tensor] | None:
        if self._recorder is None:
            if rank() != 0:
                return None
            self._join(look)
            if self._monitor is not None and self._pending is None and not self._at_rest(look):
                return None
            self._recorder = self._begin(look)
        else:
            self._watch_rate()
        recorder = self._recorder
        if not recorder.steps or look.step - recorder.steps[-1] >= self.window.every:
            recorder.add(look.model.theta, look.step)
        if self._monitor is not None:
            self._done = self.window.complete(len(recorder))
        return None

    def repeats(self) -> Callable[[int], bool] | None:
        by_itself = self._monitor is None and self._recorder is not None and self._recorder.repeatable
        return self._sample_again if by_itself else None

    def _sample_again(self, step: int) -> bool:
        recorder = self._recorder
        if recorder is None:
            return False
        self._watch_rate()
        return step - recorder.steps[-1] < self.window.every or recorder.repeat(step)

    def _watch_rate(self) -> None:
        if self._group is not None and self._coefficients is not None:
            self._steady &= float(self._group["lr"]) == self._coefficients[0]

    def _join(self, look: Look) -> None:
        """Find the optimizer's settings; those at the first snapshot count, also of an earlier process."""
        self._group, found = sgd_group(look)
        if self._pending is None:
            self._coefficients = found
        elif self._coefficients is not None:
            self._steady &= found is not None and found[0] == self._coefficients[0]

    def _at_rest(self, look: Look) -> bool:
        if self._coefficients is None:
            raise ValueError(
                "window='auto' needs plain SGD for its test of rest; give the window in steps or epochs"
            )
        rate, momentum, _ = self._coefficients
        data = (look.probe.inputs, look.probe.targets)
        monitor = self._monitor
        assert monitor is not None  # an automatic window
        return monitor.update(
            ravel(look.model.theta),
            lambda: Landscape(look.model, data, loss=self._loss(look)).value(),
            learning_rate=rate,
            momentum=momentum,
        )

    def _begin(self, look: Look) -> Recorder:
        theta = look.model.theta
        kind = torch.float32 if self.precision == "float32" else torch.bfloat16
        if self.precision == "float32":
            kind = torch.promote_types(kind, next(iter(theta.values())).dtype)
        size = sum(tensor.numel() for tensor in theta.values())
        capacity = self.window.snapshots(look.step, look.epoch)
        item = torch.empty(0, dtype=kind).element_size()
        storage = self.storage
        if storage == "auto":
            storage = choose_storage(capacity, size, memory=self.memory, item=item)
        if storage != "full" and self.basis != "components":
            raise ValueError(
                f"basis={self.basis!r} needs all {capacity} snapshots of {size} weights "
                f"({capacity * size * item / 1e9:.3g} GB), but storage={self.storage!r} with "
                f"memory={self.memory / 1e9:.3g} GB keeps {storage!r}"
            )
        recorder = Recorder(
            theta,
            capacity=capacity,
            storage=storage,
            memory=self.memory,
            dtype=kind,
            device=None if self.keep_on == "device" else "cpu",
            seed=self.seed,
        )
        if self._pending is not None:
            recorder.load_state_dict(self._pending)
            self._pending = None
        return recorder

    # Concluding

    def conclude(self, history: History) -> Mapping[str, Tensor]:
        if rank() != 0 or self._stored != "none":
            return {}
        if self._recorder is None and self._pending is not None:  # resumed behind its last snapshot
            self._recorder = self._begin(history.look)
        recorder = self._recorder
        if recorder is None or len(recorder) < 3:
            ratio = math.nan if self._monitor is None else self._monitor.ratio
            taken = 0 if recorder is None else len(recorder)
            raise ValueError(self.window.complaint(taken, rest=self.rest, ratio=ratio))
        self._done, self._stored, self._recorder, self._group = True, recorder.storage, None, None
        values = conclude_window(
            recorder,
            history.look,
            loss=self._loss(history.look),
            basis=self.basis,
            directions=self.directions,
            variants=self.variants,
            setting=self._setting(),
            coefficients=self._coefficients if self._steady else None,
            first=self.first,
            last=self.last,
            seed=self.seed,
        )
        rate = self._coefficients[0] if self._coefficients is not None and self._steady else math.nan
        return values | {"learning_rate": scalar(rate, recorder.reference), "storage": torch.ones(1)}

    def _setting(self) -> SgdSetting | None:
        known = (self.batch_size, self.samples, self.sampling)
        if None in known:
            return None
        if self._coefficients is None or not self._steady:
            changed = "the learning rate changed inside the window"
            reason = "the optimizer is not plain SGD" if self._steady else changed
            if self._asked:
                warn(f"temperatures, r_FDR and irreversibility of {self.name!r} are left out: {reason}")
            return None
        rate, momentum, decay = self._coefficients
        return SgdSetting(rate, self.batch_size, self.samples, momentum, decay, self.sampling)  # type: ignore[arg-type]

    def _loss(self, look: Look) -> Any:
        return look.loss or likelihood_loss

    # State

    def state_dict(self) -> dict[str, Any]:
        state: dict[str, Any] = {
            "done": self._done,
            "stored": self._stored,
            "steady": self._steady,
            "coefficients": self._coefficients,
        }
        recorder = self._recorder
        if recorder is not None:
            if recorder.storage != "directions":
                state |= _if_small("window", recorder.state_dict())
        elif self._pending is not None:  # resumed, and saved again before the next snapshot
            state["window"] = self._pending
        elif self._monitor is not None:
            state |= _if_small("monitor", self._monitor.state_dict())
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._done, self._stored, self._steady = state["done"], state["stored"], state["steady"]
        self._pending, self._coefficients = state.get("window"), state.get("coefficients")
        self._recorder = self._group = None
        if self._monitor is not None:
            self._monitor = StationarityMonitor(self.rest)
            if "monitor" in state:
                self._monitor.load_state_dict(state["monitor"])

    # What it shows

    def charts(self) -> dict[str, list[str]]:
        return {"Loss": ["loss"], "Norm": ["norm"]}

    def dashboard(self, values: Mapping[str, Tensor]) -> Sequence[Panel | Histogram]:
        if "variance" not in values:
            return []
        arrays = {name: value.double().cpu().numpy() for name, value in values.items()}
        return list(figures.draw(arrays, self.variants))

    @staticmethod
    def figures(run: Run) -> list[Panel]:
        return figures.panels(run)

    @staticmethod
    def findings(run: Run) -> list[Finding]:
        return findings.sentences(run)


def _if_small(name: str, part: dict[str, Any]) -> dict[str, Any]:
    """{name: part} unless it is too large for a checkpoint of somebody else's."""
    size = sum(t.numel() * t.element_size() for t in part.values() if isinstance(t, Tensor))
    return {name: part} if size <= STATE_BYTES else {}
