"""Lightning callbacks, one short class per instrument; import them as `observatory.callbacks`."""

if __name__ == "callbacks":  # a second copy of every class would make isinstance fail
    raise ImportError("import observatory.callbacks instead of callbacks")

from observatory.callbacks.collective_variables import CollectiveVariables
from observatory.callbacks.fisher_information import FisherInformation
from observatory.callbacks.last_layer_uncertainty import LastLayerUncertainty
from observatory.callbacks.layer_dimensionality import LayerDimensionality
from observatory.callbacks.linear_ensemble_variances import LinearEnsembleVariances
from observatory.callbacks.observatory import Observatory
from observatory.callbacks.recovered_parameters import RecoveredParameters
from observatory.callbacks.stage_checkpoint import StageCheckpoint
from observatory.callbacks.trace_controlled import TraceControlledLearningRate
from observatory.callbacks.weight_fluctuations import WeightFluctuations

__all__ = [
    "CollectiveVariables",
    "FisherInformation",
    "LastLayerUncertainty",
    "LayerDimensionality",
    "LinearEnsembleVariances",
    "Observatory",
    "RecoveredParameters",
    "StageCheckpoint",
    "TraceControlledLearningRate",
    "WeightFluctuations",
]
