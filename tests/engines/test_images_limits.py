"""A picture is whole or none, and costs no more than its pixels."""

from __future__ import annotations

import io
import resource
import struct

import numpy as np
import pytest
from PIL import Image

from engines.contracts import BadFrame
from engines.images import MAX_PIXELS, decode_image, decode_map


def tiff(rows: int, claimed: int) -> bytes:
    """A raw TIFF of 32 columns with so many rows that claims to have others."""
    file = io.BytesIO()
    Image.fromarray(np.full((rows, 32, 3), 200, np.uint8)).save(file, "TIFF", compression="raw")
    told = file.getvalue()
    tag = struct.pack("<HHI", 257, 4, 1) + struct.pack("<I", rows)
    if tag not in told:
        tag = struct.pack("<HHI", 257, 3, 1) + struct.pack("<I", rows)
    changed = struct.pack("<HHI", 257, 4, 1) + struct.pack("<I", claimed)
    return told.replace(tag, changed)


def test_a_picture_that_lacks_strips_is_damaged() -> None:
    """Rows that no strip of the file has would come back black, and be rejected as defects."""
    assert decode_image(tiff(64, 64)).shape == (64, 32, 3)
    for claimed in (65, 128, 100_000, MAX_PIXELS // 32):
        with pytest.raises(BadFrame, match="lacks a part"):
            decode_image(tiff(64, claimed))


def test_the_largest_picture_costs_a_bounded_memory() -> None:
    """A few kilobytes may claim 64 megapixels: they cost what such a picture does, once."""
    file = io.BytesIO()
    Image.new("RGB", (8000, 8000)).save(file, "PNG")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert decode_image(file.getvalue()).nbytes == MAX_PIXELS * 3
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 600_000
    larger = io.BytesIO()
    Image.new("L", (8001, 8001)).save(larger, "PNG")
    with pytest.raises(BadFrame, match="megapixels"):
        decode_image(larger.getvalue())
    with pytest.raises(BadFrame):
        decode_map(larger.getvalue())


def test_a_map_is_a_png_and_nothing_else() -> None:
    """Other formats of 16 bits are never tried: each decoder is a door."""
    for kind in ("TIFF", "PPM"):
        file = io.BytesIO()
        Image.fromarray(np.ones((8, 8), np.uint16)).save(file, kind)
        with pytest.raises(BadFrame):
            decode_map(file.getvalue())
