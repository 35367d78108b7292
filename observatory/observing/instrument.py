"""The contract of an instrument: what is looked at and what it is called.

When an instrument looks, what that may cost, what happens when it fails and where its numbers go is the
observer's business (`observatory.observing.observer`); Lightning is the callbacks' business.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from observatory.looking.look import Look, Loss
from observatory.looking.model import Forward, Output
from observatory.looking.probe import Probe, ProbeRequest, Split

if TYPE_CHECKING:
    from observatory.records import Finding, LabelledArray, Panel, Quantity, Run


@dataclass(frozen=True)
class Histogram:
    """A histogram for the dashboard; `values` holds its samples (not empty)."""

    title: str
    values: Tensor


@dataclass(frozen=True)
class History:
    """What `conclude` gets: the record of this instrument so far, and a look at the model as it is now."""

    look: Look
    values: Mapping[
        str, LabelledArray
    ]  # by quantity; empty where nothing is recorded (other ranks, no record)


class Instrument:
    """A device that looks at a model and returns named tensors; it overrides one or more of three verbs.

    - `observe(look)`: scheduled and budgeted.
    - `sample(look)`: at every step for which `samples_at(step, epoch)` is true; never postponed, its cost
      counted.
    - `conclude(history)`: when a window of sampling closes, and at the end of the run.

    Each returns tensors by quantity name; what may be returned is declared in `quantities`. An instrument
    keeps its own small state in plain attributes and hands it over in `state_dict`, so that a resumed run
    continues it.

    Args:
        name: folder of the record and section of the dashboard; two instruments of one class need two names.
        probe: the fixed examples to look at: how many, or a request, or the probe itself. Default: the
            class's own.
        forward: how the model is called on the probe's inputs, `forward(module, inputs)`; default
            `module(inputs)`.
        inputs: what the model is called with, from a batch of the loader; default: its first part.
        targets: what it should return, from a batch of the loader; default: its second part, if any.
        output: which part of what the model returns is meant; needed where that is not a tensor (N, ..., C).
        loss: `loss(output, targets)`; where an instrument needs a likelihood and none is given, targets of
            integer type mean a categorical one, others a Gaussian with variance 1.
        select: regular expression of the parameter names to look at; default all that require a gradient.
    """

    default_name: ClassVar[str] = "instrument"
    default_probe: ClassVar[ProbeRequest] = ProbeRequest()

    def __init__(
        self,
        *,
        name: str | None = None,
        probe: Probe | ProbeRequest | int | None = None,
        inputs: Callable[[Any], Any] | None = None,
        targets: Callable[[Any], Any] | None = None,
        forward: Forward | None = None,
        output: Output | None = None,
        loss: Loss | None = None,
        select: str | None = None,
    ) -> None:
        self.name = self.default_name if name is None else name
        self.probe = self._requested(probe)
        self.inputs = inputs
        self.targets = targets
        self.forward = forward
        self.output = output
        self.loss = loss
        self.select = select

    def _requested(self, probe: Probe | ProbeRequest | int | None) -> Probe | ProbeRequest:
        if probe is None:
            return self.default_probe
        if isinstance(probe, int):
            default = self.default_probe
            return ProbeRequest(probe, split=default.split, balanced=default.balanced, seed=default.seed)
        return probe

    # What it measures

    def quantities(self) -> dict[str, Quantity]:
        """Dims (without the leading step), unit and definition of everything the verbs may return."""
        raise NotImplementedError(f"{type(self).__name__} does not say which quantities it measures")

    def coordinates(self) -> dict[str, list[str]]:
        """Names along dims, such as those of the layers; asked after each look and empty while unknown."""
        return {}

    def settings(self) -> dict[str, Any]:
        """What of its configuration belongs beside the record, as JSON values."""
        return {}

    # The three verbs

    def observe(self, look: Look) -> Mapping[str, Tensor]:
        """Quantities at this moment."""
        raise NotImplementedError

    def samples_at(self, step: int, epoch: int) -> bool:
        """Whether `sample` is wanted after this step. Asked after every step: keep it to a comparison."""
        return False

    def sample(self, look: Look) -> Mapping[str, Tensor] | None:
        """What to keep of this step; mostly None, with the sample kept by the instrument until `conclude`.

        It happens after every update, so it must be cheap, and it may not draw from the global random
        streams, which are forked for `observe` and `conclude` only.
        """
        raise NotImplementedError

    def repeats(self) -> Callable[[int], bool] | None:
        """How to take the sample that was just taken at later steps, where a look takes longer than a sample.

        A function of the step that samples the weights where they lie, and says whether it did; if not, and
        where they have moved, `sample` is called with a look again. It runs as the loop has left everything:
        gradients and autocast may be on or off.
        """
        return None

    def conclude(self, history: History) -> Mapping[str, Tensor]:
        """Quantities of a whole window or run."""
        raise NotImplementedError

    # The data of the training, for instruments that pass over them

    def trains_on(self, loader: Any) -> None:
        """The loader of the training data, None where there is none; told before the first look.

        It may not be iterated, since that would move its random streams: use its `dataset`.
        """

    # State that a resumed run needs: tensors, str, int, float, bool, None, list, tuple and dict only

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        pass

    # What it shows

    def dashboard(self, values: Mapping[str, Tensor]) -> Sequence[Panel | Histogram]:
        """Figures and histograms of one look, for TensorBoard."""
        return []

    def charts(self) -> dict[str, list[str]]:
        """Curves that belong together: chart title to quantity names, one unit per chart."""
        return {}

    @staticmethod
    def figures(run: Run) -> list[Panel]:
        """Figures of the report, drawn from this instrument's part of the record (`run["entropy"]`)."""
        return []

    @staticmethod
    def findings(run: Run) -> list[Finding]:
        """Sentences of the report, with numbers."""
        return []


__all__ = ["Histogram", "History", "Instrument", "Look", "Probe", "ProbeRequest", "Split"]
