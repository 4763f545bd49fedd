"""A bundle on disk whose engine only takes time, and parts for it: a line without a model.

A part's number stands in its first pixels and the stub's score is that number, so a part below
``BAD_FROM`` passes and one from there on fails.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from engines.backend_stub import COSTS, METHOD, TimedStub, watermarked
from engines.bundle import GRAPHS, Bundle, GraphSpec, GraphsSpec, Manifest, PlanSpec, seal
from engines.calibration_fit import fit_calibration
from engines.images import encode_png

CATEGORY = "stub"
STEPS = (1, 2, 4)  # denoiser calls of the plans, asked for equally often
SIZE = (96, 96)
GOOD_FROM, BAD_FROM, GOOD = 100, 1_000_000, 100


def frame_s() -> float:
    """Seconds that the engine takes for one frame by itself, on average."""
    step_ns = COSTS["step"].of(1) * sum(STEPS) / len(STEPS)
    return (COSTS["start"].of(1) + step_ns + COSTS["finish"].of(1)) / 1e9


def write_stub_bundle(
    folder: Path,
    costs: Mapping[str, tuple[int, int]] | None = None,
    size: tuple[int, int] = SIZE,
    category: str = CATEGORY,
) -> Bundle:
    """A bundle of the method "stub" in ``folder``, calibrated on good numbers.

    ``costs``: nanoseconds of each graph, of a call and of each of its rows; None = the stub's own.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for graph in GRAPHS:
        (folder / f"{graph}.onnx").write_text("a stub has no graph\n")
    manifest = _manifest(costs, size, category)
    bundle = seal(folder, manifest.model_dump(mode="json", exclude={"files"}))
    with TimedStub(32, lambda _: None, steps=STEPS) as engine:
        good = {category: [watermarked(GOOD_FROM + number, size) for number in range(GOOD)]}
        fit_calibration(bundle, engine, good).save(folder / "calibration.json")
    return bundle


def write_parts(folder: Path, count: int, bad_every: int) -> Path:
    """PNG files of so many parts, the last of every ``bad_every`` bad."""
    folder.mkdir(parents=True)
    for index in range(count):
        is_bad = index % bad_every == bad_every - 1
        number = (BAD_FROM if is_bad else GOOD_FROM) + index
        (folder / f"{index:04d}.png").write_bytes(encode_png(watermarked(number, SIZE)))
    return folder


def _manifest(
    costs: Mapping[str, tuple[int, int]] | None, size: tuple[int, int], category: str
) -> Manifest:
    return Manifest(
        method=METHOD,
        categories=(category,),
        image_size=size,
        plans=tuple(PlanSpec(start_level=n, levels=tuple(range(n))) for n in STEPS),
        steps_min=min(STEPS),
        steps_unit=1,
        spec=GraphsSpec(
            state=(),
            graphs={graph: GraphSpec(inputs=(), outputs=()) for graph in GRAPHS},
            map_size=(2, 2),
        ),
        configuration={"costs": dict(costs)} if costs else {},
        files={},
    )
