"""Fisher information of the network's predictions, during a Lightning run."""

from __future__ import annotations

from typing_extensions import Unpack

from observatory.callbacks.callback import ObservingCallback
from observatory.callbacks.options import ObservingOptions, split
from observatory.ntk import fisher_instrument
from observatory.ntk.fisher_estimators import Estimator
from observatory.ntk.fisher_likelihoods import Likelihood


class FisherInformation(ObservingCallback):
    """Trace of the Fisher information on a probe, whole and by layer, and signal and noise of the gradient.

    With several processes each takes its share of the probe, and the sums are added.

    Args:
        likelihood: of the targets given the outputs; default categorical for integer targets, else Gaussian.
        estimator: of the trace; "auto" is exact up to 16 outputs, else labels drawn from the predictions.
        draws: of random estimators, per example.
        sigma2: variance of the Gaussian.
        match_loss: take the variance for which -ln p is `torch.nn.MSELoss`.
        with_labels: also measure what needs the targets, for two more backward passes.
        seed: of the draws.
        options: see `ObservingOptions`.

    Raises:
        ValueError: if the estimator has no parts by layer.
    """

    def __init__(
        self,
        *,
        likelihood: Likelihood | None = None,
        estimator: Estimator = "auto",
        draws: int = 1,
        sigma2: float = 1.0,
        match_loss: bool = False,
        with_labels: bool = True,
        seed: int = 0,
        **options: Unpack[ObservingOptions],
    ) -> None:
        looking, watching = split(options)
        fisher = fisher_instrument.FisherInformation(
            likelihood=likelihood, estimator=estimator, draws=draws, sigma2=sigma2, match_loss=match_loss,
            with_labels=with_labels, seed=seed, **looking,
        )  # fmt: skip
        super().__init__([fisher], **watching)
