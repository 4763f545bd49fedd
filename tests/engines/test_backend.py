"""Backends: who is in the batch never matters, and misuse is one sentence."""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.backend import BUCKETS, bucket_of, build_engine, engine_cache, open_backend
from engines.backend_openvino import OpenVinoBackend
from engines.backend_torch import TorchBackend
from engines.bundle import Bundle, GraphSpec
from engines.contracts import BadBundle, BadConfig, EngineFault, Evidence, Finding
from engines.costs import measure_costs
from engines.inspector import Inspector, Part, inspect_all
from engines.openvino_graphs import openvino_core
from tests.engines.exported import Exported, draw_parts, exported, rows_of, sealed
from tests.engines.sketches import DecoDiffSketch, GladSketch

POOL = 24


@pytest.fixture(scope="module")
def deco(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A sketch without noise."""
    return exported(DecoDiffSketch.name, tmp_path_factory)


@pytest.fixture(scope="module")
def glad(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """A sketch with a noise table."""
    return exported(GladSketch.name, tmp_path_factory)


@pytest.fixture(scope="module")
def bundle(deco: Exported, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The sketch as it is shipped."""
    return sealed(deco, tmp_path_factory.mktemp("bundle") / "deco")


@pytest.fixture(scope="module")
def parts(glad: Exported) -> list[Part]:
    """Frames of every category and plan."""
    return draw_parts(glad.method, POOL, seed=11)


@pytest.fixture(scope="module")
def backend(glad: Exported) -> OpenVinoBackend:
    """One backend for many examples."""
    return glad.openvino(capacity=16)


@pytest.fixture(scope="module")
def alone(backend: OpenVinoBackend, parts: list[Part]) -> dict[str, Finding]:
    """The finding of each frame with nobody else in the batch."""
    found = [next(inspect_all(Inspector(backend), [part])) for part in parts]
    return {finding.frame_id: finding for finding in found}


@settings(max_examples=12, deadline=None)
@given(
    chosen=st.lists(st.integers(0, POOL - 1), unique=True, min_size=1),
    width=st.sampled_from(BUCKETS),
)
def test_a_finding_does_not_depend_on_its_batch(
    backend: OpenVinoBackend,
    parts: list[Part],
    alone: dict[str, Finding],
    chosen: list[int],
    width: int,
) -> None:
    """Alone, among up to sixteen, in any order: the same plan, level, depth and score."""
    batch = [parts[i] for i in chosen]
    for finding in inspect_all(Inspector(backend, batch_max=width), batch):
        expected = alone[finding.frame_id]
        assert (finding.plan, finding.level, finding.steps) == (
            expected.plan,
            expected.level,
            expected.steps,
        )
        assert finding.anomaly_score == pytest.approx(expected.anomaly_score, rel=1e-5)
        assert np.allclose(finding.anomaly_map, expected.anomaly_map, rtol=1e-4, atol=1e-6)


def walk(backend: OpenVinoBackend | TorchBackend, parts: list[Part]) -> Evidence:
    """All parts at once to the end of the deepest plan."""
    slots = list(range(len(parts)))
    left = backend.start(rows_of(parts), slots).steps_left
    while left.max() > 0:
        going = [slot for slot in slots if left[slot] > 0]
        left[going] = backend.step(going).steps_left
    return backend.finish(slots)


def test_more_rows_than_the_largest_bucket_are_split(glad: Exported, parts: list[Part]) -> None:
    """Any number of rows up to the capacity may be named at once, on both backends."""
    ours, theirs = walk(glad.openvino(), parts), walk(TorchBackend(glad.method), parts)
    assert ours.anomaly_score.shape == (POOL,)
    assert ours.anomaly_map.shape == (POOL, *glad.spec.map_size)
    assert np.allclose(ours.anomaly_score, theirs.anomaly_score, rtol=1e-5)


@pytest.mark.parametrize("count", range(1, BUCKETS[-1] + 1))
def test_a_bucket_is_the_smallest_that_holds_the_rows(count: int) -> None:
    """Padding never reaches the next bucket."""
    assert count <= bucket_of(count) < 2 * count or bucket_of(count) == count


@pytest.mark.parametrize("seed", [0, 2**24, 2**31 + 5, 2**32 - 1, 2**62])
def test_a_seed_of_any_size_meets_the_same_noise(glad: Exported, seed: int) -> None:
    """Runtimes that compute with fewer bits take the same row of the noise table."""
    rows = replace(rows_of(draw_parts(glad.method, 1, seed=3)), seed=np.array([seed]))
    scores = []
    for backend in (glad.openvino(), TorchBackend(glad.method)):
        backend.start(rows, [0])
        backend.step([0])
        scores.append(float(backend.finish([0]).anomaly_score[0]))
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_no_evidence_passes_through_beside_evidence(deco: Exported) -> None:
    """A NaN row stays NaN and does not touch its neighbour."""
    backend = deco.openvino()
    backend.start(rows_of(draw_parts(deco.method, 2, seed=4)), [0, 1])
    backend.step([0])
    score = backend.finish([0, 1]).anomaly_score
    assert np.isfinite(score[0])
    assert np.isnan(score[1])


def test_warming_up_leaves_rows_as_they_are(deco: Exported) -> None:
    """Every bucket can be run while rows are in flight."""
    backend = deco.openvino()
    backend.start(rows_of(draw_parts(deco.method, 2, seed=5)), [3, 1])
    backend.step([1, 3])
    before = backend.finish([1, 3])
    measure_costs(backend, time.perf_counter_ns)
    after = backend.finish([1, 3])
    assert np.array_equal(before.anomaly_map, after.anomaly_map)


@pytest.mark.parametrize(
    ("slots", "sentence"),
    [
        ([], "do not lie below the capacity of 4"),
        ([4], "do not lie below the capacity of 4"),
        ([-1], "do not lie below the capacity of 4"),
        ([1, 1], "name a row twice"),
    ],
)
def test_rows_that_are_not_there_are_refused(
    deco: Exported, slots: list[int], sentence: str
) -> None:
    """A wrong slot never reaches a runtime."""
    for backend in (deco.openvino(capacity=4), TorchBackend(deco.method, 4)):
        with pytest.raises(EngineFault, match=sentence):
            backend.step(slots)


def test_frames_of_another_size_are_refused(deco: Exported) -> None:
    """The sentence says what the graph wants; the backend still works afterwards."""
    backend = deco.openvino()
    rows = rows_of(draw_parts(deco.method, 1, seed=6))
    with pytest.raises(EngineFault, match=r"uint8 \[64, 64, 3\], not uint8 \[32, 64, 3\]"):
        backend.start(replace(rows, image=rows.image[:, :32]), [0])
    with pytest.raises(EngineFault, match="1 rows were given for 2 slots"):
        backend.start(rows, [0, 1])
    assert backend.start(rows, [0]).steps_left[0] > 0


def test_what_a_runtime_raises_is_one_sentence(deco: Exported) -> None:
    """Stepping rows that never started names the backend and the graph."""
    with pytest.raises(EngineFault, match="torch:f32 could not run step: ") as caught:
        TorchBackend(deco.method).step([0])
    assert "\n" not in str(caught.value)


def test_precision_is_always_explicit(deco: Exported) -> None:
    """ "auto" is bf16 exactly where the processor has it; pins hold a graph at f32."""
    core = openvino_core()
    native = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    best = "bf16" if native else "f32"
    assert deco.openvino("auto").key == f"openvino:{best}"
    assert deco.openvino("f32").key == "openvino:f32"
    pinned = OpenVinoBackend(deco.folder, deco.spec, pins={"start": "f32"}, threads=1)
    assert pinned.key == f"openvino:{best}"
    assert pinned.precisions == {"start": "f32", "step": best, "finish": best}
    by_graph = OpenVinoBackend(
        deco.folder, deco.spec, precision={"start": "f32", "finish": "f32"}, threads=1
    )
    assert by_graph.precisions == {"start": "f32", "step": best, "finish": "f32"}
    if not native:
        with pytest.raises(EngineFault, match="no bf16"):
            deco.openvino("bf16")


def test_a_bundle_opens_by_backend_name(bundle: Bundle, parts: list[Part]) -> None:
    """The registry opens what the bundle holds; compiled graphs are kept and used again."""
    key = build_engine(bundle, "openvino", "f32")
    assert key == "openvino:f32"
    assert any(engine_cache(bundle).iterdir())
    with open_backend(bundle, "openvino", "f32", capacity=2, threads=1) as backend:
        assert backend.start(rows_of(parts[:2]), [0, 1]).steps_left.min() > 0


def test_names_that_do_not_exist_are_listed(bundle: Bundle) -> None:
    """A wrong backend or precision is told what there is."""
    with pytest.raises(BadConfig, match="choose one of openvino, torch"):
        open_backend(bundle, "tensorflow")
    with pytest.raises(BadConfig, match="choose auto, f32, bf16 or int8"):
        open_backend(bundle, "openvino", "fp16")
    with pytest.raises(BadConfig, match="f32 reference"):
        open_backend(bundle, "torch", "bf16")


def test_graphs_that_do_not_load_are_named(deco: Exported, tmp_path: Path) -> None:
    """A truncated file and a foreign graph are BadBundle, in one sentence."""
    for graph in deco.spec.graphs:
        content = (deco.folder / f"{graph}.onnx").read_bytes()
        (tmp_path / f"{graph}.onnx").write_bytes(content[: len(content) // 2])
    with pytest.raises(BadBundle, match=r"start.onnx does not compile") as caught:
        OpenVinoBackend(tmp_path, deco.spec)
    assert "\n" not in str(caught.value)
    foreign = deco.spec.graphs | {"step": GraphSpec(inputs=("latent",), outputs=("latent",))}
    with pytest.raises(BadBundle, match=r"step.onnx has other inputs"):
        OpenVinoBackend(deco.folder, deco.spec.model_copy(update={"graphs": foreign}))


def test_inspection_needs_no_torch_and_reports_to_nobody(deco: Exported) -> None:
    """A worker's process loads neither torch nor OpenVINO's telemetry."""
    code = (
        "import sys; from pathlib import Path\n"
        "from engines.backend_openvino import OpenVinoBackend\n"
        "from engines.bundle import GraphsSpec\n"
        "folder = Path(sys.argv[1])\n"
        "spec = GraphsSpec.model_validate_json((folder / 'spec.json').read_bytes())\n"
        "OpenVinoBackend(folder, spec, threads=1).close()\n"
        "loaded = [n for n in ('torch', 'onnx', 'openvino_telemetry') if sys.modules.get(n)]\n"
        "sys.exit(f'loaded: {loaded}' if loaded else 0)"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code, str(deco.folder)], capture_output=True, text=True, check=False
    )
    assert ended.returncode == 0, ended.stderr
