"""Collective variables of the empirical NTK as an instrument."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, get_args

import torch
from torch import Tensor

from observatory.looking.look import Look
from observatory.looking.probe import ProbeRequest
from observatory.ntk import figures, findings
from observatory.ntk.collective import collective_variables
from observatory.ntk.directions import Sites
from observatory.ntk.empirical import empirical_ntk
from observatory.ntk.stages import Kind
from observatory.ntk.stages_online import StageDetector
from observatory.observing import Histogram, Instrument
from observatory.records import Quantity

if TYPE_CHECKING:
    from observatory.records import Finding, Panel, Run

SCALARS = {
    "trace": ("‖∇f‖²", "Tr K = Σᵢ Kᵢᵢ, K the trace-contracted empirical NTK on the probe"),
    "mean_trace": ("‖∇f‖²", "Tr K / n"),
    "entropy": ("nat", "S = -Σ q ln q, q = λ/Σλ: von Neumann entropy of the spectrum, 0 ≤ S ≤ ln n"),
    "normalised_entropy": ("1", "S / ln n"),
    "effective_rank": ("1", "exp S"),
    "participation_ratio": ("1", "(Tr K)² / ‖K‖²"),
    "largest_eigenvalue": ("‖∇f‖²", "λ₁"),
    "largest_share": ("1", "λ₁ / Tr K"),
    "condition_number": ("1", "λ₁ / max(λₙ, ε λ₁), ε = n · machine epsilon"),
    "numerical_rank": ("1", "number of eigenvalues above ε λ₁"),
    "centred_entropy": ("nat", "entropy of HKH, H = I - 11ᵀ/n: without the part that all examples share"),
    "cosine_entropy": ("nat", "entropy of Kᵢⱼ/√(Kᵢᵢ Kⱼⱼ): directions of the gradients alone"),
    "self_entropy": ("nat", "entropy of √Kᵢᵢ/Σ√Kⱼⱼ: magnitudes of the gradients alone"),
    "alignment": ("1", "⟨K, YYᵀ⟩/(‖K‖ ‖YYᵀ‖) with the targets Y"),
    "centred_alignment": ("1", "the same of HKH and HYYᵀH"),
    "distance": ("1", "1 - ⟨K, K₀⟩/(‖K‖ ‖K₀‖), K₀ the kernel of the first look"),
    "velocity": ("1/step", "the same distance to the look before, per step"),
}
STAGE = "stage of the entropy so far: -1 compression, 0 plateau, 1 structure formation; NaN before the first"
CODES: dict[Kind, float] = {"compression": -1.0, "plateau": 0.0, "structure formation": 1.0}


class CollectiveVariables(Instrument):
    """Trace, entropy and spectrum of the empirical NTK on the probe (Tovey et al. 2023, arXiv:2305.00995).

    The kernel is contracted over outputs, K_ij = Σ_c ∇f_c(x_i) · ∇f_c(x_j), of shape (n, n) for n examples.
    Logits of a language model, (n, T, C), are T·C outputs of a sequence, or those of n·T examples; they take
    as many backward passes, so give short sequences. The stage of learning is recognised as it comes, from
    the entropy (`StageDetector`).

    Args:
        outputs: "flat", or "per_site": every site of outputs (n, ..., C) is an example, K is (n·T, n·T), and
            the kernel between all outputs must fit into memory while it is made (see `empirical_ntk`).
        keep_kernel: record the matrix itself at every look.
        options: see `Instrument`.
    """

    default_name = "ntk"
    default_probe = ProbeRequest(size=64, balanced=False)

    def __init__(self, *, outputs: Sites = "flat", keep_kernel: bool = True, **options: Any) -> None:
        super().__init__(**options)
        if outputs not in get_args(Sites):
            raise ValueError(f"outputs must be 'flat' or 'per_site', got {outputs!r}")
        self.outputs = outputs
        self.keep_kernel = keep_kernel
        self._reference: Tensor | None = None
        self._previous: tuple[Tensor, int] | None = None
        self._classes: Tensor | None = None
        self._stages = StageDetector()

    def quantities(self) -> dict[str, Quantity]:
        quantities = {name: Quantity((), unit, text) for name, (unit, text) in SCALARS.items()}
        quantities["stage"] = Quantity((), "1", STAGE)
        quantities["spectrum"] = Quantity(("rank",), "‖∇f‖²", "eigenvalues λ₁ ≥ ... ≥ λₙ of K")
        if self.keep_kernel:
            quantities["kernel"] = Quantity(
                ("example", "example"), "‖∇f‖²", "K, examples sorted by class where each has one"
            )
        return quantities

    def settings(self) -> dict[str, Any]:
        return {"kernel": "trace-contracted", "outputs": self.outputs, "keep_kernel": self.keep_kernel}

    def observe(self, look: Look) -> Mapping[str, Tensor]:
        kernel = empirical_ntk(
            look.model, look.probe.inputs, kind="trace", outputs=self.outputs, allow_nonfinite=True
        )
        targets = _of_rows(look.probe.targets, len(kernel), len(look.probe))
        if targets is not None and not targets.is_floating_point() and targets.ndim == 1:
            order = targets.argsort(stable=True)
            kernel, targets = kernel[order][:, order], targets[order]
        self._reference = kernel if self._reference is None else self._reference
        moved = None
        if self._previous is not None:
            moved = (self._previous[0], float(max(look.step - self._previous[1], 1)))
        variables = collective_variables(kernel, targets=targets, reference=self._reference, previous=moved)
        self._previous = (kernel, look.step)
        found = {name: getattr(variables, name) for name in SCALARS}
        values = {
            k: torch.full_like(variables.trace, torch.nan) if v is None else v for k, v in found.items()
        }
        values["spectrum"] = variables.eigenvalues
        self._stages.update(look.step, float(variables.entropy))
        kind = self._stages.kind
        values["stage"] = torch.full_like(variables.trace, torch.nan if kind is None else CODES[kind])
        return values | ({"kernel": kernel} if self.keep_kernel else {})

    def state_dict(self) -> dict[str, Any]:
        kernel, step = self._previous or (None, 0)
        return {
            "reference": self._reference,
            "previous": kernel,
            "step": step,
            "stages": self._stages.state_dict(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._reference = state["reference"]
        self._previous = None if state["previous"] is None else (state["previous"], state["step"])
        self._stages.load_state_dict(state["stages"])

    def charts(self) -> dict[str, list[str]]:
        return {
            "Mean trace": ["mean_trace"],
            "Entropy": ["entropy", "centred_entropy", "cosine_entropy"],
            "Rank": ["effective_rank", "participation_ratio"],
            "Alignment": ["alignment", "centred_alignment"],
            "Distance": ["distance"],
            "Stage": ["stage"],
        }

    def dashboard(self, values: Mapping[str, Tensor]) -> Sequence[Panel | Histogram]:
        spectrum = values["spectrum"]
        positive = spectrum[spectrum > 0]
        shown: list[Panel | Histogram] = [Histogram("log10_eigenvalues", positive.log10())]
        shown.append(figures.spectrum_panel(spectrum.cpu().numpy()[None], [0]))
        if "kernel" in values:
            shown.append(figures.kernel_panel({"": values["kernel"].cpu().numpy()}))
        return shown

    @staticmethod
    def figures(run: Run) -> list[Panel]:
        return figures.panels(run)

    @staticmethod
    def findings(run: Run) -> list[Finding]:
        return findings.sentences(run)


def _of_rows(targets: Any, rows: int, n: int) -> Tensor | None:
    """Targets (rows, ...) of the kernel's rows, which are n examples or all their sites; None if there are
    none that fit."""
    if not isinstance(targets, Tensor) or targets.ndim == 0:
        return None
    if len(targets) == rows:
        return targets.flatten() if targets.numel() == rows else targets
    if len(targets) != n or targets.numel() % rows != 0:
        return None
    return targets.flatten() if targets.numel() == rows else targets.reshape(rows, -1)
