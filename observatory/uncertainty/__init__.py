"""Error bars for networks that are trained already, from the geometry of their last layer's features.

`LastLayerGP(model).fit(train_loader).calibrate(val_loader).predict(x)` gives mean and standard deviation at
the price of one more d × d product; nothing about the network, its loss or its training changes. (Bigi,
Chong, Ceriotti & Grasselli 2024, doi:10.1088/2632-2153/ad805f.)
"""

from observatory.uncertainty.accumulators import Accumulator, Gram, Root
from observatory.uncertainty.calibration import additive_noise, joint_covariance, scale
from observatory.uncertainty.classification_metrics import classification_metrics
from observatory.uncertainty.classifier import ClassPrediction, LastLayerClassifier
from observatory.uncertainty.conformal import conformal_quantile
from observatory.uncertainty.ensemble import ShallowEnsemble
from observatory.uncertainty.gp import LastLayerGP, Prediction
from observatory.uncertainty.metrics import regression_metrics
from observatory.uncertainty.ranking import auroc, spearman, spearman_ceiling
from observatory.uncertainty.rigidity import Rigidity, Spectrum

__all__ = [
    "Accumulator",
    "ClassPrediction",
    "Gram",
    "LastLayerClassifier",
    "LastLayerGP",
    "Prediction",
    "Rigidity",
    "Root",
    "ShallowEnsemble",
    "Spectrum",
    "additive_noise",
    "auroc",
    "classification_metrics",
    "conformal_quantile",
    "joint_covariance",
    "regression_metrics",
    "scale",
    "spearman",
    "spearman_ceiling",
]
