"""Published figures of the UCI regression benchmark, test error and -ln p per row in the target's own units.

Mean and standard error over the published splits; one hidden layer of 50 ReLU (protein 100).
"""

from __future__ import annotations

from typing import NamedTuple


class Published(NamedTuple):
    """A figure with its uncertainty: standard error, for deep ensembles one standard deviation."""

    value: float
    error: float


METHODS = {
    "PBP": "probabilistic backpropagation, Hernández-Lobato & Adams 2015, arXiv:1502.05336",
    "DE": "deep ensembles of 5 (± standard deviation), Lakshminarayanan et al. 2017, arXiv:1612.01474",
    "MCD": "dropout, Gal & Ghahramani 2016, arXiv:1506.02142; long training, stored results of the authors",
}

_RMSE = """
boston   3.014 .180   3.28 1.00   2.904 .177
concrete 5.667 .093   6.03 .58    4.826 .161
energy   1.804 .048   2.09 .29    0.539 .014
kin8nm   0.098 .001   0.09 .00    0.079 .001
naval    0.006 .000   0.00 .00    0.0007 .0000
power    4.124 .035   4.11 .17    4.014 .037
protein  4.732 .013   4.71 .06    4.274 .021
wine     0.635 .008   0.64 .04    0.622 .008
yacht    1.015 .054   1.58 .48    0.666 .049
"""
_NLL = """
boston   2.574 .089   2.41 .25    2.402 .042
concrete 3.161 .019   3.06 .18    2.937 .025
energy   2.042 .019   1.38 .22    1.212 .005
kin8nm   -0.896 .006  -1.20 .02   -1.136 .007
naval    -3.731 .006  -5.63 .05   -4.450 .002
power    2.837 .009   2.79 .04    2.808 .009
protein  2.973 .003   2.83 .02    2.871 .001
wine     0.968 .014   0.94 .12    0.928 .013
yacht    1.634 .016   1.18 .21    1.250 .015
"""


def _read(text: str) -> dict[str, dict[str, Published]]:
    found = {}
    for line in text.strip().splitlines():
        name, *numbers = line.split()
        values = list(map(float, numbers))
        found[name] = {m: Published(values[2 * k], values[2 * k + 1]) for k, m in enumerate(METHODS)}
    return found


RMSE = _read(_RMSE)
NLL = _read(_NLL)
