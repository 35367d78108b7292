"""What the instrument records: names, units, definitions."""

from __future__ import annotations

from observatory.records import Quantity

SPECTRUM: dict[str, tuple[str, str]] = {
    "effective_dimension": ("1", "d_eff = Σ λ/(λ + ς²), λ the eigenvalues of the features' Gram matrix C"),
    "rank": ("1", "number of eigenvalues above 10⁻¹² λ_max"),
    "participation_ratio": ("1", "(Σλ)²/Σλ²"),
    "largest_eigenvalue": ("feature²", "λ_max"),
    "reg": ("feature²", "ς², added to the diagonal of C"),
}
NUMBERS: dict[str, tuple[str, str]] = {
    "nll": ("nat", "mean of ½[ln 2πσ² + r²/σ²] over the rows that did not calibrate"),
    "constant_nll": ("nat", "the same with one σ for all inputs: the baseline"),
    "crps": ("target", "mean continuous ranked probability score"),
    "constant_crps": ("target", "the same with one σ for all inputs"),
    "rmse": ("target", "root mean square of the residuals r"),
    "sharpness": ("target", "√mean σ²"),
    "mean_z2": ("1", "mean r²/σ², 1 if calibrated"),
    "coverage_90": ("1", "share of the rows inside the central 90 % interval"),
    "ence": ("1", "mean over bins of |RMSE - RMV|/RMV"),
    "spearman": ("1", "rank correlation of |r| and σ"),
    "spearman_ceiling": ("1", "what it would be for Gaussian errors of these σ"),
    "alpha_nll": ("target", "α of σ = αs, √mean r²/s²"),
    "alpha_absolute": ("target", "√(π/2) mean |r|/s"),
    "alpha_median": ("target", "median |r|/s over Φ⁻¹(3/4)"),
    "alpha_crps": ("target", "α of the smallest ranked probability score"),
    "sigma_n": ("target", "σ_n of σ² = α²s² + σ_n², 0 unless noise='additive'"),
}
CLASSES: dict[str, tuple[str, str]] = {
    "accuracy": ("1", "share of the rows whose largest probability is the target's"),
    "nll": ("nat", "mean log loss of probabilities averaged over Gaussian logits"),
    "plain_nll": ("nat", "mean log loss of the network itself"),
    "temperature_nll": ("nat", "mean log loss with one temperature for all inputs"),
    "brier": ("1", "mean Brier score"),
    "ece": ("1", "expected calibration error, 15 bins"),
    "plain_ece": ("1", "the same of the network itself"),
    "error_auroc": ("1", "do errors have a smaller largest probability?"),
    "alpha_squared": ("1", "α² of the logits' variance α²s²"),
    "temperature": ("1", "T of softmax(z/T)"),
}
ELSEWHERE: dict[str, tuple[str, str]] = {
    "ood_raw": ("1", "area under the ROC curve of s² for inputs from elsewhere"),
    "ood_entropy": ("1", "the same of the entropy of averaged probabilities"),
    "ood_max_averaged": ("1", "the same of their largest"),
    "ood_max_softmax": ("1", "the same of the network's largest probability"),
    "ood_energy": ("1", "the same of -ln Σ exp z"),
}


def declared() -> dict[str, Quantity]:
    """Everything that a look may return."""
    scalars = SPECTRUM | CLASSES | NUMBERS | ELSEWHERE
    scalars |= {"nll": ("nat", "mean negative log-likelihood of the rows that did not calibrate")}
    quantities = {name: Quantity((), unit, text) for name, (unit, text) in scalars.items()}
    quantities["spectrum"] = Quantity(("direction",), "feature²", "eigenvalues λ of C, descending")
    return quantities
