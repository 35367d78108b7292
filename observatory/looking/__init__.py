"""Looking at a model without touching it."""

from observatory.looking.look import Look, Loss
from observatory.looking.model import Forward, ModelFunction, Output
from observatory.looking.probe import Probe, ProbeRequest, draw_probe, forked_streams, split_batch
from observatory.looking.twin import weightless_twin

__all__ = [
    "Forward",
    "Look",
    "Loss",
    "ModelFunction",
    "Output",
    "Probe",
    "ProbeRequest",
    "draw_probe",
    "forked_streams",
    "split_batch",
    "weightless_twin",
]
