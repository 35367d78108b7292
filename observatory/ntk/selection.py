"""Choosing training data by novelty: random network distillation."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from observatory.looking.model import ModelFunction


@dataclass(frozen=True)
class Selection:
    """Examples in the order in which they were chosen."""

    indices: Tensor  # (count,), int64, positions in the pool
    novelty: Tensor  # (count,), ‖predictor - target‖ of each when it was chosen; NaN for the first


def select_by_novelty(
    pool: Tensor,
    count: int,
    *,
    target: nn.Module,
    predictor: nn.Module,
    steps: int = 100,
    learning_rate: float = 1e-2,
    first: int | None = None,
    generator: torch.Generator | None = None,
) -> Selection:
    """Choose points of a pool one after the other, each where a predictor knows least.

    A predictor learns the outputs of a fixed random target network on the points chosen so far; the next
    point is that with the largest ‖f_predictor(x) - f_target(x)‖ (Burda et al. 2018, arXiv:1810.12894; as a
    choice of training data: Tovey et al. 2023, arXiv:2305.00995). Costs a forward pass over the pool and
    `steps` Adam steps on the chosen points for each choice.

    Args:
        pool: (n, ...), inputs of both networks.
        count: number of points to choose.
        target, predictor: modules with outputs of equal shape and different weights; neither is changed.
        steps: of the predictor's training after each choice; it starts from where it was.
        learning_rate: of Adam.
        first: index of the first point; default drawn from the generator.
        generator: for the first point; default one with seed 0.

    Raises:
        ValueError: if the pool has fewer points, or the networks agree on all of it.
    """
    n = len(pool)
    if not 1 <= count <= n:
        raise ValueError(f"between 1 and {n} points can be chosen from a pool of {n}, {count} were asked for")
    follow = ModelFunction.of(predictor)
    with torch.no_grad():
        wanted = ModelFunction.of(target)(pool).detach()
        if torch.equal(wanted, follow(pool)):
            raise ValueError("target and predictor agree on the whole pool: give them different weights")
    if first is None:
        first = int(torch.randint(n, (), generator=generator or torch.Generator().manual_seed(0)))
    theta = {name: p.clone().requires_grad_() for name, p in follow.theta.items()}
    adam = torch.optim.Adam(list(theta.values()), lr=learning_rate)
    chosen, novelty = [first], [torch.nan]
    while len(chosen) < count:
        x, y = pool[chosen], wanted[chosen]
        for _ in range(steps):
            adam.zero_grad()
            (follow(x, theta) - y).square().mean().backward()
            adam.step()
        with torch.no_grad():
            distance = (follow(pool, theta) - wanted).reshape(n, -1).norm(dim=1)
        distance[chosen] = -torch.inf
        chosen.append(int(distance.argmax()))
        novelty.append(float(distance.max()))
    return Selection(torch.tensor(chosen), torch.tensor(novelty, dtype=torch.float64))
