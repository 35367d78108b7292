"""A few digits to learn from, chosen at random or by their novelty."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from observatory.data import Digits, Splits
from observatory.ntk.selection import select_by_novelty


class SelectedDigits(Digits):
    """Handwritten digits as vectors; some of the training examples, all that are held out.

    Validation and test are the same examples, the three tenths that are no candidates for training: the
    lowest loss on them is what a study compares, and nothing is tuned with them.

    Args:
        count: number of training examples; they make one batch.
        selection: "random", or by "novelty" (random network distillation, see `select_by_novelty`).
        draw: which one of the random selections, or of the random networks and the first example.
        width: of the random networks.
    """

    def __init__(
        self,
        count: int = 20,
        selection: Literal["random", "novelty"] = "random",
        draw: int = 0,
        width: int = 32,
    ) -> None:
        super().__init__(flat=True, batch_size=count)
        if selection not in ("random", "novelty"):
            raise ValueError(f"selection must be 'random' or 'novelty', got {selection!r}")
        self.count, self.selection, self.draw, self.width = count, selection, draw, width

    def splits(self) -> Splits:
        whole = super().splits()
        x, y = whole.train
        chosen = self._chosen_from(x)
        held_out = (torch.cat([whole.val[0], whole.test[0]]), torch.cat([whole.val[1], whole.test[1]]))
        return Splits((x[chosen], y[chosen]), held_out, held_out)

    def _chosen_from(self, pool: Tensor) -> Tensor:
        generator = torch.Generator().manual_seed(self.draw)
        if self.selection == "random":
            return torch.randperm(len(pool), generator=generator)[: self.count]
        target, predictor = (self._network(pool.shape[1], generator) for _ in range(2))
        return select_by_novelty(
            pool, self.count, target=target, predictor=predictor, generator=generator
        ).indices

    def _network(self, inputs: int, generator: torch.Generator) -> nn.Module:
        """Its weights come from the generator: no global stream moves beyond the fork."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**31, (), generator=generator)))
            return nn.Sequential(nn.Linear(inputs, self.width), nn.ReLU(), nn.Linear(self.width, 8))
