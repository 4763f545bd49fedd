"""Synthetic anomalies on good parts: what to train on, calibrate and test with before any defect.

A region says where, a texture says what, a blend says how strongly.
"""

from engines.anomalies.pasting import cut_paste
from engines.anomalies.regions import perlin_mask
from engines.anomalies.synthesis import Anomaly, synthesize, synthesize_as_glad
from engines.anomalies.textures import self_shuffled
from engines.anomalies.unlearned import unlearned

__all__ = [
    "Anomaly",
    "cut_paste",
    "perlin_mask",
    "self_shuffled",
    "synthesize",
    "synthesize_as_glad",
    "unlearned",
]
