"""What is drawn over the picture of a part: the outline of its mask, and its anomaly map."""

from __future__ import annotations

import numpy as np

from engines.contracts import UInt8
from engines.images import decode_image, decode_map, encode_png, overlay, to_model_input

Crop = tuple[int, int, int, int]  # x, y, w, h in frame pixels
# From calm to twice the limit: dark blue, magenta, orange, pale yellow; brightness rises all along.
RAMP = np.array([(20, 16, 80), (150, 30, 130), (235, 100, 60), (252, 245, 170)], np.float32)
HOTTEST = 2.0  # of the limit
STRONGEST = 0.8  # how much of the picture the map may hide


def outlined(picture_png: bytes, mask_png: bytes, crop: Crop | None = None) -> bytes:
    """PNG of the picture with its mask drawn in; without a mask the picture as it is.

    The mask is in frame geometry, the picture is what the model saw of ``crop``: the mask is cut to
    the crop, and the overlay brings it to the picture's size.
    """
    if not mask_png:
        return picture_png
    picture = decode_image(picture_png, "the picture of a reject")
    mask = decode_image(mask_png, "the mask of a reject")[..., 0] > 127
    if crop is not None:
        x, y, w, h = crop
        mask = mask[y : y + h, x : x + w]
    return encode_png(overlay(picture, mask))


def heated(picture_png: bytes, map_png: bytes) -> bytes:
    """PNG of the picture under its anomaly map: the stranger, the brighter and the less hidden."""
    if not map_png:
        return picture_png
    picture = decode_image(picture_png, "the picture of a reject")
    heat = np.clip(decode_map(map_png) / HOTTEST, 0, 1)  # [h, w], 0.5 = the limit
    levels = np.repeat((heat * 255).astype(np.uint8)[..., None], 3, axis=2)
    share = to_model_input(levels, picture.shape[:2])[..., 0].astype(np.float32) / 255
    at = np.linspace(0, 1, len(RAMP))
    colour = np.stack([np.interp(share, at, RAMP[:, i]) for i in range(3)], axis=-1)
    alpha = (STRONGEST * np.sqrt(share))[..., None]
    mixed: UInt8 = ((1 - alpha) * picture + alpha * colour).astype(np.uint8)
    return encode_png(mixed)
