"""What the command line says when it cannot go on."""

from __future__ import annotations

import sys
from typing import NoReturn

PROGRAM = "observatory"


def refuse(message: str) -> NoReturn:
    """One line on standard error, exit code 2."""
    print(f"{PROGRAM}: {' '.join(message.split())}", file=sys.stderr)
    raise SystemExit(2)
