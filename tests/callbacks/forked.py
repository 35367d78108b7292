"""Processes that train together, forked from one that has imported everything already.

They meet as if `torchrun` had begun them.
"""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from pathlib import Path


def play(scene: Callable[[Path], None], ranks: int, folder: Path) -> bool:
    """Let `ranks` processes play the scene in a new folder and wait for all; whether all went well."""
    folder.mkdir(parents=True)
    common = {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": _free_port()}
    common |= {"LOCAL_WORLD_SIZE": ranks}
    common |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": 0} if ranks > 1 else {}
    children = []
    for number in range(ranks):
        child = os.fork()
        if child == 0:
            own = common | {"RANK": number, "LOCAL_RANK": number}
            os.environ.update({key: str(value) for key, value in own.items()})
            code = 1
            try:
                scene(folder)
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return not any([os.waitpid(child, 0)[1] for child in children])


def _free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])
