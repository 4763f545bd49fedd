"""The shape holds all four methods: state, export, mixed depth on OpenVINO."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from engines.backend_torch import TorchBackend
from engines.contracts import ADAPTIVE, Finding, at_most
from engines.inspector import Inspector, Part, inspect_all
from tests.engines.exported import Exported, draw_parts, exported, rows_of
from tests.engines.sketches import SKETCHES, DrdcSketch, GladSketch


@pytest.fixture(scope="module", params=SKETCHES)
def sketch(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """Each of the four methods, exported."""
    return exported(request.param, tmp_path_factory)


def alone(method: object, part: Part) -> Finding:
    """The finding of one part by torch eager, with nobody else in the batch."""
    (finding,) = inspect_all(Inspector(TorchBackend(method, 1)), [part])  # type: ignore[arg-type]
    return finding


def in_flight(sketch: Exported, parts: list[Part]) -> dict[str, Finding]:
    """Findings of parts that join a running batch in three waves, four rows a step."""
    inspector, found = Inspector(sketch.openvino(), batch_max=4), []
    waves = [parts[:5], parts[5:8], parts[8:]]
    for wave in waves:
        inspector.admit(wave)
        found += inspector.step() + inspector.step()
    found += inspector.drain()
    return {finding.frame_id: finding for finding in found}


def test_rows_of_mixed_depth_agree_with_rows_alone(sketch: Exported) -> None:
    """Rows of other plans, levels and ages in the batch do not change a finding."""
    parts = draw_parts(sketch.method, 14, seed=1)
    found = in_flight(sketch, parts)
    assert len({f.steps for f in found.values()}) > 1 or len({f.level for f in found.values()}) > 1
    for part in parts:
        expected, got = alone(sketch.method, part), found[part.frame_id]
        assert (got.plan, got.steps) == (expected.plan, expected.steps)
        assert got.anomaly_score == pytest.approx(expected.anomaly_score, rel=1e-5)
        assert np.allclose(got.anomaly_map, expected.anomaly_map, rtol=1e-4, atol=1e-5)


def test_levels_and_steps_left_come_back_every_step(sketch: Exported) -> None:
    """Both backends report the same progress of every row after start and after each step."""
    parts = draw_parts(sketch.method, 9, seed=2)
    rows, slots = rows_of(parts), list(range(9))
    ours, reference = sketch.openvino(), TorchBackend(sketch.method)
    one, other = ours.start(rows, slots), reference.start(rows, slots)
    while slots:
        assert np.array_equal(one.steps_left, other.steps_left)
        assert np.array_equal(one.plan, other.plan)
        assert np.array_equal(one.level, other.level)
        slots = [slot for slot, left in zip(slots, one.steps_left, strict=True) if left > 0]
        if slots:
            one, other = ours.step(slots), reference.step(slots)


def test_a_limit_binds_only_who_would_go_deeper(sketch: Exported) -> None:
    """Rows asked for "at most plan k" take their own choice up to k, and k beyond it."""
    parts = [replace(part, plan=ADAPTIVE) for part in draw_parts(sketch.method, 9, seed=4)]
    ours, slots = sketch.openvino(), list(range(9))
    free = ours.start(rows_of(parts), slots).plan
    for plan in range(len(sketch.method.plans)):
        limited = rows_of([replace(part, plan=at_most(plan)) for part in parts])
        assert ours.start(limited, slots).plan.tolist() == np.minimum(free, plan).tolist()


def test_a_row_without_a_complete_unit_has_no_evidence(sketch: Exported) -> None:
    """Before ``steps_min`` calls a score is NaN, unless start itself holds evidence."""
    parts = draw_parts(sketch.method, 3, seed=3)
    backend = sketch.openvino()
    backend.start(rows_of(parts), [0, 1, 2])
    score = backend.finish([0, 1, 2]).anomaly_score
    assert bool(np.isfinite(score).all()) == (sketch.method.steps_min == 0)


def test_a_row_cut_at_a_cut_point_agrees_with_torch(sketch: Exported) -> None:
    """After one unit a running row can be finished, and only its finished units count."""
    deepest = max(range(len(sketch.method.plans)), key=lambda p: sketch.method.plans[p].steps)
    parts = [Part("0", 0, "a", draw_parts(sketch.method, 1, seed=4)[0].image, deepest)]
    scores = []
    for backend in (sketch.openvino(), TorchBackend(sketch.method)):
        backend.start(rows_of(parts), [0])
        for _ in range(sketch.method.steps_unit):
            backend.step([0])
        scores.append(float(backend.finish([0]).anomaly_score[0]))
    assert math.isfinite(scores[1])
    assert scores[0] == pytest.approx(scores[1], rel=1e-5)


def test_drdc_counts_complete_covers_only(tmp_path_factory: pytest.TempPathFactory) -> None:
    """A row cut in the middle of a cover has the evidence of the covers before it."""
    sketch = exported(DrdcSketch.name, tmp_path_factory)
    image = draw_parts(sketch.method, 1, seed=6)[0].image
    parts, scores = [Part("0", 0, "a", image, len(sketch.method.plans) - 1)], []
    backend = sketch.openvino()
    backend.start(rows_of(parts), [0])
    for _ in range(4):
        scores.append(float(backend.finish([0]).anomaly_score[0]))
        backend.step([0])
    assert scores[0] == scores[1]
    assert scores[1] != scores[2]
    assert scores[2] == scores[3]


def test_unused_inputs_are_absent(sketch: Exported) -> None:
    """A graph takes what its method reads: a seed only where there is noise."""
    noisy = sketch.method.name in ("GLAD", "DRDC-style")
    start, finish = sketch.spec.graphs["start"], sketch.spec.graphs["finish"]
    assert ("seed" in start.inputs) == noisy
    assert "latent" not in finish.inputs
    assert set(sketch.spec.graphs["step"].outputs) < {t.name for t in sketch.spec.state}


def test_glad_closes_at_a_level_of_its_own_per_row(
    tmp_path_factory: pytest.TempPathFactory,
) -> None:
    """Rows close at different levels inside the graph, and the level comes back."""
    sketch = exported(GladSketch.name, tmp_path_factory)
    parts = draw_parts(sketch.method, 12, seed=5)
    backend = sketch.openvino()
    slots = list(range(12))
    progress = backend.start(rows_of(parts), slots)
    started = set(progress.level.tolist())
    for _ in range(max(plan.steps for plan in sketch.method.plans)):
        progress = backend.step(slots)
    closed = set(progress.level.tolist())
    assert len(closed) > 1
    assert not closed & started
