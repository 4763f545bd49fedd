"""The devices of pycuda and cuda-bindings: their real bindings, over a driver of host memory."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.contracts import EngineFault
from engines.gpu import cuda_driver, device_cuda
from engines.gpu.device import Unavailable, open_device
from pipeline.gpucheck.trials import read_counts
from tests.engines.exported import Exported, draw_parts, exported, rows_of
from tests.engines.sketches import GladSketch

HERE, ROOT = Path(__file__).parent, Path(__file__).parents[3]
DEVICES = {"engines.gpu.device_cuda": "cuda.bindings", "engines.gpu.device_pycuda": "pycuda"}
COUNT = 66
ON_ANY_DEVICE = ("tests/engines/gpu/test_on_a_gpu.py", "tests/pipeline/test_gpucheck_devices.py")


@pytest.fixture(scope="module")
def stub(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libcuda.so.1 that needs no GPU."""
    if (compiler := shutil.which("g++")) is None:
        pytest.skip("there is no g++ to compile the stub driver with")
    folder = tmp_path_factory.mktemp("driver")
    source = HERE / "stub_driver.cpp"
    rest = folder / "rest.cpp"
    rest.write_text(others(source.read_text("utf-8")), "utf-8")
    command = [compiler, "-std=c++17", "-O1", "-fPIC", "-shared", "-Wl,-soname,libcuda.so.1"]
    sources = [f"-I{ROOT / 'engines/gpu'}", str(source), str(rest)]
    subprocess.run([*command, *sources, "-o", str(folder / "libcuda.so.1"), "-ldl"], check=True)
    return folder


def others(written: str) -> str:
    """Empty functions for what pycuda is linked to and the stub does not write."""
    found = importlib.util.find_spec("pycuda")
    if found is None or found.origin is None:
        return ""
    names: set[str] = set()
    for library in Path(found.origin).parent.glob("_driver*.so"):
        names |= {n.decode() for n in re.findall(rb"(?<=\0)cu[A-Z]\w+(?=\0)", library.read_bytes())}
    missing = sorted(name for name in names if f" {name}(" not in written)
    return "\n".join(f'extern "C" int {name}() {{ return 801; }}' for name in missing)


