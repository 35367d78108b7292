"""Batches of a stack of runs: those of each run alone, however it draws them."""

from __future__ import annotations

import torch

from observatory.data import LinearTask, StackedData


def test_each_member_of_a_stack_draws_its_batches_as_it_would_alone():
    """Two epochs, with another seed and with replacement: the orders differ, the examples do not."""
    own = [LinearTask(examples=60, inputs=3, batch_size=16, seed=s, replacement=r)
           for s, r in ((0, False), (0, True), (5, True))]  # fmt: skip
    together = StackedData(own)
    together.setup("fit")
    loaders = [member.train_dataloader() for member in own]
    stack = together.train_dataloader()
    for epoch in range(2):
        for loader in (*loaders, stack):
            loader.sampler.set_epoch(epoch)
        batches = zip(*loaders, strict=True)
        for (x, y), alone in zip(stack, batches, strict=True):
            for k, (own_x, own_y) in enumerate(alone):
                assert torch.equal(x[k], own_x) and torch.equal(y[k], own_y)
    assert not torch.equal(x[0], x[1]) and not torch.equal(x[1], x[2])
