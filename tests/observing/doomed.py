"""Watched runs that meet with an accident: `python doomed.py FOLDER` plays each in FOLDER/SCENE.

A scene is one or several attempts, each in a forked process, so that Python and PyTorch are imported once. An
attempt resumes from the checkpoint of the one before it, and leaves `end.json` if it came to its end.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable
from contextlib import suppress
from hashlib import sha256
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.callbacks import OnExceptionCheckpoint
from runs import Classifier, bits, fit
from scenes import Outputs, batches, network

import observatory
from observatory.callbacks.callback import ObservingCallback
from observatory.looking import Look
from observatory.records import growing, record

UPDATES = 12
Accident = Callable[[Path], Any]


class Interrupted(Outputs):
    """Sends its own process a signal in the middle of the look at a step, the first time."""

    def __init__(self, number: int, marker: Path, step: int = 5) -> None:
        super().__init__()
        self.number, self.marker, self.step = number, marker, step

    def observe(self, look: Look) -> Any:
        found = super().observe(look)
        if look.step == self.step and not self.marker.exists():
            self.marker.touch()
            os.kill(os.getpid(), self.number)
        return found


def train(folder: Path, instrument: Outputs | None = None) -> None:
    """A loop of one's own that saves a checkpoint after every third update."""
    model = network()
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    checkpoint = folder / "newest.pt"
    watch = observatory.watch(
        model, optimizer, probe=batches()[0], instruments=[instrument or Outputs()], out=folder,
        every_n_steps=1, max_overhead=None,
    )  # fmt: skip
    if checkpoint.exists():
        saved = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(saved["model"])
        optimizer.load_state_dict(saved["optimizer"])
        watch.load_state_dict(saved["watch"])
    with watch:
        for x, y in batches(UPDATES)[watch.updates :]:
            torch.manual_seed(watch.updates)
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(model(x), y).backward()
            optimizer.step()
            watch.step()
            if watch.updates % 3 == 0:
                content = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                torch.save(content | {"watch": watch.state_dict()}, folder / "partial.pt")
                (folder / "partial.pt").replace(checkpoint)
    end(folder, bits(model.state_dict()))


def end(folder: Path, state: list) -> None:
    digest = sha256(repr(state).encode()).hexdigest()
    (folder / "end.json").write_text(json.dumps({"weights": digest, "updates": UPDATES}))


def attempt(folder: Path, run: Accident, output: int) -> None:
    """Run in a process of its own and write down how it ended and what it warned of."""
    child = os.fork()
    if child == 0:
        code = 1
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                run(folder)
                code = 0
            except BaseException as error:
                (folder / "error").write_text(f"{type(error).__name__}: {error}")
            finally:
                said = [str(one.message) for one in caught if "training goes on" in str(one.message)]
                os.write(output, (json.dumps({"folder": str(folder), "warnings": said}) + "\n").encode())
                os._exit(code)
    status = os.waitpid(child, 0)[1]
    with (folder / "attempts").open("a") as file:
        file.write(f"{-os.WTERMSIG(status) if os.WIFSIGNALED(status) else os.WEXITSTATUS(status)}\n")


# Accidents


def whole(folder: Path) -> None:
    train(folder)


def killed_in_a_look(folder: Path) -> None:
    train(folder, Interrupted(signal.SIGKILL, folder / "marker"))


