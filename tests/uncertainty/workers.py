"""Two processes that fit together: `python workers.py FOLDER`; each writes FOLDER/<rank>.pt."""

from __future__ import annotations

import os
import socket
import sys
import warnings
from pathlib import Path

import torch
import torch.distributed as dist
from heads import mlp, table
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from observatory.uncertainty import LastLayerClassifier, LastLayerGP

ROWS = 101  # odd: the sampler of one rank repeats a row
METHODS = ("nll", "crps", "absolute", "median", "loo")


def parts(shuffled: bool) -> tuple[DataLoader, DataLoader]:
    """Training and validation data, of this rank alone where there are several."""

    def loader(n: int, seed: int) -> DataLoader:
        data = TensorDataset(*table(n, seed=seed))
        sampler = DistributedSampler(data, shuffle=shuffled) if dist.is_initialized() else None
        return DataLoader(data, 16, sampler=sampler)

    return loader(ROWS, 1), loader(57, 2)


def fitted() -> dict[str, torch.Tensor]:
    """Everything that must not depend on the number of processes."""
    found = {}
    x, _ = table(9, seed=3)
    for accumulator in ("gram", "sqrt"):
        for method in METHODS:
            train, val = parts(shuffled=True)
            gp = LastLayerGP(mlp(), reg=0.1, accumulator=accumulator).fit(train)
            gp.calibrate(train if method == "loo" else val, method)
            found |= {
                f"{accumulator} {method} alpha": gp.alpha,
                f"{accumulator} {method} std": gp.predict(x).std,
            }
            assert int(gp.gram.rows) == ROWS
        root = gp.gram.root(0.0)
        found[f"{accumulator} C"] = root.mT @ root
        found[f"{accumulator} reg"] = (
            LastLayerGP(mlp(), reg="evidence").fit(parts(shuffled=True)[0]).fitted.reg
        )
    for covariance in ("shared", "ggn", "kron"):
        train, val = ([(x, y.argmax(1)) for x, y in loader] for loader in parts(shuffled=False))
        if dist.is_initialized():  # lists know no sampler: leave out the repeated row
            train, val = own(train, ROWS), own(val, 57)
        classifier = LastLayerClassifier(mlp(), covariance=covariance).fit(train).calibrate(val)
        found[f"{covariance} p"] = classifier.predict(x).probabilities
    return found


def own(batches: list, total: int) -> list:
    count = len(range(dist.get_rank(), total, dist.get_world_size()))
    x, y = (torch.cat(part)[:count] for part in zip(*batches, strict=True))
    return [(x, y)]


def work(rank: int, port: int, folder: str) -> None:
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    warnings.simplefilter("ignore")
    dist.init_process_group("gloo", rank=rank, world_size=2)
    torch.save(fitted(), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    torch.multiprocessing.start_processes(work, (port, sys.argv[1]), nprocs=2, start_method="fork")
