"""Explicit Runge-Kutta methods as tables of numbers."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Tableau:
    """y₊ = y + h Σᵢ bᵢ kᵢ with kᵢ = f(t + cᵢ h, y + h Σ_{j<i} aᵢⱼ kⱼ)."""

    a: tuple[tuple[float, ...], ...]  # row i holds aᵢⱼ for j < i; the first row is empty
    b: tuple[float, ...]
    order: int
    error: tuple[float, ...] = ()  # b minus the weights of the embedded method, if there is one

    @property
    def c(self) -> tuple[float, ...]:
        """cᵢ = Σⱼ aᵢⱼ."""
        return tuple(sum(row) for row in self.a)

    @property
    def stability(self) -> tuple[float, ...]:
        """Coefficients of R(z) = 1 + Σₖ zᵏ bᵀ Aᵏ⁻¹ 1, constant first: y' = a y gives y₊ = R(a h) y."""
        coefficients, powers = [1.0], [1.0] * len(self.b)
        for _ in self.b:
            coefficients.append(sum(b * p for b, p in zip(self.b, powers, strict=True)))
            powers = [sum(x * p for x, p in zip(row, powers, strict=False)) for row in self.a]
        return tuple(coefficients)


_TSITOURAS = (
    0.09646076681806523,
    0.01,
    0.4798896504144996,
    1.379008574103742,
    -3.290069515436081,
    2.324710524099774,
)

TABLEAUX = {
    "euler": Tableau(a=((),), b=(1.0,), order=1),
    "heun": Tableau(a=((), (1.0,)), b=(1 / 2, 1 / 2), order=2),
    # C.-W. Shu, S. Osher, J. Comput. Phys. 77, 439 (1988)
    "ssprk3": Tableau(a=((), (1.0,), (1 / 4, 1 / 4)), b=(1 / 6, 1 / 6, 2 / 3), order=3),
    "rk4": Tableau(a=((), (1 / 2,), (0.0, 1 / 2), (0.0, 0.0, 1.0)), b=(1 / 6, 1 / 3, 1 / 3, 1 / 6), order=4),
    # J. Dormand, P. Prince, J. Comput. Appl. Math. 6, 19 (1980)
    "dopri5": Tableau(
        a=(
            (),
            (1 / 5,),
            (3 / 40, 9 / 40),
            (44 / 45, -56 / 15, 32 / 9),
            (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
            (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
            (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
        ),
        b=(35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84, 0.0),
        order=5,
        error=(71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40),
    ),
    # C. Tsitouras, Comput. Math. Appl. 62, 770 (2011)
    "tsit5": Tableau(
        a=(
            (),
            (0.161,),
            (-0.008480655492356989, 0.335480655492357),
            (2.8971530571054935, -6.359448489975075, 4.3622954328695815),
            (5.325864828439257, -11.748883564062828, 7.4955393428898365, -0.09249506636175525),
            (
                5.86145544294642,
                -12.92096931784711,
                8.159367898576159,
                -0.071584973281401,
                -0.028269050394068383,
            ),
            _TSITOURAS,
        ),
        b=(*_TSITOURAS, 0.0),
        order=5,
        error=(
            -0.00178001105222577714,
            -0.0008164344596567469,
            0.007880878010261995,
            -0.1447110071732629,
            0.5823571654525552,
            -0.45808210592918697,
            1 / 66,
        ),
    ),
}
