"""The four published methods as bundles, small enough to be exported and built in seconds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from engines.bundle import Bundle, seal
from engines.graphs import export_graphs
from engines.methods import build_method
from engines.methods.method import Method
from tests.engines.sketch_parts import Denoiser

NAMES = ("DeCo-Diff", "D3AD", "GLAD", "DRDC-style")
CHANNELS = 8
FEATURES: dict[str, Any] = {
    "codec": {"kind": "features", "image_size": [64, 64], "channels": CHANNELS},
    "denoiser": "nano",
    "categories": 2,
    "image_size": [64, 64],
    "dropout": 0.0,
    "bank": {"rows": 10},
    "scorer": True,
}
VAE: dict[str, Any] = FEATURES | {
    "codec": {"kind": "vae", "network": "tiny", "image_size": (64, 64)},
    "bank": None,
    "scorer": False,
}


def write_bundle(name: str, folder: Path) -> Bundle:
    """A method with random weights, its codec, bank and scorer real and its denoiser small.

    GLAD has a VAE, so that one of them decodes in ``finish``.
    """
    torch.manual_seed(3)
    configuration = {"method": name, **(VAE if name == "GLAD" else FEATURES)}
    method = build_method(configuration)
    _shrink(method, 4 if name == "GLAD" else CHANNELS)
    folder.mkdir(parents=True)
    spec = export_graphs(method.eval(), folder)
    fields = {
        "method": name,
        "categories": ["board", "fabric"],
        "image_size": method.image_size,
        "plans": [{"start_level": p.start_level, "levels": p.levels} for p in method.plans],
        "steps_min": method.steps_min,
        "steps_unit": method.steps_unit,
        "spec": spec,
        "configuration": configuration,
    }
    return seal(folder, fields)


def _shrink(method: Any, channels: int) -> Method:  # noqa: ANN401 - each method has its own parts
    """A denoiser that is exported in a second; a U-Net takes half a minute."""
    if method.name == "DRDC-style":
        method.denoiser.inpainter = Denoiser(2 * channels + 1, channels)
    else:
        method.denoiser = Denoiser(channels, channels)
    found: Method = method
    return found
