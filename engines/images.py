"""Images in, images out: the one room that decodes, resizes, encodes and draws.

Decoding is Pillow's, not OpenCV's: OpenCV returns a half-grey picture for a truncated file, and a
grey area is a false reject at best. Size and mode are read from the header and judged before any
pixel is decoded, so a file that claims 200 megapixels costs nothing. The EXIF orientation is
applied, so that a photograph arrives as a person sees it.
"""

from __future__ import annotations

import hashlib
import io
import logging
import warnings
import zlib
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.ImageFile import ImageFile

from engines.contracts import BadFrame, Float32, UInt8

MAX_PIXELS = 64_000_000
MIN_SIDE = 16
MAP_STEPS, MAP_LEAST = 1024, -32.0
MAX_FILE_BYTES = 256 * 1024 * 1024  # an uncompressed image of MAX_PIXELS fits
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff")

FORMATS = ("PNG", "JPEG", "BMP", "TIFF")
MODES = {"1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX", "YCbCr"}
DEFECT_RGB = (255, 32, 32)
EXIF_ORIENTATION = 0x0112
EXIF_TURNED = {5, 6, 7, 8}  # width and height change places
FAST_PNG = 1  # deflate level: lossless at every level, 1 keeps up with a camera
STORED_PNG = 0  # costs a tenth, and half as many bytes again
NO_FILTER = (cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_NONE)  # a search for one costs most
LIGHT_BYTES = 20_000  # of a map that is stored
# One filter for all rows, and no search for repetitions: on pictures of parts a third of the time
# of the best of five with it, and 1 % larger.
PICTURE = (
    *(cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_AVG),
    *(cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY),
)
MASK = (*NO_FILTER, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_STRATEGY_RLE)

# Pillow would only warn between one and two times its limit; ours below is stricter and always
# refuses.
Image.MAX_IMAGE_PIXELS = None
# What Pillow finds odd is judged here; a hostile file could else fill the log.
warnings.filterwarnings("ignore", category=UserWarning, module=r"PIL\..*")
logging.getLogger("PIL").setLevel(logging.CRITICAL)

Mask = NDArray[np.bool_]


def decode_image(data: bytes, name: str = "") -> UInt8:
    """RGB image [H, W, 3] from the bytes of a PNG, JPEG, BMP or TIFF file.

    Grey is repeated to three channels, palettes are expanded, alpha is dropped, EXIF orientation is
    applied, and of a file with several pictures the first counts only where the format means the
    rest as previews. Raises BadFrame for anything else, with one sentence that names ``name``.
    """
    name = name or "the image"
    if not data:
        raise BadFrame(f"{name} is empty: copy or capture it again.")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _admit(image, name)
            return _pixels(image)
    except BadFrame:
        raise
    except UnidentifiedImageError:
        raise BadFrame(
            f"{name} is not a PNG, JPEG, BMP or TIFF image: convert it to PNG."
        ) from None
    except MemoryError:
        raise BadFrame(f"{name} needs more memory than there is: crop or scale it.") from None
    except Exception as error:  # a decoder fed hostile bytes raises what it likes
        raise BadFrame(f"{name} is damaged ({error}): copy or capture it again.") from error


def read_image(path: str | Path) -> UInt8:
    """RGB image [H, W, 3] of a file; raises BadFrame as :func:`decode_image` does."""
    path = Path(path)
    return decode_image(_read_bytes(path), str(path))


def image_size(path: str | Path) -> tuple[int, int]:
    """(height, width) of a file as :func:`read_image` would return it, from its header alone.

    Raises BadFrame where the header cannot be read.
    """
    try:
        with Image.open(path, formats=FORMATS) as image:
            # Pillow's TIFF reader turns the size by itself.
            lies = image.format != "TIFF" and image.getexif().get(EXIF_ORIENTATION) in EXIF_TURNED
            return (image.width, image.height) if lies else (image.height, image.width)
    except Exception as error:  # a decoder fed hostile bytes raises what it likes
        raise BadFrame(
            f"{path} is not an image or is damaged: convert or copy it again."
        ) from error


