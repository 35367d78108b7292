"""What is trained by several processes at once (`ranks.py`), and watched."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from runs import bits
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from torch.nn.functional import cross_entropy
from torch.utils._pytree import tree_map
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import observatory
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


def probe(size: int = 10) -> observatory.Probe:
    return observatory.Probe(*examples()[:size])


def fit(
    folder: Path,
    module: Module,
    callbacks: Sequence[pl.Callback],
    data: Any = None,
    ckpt_path: Path | None = None,
) -> list:
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
    loader = data if isinstance(data, DataLoader) else DataLoader(data or Shares(), batch_size=None)
    if type(module).train_dataloader is not Module.train_dataloader:
        loader = None  # it has its own
    trainer.fit(module, loader, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    state = tree_map(
        lambda x: x.to_local() if isinstance(x, DTensor) else x,
        [dict(module.named_parameters()), dict(module.named_buffers()), trainer.optimizers[0].state_dict()],
    )
    return bits([state, torch.get_rng_state()])


def instruments() -> list[Instrument]:
    return [instrument.CollectiveVariables(probe=probe()), ParameterNorms(probe=probe())]
