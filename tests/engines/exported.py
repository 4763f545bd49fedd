"""Sketches exported once for all test processes of a session, and walked row by row in torch."""

from __future__ import annotations

import fcntl
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch

from engines.backend import start_inputs
from engines.backend_openvino import OpenVinoBackend
from engines.bundle import GRAPHS, Bundle, GraphsSpec, seal
from engines.contracts import Rows, UInt8
from engines.graphs import export_graphs
from engines.inspector import Part
from tests.engines.sketch_parts import CATEGORIES, SIDE, Sketch
from tests.engines.sketches import SKETCHES


@dataclass(frozen=True, eq=False)
class Exported:
    """A sketch, its three graphs, and what they say of themselves."""

    method: Sketch
    folder: Path
    spec: GraphsSpec

    def openvino(self, precision: str = "f32", capacity: int = 32) -> OpenVinoBackend:
        """The graphs on one OpenVINO thread."""
        return OpenVinoBackend(
            self.folder, self.spec, precision=precision, capacity=capacity, threads=1
        )


def build_sketch(name: str) -> Sketch:
    """The same random weights in every process."""
    torch.manual_seed(7)
    return SKETCHES[name]().eval()


def exported(name: str, factory: pytest.TempPathFactory) -> Exported:
    """Export a sketch, or read what another test process of this session exported."""
    shared = factory.getbasetemp()
    if shared.name.startswith("popen-"):  # a process of pytest-xdist has its own folder below
        shared = shared.parent
    for other in [n for n in SKETCHES if n != name]:
        if _export_once(name, shared, wait=False):
            break
        _export_once(other, shared, wait=False)  # do not wait idly for the one in work
    _export_once(name, shared, wait=True)
    folder = shared / f"sketch-{name}"
    spec = GraphsSpec.model_validate_json((folder / "spec.json").read_bytes())
    return Exported(build_sketch(name), folder, spec)


def _export_once(name: str, shared: Path, *, wait: bool) -> bool:
    """Whether the sketch is exported when this returns."""
    folder = shared / f"sketch-{name}"
    folder.mkdir(exist_ok=True)
    written = folder / "spec.json"
    with (folder / "lock").open("w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            return False
        if not written.exists():
            spec = export_graphs(build_sketch(name), folder)
            written.write_text(spec.model_dump_json())
    return True


def draw_image(rng: np.random.Generator) -> UInt8:
    """A smooth random picture, so that frames differ in severity."""
    coarse = torch.from_numpy(rng.uniform(0, 255, (1, 3, 6, 6)) * rng.uniform(0.2, 1))
    smooth = torch.nn.functional.interpolate(coarse, (SIDE, SIDE), mode="bicubic")
    image: UInt8 = smooth[0].permute(1, 2, 0).clamp(0, 255).byte().numpy()
    return image


def draw_parts(method: Sketch, count: int, seed: int) -> list[Part]:
    """Parts of every category, every plan and the graph's own choice in turn."""
    rng = np.random.default_rng(seed)
    choices = len(method.plans) + 1
    return [
        Part(str(i), i % CATEGORIES, f"part-{i % CATEGORIES}", draw_image(rng), i % choices - 1)
        for i in range(count)
    ]


def rows_of(parts: list[Part]) -> Rows:
    """Inputs of a start graph."""
    return start_inputs(
        [part.image for part in parts],
        [part.category_id for part in parts],
        [part.plan for part in parts],
    )


def sealed(sketch: Exported, folder: Path) -> Bundle:
    """A sketch's graphs as a bundle; it has no configuration to rebuild the method from."""
    folder.mkdir(parents=True)
    for graph in GRAPHS:
        (folder / f"{graph}.onnx").write_bytes((sketch.folder / f"{graph}.onnx").read_bytes())
    method = sketch.method
    fields = {
        "method": method.name,
        "categories": [f"part-{i}" for i in range(CATEGORIES - 1)],
        "image_size": method.image_size,
        "plans": [{"start_level": p.start_level, "levels": p.levels} for p in method.plans],
        "steps_min": method.steps_min,
        "steps_unit": method.steps_unit,
        "spec": sketch.spec,
        "configuration": {},
    }
    return seal(folder, fields)
