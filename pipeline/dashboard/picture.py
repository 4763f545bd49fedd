"""The picture of a reject with the outline of its mask."""

from __future__ import annotations

from engines.images import decode_image, encode_png, overlay

Crop = tuple[int, int, int, int]  # x, y, w, h in frame pixels


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
