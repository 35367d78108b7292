"""The runs of a study as jobs of a cluster, or as processes of this machine."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, Literal

import torch

from observatory.running.progress import Progress
from observatory.running.stack import Unit

Cluster = Literal["local", "slurm"]
POLL = 0.5  # seconds between looks at the jobs


def execute_as_jobs(
    units: Sequence[Unit], cluster: Cluster, parameters: Mapping[str, Any], progress: Progress
) -> None:
    """Execute each unit as a job of submitit and wait; its logs are in `jobs` beside the runs.

    On one machine as many jobs run at a time as it has cores, one thread each; of Slurm's array,
    as many as `slurm_array_parallelism` says.

    Raises:
        ImportError: without submitit.
        RuntimeError: if a job failed, after all others have ended.
    """
    try:
        import submitit
    except ImportError as error:
        raise ImportError("--submit needs submitit: pip install 'training-observatory[submitit]'") from error
    if not units:
        return
    folder = units[0].folders[0].path.parent / "jobs"
    executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
    executor.update_parameters(**parameters)
    threads = 1 if cluster == "local" else None
    waiting, failed = list(units), []
    running: list[tuple[Unit, Any]] = []
    while waiting or running:
        room = len(waiting) if cluster == "slurm" else max(0, (os.cpu_count() or 1) - len(running))
        started, waiting = waiting[:room], waiting[room:]
        if started:
            jobs = executor.map_array(partial(_execute, threads=threads), started)
            running += list(zip(started, jobs, strict=True))
        ended = [(unit, job) for unit, job in running if job.done()]
        running = [pair for pair in running if pair not in ended]
        for unit, job in ended:
            if (reason := job.exception()) is not None:
                failed.append(f"{unit.name}: {str(reason).strip().splitlines()[-1]}")
            else:
                progress.finished(len(unit.folders))
        time.sleep(0 if ended else POLL)
    if failed:
        raise RuntimeError(f"{len(failed)} of {len(units)} jobs failed, see {folder}; {failed[0]}")


def _execute(unit: Unit, *, threads: int | None) -> None:
    if threads is not None:
        torch.set_num_threads(threads)
    unit.execute()