def read_mask(path: str | Path, size_hw: tuple[int, int]) -> Mask:
    """Truth mask [H, W] at ``size_hw``: a pixel is defect where any part of it is.

    Shrinking by majority would erase scratches thinner than a pixel, and a defect without pixels
    cannot be found.
    """
    marked = (read_image(path).max(axis=2) > 0).astype(np.uint8)
    height, width = size_hw
    # Float, so a sliver does not round to nothing; by area only where it shrinks.
    shrinks = height <= marked.shape[0] and width <= marked.shape[1]
    way = cv2.INTER_AREA if shrinks else cv2.INTER_NEAREST
    covered = cv2.resize(marked.astype(np.float32), (width, height), interpolation=way)
    return np.asarray(covered > 0, dtype=np.bool_)


def to_model_input(image: UInt8, size: tuple[int, int]) -> UInt8:
    """Model input [h, w, 3] of an image: a plain stretch to ``size`` = (h, w), by area.

    The same function serves training, calibration, evaluation and ingest, so all of them mean the
    same pixels.
    """
    height, width = size
    if image.shape[:2] == (height, width):
        return np.ascontiguousarray(image)
    resized = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(resized, dtype=np.uint8)


def encode_png(picture: UInt8 | Mask, level: int = FAST_PNG) -> bytes:
    """PNG bytes, lossless, of an RGB image [H, W, 3], a grey image [H, W] or a mask (0 and 255).

    At level 0 pixels are stored as they are: ten times as fast, for pictures that are small anyway.
    """
    grey = picture.astype(np.uint8)
    grey = grey * np.uint8(255) if picture.dtype == np.bool_ else grey
    pixels = cv2.cvtColor(grey, cv2.COLOR_RGB2BGR) if grey.ndim == 3 else grey
    kind = (PICTURE if level else NO_FILTER) if grey.ndim == 3 else MASK
    _, encoded = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, level, *kind])
    return encoded.tobytes()


def encode_map(relative: Float32) -> bytes:
    """16-bit PNG of an anomaly map [h, w] as ``Judgement.relative`` gives it (1.0 = a part fails).

    Steps of 1/1024, clipped to [-32, 32).
    """
    if not np.isfinite(relative).all():  # nan_to_num alone would take half of all this
        relative = np.nan_to_num(relative)
    steps = np.clip((relative - MAP_LEAST) * MAP_STEPS, 0, 65_535).astype(np.uint16)
    is_light = steps.nbytes <= LIGHT_BYTES
    fast = (STORED_PNG, *NO_FILTER) if is_light else (FAST_PNG,)
    _, encoded = cv2.imencode(".png", steps, [cv2.IMWRITE_PNG_COMPRESSION, *fast])
    return encoded.tobytes()


def decode_map(data: bytes) -> Float32:
    """The map [h, w] in a PNG of ``encode_map``; BadFrame for anything else."""
    try:
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            if image.mode not in {"I;16", "I"} or image.width * image.height > MAX_PIXELS:
                raise BadFrame("these bytes are no anomaly map: it is a 16-bit grey PNG")
            return np.asarray(image, np.float32) / np.float32(MAP_STEPS) + np.float32(MAP_LEAST)
    except BadFrame:
        raise
    except Exception as error:  # as above
        raise BadFrame("these bytes are no anomaly map: they are damaged") from error


def image_seed(model_input: UInt8) -> int:
    """Row of the constant noise table for this model input: it follows the pixels, not the name."""
    return zlib.crc32(np.ascontiguousarray(model_input).data)


def fingerprint(model_input: UInt8) -> str:
    """Short hash of an image's pixels, by which training images are known again."""
    return hashlib.sha256(model_input.tobytes()).hexdigest()[:16]


