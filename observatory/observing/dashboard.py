"""Where the numbers of a look are shown while the run goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from observatory.observing.instrument import Histogram, Instrument

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

    from observatory.records import Panel, Quantity


class Dashboard:
    """One logger: scalars go to `log(values, step)`, figures and histograms to TensorBoard's writer."""

    def __init__(
        self, log: Callable[[dict[str, float], int], None] | None = None, writer: SummaryWriter | None = None
    ) -> None:
        self.log = log
        self.writer = writer

    def scalars(self, values: dict[str, float], step: int) -> None:
        if self.log is not None:
            self.log(values, step)
        elif self.writer is not None:
            for tag, value in values.items():
                self.writer.add_scalar(tag, value, step)

    def show(self, name: str, panels: Sequence[Panel | Histogram], step: int) -> None:
        """Draw figures and histograms in section `name`; figures are closed afterwards."""
        for panel in panels:
            if isinstance(panel, Histogram):
                finite = panel.values[torch.isfinite(panel.values)]
                if self.writer is not None and finite.numel():  # TensorBoard refuses an empty histogram
                    self.writer.add_histogram(f"{name}/{panel.title}", finite.cpu().numpy(), step)
            else:
                if self.writer is not None:
                    self.writer.add_figure(f"{name}/{panel.title}", panel.figure, step, close=False)
                panel.figure.clear()

    def introduce(self, instruments: Sequence[Instrument]) -> None:
        """Once per run: curves that belong together in one chart, and what each quantity means."""
        if self.writer is None:
            return
        layout = {
            instrument.name: {
                title: ["Multiline", [f"^{instrument.name}/{quantity}$" for quantity in quantities]]
                for title, quantities in instrument.charts().items()
            }
            for instrument in instruments
            if instrument.charts()
        }
        if layout:
            self.writer.add_custom_scalars(layout)
        for instrument in instruments:
            self.writer.add_text(f"{instrument.name}/definitions", _definitions(instrument.quantities()))


def scalars_of(instrument: Instrument, values: Mapping[str, Tensor]) -> dict[str, float]:
    """The scalars of a look by tag, `<name>/<quantity>` or `<name>/<quantity>/<layer>` (or weight)."""
    quantities, coordinates = instrument.quantities(), instrument.coordinates()
    scalars: dict[str, float] = {}
    for key, value in values.items():
        tag = f"{instrument.name}/{key}"
        if value.ndim == 0:
            scalars[tag] = float(value)
        elif quantities[key].dims in (("layer",), ("weight",)):
            names = coordinates.get(quantities[key].dims[0], ())
            if len(names) == len(value):
                scalars |= {f"{tag}/{name}": x for name, x in zip(names, value.tolist(), strict=True)}
    return scalars


def _definitions(quantities: Mapping[str, Quantity]) -> str:
    rows = [f"| {key} | {q.unit} | {q.definition} |".replace("\n", " ") for key, q in quantities.items()]
    return "\n".join(["| quantity | unit | definition |", "|---|---|---|", *rows])
