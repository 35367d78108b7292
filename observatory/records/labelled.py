"""Arrays that know their axes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import xarray


@dataclass(frozen=True, eq=False)
class LabelledArray:
    """The values of one quantity over the steps of a run (or of several runs)."""

    name: str
    values: NDArray  # (steps, ...), or (runs, steps, ...)
    steps: NDArray  # (steps,) int64, optimizer updates that the weights had seen
    times: (
        NDArray  # seconds since the epoch at which they were recorded, shape of the leading axes of `values`
    )
    dims: tuple[str, ...]  # ("step", ...) or ("run", "step", ...)
    coordinates: dict[str, list[str]] = field(default_factory=dict)  # names along dims, where there are any
    unit: str = "1"
    definition: str = ""

    def __array__(self, dtype: np.dtype | None = None, copy: bool | None = None) -> NDArray:
        return np.array(self.values, dtype=dtype, copy=copy)

    def __len__(self) -> int:
        return len(self.values)

    def at(self, step: int) -> NDArray:
        """The value recorded at `step`.

        Raises:
            KeyError: if there was no look at that step.
        """
        found = np.flatnonzero(self.steps == step)
        if not found.size:
            near = self.steps[np.argmin(np.abs(self.steps - step))] if self.steps.size else "none"
            raise KeyError(f"{self.name} was not recorded at step {step}; the nearest step is {near}")
        return np.take(self.values, found[0], axis=self.dims.index("step"))

    def to_xarray(self) -> xarray.DataArray:
        """The same as an `xarray.DataArray` with steps and names as coordinates.

        Raises:
            ImportError: if xarray is not installed.
        """
        try:
            import xarray
        except ImportError as error:
            raise ImportError("to_xarray needs xarray: pip install 'training-observatory[xarray]'") from error
        named = {dim: names for dim, names in self.coordinates.items() if dim in self.dims}
        time = (self.dims[: self.times.ndim], self.times)
        return xarray.DataArray(
            self.values,
            dims=self.dims,
            coords={"step": self.steps, "time": time, **named},
            name=self.name,
            attrs={"units": self.unit, "long_name": self.definition},
        )
