"""Laws of the engine bench: who runs when, what is counted, and what the ratios are called."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, cast

import numpy as np
import pytest
from PIL import Image

from engines.backend import open_backend
from engines.bundle import open_bundle
from engines.calibration import ExitRule
from engines.contracts import BadBundle, BadData, Evidence, Progress, Rows
from pipeline.bench.depth import Depth, _spread, measured_depth
from pipeline.bench.engine import Timed, bench_engine
from pipeline.bench.rivals import rivals_at
from pipeline.bench.turns import Seconds, drawn_rows, in_turns, timed_pass
from pipeline.simulator.render import render

if TYPE_CHECKING:
    from engines.bundle import Bundle

DEMO = Path(__file__).parents[2] / "configs" / "bundles" / "demo"
needs_demo = pytest.mark.skipif(not DEMO.exists(), reason="the demo bundle is not here")


class Counting:
    """A backend that takes three steps and counts its calls."""

    capacity, key = 8, "counting:f32"

    def __init__(self) -> None:
        self.left = self.steps = 0

    def start(self, rows: Rows, slots: list[int]) -> Progress:  # noqa: ARG002 - the protocol's
        """Three steps to go."""
        self.left = 3
        return self._progress(slots)

    def step(self, slots: list[int]) -> Progress:
        """One fewer to go."""
        self.left, self.steps = self.left - 1, self.steps + 1
        return self._progress(slots)

    def finish(self, slots: list[int]) -> Evidence:
        """Nothing found."""
        return Evidence(np.zeros((len(slots), 2, 2), np.float32), np.zeros(len(slots), np.float32))

    def close(self) -> None:
        """Nothing is held."""

    def _progress(self, slots: list[int]) -> Progress:
        numbers = np.full(len(slots), self.left, np.int32)
        return Progress(numbers, numbers, numbers)


def bundle_of(*depths: int) -> Bundle:
    """A bundle of which only sizes and plans are asked."""
    plans = tuple(SimpleNamespace(levels=tuple(range(depth))) for depth in depths)
    manifest = SimpleNamespace(image_size=(16, 16), plans=plans, files={}, categories=("bolt",))
    return cast("Bundle", SimpleNamespace(manifest=manifest, folder=Path("none")))


def test_runs_take_turns_and_the_first_turn_is_dropped() -> None:
    """Whatever disturbs the machine meets all of them; warming up is not measured."""
    calls: list[str] = []

    def run(name: str) -> Seconds:
        calls.append(name)
        return {"pass": [float(len(calls))]}

    medians = in_turns({"a": lambda: run("a"), "b": lambda: run("b")}, rounds=2)
    assert calls == ["a", "b"] * 3
    assert medians == {"a": {"pass": 4.0}, "b": {"pass": 5.0}}


def test_a_pass_is_timed_by_its_parts() -> None:
    """Start, each of its steps, finish, and the whole."""
    backend, rows = Counting(), drawn_rows(bundle_of(0, 3, 2), 2)
    seconds = timed_pass(backend, rows)
    assert rows.plan.tolist() == [1, 1]
    assert {part: len(values) for part, values in seconds.items()} == {
        "start": 1, "step": 3, "finish": 1, "pass": 1,
    }  # fmt: skip
    assert backend.steps == 3


def test_a_bundle_without_steps_has_nothing_to_time() -> None:
    """A sentence, not a division by zero."""
    with pytest.raises(BadBundle, match="nothing to time"):
        drawn_rows(bundle_of(0, 0), 1)


def test_rivals_need_the_image_size_of_their_encoder() -> None:
    """Below 256 px there is no such detector, and no ratio is made up."""
    assert rivals_at((128, 128), "f32", 1) == []


# -- depth ------------------------------------------------------------------------------------


def test_without_frames_the_deepest_plan_is_assumed() -> None:
    """And the report says so."""
    depth = measured_depth(bundle_of(0, 3), Counting(), None)
    assert (depth.calls, depth.image_auroc) == (3, None)
    assert "deepest" in depth.told


@needs_demo
def test_depth_and_accuracy_come_from_the_same_test_frames(tmp_path: Path) -> None:
    """Good frames weigh nine parts in ten, whatever the folder holds."""
    bundle = open_bundle(DEMO)
    for index in range(2):
        for kind, defect, severity in (("good", None, 0.0), ("scratch", "scratch", 1.0)):
            seen = render("disc", 3, index, defect=defect, severity=severity)
            _save(seen.image, tmp_path / "disc" / "test" / kind / f"{index}.png")
    with open_backend(bundle, "openvino", "f32", capacity=8) as backend:
        depth = measured_depth(bundle, backend, tmp_path)
    most = len(bundle.manifest.plans[-1].levels)
    assert 0 <= depth.calls <= most
    assert depth.image_auroc is not None
    assert depth.told == "2 good and 2 defective test frames, weighed 9:1"


@needs_demo
def test_a_bundle_of_simulated_parts_is_measured_on_drawn_ones(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every part, good and defective, without a folder."""
    monkeypatch.setattr("pipeline.bench.depth.DRAWN", 1)
    bundle = open_bundle(DEMO)
    with open_backend(bundle, "openvino", "f32", capacity=8) as backend:
        depth = measured_depth(bundle, backend, None)
    assert depth.told == "3 good and 3 defective simulated frames, weighed 9:1"
    assert depth.image_auroc is not None