def overlay(image: UInt8, mask: Mask) -> UInt8:
    """The image [H, W, 3] with the mask tinted and outlined, for people."""
    height, width = image.shape[:2]
    patch = mask.astype(np.uint8)
    if patch.shape != (height, width):
        patch = cv2.resize(patch, (width, height), interpolation=cv2.INTER_NEAREST).astype(np.uint8)
    drawn = image.copy()
    tint = np.full_like(image, DEFECT_RGB)
    cv2.copyTo(cv2.addWeighted(image, 0.65, tint, 0.35, 0), patch, drawn)
    outlines, _ = cv2.findContours(patch, cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_NONE)
    cv2.drawContours(drawn, outlines, -1, DEFECT_RGB, max(1, min(height, width) // 256))
    return drawn


def _read_bytes(path: Path) -> bytes:
    """Contents of a regular file of bearable size; a pipe or a device would block for ever."""
    try:
        if not path.is_file():
            raise BadFrame(f"{path} is not a file: name an image file.")
        size = path.stat().st_size
        if size > MAX_FILE_BYTES:
            limit = MAX_FILE_BYTES // 1024**2
            raise BadFrame(
                f"{path} has {size // 1024**2} MiB, the limit is {limit}: crop or scale it."
            )
        return path.read_bytes()
    except OSError as error:
        reason = error.strerror or error
        raise BadFrame(
            f"{path} cannot be read ({reason}): check its rights and its disk."
        ) from None


def _admit(image: Image.Image, name: str) -> None:
    """Judge the header alone: size, colour and bit depth; nothing is decoded yet."""
    width, height = image.size
    if min(width, height) < MIN_SIDE:
        raise BadFrame(
            f"{name} is {width}x{height}: both sides must be at least {MIN_SIDE} pixels."
        )
    if width * height > MAX_PIXELS:
        limit = MAX_PIXELS // 1_000_000
        raise BadFrame(f"{name} is {width}x{height}, over {limit} megapixels: crop or scale it.")
    if _bits_beyond_8(image):
        raise BadFrame(f"{name} has more than 8 bits per channel: convert it to 8 bits.")
    if image.mode not in MODES:
        raise BadFrame(f"{name} has the colour mode {image.mode}: convert it to grey or RGB.")
    if not _is_covered(image):
        raise BadFrame(f"{name} lacks a part of its pixels: copy or capture it again.")
    if image.format == "TIFF" and getattr(image, "n_frames", 1) > 1:
        raise BadFrame(f"{name} has several pages: save each page as its own file.")


def _is_covered(image: Image.Image) -> bool:
    """Whether the file has data for every pixel; Pillow leaves black what a strip is missing of."""
    width, height = image.size
    sizes = {(width, height), (height, width)}  # of a turned picture tiles are as it was taken
    tiles = image.tile if isinstance(image, ImageFile) else []
    extents = [tile[1] or (0, 0, *image.size) for tile in tiles]
    return any(_area_within(extents, size) >= width * height for size in sizes)


def _area_within(extents: list[tuple[int, int, int, int]], size: tuple[int, int]) -> int:
    """Pixels of rectangles (left, above, right, below) inside a picture of ``size`` = (w, h)."""
    return sum(
        max(0, min(right, size[0]) - max(left, 0)) * max(0, min(below, size[1]) - max(above, 0))
        for left, above, right, below in extents
    )


def _bits_beyond_8(image: Image.Image) -> bool:
    """Whether channels are wider than 8 bits; Pillow would silently cut 16-bit colour."""
    if image.mode[:1] in {"I", "F"}:
        return True
    layouts = str([tile[3] for tile in image.tile]) if hasattr(image, "tile") else ""
    return image.format in {"PNG", "TIFF"} and any(depth in layouts for depth in (";16", ";32"))


def _pixels(image: Image.Image) -> UInt8:
    """Decode, turn as the camera was held, and leave three channels."""
    image.load()
    ImageOps.exif_transpose(image, in_place=True)
    image.info.pop("transparency", None)  # alpha is dropped, not blended into an unknown ground
    return np.array(image if image.mode == "RGB" else image.convert("RGB"), dtype=np.uint8)