@pytest.fixture(scope="module")
def sketch(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a sketch's graphs, frames, and what OpenVINO finds in them."""
    glad = exported(GladSketch.name, tmp_path_factory)
    folder = tmp_path_factory.mktemp("rows")
    for path in glad.folder.iterdir():
        if path.suffix in {".onnx", ".json"}:
            shutil.copy(path, folder)
    np.savez(folder / "rows.npz", **expected(glad))
    return folder


def expected(glad: Exported) -> dict[str, Any]:
    """Frames enough for two buckets, after one step."""
    rows = rows_of(draw_parts(glad.method, COUNT, seed=9))
    slots = np.random.default_rng(9).permutation(COUNT)
    with glad.openvino(capacity=COUNT) as backend:
        backend.start(rows, slots.tolist())
        left, found = backend.step(slots.tolist()), backend.finish(slots.tolist())
    given = {"image": rows.image, "category": rows.category, "seed": rows.seed, "plan": rows.plan}
    given |= {"slots": slots, "steps_left": left.steps_left, "level": left.level}
    return given | {"score": found.anomaly_score, "map": found.anomaly_map}


@pytest.fixture(scope="module", params=DEVICES)
def found(request: pytest.FixtureRequest, stub: Path, sketch: Path) -> dict[str, Any]:
    """What happened on the stub driver, by each library that is installed."""
    pytest.importorskip(DEVICES[request.param], exc_type=ModuleNotFoundError)
    ended = subprocess.run(
        [sys.executable, "-m", "tests.engines.gpu.on_stub", request.param, str(sketch)],
        env=os.environ
        | {"LD_LIBRARY_PATH": str(stub), "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert ended.returncode == 0, ended.stderr
    told: dict[str, Any] = json.loads(ended.stdout)
    return told


def test_the_worker_runs_on_the_library(found: dict[str, Any]) -> None:
    """66 rows in two buckets, by the kernels of rows.cu: run, captured and launched."""
    assert found["agrees"] == [True, True, True]
    assert sorted(found["captured"]) == [
        [graph, size] for graph in ("finish", "start", "step") for size in (2, 64)
    ]
    assert not found["not_captured"]
    assert found["left"] == [0, 0, 0]


def test_the_library_tells_what_it_runs_on(found: dict[str, Any]) -> None:
    """Name, compute capability and memory come from the driver."""
    assert (found["name"], found["capability"]) == ("stub GPU", [9, 0])
    assert found["memory"] == [1 << 33, 1 << 34]


def test_what_fails_at_opening_is_one_sentence_and_leaks_nothing(found: dict[str, Any]) -> None:
    """Every allocation, stream and event in turn, the kernels and the context."""
    told = found["faults"]["told"]
    assert found["faults"]["left"] == [0, 0, 0]
    assert any(re.match(r"the GPU has no \d+ MiB of memory left", fault) for fault in told)
    assert any("MiB of page-locked memory" in fault for fault in told)
    assert not any("\n" in fault for fault in told)


def test_a_device_lost_in_a_call_is_told_and_left_clean(found: dict[str, Any]) -> None:
    """What a launch says comes through, and all is given back."""
    assert found["lost"]["told"].startswith("the GPU failed (")
    assert found["lost"]["left"] == [0, 0, 0]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_what_a_gpu_is_tested_by_holds_on_the_stub(stub: Path, tmp_path: Path) -> None:
    """Tests that need a GPU run where there is none, through the same bindings; none fails."""
    pytest.importorskip("cuda.bindings.driver")
    written = tmp_path / "tests.xml"
    options = ["-q", "-m", "gpu", "-n", "0", f"--junitxml={written}"]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options, *ON_ANY_DEVICE],
        env=os.environ | {"LD_LIBRARY_PATH": str(stub)},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    assert done.returncode == 0, done.stdout
    counts = read_counts(written)
    assert counts.passed >= len(ON_ANY_DEVICE)
    assert all("pycuda" in reason for reason in counts.reasons)


def test_a_driver_that_lacks_a_call_is_too_old(stub: Path) -> None:
    """cuda-bindings asks for the newest form of a call, which is a sentence of ours."""
    pytest.importorskip("cuda.bindings.driver")
    program = (
        "from engines.gpu.device_cuda import open_device\n"
        "device = open_device()\n"
        "one, stream = device.event(timed=True), device.stream()\n"
        "one.record(stream)\n"
        "one.elapsed_ms(one)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | {"LD_LIBRARY_PATH": str(stub), "STUB_LACKS": "cuEventElapsedTime"},
        capture_output=True,
        text=True,
        check=False,
        cwd=ROOT,
    )
    last = done.stderr.strip().splitlines()[-1]
    assert re.search(r"EngineFault: the NVIDIA driver is too old \(.*cuEventElapsedTime", last)


def test_every_name_of_cuda_bindings_exists() -> None:
    """Each call that is made by name is in the installed library, with as many parameters."""
    library = pytest.importorskip("cuda.bindings.driver")
    calls = {
        name: count
        for module in (cuda_driver, device_cuda)
        for name, count in calls_in(inspect.getsource(module))
    }
    assert len(calls) > 30
    for name, count in calls.items():
        line = getattr(library, name).__doc__.splitlines()[0]
        assert len(parameters(line)) == count, line
    assert getattr(library.CUstreamCaptureMode, cuda_driver.CAPTURE).value == 1
    assert library.CUstream_flags.CU_STREAM_NON_BLOCKING.value == device_cuda.NON_BLOCKING
    assert library.CUevent_flags.CU_EVENT_DISABLE_TIMING.value == device_cuda.NO_TIMING


def calls_in(source: str) -> list[tuple[str, int]]:
    """Names and numbers of arguments of ``driver("cuName", ...)``."""
    found = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = node.args[0].value
            if isinstance(name, str) and re.fullmatch("cu[A-Z]\\w+", name):
                spread = {"grid": 3, "": 4}  # a starred tuple counts as what is in it
                counts = [
                    spread.get(getattr(arg.value, "id", ""), 1)
                    if isinstance(arg, ast.Starred)
                    else 1
                    for arg in node.args[1:]
                ]
                found.append((name, sum(counts)))
    return found


def parameters(line: str) -> list[str]:
    """Of a signature as cuda-bindings documents it."""
    inner = line[line.index("(") + 1 : line.rindex(")")]
    return [part for part in inner.split(",") if part.strip()]


# ---- what this machine lacks


def test_without_a_driver_one_sentence_says_so() -> None:
    """cuda-bindings is installed and finds no driver; pycuda says so too, or is not installed."""
    if any(Path("/dev").glob("nvidia[0-9]*")):
        pytest.skip("this machine has a GPU")
    with pytest.raises(EngineFault, match="there is no GPU to compute on: pycuda") as caught:
        open_device()
    assert "cuda-bindings finds no NVIDIA driver" in str(caught.value)
    with pytest.raises(Unavailable, match="finds no NVIDIA driver on this machine"):
        device_cuda.open_device()


def test_without_the_libraries_one_sentence_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both names are told, once each."""
    for library in ("pycuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, library, None)
    with pytest.raises(EngineFault) as caught:
        open_device()
    assert str(caught.value) == (
        "there is no GPU to compute on: pycuda is not installed; cuda-bindings is not installed"
    )
