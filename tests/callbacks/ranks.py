"""Runs of several processes: `python ranks.py FOLDER SCENE...` plays scenes, the functions below.

The scenes "alone" and "all_alone" are the runs of a single process that others are compared with.
"""

from __future__ import annotations

import math
import os
import sys
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import ranks_in_trouble
import torch
import torch.distributed as dist
from everything import every_instrument
from forked import play
from lightning.fabric import Fabric
from lightning.pytorch.strategies import DDPStrategy
from rank_runs import (
    BATCH,
    EVERY,
    UPDATES,
    Module,
    ParameterNorms,
    Stream,
    examples,
    fit,
    instruments,
    network,
    probe,
    share,
)
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader, DistributedSampler

import observatory
from observatory.callbacks import CollectiveVariables, StageCheckpoint
from observatory.callbacks.callback import ObservingCallback
from observatory.data import training_loader
from observatory.looking import Look
from observatory.looking.ranks import rank, world_size


def alone(folder: Path) -> None:
    fit(folder, Module(), [ObservingCallback(instruments(), **EVERY)])


def ddp(folder: Path) -> None:
    fit(folder, Module(), [ObservingCallback(instruments(), **EVERY)])


def ddp_of_4(folder: Path) -> None:
    ddp(folder)


def all_alone(folder: Path, sharded: bool = False) -> None:
    """Every instrument, on data that a sampler deals out, as a user's are."""
    world, number = int(os.environ["WORLD_SIZE"]), int(os.environ["RANK"])
    dealer = DistributedSampler(examples(), world, number, shuffle=False)
    callbacks = every_instrument(every_n_steps=2, probe=probe(24))
    watched = fit(
        folder, Module(sharded=sharded), callbacks, DataLoader(examples(), BATCH // world, sampler=dealer)
    )
    assert watched == fit(folder, Module(sharded=sharded), [])


def all_ddp(folder: Path) -> None:
    all_alone(folder)


def all_ddp_of_4(folder: Path) -> None:
    all_alone(folder)


def all_fsdp(folder: Path) -> None:
    all_alone(folder, sharded=True)


class Course(pl.Callback):
    """Stages that are known on rank 0 alone, as those of a look are."""

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        if rank() == 0:
            stage = math.nan if trainer.global_step < 3 else float(trainer.global_step >= 8)
            trainer.callback_metrics["ntk/stage"] = torch.tensor(stage)


def stages(folder: Path, sharded: bool = False) -> None:
    """A new stage is saved by all ranks together."""
    saving = StageCheckpoint(folder=folder / "stages")
    saved = fit(folder, Module(sharded=sharded), [Course(), saving])
    assert saving.stage == 1
    assert saved == fit(folder, Module(sharded=sharded), [])


def stages_fsdp(folder: Path) -> None:
    stages(folder, sharded=True)


def resumed(folder: Path) -> None:
    """All 12 updates, 9 of them, and the rest from a checkpoint after 7: three records."""

    class Own(Module):
        def train_dataloader(self) -> DataLoader:
            return training_loader(examples(), BATCH // world_size(), seed=4)

        def on_train_batch_start(self, *_: Any) -> int | None:
            return -1 if self.global_step == stop else None

    class Saving(pl.Callback):
        def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
            if trainer.global_step == 7:
                trainer.save_checkpoint(folder / "at.ckpt")

    def run(*others: pl.Callback, **resume: Any) -> list:
        return fit(folder, Own(), [*every_instrument(probe=probe(24)), *others], **resume)

    stop = UPDATES
    whole = run()
    stop = 9
    assert run(Saving()) != whole
    stop = UPDATES
    assert run(ckpt_path=folder / "at.ckpt") == whole


def buffers(folder: Path) -> None:
    """BatchNorm's statistics differ between the ranks; all look at rank 0's, and change nobody's."""

    class Kernel(ParameterNorms):
        def observe(self, look: Look) -> dict[str, Tensor]:
            output = look.model(look.probe.inputs).sum()
            own = torch.stack([b.double().sum() for b in network_of[0].buffers()]).sum()
            everybody = [torch.zeros_like(output) for _ in range(world_size())]
            dist.all_gather(everybody, output.contiguous())
            owns = [torch.zeros_like(own) for _ in range(world_size())]
            dist.all_gather(owns, own)
            assert torch.equal(everybody[0], everybody[1])
            if look.step > 0:
                assert not torch.equal(owns[0], owns[1])  # the ranks have seen different batches
            return super().observe(look)

    module = Module(norm=True)
    network_of = [module.net]
    watched = fit(folder, module, [ObservingCallback([Kernel(probe=probe())], **EVERY)])
    assert watched == fit(folder, Module(norm=True), [])


def fsdp(folder: Path) -> None:
    watched = fit(folder, Module(sharded=True), [ObservingCallback(instruments(), **EVERY)])
    assert watched == fit(folder, Module(sharded=True), [])


def loop(folder: Path) -> None:
    """A loop without Lightning, sharded by hand."""
    model = network(norm=False)
    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (2,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    fully_shard(model, mesh=mesh)
    run(folder, model, torch.optim.SGD(model.parameters(), lr=0.1))


def fabric(folder: Path) -> None:
    one = Fabric(accelerator="cpu", devices=2, strategy="ddp")
    one.launch()
    model = network(norm=False)
    run(folder, *one.setup(model, torch.optim.SGD(model.parameters(), lr=0.1)), backward=one.backward)


def tensor_parallel(folder: Path) -> None:
    """A layer's columns and the next one's rows on different ranks, which both see whole batches."""

    def perceptron() -> nn.Sequential:
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 3)).double()

    def train(model: nn.Sequential, watch: Any = None) -> None:
        sgd = torch.optim.SGD(model.parameters(), lr=0.1)
        for k in range(UPDATES):
            sgd.zero_grad()
            x, y = examples()[k * BATCH : (k + 1) * BATCH]
            cross_entropy(model(x), y).backward()
            sgd.step()
            if watch is not None:
                watch.step()

    whole = perceptron()
    train(whole)  # no process group yet
    dist.init_process_group("gloo")
    plan = {"0": ColwiseParallel(), "2": RowwiseParallel()}
    model = parallelize_module(perceptron(), init_device_mesh("cpu", (2,)), plan)
    out = folder / "observatory/run_0"
    with observatory.watch(model, instruments=[ParameterNorms(probe=probe())], out=out, **EVERY) as watch:
        train(model, watch)
    expected = sum(float(p.detach().square().sum()) for p in whole.parameters())
    assert abs(watch.latest.get("norms/squares", expected) - expected) < 1e-12 * expected


def run(folder: Path, model: Any, optimizer: Any, backward: Any = Tensor.backward) -> None:
    out = folder / "observatory/run_0"
    with observatory.watch(model, optimizer, instruments=instruments(), out=out, **EVERY) as watch:
        for k in range(UPDATES):
            optimizer.zero_grad()
            x, y = share(k)
            backward(cross_entropy(model(x), y))
            optimizer.step()
            watch.step()


def stream(folder: Path) -> None:
    """A probe of the first batches that pass by, which are rank 0's on all ranks."""
    fit(folder, Module(), [ObservingCallback([ParameterNorms(probe=8)], **EVERY)], data=Stream())


def defaults(folder: Path) -> None:
    """Two ranks as a user would have them: Lightning's own sampler, the callback's own probe."""
    callback = CollectiveVariables(**EVERY)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=folder, callbacks=[callback], devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"), enable_progress_bar=False,
        logger=pl.loggers.CSVLogger(folder, "run", version=0), enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(norm=True), DataLoader(examples(), 4, shuffle=True))


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, *scenes = sys.argv[1:]
    ranks = {"alone": 1, "all_alone": 1, "ddp_of_4": 4, "all_ddp_of_4": 4}
    known = vars(ranks_in_trouble) | globals()
    went_well = {s: play(known[s], ranks.get(s, 2), Path(root) / s) for s in scenes}
    print("failed:", *[scene for scene, well in went_well.items() if not well], flush=True)
