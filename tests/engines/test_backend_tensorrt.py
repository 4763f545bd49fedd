"""The GPU worker finds what the CPU finds, over a device that fails on wrong order."""

from __future__ import annotations

import sys

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.backend import DEVICE_BUCKETS, open_backend
from engines.backend_openvino import OpenVinoBackend
from engines.bundle import GRAPHS
from engines.contracts import BadConfig, EngineFault
from engines.gpu.device_checked import CheckedDevice
from engines.inspector import Inspector, inspect_all
from tests.engines.exported import Exported, draw_parts, exported, sealed
from tests.engines.gpu.comparing import agree, drawn
from tests.engines.gpu.host_engines import on_host
from tests.engines.sketches import SKETCHES, DecoDiffSketch


@pytest.fixture(scope="module", params=sorted(SKETCHES))
def sketch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Each of the four methods."""
    return exported(request.param, tmp_path_factory)


def test_findings_are_those_of_the_cpu(sketch: Exported, device: CheckedDevice) -> None:
    """Every method, depths mixed and rows joining and leaving in flight: the same, row by row."""
    parts = draw_parts(sketch.method, 20, seed=3)
    theirs = {f.frame_id: f for f in inspect_all(Inspector(sketch.openvino()), parts)}
    with on_host(sketch, 12, device)[0] as backend:
        for ours in inspect_all(Inspector(backend), parts):
            expected = theirs.pop(ours.frame_id)
            assert (ours.plan, ours.level, ours.steps) == (
                expected.plan,
                expected.level,
                expected.steps,
            )
            assert ours.anomaly_score == pytest.approx(expected.anomaly_score, rel=1e-5)
            assert np.allclose(ours.anomaly_map, expected.anomaly_map, rtol=1e-4, atol=1e-6)
    assert not theirs


@pytest.mark.parametrize("count", [1, 2, 3, 8, 17, 33, 64])
def test_every_bucket_computes_its_rows(
    glad: Exported, theirs: OpenVinoBackend, device: CheckedDevice, count: int
) -> None:
    """Up to 64 rows of any slots, in full buckets and padded ones; run, captured, launched."""
    rows, slots = drawn(glad, count, count), np.random.default_rng(count).permutation(70)[:count]
    with on_host(glad, 70, device)[0] as ours:
        for _ in range(3):
            assert agree(ours.start(rows, slots.tolist()), theirs.start(rows, slots.tolist()))
            back = slots[::-1].tolist()
            assert agree(ours.step(back), theirs.step(back))
            found, expected = ours.finish(back), theirs.finish(back)
            assert np.allclose(found.anomaly_score, expected.anomaly_score, rtol=1e-5)
            assert np.allclose(found.anomaly_map, expected.anomaly_map, rtol=1e-4, atol=1e-6)
        size = next(size for size in DEVICE_BUCKETS if size >= count)
        assert sorted(ours.captured) == sorted((graph, size) for graph in GRAPHS)


def test_more_rows_than_the_largest_bucket_are_split(
    glad: Exported, theirs: OpenVinoBackend, device: CheckedDevice
) -> None:
    """150 rows are three batches; frames of the next one go up while one is computed."""
    rows, slots = drawn(glad, 150, 5), list(range(149, -1, -1))
    with on_host(glad, 150, device)[0] as ours:
        assert agree(ours.start(rows, slots), theirs.start(rows, slots))
        assert agree(ours.step(slots), theirs.step(slots))
        found, expected = ours.finish(slots), theirs.finish(slots)
    assert found.anomaly_map.shape == (150, *glad.spec.map_size)
    assert np.allclose(found.anomaly_score, expected.anomaly_score, rtol=1e-5)


@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_sequence_of_calls_agrees_with_the_cpu(
    glad: Exported, theirs: OpenVinoBackend, data: st.DataObject
) -> None:
    """Starts, steps and finishes of any rows in any order leave every row as it has to be."""
    capacity, device = 9, CheckedDevice()
    lots = st.lists(st.integers(0, capacity - 1), min_size=1, unique=True)
    with on_host(glad, capacity, device)[0] as ours:
        first = list(range(capacity))
        rows = drawn(glad, capacity, 1)
        assert agree(ours.start(rows, first), theirs.start(rows, first))
        for call in data.draw(st.lists(st.sampled_from(GRAPHS), max_size=12)):
            slots = data.draw(lots)
            if call == "start":
                rows = drawn(glad, len(slots), data.draw(st.integers(0, 99)))
                assert agree(ours.start(rows, slots), theirs.start(rows, slots))
            elif call == "step":
                assert agree(ours.step(slots), theirs.step(slots))
            else:
                found, expected = ours.finish(slots), theirs.finish(slots)
                assert np.allclose(
                    found.anomaly_score, expected.anomaly_score, rtol=1e-4, equal_nan=True
                )
    assert not device.hazards


def test_a_device_without_graphs_computes_the_same(glad: Exported, theirs: OpenVinoBackend) -> None:
    """Kernel by kernel, with the same order and the same findings."""
    device, rows, slots = CheckedDevice(has_graphs=False), drawn(glad, 6, 8), [3, 1, 5, 0, 2, 4]
    with on_host(glad, 6, device)[0] as ours:
        for _ in range(3):
            assert agree(ours.start(rows, slots), theirs.start(rows, slots))
        assert not ours.captured
    assert not device.calls["graph"]
    assert not device.hazards


def test_no_evidence_passes_through_beside_evidence(
    tmp_path_factory: pytest.TempPathFactory, device: CheckedDevice
) -> None:
    """A NaN row stays NaN, of which the judge makes UNDECIDED, and does not touch its neighbour."""
    deco = exported(DecoDiffSketch.name, tmp_path_factory)
    with on_host(deco, 4, device)[0] as backend:
        backend.start(drawn(deco, 2, 4), [0, 1])
        backend.step([0])
        score = backend.finish([0, 1]).anomaly_score
    assert np.isfinite(score[0])
    assert np.isnan(score[1])


def test_it_opens_by_name(
    glad: Exported, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A precision that does not exist, and a machine without the libraries: one sentence each."""
    bundle = sealed(glad, tmp_path_factory.mktemp("bundle") / "glad")
    with pytest.raises(BadConfig, match="no precision 'int4'"):
        open_backend(bundle, "tensorrt", "int4")
    for library in ("pycuda", "cuda.bindings"):
        monkeypatch.setitem(sys.modules, library, None)
    sentence = "pycuda is not installed; cuda-bindings is not installed"
    with pytest.raises(EngineFault, match=sentence):
        open_backend(bundle, "tensorrt")
