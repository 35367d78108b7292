"""What the collective variables of a run say, in sentences."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from observatory.ntk.stages_figures import in_words, stages_or_none
from observatory.records import Finding

if TYPE_CHECKING:
    from observatory.records import Run

CHANGE = 0.02  # of ln n: smaller changes of the entropy are called none


def sentences(run: Run) -> list[Finding]:
    """Findings of a record; empty before two looks are taken."""
    if "entropy" not in run or len(run["entropy"]) < 2:
        return []
    entropy, trace, n = run["entropy"], run["mean_trace"], run["spectrum"].values.shape[1]
    finite = np.isfinite(entropy.values)
    if not finite.all():
        first = int(entropy.steps[~finite][0])
        warning = Finding(
            f"the kernel is not finite from step {first} on: the network has diverged", "warning"
        )
        if finite.sum() < 2:
            return [warning]
    else:
        warning = None
    steps, s = entropy.steps[finite], entropy.values[finite]
    t = trace.values[finite]
    lowest, highest = int(s.argmin()), int(s.argmax())
    end = s[-1] - s[0]
    verdict = "ended where it began"
    if abs(end) > CHANGE * np.log(n):
        verdict = "fell (information compression)" if end < 0 else "rose (structure formation)"
    found = [
        Finding(
            f"the kernel's entropy {verdict}: {s[0]:.2f} nat at step {steps[0]}, {s[-1]:.2f} "
            f"at step {steps[-1]} of at most ln {n} = {np.log(n):.2f}; "
            f"effective rank {np.exp(s[0]):.1f} to {np.exp(s[-1]):.1f}"
        ),
        Finding(
            f"lowest entropy {s[lowest]:.2f} at step {steps[lowest]}, highest {s[highest]:.2f} "
            f"at step {steps[highest]}"
        ),
        Finding(
            f"the mean trace went from {t[0]:.3g} to {t[-1]:.3g}, highest {t.max():.3g} "
            f"at step {steps[t.argmax()]}"
        ),
    ]
    found += _stages(run)
    if "distance" in run:
        distance = run["distance"].values[finite][-1]
        found.append(
            Finding(
                f"its direction is a distance of {distance:.2g} from that of the first look (0: the same)"
            )
        )
    if "centred_alignment" in run and np.isfinite(run["centred_alignment"].values[finite]).all():
        a = run["centred_alignment"].values[finite]
        found.append(Finding(f"its centred alignment with the targets went from {a[0]:.2f} to {a[-1]:.2f}"))
    return found if warning is None else [warning, *found]


def _stages(run: Run) -> list[Finding]:
    """Of the entropy, of the logarithm of the trace, and of that of the velocity."""
    found = []
    for name, words in (
        ("entropy", "stages of the entropy by steps"),
        ("mean_trace", "the logarithm of the trace by steps"),
        ("velocity", "the logarithm of the kernel's velocity by steps"),
    ):
        if name not in run:
            continue
        values = np.asarray(run[name].values, dtype=float)
        if name != "entropy":
            values = np.log(np.where(values > 0, values, np.nan))
        stages = stages_or_none(run[name].steps, values)
        if stages is not None:
            found.append(Finding(f"{words}: {in_words(stages, entropy=name == 'entropy')}"))
    return found
