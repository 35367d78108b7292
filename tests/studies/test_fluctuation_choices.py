"""The study of choices reads exponents from records and says what they depend on."""

from __future__ import annotations

import numpy as np
import pytest
from finished import finished_run

from observatory.studies import FluctuationChoices

CHOICES = ["ranks 2-10", "Hessian basis"]
SCALARS = (
    "exponent", "exponent_low", "exponent_high", "first_rank", "last_rank", "correlation", "loss_at_mean",
    "top_variance", "total_variance",
)  # fmt: skip


@pytest.mark.parametrize(
    ("second", "level", "words", "between"),
    [
        (
            [4.0, np.nan],
            "warning",
            "from -2.00 (ranks 2-10, a) to 4.00 (ranks 2-10, b)",
            "ψ by 6.00 ± 0.14 for ranks 2-10 (b above a), and by more than three",
        ),
        (
            [-1.8, -1.9],
            "result",
            "does not depend",
            "the same in all runs within its errors; it differs most by 0.20 ± 0.14 for ranks 2-10",
        ),
    ],
)
def test_dependence_of_the_exponent_is_told_with_its_ends(second, level, words, between, tmp_path):
    runs = [
        finished_run(
            tmp_path / name, {"replacement": name == "b"}, instrument="weights",
            quantities={key: [1.0] for key in SCALARS}
            | {"variant_exponent": [exponents], "variant_error": [[0.1, 0.2]]}
            | {"variant_correlation": [[0.5, 0.9]]},
            coordinates={"variant": CHOICES},
        )
        for name, exponents in (("a", [-2.0, -1.7]), ("b", second))
    ]  # fmt: skip
    (section,) = FluctuationChoices().conclude(runs).sections
    assert section.findings[0].level == level and words in section.findings[0].text
    assert between in section.findings[1].text  # √(0.1² + 0.1²)
    assert section.rows[0][:2] == ["ranks 2-10", "-2.00 ± 0.10 (0.50)"]
    assert (section.rows[1][2] == "none") == bool(np.isnan(second[1]))
    section.panels[0].figure.savefig(tmp_path / "panel.png")


def test_one_run_is_nothing_to_compare():
    with pytest.raises(ValueError, match="at least two values"):
        FluctuationChoices().check([{}])
