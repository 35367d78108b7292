"""Runs of two processes: `python ranks.py FOLDER SCENE...` plays scenes, functions below, in FOLDER/SCENE.

Processes are forked, so that Python and PyTorch are imported once; they meet as if `torchrun` had begun them.
The scene "alone" is the run of a single process that the others are compared with.
"""

from __future__ import annotations

import os
import socket
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
import torch.distributed as dist
from lightning.fabric import Fabric
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from runs import bits
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.distributed.tensor.parallel import ColwiseParallel, RowwiseParallel, parallelize_module
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import observatory
from observatory.callbacks import CollectiveVariables
from observatory.callbacks.callback import ObservingCallback
from observatory.looking import Look
from observatory.looking.ranks import all_reduce_sum, rank, world_size
from observatory.ntk import instrument
from observatory.observing import Instrument
from observatory.records import Quantity

EVERY: dict[str, Any] = {"every_n_steps": 2, "max_overhead": None, "strict": True}
UPDATES, BATCH = 12, 8


class ParameterNorms(Instrument):
    """Sums of squares, each rank's share of the parameters summed over the ranks; gradients; buffers."""

    default_name = "norms"

    def quantities(self) -> dict[str, Quantity]:
        return {name: Quantity((), "1", name) for name in ("squares", "gradients", "buffers")}

    def observe(self, look: Look) -> dict[str, Tensor]:
        squares = torch.stack([p.double().square().sum() for p in look.model.theta.values()])
        gradients = [look.gradients[name].double().square().sum() for name in look.gradients]
        buffers = [b.double().square().sum() for b in look.model.buffers.values()]
        return {
            "squares": all_reduce_sum(squares[rank() :: world_size()].sum()),
            "gradients": torch.stack(gradients).sum() if gradients else torch.zeros(()),
            "buffers": torch.stack(buffers).sum() if buffers else torch.zeros(()),
        }


def network(norm: bool = True) -> nn.Sequential:
    """Double precision: what differs between one and two ranks is the order of sums, not their rounding."""
    torch.manual_seed(1)
    middle = [nn.BatchNorm1d(16)] if norm else [nn.LayerNorm(16)]
    return nn.Sequential(nn.Linear(6, 16), *middle, nn.ReLU(), nn.Linear(16, 3)).double()


def examples() -> TensorDataset:
    y = torch.arange(UPDATES * BATCH) % 3
    x = torch.randn(len(y), 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64) + y[:, None]
    return TensorDataset(x, y)


def share(k: int) -> tuple[Tensor, Tensor]:
    """This rank's part of batch k."""
    x, y = examples()[k * BATCH : (k + 1) * BATCH]
    return x[rank() :: world_size()], y[rank() :: world_size()]


class Shares(torch.utils.data.Dataset):
    """Already dealt out to the ranks: an item is this rank's part of a batch."""

    def __len__(self) -> int:
        return UPDATES

    def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
        return share(k)


class Stream(IterableDataset):
    def __iter__(self) -> Iterator[Any]:
        return (share(k) for k in range(UPDATES))


