"""Frames that a compiled engine must agree on before it may judge parts.

At least 64: held-out good parts, synthetic anomalies, and sixteen frames within 2 % of the
threshold, found by blending a good part towards an anomalous one until the score lies there; that
is where a small numerical difference would flip a verdict. Frames are stored as JPEG: what two
backends are compared on is the decoded image, and a bundle stays small.
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
NEAR = 0.02  # of the threshold
TRIES = 3  # pairs tried for each of them: where a deeper plan begins, the score may jump
HALVINGS = 10
QUALITY = 85  # of frames that stand for what a camera sees; 64 of them take about 1.3 MB
FOLDER = "parity"


@dataclass(frozen=True, slots=True, eq=False)
class ParitySet:
    """Model inputs and the category of each."""

    images: UInt8  # [N, H, W, 3]
    categories: tuple[str, ...]


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
    for category, good in held_out.items():
        plain = [good[i % len(good)] for i in range(share // 2)]
        donors = rng.integers(len(good), size=share - len(plain))
        odd = [cut_paste(good[i % len(good)], good[d], rng) for i, d in enumerate(donors)]
        pairs = [(good[i % len(good)], odd[i % len(odd)]) for i in range(TRIES * near)]
        blends = _blend_to_threshold(bundle, backend, calibration, category, pairs)
        chosen = [*plain, *odd[: share - len(plain) - near], *blends[:near]]
        images += chosen
        categories += [category] * len(chosen)
    return ParitySet(np.stack(images), tuple(categories))


def save_frames(frames: ParitySet, folder: Path) -> None:
    """Write the set below ``folder/parity``."""
    target = folder / FOLDER
    target.mkdir(exist_ok=True)
    for number, image in enumerate(frames.images):
        (target / f"{number:03d}.jpg").write_bytes(_jpeg(image))
    (target / "categories.json").write_text(json.dumps(frames.categories))


def load_frames(bundle: Bundle) -> ParitySet:
    """Read a bundle's parity set; BadBundle where it has none."""
    names = sorted(
        n for n in bundle.manifest.files if n.startswith(f"{FOLDER}/") and n.endswith(".jpg")
    )
    if not names:
        raise BadBundle(f"bundle {bundle.folder} has no parity set; train it again")
    images = [decode_image(bundle.path(name).read_bytes(), name) for name in names]
    categories = json.loads(bundle.path(f"{FOLDER}/categories.json").read_text())
    return ParitySet(np.stack(images), tuple(map(str, categories)))


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
        found = _inspect(bundle, backend, category, [_through_jpeg(blend) for blend in blends])
        for row, finding in enumerate(found):
            judgement = calibration.judge(finding, backend.key)
            nearest[row] = min(nearest[row], (_off(judgement), blends[row]), key=lambda n: n[0])
            failed = judgement.decision is Decision.FAIL
            (high if failed else low)[row] = middle[row]
    return [image for _, image in sorted(nearest, key=lambda n: n[0])]


def _off(judgement: Judgement) -> float:
    """How far a surprise lies from its threshold, relative to it."""
    if judgement.surprise is None or not judgement.threshold:
        return math.inf
    return abs(judgement.surprise / judgement.threshold - 1)


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


def _jpeg(image: UInt8) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=QUALITY, subsampling=0)
    return buffer.getvalue()


def _through_jpeg(image: UInt8) -> UInt8:
    return decode_image(_jpeg(image))
