"""The normal-looking picture that a bundle makes of a frame, for people; nothing is judged on it.

The graphs that a line executes score without a decoder, so none of them can draw. The decoder lies
in the bundle's weights, and the walk is done once more in torch: same image, same noise, same plan.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from engines.contracts import BadBundle, BadFrame, UInt8
from engines.export import load_method
from engines.methods.fit import seeds_of
from engines.methods.latent import LatentMethod

if TYPE_CHECKING:
    from engines.bundle import Bundle


@dataclass(frozen=True, slots=True, eq=False)
class Reconstruction:
    """A decoded reconstruction and how it was walked to."""

    picture: UInt8  # [H, W, 3], RGB
    plan: int
    steps: int  # denoiser calls, all of the plan


def open_method(bundle: Bundle) -> LatentMethod:
    """The bundle's method with its decoder. Raises BadBundle for one that draws no pictures."""
    method = load_method(bundle)
    if not isinstance(method, LatentMethod):
        raise BadBundle(f"{bundle.manifest.method} has no decoder, so it draws no reconstruction")
    return method


def reconstruct(
    method: LatentMethod, image: UInt8, category: int, plan: int | None
) -> Reconstruction:
    """What a plan makes of a model input [H, W, 3] when it is walked to its end.

    A part that left early, or was given no step at all, has no reconstruction of its own: it is
    shown at the whole of its plan, or at the deepest where its plan has no steps.
    """
    if image.shape != (*method.image_size, 3):
        raise BadFrame(f"a picture of {image.shape[1]} x {image.shape[0]} is no model input")
    deepest = len(method.plans) - 1
    has_steps = plan is not None and 0 <= plan <= deepest and method.plans[plan].steps > 0
    chosen = plan if plan is not None and has_steps else deepest
    images = torch.from_numpy(image.copy())[None]  # [1, H, W, 3]
    ids, plans = torch.tensor([category]), torch.tensor([chosen], dtype=torch.int32)
    with torch.inference_mode():
        state = method.start(images, ids, seeds_of(images), plans)
        rgb = method.reconstruct(method.walked(state, chosen))[0]  # [3, H, W] in [0, 1]
    drawn = (rgb.permute(1, 2, 0) * 255).round().clamp(0, 255).to(torch.uint8)
    return Reconstruction(drawn.contiguous().numpy(), chosen, method.plans[chosen].steps)
