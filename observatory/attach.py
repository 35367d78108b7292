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
    from lightning.pytorch import Callback

VARIABLE = "OBSERVATORY"


def from_environment() -> list[Callback]:
    """The callbacks that the file named by `OBSERVATORY` asks for; `[]` if the variable is unset.

    The file is a YAML with a mapping `observe:` of names to `class_path`/`init_args`, as for `observatory
    fit`. Its path is relative to the working directory. A name is the folder of the record and the section
    of the dashboard. Whatever is wrong with the file becomes one warning.
    """
    path = os.environ.get(VARIABLE)
    if not path:
        return []
    try:
        from observatory.callbacks.configured import callbacks_from_yaml

        return callbacks_from_yaml(path)
    except (Exception, SystemExit) as error:  # jsonargparse exits where a parser would
        warnings.warn(
            f"{VARIABLE}={path} is not used, training goes on without it: {error}", UserWarning, stacklevel=2
        )
        return []
