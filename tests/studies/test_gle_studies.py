"""Studies of memory kernels: closed forms that they are laid over, and what their quick settings conclude."""

from __future__ import annotations

import json

import pytest

from observatory.running import run_experiment
from observatory.studies import MemoryKernelDiscretised
from observatory.studies.memory_kernel import _every
from observatory.studies.training_as_gle import heavy_ball


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_descent_with_momentum_is_a_particle_without_memory(momentum):
    """G⟨x²⟩/kT = (1 - β)/(ηκ) from the first steps on, up to O(ηκ) of the time step of one."""
    rate = 1e-3
    G = heavy_ball(rate, momentum, 1.0, 40)
    expected = (1 - momentum) / rate
    assert float(G[2]) == pytest.approx(expected, rel=0.04)  # what smoothing leaves of the (-1)^i mode
    assert float(G[-1]) == pytest.approx(expected, rel=0.01)


@pytest.mark.parametrize(
    ("thin", "words"),
    [(1, "every point"), (2, "every 2nd point"), (11, "every 11th point"), (23, "every 23rd point")],
)
def test_thinning_in_words(thin, words):
    assert _every(thin) == words


def test_a_sweep_without_time_steps_is_refused():
    with pytest.raises(ValueError, match="goes over time steps"):
        MemoryKernelDiscretised(1.0, 0.1, 0.05, 2.0).check([{"seed_everything": 1}])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "sentences"),
    [
        ("memory_kernel", ["Friction:", "Fluctuation-dissipation:"]),
        ("memory_kernel_csv", ["Friction:", "the time step resolves the memory"]),
        (
            "memory_kernel_discretised",
            [
                "Direct inversion finds the memory time τ within 20% up to Δt = 0.5 τ",
                "The fit of simulations finds the friction γ within 10% up to Δt = 10 τ",
                "The fit of simulations finds the memory time τ within 20% up to Δt = 10 τ",
                "At Δt = 10 τ no unbiased estimator has smaller standard errors than",
            ],
        ),
        ("training_as_gle", ["With replacement, momentum 0: no memory", "Reshuffled, momentum 0: a memory"]),
    ],
)
def test_quick_settings_conclude(name, sentences, tmp_path):
    assert run_experiment(name, quick=True, output=tmp_path) == 0
    conclusion = json.loads((tmp_path / f"{name}-quick" / "conclusion.json").read_text())
    text = "\n".join(finding["text"] for finding in conclusion["findings"])
    for sentence in sentences:
        assert sentence in text
