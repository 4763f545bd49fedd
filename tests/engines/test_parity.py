"""The parity gate: lets through what agrees, names what does not, and flips nothing silently."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from torch import Tensor

from engines.backend import engine_cache
from engines.backend_torch import TorchBackend
from engines.bundle import Bundle
from engines.calibration_fit import Wanted, fit_calibration
from engines.contracts import BadBundle, ParityError
from engines.parity import Limit, ParityReport, build_and_compare, compare, open_reference
from engines.parity_set import ParitySet
from tests.engines.exported import Exported, build_sketch, draw_parts, exported, sealed
from tests.engines.sketch_parts import Sketch
from tests.engines.sketches import DecoDiffSketch

FRAMES = 6


@pytest.fixture(scope="module")
def sketch(tmp_path_factory: pytest.TempPathFactory) -> Exported:
    """One method is enough: the gate knows none."""
    return exported(DecoDiffSketch.name, tmp_path_factory)


@pytest.fixture(scope="module")
def bundle(sketch: Exported, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The sketch as it is shipped."""
    return sealed(sketch, tmp_path_factory.mktemp("bundle") / "sketch")


class Bent(DecoDiffSketch):
    """A method whose map is off by a factor, or without evidence."""

    factor: float

    def finish(self, state: Mapping[str, Tensor]) -> tuple[Tensor, Tensor]:
        """The true map, bent."""
        maps, score = super().finish(state)
        return maps * self.factor, score * self.factor


def bent(factor: float) -> TorchBackend:
    """The sketch's own weights behind a bent map."""
    method = Bent()
    method.load_state_dict(build_sketch(DecoDiffSketch.name).state_dict())
    method.factor = factor
    return TorchBackend(method)


def report_on(
    bundle: Bundle, sketch: Exported, reference: TorchBackend, limit: Limit | None = None
) -> ParityReport:
    """The gate over a few frames of both categories."""
    parts = draw_parts(sketch.method, FRAMES, seed=21)
    images = np.stack([part.image for part in parts])
    names = [part.category for part in parts]

    def limit_of(_category: str, _plan: int) -> Limit | None:
        return limit

    chosen = limit_of if limit else None
    return compare(bundle, sketch.openvino(), reference, images, names, limit_of=chosen)


def scores(method: Sketch, plan: int) -> list[float]:
    """Reference scores of the same frames."""
    images = [torch.from_numpy(p.image)[None] for p in draw_parts(method, FRAMES, seed=21)]
    backend_scores = []
    for index, image in enumerate(images):
        category = torch.tensor([index % 3])
        with torch.inference_mode():
            state = method.start(image, category, category, torch.tensor([plan]).int())
            for _ in range(method.plans[plan].steps):
                state |= method.step(state)
            backend_scores.append(float(method.finish(state)[1]))
    return backend_scores


def test_agreeing_backends_pass_at_every_plan(bundle: Bundle, sketch: Exported) -> None:
    """Adaptive and every forced plan are compared, and the sentence gives the errors."""
    report = report_on(bundle, sketch, TorchBackend(sketch.method))
    assert report.passed
    assert report.require() is report
    assert [plan.plan for plan in report.plans] == [-1, 0, 1, 2]
    assert report.max_score_error < 1e-5
    assert report.max_map_error < 1e-4
    assert not report.thresholds
    assert "openvino:f32 agrees with torch:f32 on 6 frames at 4 plans" in report.sentence()


def test_a_score_error_above_one_percent_fails(bundle: Bundle, sketch: Exported) -> None:
    """Without a threshold the gate is one percent of the score."""
    assert report_on(bundle, sketch, bent(1.005)).passed
    report = report_on(bundle, sketch, bent(1.02))
    assert not report.passed
    with pytest.raises(ParityError, match="DISAGREES with torch:f32"):
        report.require()


def test_missing_evidence_on_one_side_fails(bundle: Bundle, sketch: Exported) -> None:
    """NaN agrees with nothing but NaN."""
    assert not report_on(bundle, sketch, bent(float("nan"))).passed


@pytest.mark.parametrize(("median_good", "passes"), [(-100.0, True), (0.0, False)])
def test_a_flip_counts_only_outside_epsilon(
    bundle: Bundle, sketch: Exported, median_good: float, passes: bool
) -> None:
    """A verdict may move only where its score lies on the threshold."""
    factor = 1.05
    threshold = max(scores(sketch.method, 2)) * (1 + factor) / 2
    report = report_on(bundle, sketch, bent(factor), Limit(threshold, median_good))
    assert report.thresholds
    assert report.flips > 0
    assert report.passed == passes


def test_limits_come_from_the_calibration(bundle: Bundle, sketch: Exported) -> None:
    """A calibrated bundle is compared by verdict, with raw thresholds per plan."""
    good = [part.image for part in draw_parts(sketch.method, 16, seed=22)]
    backend = TorchBackend(sketch.method)
    images = {"part-0": good, "part-1": good}
    calibration = fit_calibration(bundle, backend, images, Wanted(0.3))
    path = bundle.path("calibration.json")
    calibration.save(path)
    try:
        report = report_on(bundle, sketch, TorchBackend(sketch.method))
    finally:
        path.unlink()
    assert report.thresholds
    assert report.passed
    assert report.flips == 0


def test_a_machine_without_torch_has_a_reference_too(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A line's machine compiles engines and lets them pass the gate; it carries no torch."""
    opened = Mock()
    monkeypatch.setattr("engines.parity.open_backend", opened)
    open_reference(bundle)
    monkeypatch.setattr("engines.parity.find_spec", lambda _: None)
    open_reference(bundle)
    assert [call.args[1:3] for call in opened.mock_calls] == [("torch", "f32"), ("openvino", "f32")]


@pytest.mark.parametrize("precision", ["f32", "int8"])
def test_what_was_built_before_outlives_a_refusal(
    sketch: Exported, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    """Only what this build made goes; int8 graphs are made for it, a step earlier."""
    bundle = sealed(sketch, tmp_path / "sketch")
    cache = engine_cache(bundle)
    for name in ("tensorrt-fp16", "int8"):
        (cache / name).mkdir(parents=True)
        (cache / name / "step.engine").write_bytes(b"of an hour ago")
    (cache / "older.blob").write_bytes(b"compiled for f32")
    parts = draw_parts(sketch.method, 2, seed=1)
    images = np.stack([part.image for part in parts])
    frames = ParitySet(images, tuple(part.category for part in parts), near=(False,) * 2)
    refused = SimpleNamespace(passed=False, require=Mock(side_effect=ParityError("it disagrees")))

    def build(*_: object) -> str:
        (cache / "newer.blob").write_bytes(b"")
        return f"openvino:{precision}"

    monkeypatch.setattr("engines.parity_set.load_frames", lambda _: frames)
    monkeypatch.setattr("engines.parity.build_engine", build)
    monkeypatch.setattr("engines.parity.open_backend", lambda *_: sketch.openvino())
    monkeypatch.setattr("engines.parity.compare", lambda *_: refused)
    with pytest.raises(ParityError, match="it disagrees"):
        build_and_compare(bundle, "openvino", precision)
    kept = {"tensorrt-fp16", "older.blob", *(["int8"] if precision == "f32" else [])}
    assert {path.name for path in cache.iterdir()} == kept


def test_a_bundle_without_parity_frames_is_refused(bundle: Bundle) -> None:
    """What cannot be compared is not built."""
    with pytest.raises(BadBundle, match="parity set"):
        build_and_compare(bundle)