def killed_at_call(number: int) -> Accident:
    """SIGKILL in the middle of the `number`-th write of the record, or in front of it."""

    def run(folder: Path) -> None:
        if not (folder / "marker").exists():
            count = 0

            def write(call: Callable[..., int], file: int, data: bytes, *where: int) -> int:
                nonlocal count
                count += 1
                if count == number:
                    (folder / "marker").touch()
                    call(file, data[: len(data) // 2 if number % 2 else 0], *where)
                    os.kill(os.getpid(), signal.SIGKILL)
                return call(file, data, *where)

            class Doomed:  # in place of the module `os`, for the two files that write the record
                pwrite = staticmethod(lambda *given: write(os.pwrite, *given))
                write = staticmethod(lambda *given: write(os.write, *given))

                def __getattr__(self, name: str) -> Any:
                    return getattr(os, name)

            growing.os = record.os = Doomed()  # type: ignore[assignment]
        train(folder)

    return run


def disk_full(folder: Path) -> None:
    """No file of the record may grow beyond 700 bytes: the last call writes a part, as on a full disk."""
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    free, save = resource.getrlimit(resource.RLIMIT_FSIZE), torch.save

    class Full(Outputs):
        def observe(self, look: Look) -> Any:
            resource.setrlimit(resource.RLIMIT_FSIZE, (700, free[1]))
            return super().observe(look)

    def save_elsewhere(*given: Any) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, free)
        save(*given)

    torch.save = save_elsewhere
    train(folder, Full())


def too_many_files(folder: Path) -> None:
    """The process has no file descriptor left when the first look is to be written."""
    (folder / "rehearsal").mkdir()
    train(folder / "rehearsal")  # PyTorch opens files of its own when something is used for the first time
    limit, taken = resource.getrlimit(resource.RLIMIT_NOFILE), []

    class Last(Outputs):
        def observe(self, look: Look) -> Any:
            if look.step == 0:
                resource.setrlimit(resource.RLIMIT_NOFILE, (100, limit[1]))
                with suppress(OSError):
                    while True:
                        taken.append(os.open(os.devnull, os.O_RDONLY))
            while look.step > 0 and taken:
                os.close(taken.pop())
            return super().observe(look)

    train(folder, Last())


def read_only(folder: Path) -> None:
    """As somebody who may not write where the record should go, nor enter the folders of pytest."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o777)
    (place / "observatory").mkdir(mode=0o555)
    (folder / "place").symlink_to(place)
    (folder / "end.json").symlink_to(place / "end.json")
    if os.getuid() == 0:
        os.setuid(65534)
    train(place)


def lightning(number: int) -> Accident:
    """The signal in a look of a Lightning run, which saves a checkpoint when it is interrupted."""

    def run(folder: Path) -> None:
        saved = folder / "interrupted.ckpt"
        pl.seed_everything(5, verbose=False)
        callback = ObservingCallback(
            [Interrupted(number, folder / "marker")], every_n_steps=1, max_overhead=None
        )
        snapshot = fit(
            folder, [callback, OnExceptionCheckpoint(folder, "interrupted")], max_epochs=1,
            module=lambda: Classifier("sgd"), enable_checkpointing=True,
            ckpt_path=saved if saved.exists() else None,
        )  # fmt: skip
        end(folder, bits(snapshot.weights))

    return run


# A look makes five writes: record and count of two arrays, and an event; the first one also makes two headers
# and their counts. The first checkpoint comes after the fourth look, with write 24.
SCENES: dict[str, tuple[Accident, int]] = {
    "whole": (whole, 1),
    "killed_in_a_look": (killed_in_a_look, 2),
    **{f"killed_at_{n}": (killed_at_call(n), 2) for n in (1, 2, 3, 4, 5, 6, 7, 8, 22, 23, 24, 25, 26, 27)},
    "disk_full": (disk_full, 1),
    "too_many_files": (too_many_files, 1),
    "read_only": (read_only, 1),
    "sigint": (lightning(signal.SIGINT), 2),
    "sigterm": (lightning(signal.SIGTERM), 2),
}


def play(scenes: dict[str, tuple[Accident, int]], root: Path) -> None:
    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a shell runs in the background
    output = os.dup(1)
    for name, (run, attempts) in scenes.items():
        (root / name).mkdir(parents=True)
        for _ in range(attempts):
            attempt(root / name, run, output)


if __name__ == "__main__":
    play({name: SCENES[name] for name in sys.argv[2:] or SCENES}, Path(sys.argv[1]))
