"""What the package costs a training script that does not use it: import, and the idle entry point."""

from __future__ import annotations

import subprocess
import sys

CODE = """
import time
import lightning.pytorch
started = time.perf_counter()
import observatory
from observatory.attach import from_environment
from_environment()
print(1e3 * (time.perf_counter() - started))
"""


def main() -> None:
    times = [float(subprocess.check_output([sys.executable, "-c", CODE], text=True)) for _ in range(7)]
    print(f"import observatory and idle entry point beside Lightning: {min(times):.3f} ms (asked: 1 ms)")


if __name__ == "__main__":
    main()
