"""Cost of one record of 20 scalars, a spectrum of 256 and 8 layers × 128 numbers, handed to the system.

Beside it the same numbers through csv (scalars only, flushed) and `numpy.savez` (one file per record).
"""

from __future__ import annotations

import csv
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from observatory.records import Quantity, RunRecord

RECORDS = 1000


def milliseconds(append: Callable[[int], None]) -> float:
    """Median over records, after a warm-up."""
    times = []
    for step in range(RECORDS + 50):
        started = time.perf_counter()
        append(step)
        times.append(time.perf_counter() - started)
    return 1e3 * float(np.median(times[50:]))


def main() -> None:
    scalars = {f"s{k}": float(k) for k in range(20)}
    arrays = {"spectrum": np.zeros(256), "layers": np.zeros((8, 128))}
    quantities = {name: Quantity((), "1", "") for name in scalars}
    quantities |= {"spectrum": Quantity(("rank",), "1", ""), "layers": Quantity(("layer", "unit"), "1", "")}
    with tempfile.TemporaryDirectory() as folder:
        record = RunRecord(Path(folder) / "record", "a").instrument("x", quantities)
        ours = milliseconds(lambda step: record.append(step, {**scalars, **arrays}))
        with (Path(folder) / "scalars.csv").open("w") as file:
            writer = csv.writer(file)

            def row(step: int) -> None:
                writer.writerow([step, *scalars.values()])
                file.flush()

            lines = milliseconds(row)
        archives = milliseconds(lambda step: np.savez(Path(folder) / f"{step}.npz", **scalars, **arrays))
    print(f"record of 20 scalars and 1280 numbers: {ours:.4f} ms (asked: 0.1 ms)")
    print(f"ratio to csv, scalars only: {ours / lines:.2f}; to one .npz per record: {ours / archives:.3f}")


if __name__ == "__main__":
    main()
