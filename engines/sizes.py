"""What a configuration costs before anything is trained: parameters and FLOPs, part by part.

The method is built on the meta device, so nothing is computed, and weights are neither read nor
fetched. One multiply-add counts as two. Beside each part stands what was counted on the published
configuration of its method, at the published size of images.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from engines.methods import build_method

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch import nn

WHOLE = "Global"  # torch's own name for the sum
FRAME = "frame, deepest plan"
# Millions of parameters and GFLOP per call, at 256 px (GLAD: 512). D3AD's features end at the third
# stage of a ResNet-34; GLAD's U-Net reads a prompt of 77 tokens; its frame is a good part's, which
# is the dear case. Of DRDC nothing is known.
PUBLISHED: dict[str, dict[str, tuple[float | None, float]]] = {
    "DeCo-Diff": {
        "encoder": (34.16, 273),
        "decoder": (49.49, 622),
        "denoiser": (395.0, 114.1),
        FRAME: (None, 2_100),
    },
    "GLAD": {
        "encoder": (34.16, 1117),
        "decoder": (49.49, 2515),
        "features": (86.0, 1316),
        "denoiser": (859.5, 803),
        FRAME: (None, 154_000),
    },
    "D3AD": {
        "encoder": (34.16, 273),
        "decoder": (49.49, 622),
        "features": (21.8, 7.9),
        "denoiser": (281.1, 41.8),
        FRAME: (None, 1_300),
    },
    "DRDC-style": {},
}


@dataclass(frozen=True, slots=True)
class Part:
    """A network of a method, or one of its graphs, or all that is done to a frame."""

    name: str
    parameters: int | None  # None: of a graph
    gflop: float  # of one call on one image; what an ONNX file costs is not counted
    published_millions: float | None = None  # of parameters; None: there is no figure
    published_gflop: float | None = None


def describe(configuration: Mapping[str, Any]) -> list[Part]:
    """Parts of a method's configuration (``recipe.configuration_of``), its graphs, and a frame.

    A frame costs start + its steps + finish. Raises BadConfig, as building the method does, for
    parts that do not exist or do not fit.
    """
    with torch.device("meta"):
        method: Any = build_method(configuration).to("meta").eval().requires_grad_(False)
        image = torch.zeros(1, *method.image_size, 3, dtype=torch.uint8)
        one = torch.zeros(1, dtype=torch.long)
        state, start = _counted(lambda: method.start(image, one, one, one.int()))
        after, step = _counted(lambda: method.step(dict(state)))
        _, finish = _counted(lambda: method.finish({**state, **after}))
        steps = max(plan.steps for plan in method.plans)
        parts = [
            *_codec_parts(method.codec, image),
            Part("denoiser", _size(method.denoiser), step[type(method.denoiser).__name__]),
            Part("start", None, start[WHOLE]),
            Part("step", None, step[WHOLE]),
            Part("finish", None, finish[WHOLE]),
            Part(FRAME, None, start[WHOLE] + steps * step[WHOLE] + finish[WHOLE]),
        ]
    return [_beside_published(part, method.name) for part in parts]


def _beside_published(part: Part, method: str) -> Part:
    millions, gflop = PUBLISHED.get(method, {}).get(part.name, (None, None))
    return replace(part, published_millions=millions, published_gflop=gflop)


def _codec_parts(codec: Any, image: torch.Tensor) -> list[Part]:  # noqa: ANN401 - either kind
    latent, encoding = _counted(lambda: codec.encode(image))
    _, decoding = _counted(lambda: codec.decode(latent))
    parts = []
    if hasattr(codec, "vae"):
        parts.append(Part("encoder", _size(codec.vae.encoder), encoding[WHOLE]))
        parts.append(Part("decoder", _size(codec.vae.decoder), decoding[WHOLE]))
    if getattr(codec, "network", None) is not None:
        _, looking = _counted(lambda: codec.network(image))
        parts.append(Part("features", _size(codec.network), looking[WHOLE]))
    if hasattr(codec, "decoder"):
        parts.append(Part("decoder for people", _size(codec.decoder), decoding[WHOLE]))
    return parts


def _size(network: nn.Module) -> int:
    return sum(weights.numel() for weights in network.parameters())


def _counted(call: Callable[[], Any]) -> tuple[Any, dict[str, float]]:
    """The result of a call, and GFLOP by the names of the classes it went through."""
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        result = call()
    counts = counter.get_flop_counts()
    return result, {name: sum(ops.values()) / 1e9 for name, ops in counts.items()}
