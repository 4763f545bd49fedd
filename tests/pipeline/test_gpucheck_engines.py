"""gpu-check: which engines are tried, and the figures of those that are."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from engines.backend import engine_cache, open_backend
from engines.backend_torch_device import TorchDeviceBackend
from engines.bundle import GRAPHS, Bundle, open_bundle
from engines.contracts import BadConfig, EngineFault, ParityError
from engines.export import load_method
from engines.roof import Roof
from pipeline.bench.report import Result
from pipeline.gpucheck import (
    Asked,
    NotHere,
    Outcome,
    State,
    agreement,
    bundles,
    check,
    run_gpu_check,
)
from pipeline.gpucheck.__main__ import run_part
from pipeline.gpucheck.bundles import tried
from pipeline.gpucheck.each import figures_of_each
from pipeline.gpucheck.parts import Part
from pipeline.gpucheck.speed import compared, passes
from pipeline.gpucheck.stages import Rehearsed, profiled

ROOT = Path(__file__).parents[2]


def test_figures_come_from_calls(asked: Asked) -> None:
    """Speed, scheduling and stages of one bundle, by the code that a GPU runs, on the CPU."""
    bundle = open_bundle(ROOT / "configs/bundles/demo")
    engine = TorchDeviceBackend(load_method(bundle), 2, "cpu")
    one = Asked(asked.out, batches=(1,), rounds=1)
    found = {r.name: r for r in passes("demo", bundle, engine, one)}
    tail = "demo.torch-cpu:f32.b1"
    assert found[f"speed.{tail}"].value == pytest.approx(1e3 / found[f"latency.{tail}"].value)
    assert found[f"call.step.{tail}"].ratio > 1
    flown = {r.name: r for r in compared("demo", bundle, engine, 1, 3)}
    assert set(flown) == {f"in_flight.{tail}", f"adaptive.{tail}"}
    seen = {r.name: r for r in profiled("demo", bundle, engine, Roof(1e12, 1e11), one)}
    step = f"step.{tail}"
    assert seen[f"bus.{step}"].value == 16
    assert seen[f"of_roof.{step}"].ratio == pytest.approx(
        max(seen[f"of_peak.{step}"].ratio, seen[f"of_memory.{step}"].ratio)
    )


def test_a_backend_without_events_is_timed_by_the_host(asked: Asked) -> None:
    """A whole call stands for its computing; nothing is said of its copies."""
    bundle = open_bundle(ROOT / "configs/bundles/demo")
    one = Asked(asked.out, batches=(1,))
    with open_backend(bundle, "openvino", "f32", 1) as engine:
        found = [*profiled("demo", bundle, Rehearsed(engine), Roof(1e12, 1e11), one)]
    names = {result.name.partition(".")[0] for result in found}
    assert names == {"stage", "of_peak", "of_memory", "of_roof"}
    assert all(result.value > 0 for result in found)


def test_an_engine_that_was_not_built_is_not_tried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What needs TensorRT's engines says that they are not there; the rest runs.

    A build that failed at one bundle left the engines of others, which are tried.
    """

    def isolated(part: str, limit_s: float, _: Asked) -> Outcome:
        ends = {"engines:fp16": State.NOT_HERE, "engines:bf16": State.FAILED}
        return Outcome(part, ends.get(part, State.DONE), "told", limit_s)

    monkeypatch.setattr(check, "run_isolated", isolated)
    outcomes = {outcome.part: outcome for outcome in run_gpu_check(Asked(tmp_path))}
    assert outcomes["speed:torch-cuda:bf16"].state is State.DONE
    assert outcomes["speed:tensorrt:bf16"].state is State.DONE
    assert outcomes["speed:tensorrt:fp16"].state is State.NOT_HERE
    assert outcomes["speed:tensorrt:fp16"].sentence == "it needs engines:fp16, which is not there"


