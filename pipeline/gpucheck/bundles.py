"""What is tried on the GPU: the demo bundle, and bundles that were given or made on the spot."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from engines.backend import engine_cache
from engines.bundle import GRAPHS, Bundle, open_bundle
from engines.contracts import UInt8
from engines.gpu.engine_file import engine_folder, key_path
from engines.parity_set import has_frames, load_frames
from pipeline.gpucheck.outcome import Asked, Found, NotHere

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

DEMO = Path("configs/bundles/demo")
MADE, TENSORRT = "bundles", "tensorrt"
HUGE, TIMED = ("full",), ("balanced", "full")  # minutes a pass on a CPU; random and unfitted


def make(name: str, asked: Asked) -> Found:
    """A specimen as a bundle below the folder of the check."""
    from engines.specimens import write_specimen

    bundle = write_specimen(name, asked.out / MADE / name)
    held = sum(bundle.path(file).stat().st_size for file in bundle.manifest.files)
    return Found(f"{bundle.bundle_id}, {held / 1e6:.1f} MB", facts={"bundle": bundle.bundle_id})


def tried(
    asked: Asked, without: Sequence[str] = (), engine: tuple[str, str] | None = None
) -> Iterator[tuple[str, Bundle]]:
    """Every bundle by the name that results carry: the demo, then the given or the made ones.

    ``engine``: backend and precision; of TensorRT only bundles whose engines were built, since why
    others were not is told where that was tried. NotHere where there is none.
    """
    places = asked.bundles or sorted((asked.out / MADE).glob("[!.]*"))
    count = 0
    for place in (DEMO, *places):
        if place == DEMO and not place.exists():
            continue  # started elsewhere than in the repository
        if place.stem in without:
            continue
        bundle = open_bundle(place)
        if engine is None or engine[0] != TENSORRT or _is_built(bundle, engine[1]):
            count += 1
            yield place.stem, bundle
    if engine is not None and not count:
        raise NotHere(f"no bundle to try has an engine {':'.join(engine)}")


def frames_of(bundle: Bundle) -> tuple[UInt8, Sequence[str]]:
    """What two engines are compared on: the bundle's parity set, else random pictures."""
    if has_frames(bundle):
        known = load_frames(bundle)
        return known.images, known.categories
    from engines.specimens import PARITY, pictures

    size, names = bundle.manifest.image_size, bundle.manifest.categories
    images: UInt8 = np.asarray(pictures(PARITY, size, seed=99))
    return images, [names[row % len(names)] for row in range(PARITY)]


def _is_built(bundle: Bundle, precision: str) -> bool:
    """Whether all engines are there; a build that was ended on the way leaves some."""
    folder = engine_folder(engine_cache(bundle), precision)
    return all(key_path(folder, graph).exists() for graph in GRAPHS)
