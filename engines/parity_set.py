"""Frames that a compiled engine must agree on before it may judge parts.

At least 64: held-out good parts, synthetic anomalies, and sixteen frames within 2 % of the
threshold, found by blending a good part towards an anomalous one until the score lies there; that
is where a small numerical difference would flip a verdict. Frames are stored as JPEG: what two
backends are compared on is the decoded image, and a bundle stays small. They are model inputs:
tiles, where a bundle cuts frames.
"""

from __future__ import annotations

import io
import json
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from engines.anomalies import cut_paste
from engines.contracts import BadBundle, Decision, UInt8
from engines.images import decode_image
from engines.inspector import Inspector, Part, inspect_all

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from engines.bundle import Bundle
    from engines.calibration import Calibration, Judgement
    from engines.contracts import Backend, Finding

FRAMES = 64
NEAR_FRAMES = 16
NEAR = 0.02  # of the way from the median good part to the score at which a part fails
TRIES = 3  # pairs tried for each of them: where a deeper plan begins, the score may jump
HALVINGS = 10
# JPEG quality. Compression is an anomaly of its own, so frames near the threshold get little of it;
# the others only stand for what a camera sees, and a bundle has to stay small.
QUALITY, NEAR_QUALITY = 75, 95
FOLDER = "parity"


@dataclass(frozen=True, slots=True, eq=False)
class ParitySet:
    """Model inputs and the category of each."""

    images: UInt8  # [N, H, W, 3]
    categories: tuple[str, ...]
    near: tuple[bool, ...] = ()  # which were chosen for lying near the threshold; () = not known


def choose_frames(
    bundle: Bundle,
    backend: Backend,
    calibration: Calibration,
    held_out: Mapping[str, Sequence[UInt8]],
    seed: int = 0,
) -> ParitySet:
    """Good, anomalous and nearly-failing frames, spread evenly over the categories."""
    rng = np.random.default_rng(seed)
    share = -(-FRAMES // len(held_out))
    near = -(-NEAR_FRAMES // len(held_out))
    images: list[UInt8] = []
    categories: list[str] = []
    is_near: list[bool] = []
    for category, good in held_out.items():
        plain = [good[i % len(good)] for i in range(share // 2)]
        donors = rng.integers(len(good), size=share - len(plain))
        odd = [cut_paste(good[i % len(good)], good[d], rng) for i, d in enumerate(donors)]
        pairs = [(good[i % len(good)], odd[i % len(odd)]) for i in range(TRIES * near)]
        blends = _blend_to_threshold(bundle, backend, calibration, category, pairs)
        chosen = [*plain, *odd[: share - len(plain) - near], *blends[:near]]
        images += chosen
        categories += [category] * len(chosen)
        is_near += [False] * (len(chosen) - near) + [True] * near
    return ParitySet(np.stack(images), tuple(categories), tuple(is_near))


def save_frames(frames: ParitySet, folder: Path) -> None:
    """Write the set below ``folder/parity``."""
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    for number, (image, near) in enumerate(zip(frames.images, frames.near, strict=True)):
        content = _jpeg(image, NEAR_QUALITY if near else QUALITY)
        (target / f"{number:03d}.jpg").write_bytes(content)
    (target / "categories.json").write_text(json.dumps(frames.categories), "utf-8")


def has_frames(bundle: Bundle) -> bool:
    """Whether a bundle has a parity set; one that could not be calibrated has none."""
    return bool(_frame_names(bundle))


def load_frames(bundle: Bundle) -> ParitySet:
    """Read a bundle's parity set; BadBundle where it has none."""
    names = _frame_names(bundle)
    if not names:
        raise BadBundle(f"bundle {bundle.folder} has no parity set; train it again")
    images = [decode_image(bundle.path(name).read_bytes(), name) for name in names]
    categories = json.loads(bundle.path(f"{FOLDER}/categories.json").read_text("utf-8"))
    return ParitySet(np.stack(images), tuple(map(str, categories)))


def _frame_names(bundle: Bundle) -> list[str]:
    held = bundle.manifest.files
    return sorted(name for name in held if name.startswith(f"{FOLDER}/") and name.endswith(".jpg"))


def _blend_to_threshold(
    bundle: Bundle,
    backend: Backend,
    calibration: Calibration,
    category: str,
    pairs: Sequence[tuple[UInt8, UInt8]],
) -> list[UInt8]:
    """Of each good and odd frame the blend nearest to the threshold, the nearest pair first.

    Bisection, all pairs in one batch; what is measured is the frame as it will be stored.
    """
    low, high = np.zeros(len(pairs)), np.full(len(pairs), 2.0)
    nearest = [(math.inf, good) for good, _ in pairs]
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        blends = _blends(pairs, middle)
        found = _inspect(bundle, backend, category, [_as_stored(blend) for blend in blends])
        for row, finding in enumerate(found):
            judgement = calibration.judge(finding, backend.key)
            nearest[row] = min(
                nearest[row], (off_limit(finding, judgement), blends[row]), key=lambda n: n[0]
            )
            failed = judgement.decision is Decision.FAIL
            (high if failed else low)[row] = middle[row]
    return [image for _, image in sorted(nearest, key=lambda n: n[0])]


def off_limit(finding: Finding, judgement: Judgement) -> float:
    """How far a raw score lies from the one at which its plan fails a part.

    1 is the distance of the median good part from there.
    """
    relative = judgement.relative(np.asarray(finding.anomaly_score, np.float32))
    return math.inf if relative is None else abs(float(relative) - 1)


def _blends(pairs: Sequence[tuple[UInt8, UInt8]], share: np.ndarray) -> list[UInt8]:
    mixed = [
        good + s * (odd.astype(np.float32) - good)
        for (good, odd), s in zip(pairs, share, strict=True)
    ]
    return [np.clip(image, 0, 255).astype(np.uint8) for image in mixed]


def _inspect(
    bundle: Bundle, backend: Backend, category: str, images: Sequence[UInt8]
) -> list[Finding]:
    row = bundle.category_id(category)
    parts = [Part(str(i), row, category, image) for i, image in enumerate(images)]
    found = inspect_all(Inspector(backend), parts)
    return sorted(found, key=lambda finding: int(finding.frame_id))


def _jpeg(image: UInt8, quality: int) -> bytes:
    buffer = io.BytesIO()
    coarse_colour = quality < NEAR_QUALITY
    options = {"quality": quality, "subsampling": 2 if coarse_colour else 0}
    Image.fromarray(image).save(buffer, "JPEG", **options)
    return buffer.getvalue()


def _as_stored(image: UInt8) -> UInt8:
    """A frame near the threshold after it has been saved."""
    return decode_image(_jpeg(image, NEAR_QUALITY))
