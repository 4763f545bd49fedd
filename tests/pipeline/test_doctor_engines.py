"""doctor looks at a worker's engines where there is no GPU to load them on."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from engines.backend import DEVICE_BUCKETS, engine_cache
from engines.bundle import GRAPHS, Bundle, open_bundle
from engines.gpu.engine_file import EngineKey, engine_folder, engine_path, key_path, write_engine
from engines.gpu.libraries import load_library
from engines.gpu.ports import ports_of
from engines.gpu.precision import precisions_of
from pipeline.config import LineSettings
from pipeline.doctor.line import runs

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.doctor.check import Check

DEMO = Path(__file__).parents[2] / "configs/bundles/demo"
ENGINE = b"what a library made of a graph"

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
)


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """The demo bundle beside engines whose keys fit; their bytes are no library's."""
    bundle = open_bundle(shutil.copytree(DEMO, tmp_path / "demo"))
    for graph, precision in precisions_of(bundle, "fp16").items():
        inputs, outputs = ports_of(bundle.manifest, graph)
        key = EngineKey(
            bundle_id=bundle.bundle_id,
            graph=graph,
            library="tensorrt_rtx",
            library_version=load_library("tensorrt_rtx").version,
            compute=("SM89",),
            precision=precision,
            buckets=DEVICE_BUCKETS,
            inputs=inputs,
            outputs=outputs,
            sha256=hashlib.sha256(ENGINE).hexdigest(),
        )
        write_engine(place_of(bundle), graph, memoryview(ENGINE), key)
    return bundle


def place_of(bundle: Bundle) -> Path:
    """Where the engines lie."""
    return engine_folder(engine_cache(bundle), "fp16")


def seen(bundle: Bundle) -> dict[str, Check]:
    """What doctor says of a line on TensorRT."""
    camera = {"name": "left", "source": {"kind": "simulator"}, "gate_ms": 1000}
    worker = {"backend": "tensorrt", "precision": "fp16"}
    line = {"line": "t", "bundle": bundle.folder, "cameras": [camera], "worker": worker}
    return {check.name: check for check in runs(LineSettings.model_validate(line), bundle)}


def test_engines_that_fit_are_told_with_their_gpus(bundle: Bundle) -> None:
    """Whether this machine can load them is a check of its own."""
    found = seen(bundle)["engines built"]
    assert found.ok
    assert found.found.startswith("tensorrt_rtx 1.")
    assert found.found.endswith(" for SM89")


def flip(place: Path) -> None:
    """Another bit in an engine."""
    path = engine_path(place, "step")
    path.write_bytes(path.read_bytes()[:-1] + b"g")


def rename(place: Path) -> None:
    """Engines of another bundle."""
    for graph in GRAPHS:
        path = key_path(place, graph)
        path.write_text(json.dumps(json.loads(path.read_text()) | {"bundle_id": "0123456789ab"}))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (shutil.rmtree, "there is no engine of start in"),
        (rename, "the engine of start was built for bundle id 0123456789ab, not"),
        (flip, "step.engine does not have the bytes that its key names"),
    ],
)
def test_engines_that_do_not_fit_are_one_sentence(
    bundle: Bundle, damage: Callable[[Path], None], said: str
) -> None:
    """What is wrong, and the command that mends it."""
    damage(place_of(bundle))
    found = seen(bundle)["engines built"]
    assert not found.ok
    assert said in found.found
    assert f"run assayline build {bundle.folder} --backend tensorrt --precision fp16" in found.found
    assert "\n" not in found.found
