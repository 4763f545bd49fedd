"""The code asks nothing of TensorRT 11 that its real bindings do not have."""

from __future__ import annotations

import importlib.metadata
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.engines.gpu.stub_libraries import NEEDED, compile_stubs

pytestmark = NEEDED
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What the probe found, in a process that may load the stubs."""
    major = int(importlib.metadata.version("tensorrt-cu13-bindings").split(".")[0])
    stubs = compile_stubs(tmp_path_factory.mktemp("stubs"), major)
    done = subprocess.run(
        [sys.executable, "-m", "tests.engines.gpu.probe_bindings", tmp_path_factory.mktemp("kept")],
        cwd=ROOT,
        env=os.environ | {"LD_LIBRARY_PATH": str(stubs)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_building_uses_what_the_bindings_have(told: dict[str, Any]) -> None:
    """Network, parser, profiles, memory limit and timing cache; timings are kept by version."""
    assert told["written"] == [f"timings-{told['version']}.cache"]


def test_running_uses_what_the_bindings_have(told: dict[str, Any]) -> None:
    """Contexts, profile, shapes, addresses; the profile is chosen once, each batch enqueued."""
    assert told["enqueued"] == ["call(7)", "call(7)"]


def test_signatures_are_those_that_the_code_was_written_for(told: dict[str, Any]) -> None:
    """Arguments by name and kind, as the bindings print them."""
    printed = told["signatures"]
    assert "stream_handle: typing.SupportsInt) -> bool" in printed["execute_async_v3"]
    assert "name: str, memory: typing.SupportsInt) -> bool" in printed["set_tensor_address"]
    assert "name: str, shape: tuple) -> bool" in printed["set_input_shape"]
    assert "ignore_mismatch: bool) -> bool" in printed["set_timing_cache"]


def test_a_library_that_answers_nothing_is_one_sentence(told: dict[str, Any]) -> None:
    """As without a driver: the bindings raise a TypeError, we say what does not work."""
    assert [said.split(":")[0] for said in told["refusals"]] == [
        f"tensorrt {told['version']} does not work here"
    ] * 2


def test_without_its_libraries_the_sentence_names_them() -> None:
    """The bindings alone are no TensorRT."""
    program = (
        "import importlib, sys\n"
        "class Finder:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name == 'tensorrt': importlib.import_module('tensorrt_bindings')\n"
        "sys.meta_path.insert(0, Finder())\n"
        "from engines.gpu.libraries import load_library\n"
        "load_library('tensorrt')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=False
    )
    last = done.stderr.strip().splitlines()[-1]
    assert "BadConfig: tensorrt is installed but cannot be loaded (libnv" in last
