"""Ensembles that a training loop advances: reproducible step by step, and with the moments of theory."""

from __future__ import annotations

import copy

import pytest
import torch

from observatory.solvable.ensembles import LinearEnsembles


def test_ensembles_depend_on_seed_and_step_alone():
    one = LinearEnsembles(replicas=32, discard=2, seed=3)
    for _ in range(4):
        one.advance(None)
    resumed = copy.deepcopy(one)
    one.advance(None)
    torch.rand(5)  # the global stream plays no part
    fresh = LinearEnsembles(replicas=32, discard=2, seed=3)
    fresh.load_state_dict(resumed.state_dict())
    fresh.advance(None)
    assert all(
        torch.equal(a, b) for a, b in zip(one.state_dict().values(), fresh.state_dict().values(), strict=True)
    )
    assert int(one.age) == 5


def test_one_layer_ensembles_have_the_moments_of_theory():
    runs = LinearEnsembles(replicas=1600, discard=300)
    for step in range(900):
        generator = torch.Generator().manual_seed(step)
        runs.online.advance(step, generator)
        runs.finite.advance(step, generator)
    for kind in (runs.online, runs.finite):
        seen, error = kind.sums.mean(0) / 600, kind.sums.std(0) / 600 / 1600**0.5
        assert ((seen - kind.theory_exact) / error).abs().max() < 5
    assert torch.allclose(runs.online.sums.mean(0) / 600, runs.online.theory_exact, rtol=0.05)
    finite = runs.finite.sums.mean(0) / 600
    miss = [
        float((theory - finite).norm() / finite.norm())
        for theory in (runs.finite.theory_exact, runs.finite.theory_additive, runs.finite.theory_continuum)
    ]
    assert miss[0] < 0.03 and 0.05 < miss[1] < miss[2]


@pytest.mark.parametrize("kind", ["coupled", "frozen"])
def test_second_layer_of_the_ensemble_tells_a_frozen_first_layer(kind):
    runs = getattr(LinearEnsembles(replicas=1600, discard=400), kind)  # 100 two-layer networks
    for step in range(700):
        runs.advance(step, torch.Generator().manual_seed(step))
    seen = runs.sums.mean(0) / 300
    # 100 runs over about one correlation time: √(2/100) = 14 % each
    assert torch.allclose(seen, runs.theory_exact, rtol=0.6)
    assert (seen[0].mean() < 0.8) == (kind == "coupled")
