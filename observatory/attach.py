"""Attaching to every Trainer of an environment, without touching a script.

Lightning calls `from_environment` whenever a Trainer is made, through the entry point
`lightning.pytorch.callbacks_factory`. Until the environment variable `OBSERVATORY` names a YAML file it
returns an empty list, having imported nothing; and it never raises, since an error here would break all
training in the environment.
"""

from __future__ import annotations

import os
import warnings

TYPE_CHECKING = False  # as in `observatory/__init__.py`
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Any

    from lightning.pytorch import Callback

VARIABLE = "OBSERVATORY"


def from_environment() -> list[Callback]:
    """The callbacks that the file named by `OBSERVATORY` asks for; `[]` if the variable is unset.

    The file is a YAML with a mapping `observe:` of names to `class_path`/`init_args`, as for `observatory
    fit`. Its path is relative to the working directory. A name is the folder of the record and the section
    of the dashboard. Whatever is wrong with the file becomes one warning.
    """
    return _attached(lambda callbacks: callbacks)


def from_environment_adapted() -> list[Any]:
    """The same for a Trainer of the `pytorch_lightning` package (entry point of that name)."""

    def adapted(callbacks: list[Any]) -> list[Any]:
        from observatory.callbacks.pytorch_lightning import Adapted

        return [Adapted(callback) for callback in callbacks]

    return _attached(adapted)


def _attached(adapt: Callable[[list[Any]], list[Any]]) -> list[Any]:
    path = os.environ.get(VARIABLE)
    if not path:
        return []
    try:
        from observatory.callbacks.configured import callbacks_from_yaml

        callbacks = callbacks_from_yaml(path)
        for callback in callbacks:
            callback.attached = True  # type: ignore[attr-defined]
        return adapt(callbacks)
    except (Exception, SystemExit) as error:  # jsonargparse exits where a parser would
        message = f"{VARIABLE}={path} is not used, training goes on without it: {error}"
        warnings.warn(message, UserWarning, stacklevel=3)
        return []