class Module(pl.LightningModule):
    def __init__(self, norm: bool = False, sharded: bool = False) -> None:
        super().__init__()
        self.norm, self.sharded = norm, sharded
        if not sharded:
            self.net = network(norm)

    def configure_model(self) -> None:
        if self.sharded and not hasattr(self, "net"):
            self.net = network(self.norm)
            if world_size() > 1:
                mesh = self.device_mesh["data_parallel"]
                for layer in self.net:
                    fully_shard(layer, mesh=mesh)
                fully_shard(self.net, mesh=mesh)

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)

    def training_step(self, batch: Any, _: int) -> Tensor:
        return cross_entropy(self(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def probe() -> observatory.Probe:
    return observatory.Probe(*examples()[:10])


def fit(folder: Path, module: Module, callbacks: list[ObservingCallback], data: Any = None) -> list:
    """Train; the bits of this rank's weights, optimizer and stream afterwards."""
    world = int(os.environ["WORLD_SIZE"])
    strategy = DDPStrategy(process_group_backend="gloo")
    if module.sharded:
        strategy = ModelParallelStrategy(2, 1, process_group_backend="gloo")
    several = {"strategy": strategy, "devices": world, "use_distributed_sampler": False}
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=folder, callbacks=callbacks, logger=False,
        enable_progress_bar=False, enable_checkpointing=False, enable_model_summary=False,
        **(several if world > 1 else {"devices": 1}),
    )  # fmt: skip
    torch.manual_seed(0)
    trainer.fit(module, DataLoader(data or Shares(), batch_size=None))
    state = tree_map(
        lambda x: x.to_local() if isinstance(x, DTensor) else x,
        [dict(module.named_parameters()), dict(module.named_buffers()), trainer.optimizers[0].state_dict()],
    )
    return bits([state, torch.get_rng_state()])


def instruments() -> list[Instrument]:
    return [instrument.CollectiveVariables(probe=probe()), ParameterNorms(probe=probe())]


def alone(folder: Path) -> None:
    fit(folder, Module(), [ObservingCallback(instruments(), **EVERY)])


def ddp(folder: Path) -> None:
    fit(folder, Module(), [ObservingCallback(instruments(), **EVERY)])


def ddp_of_4(folder: Path) -> None:
    ddp(folder)


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


def budgeted(folder: Path) -> None:
    """Each rank's clock runs differently; the decisions are rank 0's."""

    class Slow(ParameterNorms):
        def observe(self, look: Look) -> dict[str, Tensor]:
            torch.nn.functional.relu(torch.ones(10 ** (3 + 3 * rank())))
            return super().observe(look)

    options = {"every_n_steps": 1, "max_overhead": 0.01, "strict": True}
    fit(folder, Module(), [ObservingCallback([Slow(probe=probe()), *instruments()[:1]], **options)])


def failing(folder: Path, before: bool = True) -> None:
    """One rank fails, in front of or behind a collective that the others are waiting in."""

    class Fails(ParameterNorms):
        def observe(self, look: Look) -> dict[str, Tensor]:
            if before and rank() == 1 and look.step == 4:
                raise RuntimeError("the lens of rank 1 is broken")
            found = super().observe(look)
            if not before and rank() == 1 and look.step == 4:
                raise RuntimeError("the lens of rank 1 is broken")
            return found

    options = EVERY | {"strict": False}
    both = [Fails(name="failing", probe=probe()), ParameterNorms(probe=probe())]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(folder, Module(), [ObservingCallback(both, **options)])
    reasons = [str(one.message) for one in caught if "switched off" in str(one.message)]
    (folder / f"warnings_{rank()}").write_text("\n".join(reasons))


def failing_late(folder: Path) -> None:
    failing(folder, before=False)


def no_probe(folder: Path) -> None:
    """The data set raises where the probe is drawn, which happens on rank 0 alone."""

    class Broken(Shares):
        training = False

        def __getitem__(self, k: int) -> tuple[Tensor, Tensor]:
            if not Broken.training:
                raise OSError("the disk with the data is gone")
            return super().__getitem__(k)

    class Begin(ObservingCallback):
        def on_train_start(self, *args: Any) -> None:
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                super().on_train_start(*args)
            (folder / f"warnings_{rank()}").write_text("\n".join(str(one.message) for one in caught))
            Broken.training = True

    fit(folder, Module(), [Begin([ParameterNorms(probe=8)], **(EVERY | {"strict": False}))], data=Broken())


def defaults(folder: Path) -> None:
    """Two ranks as a user would have them: Lightning's own sampler, the callback's own probe."""
    callback = CollectiveVariables(**EVERY)
    trainer = pl.Trainer(
        max_epochs=1, accelerator="cpu", default_root_dir=folder, callbacks=[callback], devices=2,
        strategy=DDPStrategy(process_group_backend="gloo"), enable_progress_bar=False,
        logger=pl.loggers.CSVLogger(folder, "run", version=0), enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(Module(norm=True), DataLoader(examples(), 4, shuffle=True))


def play(scene: str, ranks: int, folder: Path, port: int) -> bool:
    """Fork the ranks and wait for all of them; whether all went well."""
    folder.mkdir(parents=True)
    common = {"WORLD_SIZE": ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "LOCAL_WORLD_SIZE": ranks}
    common |= {"TORCHELASTIC_RUN_ID": "test", "GROUP_RANK": 0} if ranks > 1 else {}
    children = []
    for number in range(ranks):
        child = os.fork()
        if child == 0:
            own = common | {"RANK": number, "LOCAL_RANK": number}
            os.environ.update({key: str(value) for key, value in own.items()})
            code = 1
            try:
                globals()[scene](folder)
                code = 0
            except BaseException:
                sys.excepthook(*sys.exc_info())
            finally:
                sys.stderr.flush()
                os._exit(code)
        children.append(child)
    return not any([os.waitpid(child, 0)[1] for child in children])


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


if __name__ == "__main__":
    torch.set_num_threads(1)
    root, *scenes = sys.argv[1:]
    ranks = {"alone": 1, "ddp_of_4": 4}
    went_well = {s: play(s, ranks.get(s, 2), Path(root) / s, free_port()) for s in scenes}
    print("failed:", *[scene for scene, well in went_well.items() if not well], flush=True)
