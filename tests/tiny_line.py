"""A whole line in miniature: a real bundle that measures grey, and what a test needs to run it.

The bundle's three graphs are written by hand: a good part is mid-grey, the anomaly map is how far
each pixel is from that, and brighter parts take one step more. Real OpenVINO runs it in a
millisecond.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import yaml
from numpy.typing import NDArray

from engines.backend import open_backend
from engines.bundle import Bundle, GraphsSpec, seal
from engines.calibration_fit import fit_calibration
from engines.contracts import ADAPTIVE
from engines.images import encode_png
from engines.tiles import Tiling
from pipeline.judging import Judge
from pipeline.seats import Seat

SIZE = (16, 16)
UNCUT = Tiling(SIZE)
CATEGORY = "plate"
STATE = "float[B,1,16,16] {p}latent, float[B,1,16,16] {p}estimate, int32[B] {p}steps_left"
TABLE = "int32[B] {p}plan, int32[B] {p}level, int64[B] {p}category"
HEAD = '<ir_version: 10, opset_import: ["" : 20]>'
START = """
start (uint8[B,16,16,3] image, int64[B] category, int32[B] plan) => (%s)
<float scale = {255.0}, int64[1] grey_axis = {3}, int64[1] row_axis = {1}, int32 none = {0},
 int32 two = {2}, int64[3] inner = {1, 2, 3}, float half = {0.6}> {
  pixels = Cast <to = 1> (image)
  share = Div (pixels, scale)
  grey = ReduceMean <keepdims = 0> (share, grey_axis)
  next_latent = Unsqueeze (grey, row_axis)
  next_estimate = Identity (next_latent)
  mean = ReduceMean <keepdims = 0> (next_latent, inner)
  bright = Greater (mean, half)
  chosen = Cast <to = 6> (bright)
  free = Less (plan, none)
  next_plan = Where (free, chosen, plan)
  next_level = Identity (next_plan)
  next_steps_left = Add (next_plan, two)
  next_category = Identity (category)
}
"""
STEP = """
step (int32[B] steps_left) => (int32[B] next_steps_left)
<int32 one = {1}> { next_steps_left = Sub (steps_left, one) }
"""
FINISH = """
finish (float[B,1,16,16] estimate) => (float[B,16,16] anomaly_map, float[B] anomaly_score)
<float good = {0.5}, int64[1] row_axis = {1}, int64[2] inner = {1, 2}> {
  map = Squeeze (estimate, row_axis)
  apart = Sub (map, good)
  anomaly_map = Abs (apart)
  anomaly_score = ReduceMax <keepdims = 0> (anomaly_map, inner)
}
"""


def write_tiny_bundle(folder: Path, tiling: Tiling = UNCUT) -> Bundle:
    """A calibrated bundle of the method "grey"; its frames are cut by ``tiling``."""
    folder.mkdir(parents=True, exist_ok=True)
    outputs = ", ".join((STATE, TABLE)).format(p="next_")
    for name, text in (("start", START % outputs), ("step", STEP), ("finish", FINISH)):
        onnx.save(onnx.parser.parse_model(HEAD + text), folder / f"{name}.onnx")
    bundle = seal(folder, _manifest() | {"configuration": tiling.configuration()})
    with open_backend(bundle, "openvino", "f32") as backend:
        good = {CATEGORY: [good_part(seed, tiling.frame_size) for seed in range(80)]}
        fit_calibration(bundle, backend, good).save(folder / "calibration.json")
    return bundle


def seat_of(bundle: Bundle, backend_key: str = "openvino:f32") -> Seat:
    """A place at a reader, for tests that inspect by hand."""
    calibration = bundle.calibration()
    assert calibration is not None
    judge = Judge(calibration, bundle.bundle_id, backend_key, calibration.calibration_id)
    return Seat(bundle, judge, ADAPTIVE)


def shared_bundle(base: Path) -> Path:
    """Folder of a tiny bundle below ``base``, written once."""
    folder = base / "grey"
    if not folder.exists():
        write_tiny_bundle(folder)
    return folder


def good_part(seed: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """A mid-grey part [h, w, 3] with a little noise, more on some parts than on others."""
    spread = 6 + seed % 13
    noise = np.random.default_rng(seed).integers(-spread, spread + 1, (*size, 1))
    return np.repeat(128 + noise, 3, axis=2).astype(np.uint8)


def bad_part(seed: int, size: tuple[int, int] = SIZE) -> NDArray[np.uint8]:
    """A good part with a white patch in its upper left quarter."""
    part = good_part(seed, size)
    part[size[0] // 8 : size[0] // 4, size[1] // 8 : size[1] // 4] = 255
    return part


def write_parts(folder: Path, count: int, bad_every: int = 5) -> None:
    """``count`` PNG files, every fifth of a bad part."""
    folder.mkdir(parents=True)
    for seed in range(count):
        part = bad_part(seed, (32, 48)) if seed % bad_every == 0 else good_part(seed, (32, 48))
        (folder / f"{seed:04d}.png").write_bytes(encode_png(part))


def write_line(folder: Path, bundle: Path, **changes: Any) -> Path:  # noqa: ANN401 - any setting
    """A line's YAML over the parts in ``folder/parts``, without a page."""
    camera = {
        "name": "left",
        "source": {"kind": "folder", "path": "parts"},
        "category": CATEGORY,
        **changes.pop("camera", {}),
    }
    content = {
        "line": "tiny",
        "bundle": str(bundle),
        "run_dir": "run",
        "cameras": [camera],
        "worker": {"precision": "f32", "slots": 8, "threads": 1, **changes.pop("worker", {})},
        "dashboard": {"enabled": False},
        **changes,
    }
    path = folder / "line.yaml"
    path.write_text(yaml.safe_dump(content))
    return path


def _manifest() -> dict[str, Any]:
    shape = {"latent": (1, 16, 16), "estimate": (1, 16, 16)}
    dtypes = {
        "latent": "float32",
        "estimate": "float32",
        "steps_left": "int32",
        "plan": "int32",
        "level": "int32",
        "category": "int64",
    }
    spec = {
        "state": [{"name": n, "dtype": d, "shape": shape.get(n, ())} for n, d in dtypes.items()],
        "graphs": {
            "start": {"inputs": ("image", "category", "plan"), "outputs": tuple(dtypes)},
            "step": {"inputs": ("steps_left",), "outputs": ("steps_left",)},
            "finish": {"inputs": ("estimate",), "outputs": ("anomaly_map", "anomaly_score")},
        },
        "map_size": SIZE,
    }
    return {
        "method": "grey",
        "categories": (CATEGORY,),
        "image_size": SIZE,
        "plans": [{"start_level": 1, "levels": (1, 0)}, {"start_level": 2, "levels": (2, 1, 0)}],
        "steps_min": 1,
        "steps_unit": 1,
        "spec": GraphsSpec.model_validate(spec),
        "configuration": {},
    }