def test_a_bundle_for_which_eight_bits_are_too_few_is_no_fault(
    asked: Asked, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is told and left out; a bundle that cannot be built at all is a fault."""
    one = SimpleNamespace(folder=tmp_path / "one", bundle_id="1")
    two = SimpleNamespace(folder=tmp_path / "two", bundle_id="2")
    answers: dict[str, str | Exception] = {"1": "tensorrt:int8", "2": ParityError("too few")}

    def build(bundle: SimpleNamespace, *_: str) -> str:
        if isinstance(answer := answers[bundle.bundle_id], Exception):
            raise answer
        return answer

    monkeypatch.setattr(agreement, "tried", lambda _: [("one", one), ("two", two)])
    monkeypatch.setattr(agreement, "has_frames", lambda _: True)
    monkeypatch.setattr(agreement, "build_engine", build)
    opened = SimpleNamespace(close=lambda: None)
    monkeypatch.setattr(agreement, "open_backend", lambda *_: opened)
    found = agreement.build("int8", asked)
    assert (found.sentence, found.facts) == ("one as tensorrt:int8", {"two": "too few"})
    answers["1"] = ParityError("too few as well")
    with pytest.raises(NotHere, match="too few as well"):
        agreement.build("int8", asked)
    answers |= {"1": "tensorrt:int8", "2": EngineFault("it crashed")}
    with pytest.raises(EngineFault, match="two: it crashed"):
        agreement.build("int8", asked)


def test_engines_that_this_gpu_refuses_are_not_here(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A library may build for others, and says so when an engine is loaded; none is kept."""

    def refuse(*_: object) -> None:
        raise EngineFault("tensorrt_rtx could not load the engine of start: not for SM90")

    bundle = SimpleNamespace(folder=asked.out / "one", bundle_id="1")
    kept = asked.out / ".one-engines" / "1" / "tensorrt-fp16"
    kept.mkdir(parents=True)
    monkeypatch.setattr(agreement, "tried", lambda _: [("one", bundle)])
    monkeypatch.setattr(agreement, "build_engine", lambda *_: "tensorrt:fp16")
    monkeypatch.setattr(agreement, "open_backend", refuse)
    with pytest.raises(NotHere, match="could not load the engine of start: not for SM90"):
        agreement.build("fp16", asked)
    assert not kept.exists()


def test_only_what_was_built_is_tried(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Engines of all three graphs; why others have none is told by the part that builds."""
    place = shutil.copytree(ROOT / "configs/bundles/demo", asked.out / "given" / "mine")
    given = Asked(asked.out, (place,))
    monkeypatch.setattr(bundles, "DEMO", asked.out / "nowhere")
    assert "mine" in dict(tried(given))
    assert "mine" in dict(tried(given, engine=("torch-cuda", "f32")))
    with pytest.raises(NotHere, match="no bundle to try has an engine tensorrt:fp16"):
        list(tried(given, engine=("tensorrt", "fp16")))
    built = engine_cache(open_bundle(place)) / "tensorrt-fp16"
    built.mkdir(parents=True)
    for graph in GRAPHS:
        assert not (built / "finish.json").exists()
        with pytest.raises(NotHere):
            list(tried(given, engine=("tensorrt", "fp16")))
        (built / f"{graph}.json").touch()
    assert "mine" in dict(tried(given, engine=("tensorrt", "fp16")))


def test_a_bundle_that_fails_takes_no_figure_of_others_with_it(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The part has failed, says where, and keeps what was measured before and after."""
    bundles: list[tuple[str, Any]] = [("one", None), ("huge", None), ("two", None)]

    def figures(name: str, _: Bundle) -> Iterator[Result]:
        yield Result(name, 1.0, "frames/s", "", 1.0)
        if name == "huge":
            raise EngineFault("the GPU has no memory left")

    monkeypatch.setattr(Part, "run", lambda *_: figures_of_each(bundles, figures, str))
    outcome = run_part("rates", asked)
    assert outcome.state is State.FAILED
    assert outcome.sentence == "huge: the GPU has no memory left"
    assert [result.name for result in outcome.results] == ["one", "huge", "two"]


def test_what_a_machine_lacks_it_lacks_for_every_bundle() -> None:
    """No list of the same sentence: the part is not here."""

    def lacking(*_: object) -> list[Result]:
        raise BadConfig("this torch is built without CUDA")

    with pytest.raises(BadConfig, match="without CUDA"):
        figures_of_each([("one", None), ("two", None)], lacking, str)  # type: ignore[list-item]
