"""A study of four short runs; as a script, it is killed at random instants until it comes to its end.

`python killed_study.py FILE FOLDER SEED` prints how often it was killed. Each attempt is a forked process.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import threading
from pathlib import Path

import torch
import yaml

from observatory.running import run_experiment
from observatory.running.bookmark import Bookmark

KILLS, SLOWEST = 6, 1.5  # of attempts, s

STUDY = {
    "base": {
        "seed_everything": 0,
        "model": {
            "class_path": "observatory.training.Supervised",
            "init_args": {
                "network": {
                    "class_path": "observatory.training.MLP",
                    "init_args": {"widths": [64, 8, 10]},
                }
            },
        },
        "data": {
            "class_path": "observatory.data.Digits",
            "init_args": {"flat": True, "subset": 500, "batch_size": 50},
        },
        "trainer": {"max_epochs": 4, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1},
        "observe": {
            "ntk": {
                "class_path": "observatory.callbacks.CollectiveVariables",
                "init_args": {"probe": 10, "max_overhead": None, "every_n_steps": 13},
            }
        },
    },
    "sweep": {
        "model.init_args.network.init_args.widths": [[64, 8, 10], [64, 16, 10]],
        "seed_everything": [0, 1],
    },
    "study": {"class_path": "observatory.studies.SeedsAndWidth", "init_args": {"resamples": 50}},
}


def write_study(file: Path, **changes: object) -> Path:
    file.write_text(yaml.safe_dump(STUDY | changes))
    return file


def attempt(file: str, folder: str, delay: float | None) -> bool:
    """Run the study in a process of its own, killed after a delay; whether it came to its end."""
    child = os.fork()
    if child == 0:
        if delay is not None:
            threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
        os._exit(run_experiment(file, output=folder))
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if status not in (0, -signal.SIGKILL):
        raise SystemExit(f"the study failed: {status}")
    return status == 0


def main(file: str, folder: str, seed: str) -> None:
    torch.set_num_threads(1)
    Bookmark.seconds = 0.0  # a bookmark after every step
    random.seed(int(seed))
    delays: list[float | None] = [random.uniform(0.1, SLOWEST) for _ in range(KILLS)]
    killed = next(k for k, delay in enumerate([*delays, None]) if attempt(file, folder, delay))
    print(killed)


if __name__ == "__main__":
    main(*sys.argv[1:])