def test_the_spread_of_depth_weighs_frames_by_their_kind() -> None:
    """Of a hundred frames, ninety are as deep as good ones are, however few good ones were seen."""
    spread = _spread([8, 0, 0, 2], [0.1, 0.45 / 2, 0.45 / 2, 0.45])
    assert [spread.count(calls) for calls in (0, 2, 8)] == [45, 45, 10]


def test_frames_that_are_looked_at_pay_for_every_look() -> None:
    """Start, two steps of 3 s and one and a half finishes of 4 s take 1 + 6 + 6 s for a batch."""
    seconds = {"ours": {"start": 1.0, "step": 3.0, "finish": 4.0, "pass": 99.0}}
    depth = Depth(calls=2.0, told="", spread=(2,), finishes=1.5)
    assert Timed(2, seconds, {}).rate_at(depth) == pytest.approx(2 / 13)


@needs_demo
def test_looks_on_the_way_are_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """A frame that is looked at before every step, and never leaves, finishes so often more."""
    monkeypatch.setattr("pipeline.bench.depth.DRAWN", 1)
    monkeypatch.setattr(ExitRule, "asks", lambda rule, *_: rule.looks)
    monkeypatch.setattr(ExitRule, "decides", lambda *_: False)
    bundle = open_bundle(DEMO)
    with open_backend(bundle, "openvino", "f32", capacity=8) as backend:
        looking = measured_depth(bundle, backend, None)
        plain = measured_depth(bundle, backend, None, early_exit=False)
    assert plain.finishes == 1
    assert looking.calls == plain.calls > 0
    assert looking.finishes == pytest.approx(1 + looking.calls)


@needs_demo
def test_frames_of_other_parts_are_refused(tmp_path: Path) -> None:
    """A depth on parts that the bundle never saw would be no figure of it."""
    _save(np.zeros((8, 8, 3), np.uint8), tmp_path / "bolt" / "test" / "good" / "0.png")
    with (
        open_backend(open_bundle(DEMO), "openvino", "f32", capacity=1) as backend,
        pytest.raises(BadData, match="trained on"),
    ):
        measured_depth(open_bundle(DEMO), backend, tmp_path)


def _save(image: np.ndarray, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(image).save(path)


# -- ratios -----------------------------------------------------------------------------------


@needs_demo
def test_the_engine_bench_covers_rivals_graphs_and_the_peak(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Headlines by their stable names first, then each graph, batch and precision."""
    monkeypatch.setattr("pipeline.bench.depth.DRAWN", 1)
    pytest.importorskip("torch", reason="the extra 'train' is not installed")
    report = bench_engine(DEMO, rounds=1, batches=(1,), precisions=("f32",), peak_side=128)
    names = [one.name for one in report.results]
    assert names[:5] == [
        "engine.vs_efficientad_s",
        "engine.vs_efficientad_s.no_exit",
        "engine.vs_efficientad_s.fixed",
        "engine.vs_efficientad_s.unpadded",
        "engine.vs_torch",
    ]
    assert {
        f"engine.{against}.{graph}.f32_b1"
        for against in ("vs_torch", "of_peak")
        for graph in ("start", "step", "finish")
    } <= set(names)
    assert {"engine.vs_torch.pass.f32_b1", "engine.depth.f32", "engine.depth.no_exit.f32"} <= set(
        names
    )
    assert {
        "matmul_gflops_f32",
        "depth_f32",
        "depth_fixed_f32",
        "gflop_per_frame_efficientad_s",
    } <= set(report.machine)
    assert len(names) == len(set(names))
