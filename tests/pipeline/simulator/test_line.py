"""The simulated belt as a source of frames."""

from __future__ import annotations

import threading
import time
from itertools import pairwise

import numpy as np
import pytest

from engines.contracts import BadConfig
from engines.images import to_model_input
from pipeline.simulator import PARTS, Fault, SimulatedLine

SIZE = (96, 96)


def test_gives_the_frames_asked_for_in_order() -> None:
    """So many frames, part ids counting up, times strictly rising, frame ids left to ingest."""
    line = SimulatedLine("cam-1", seed=3, rate_hz=None, frames=12, defect_rate=0.5, size=SIZE)
    frames = list(line.frames(threading.Event()))
    assert [f.part_id for f in frames] == [f"cam-1-{i:06d}" for i in range(12)]
    assert {f.category for f in frames} <= set(PARTS)
    assert {f.frame_id for f in frames} == {""}
    stamps = [f.captured_ns for f in frames]
    assert all(a < b for a, b in pairwise(stamps))


def test_truth_is_made_again_from_the_part_id() -> None:
    """Another line object of the same seed tells the same truth: part, defect, severity, mask."""
    line = SimulatedLine("cam", seed=3, rate_hz=None, frames=10, defect_rate=0.5, size=SIZE)
    twin = SimulatedLine("cam", seed=3, defect_rate=0.5, size=SIZE)
    truths = []
    for frame in line.frames(threading.Event()):
        truth, told = line.truth(frame.part_id), twin.truth(frame.part_id)
        assert truth.part == frame.category == told.part
        assert (truth.defect, truth.severity) == (told.defect, told.severity)
        assert np.array_equal(truth.mask, told.mask)
        assert truth.mask.shape == SIZE
        assert truth.mask.any() == (truth.defect is not None)
        truths.append(truth)
    assert {t.defect is None for t in truths} == {True, False}
    assert all(0.05 <= t.severity <= 1 for t in truths if t.defect)


def test_cameras_of_one_seed_see_different_parts() -> None:
    """Two stations of one line do not show the same picture."""
    first, second = (
        next(
            iter(SimulatedLine(c, ("disc",), 1, rate_hz=None, size=SIZE).frames(threading.Event()))
        )
        for c in ("left", "right")
    )
    assert not np.array_equal(first.image, second.image)


def test_belt_speed_paces_the_frames() -> None:
    """At 50 frames a second, the fifth frame comes no earlier than four periods after start."""
    line = SimulatedLine("cam", ("disc",), rate_hz=50, frames=5, jitter=0.2, size=SIZE)
    begun = time.monotonic()
    assert len(list(line.frames(threading.Event()))) == 5
    assert time.monotonic() - begun >= 4 / 50


def test_parts_drawn_beforehand_come_again() -> None:
    """With three of them the fourth frame is the first, for the eye and for the truth."""
    line = SimulatedLine("cam", rate_hz=None, frames=5, rendered=3, defect_rate=0.5, size=SIZE)
    first, second, _, fourth, fifth = line.frames(threading.Event())
    assert np.array_equal(first.image, fourth.image)
    assert np.array_equal(second.image, fifth.image)
    assert (first.category, first.part_id) == (fourth.category, "cam-000000")
    assert line.truth("cam-000003").severity == line.truth("cam-000000").severity


def test_a_belt_of_drawn_parts_does_not_wait_for_who_takes_them() -> None:
    """A frame that is taken late carries the moment it was due, so its lateness is measured."""
    line = SimulatedLine("cam", ("disc",), rate_hz=100, frames=4, jitter=0, rendered=1, size=SIZE)
    stamps = []
    for frame in line.frames(threading.Event()):
        time.sleep(0.03)
        stamps.append(frame.captured_ns)
    assert np.diff(stamps) == pytest.approx([10e6] * 3, abs=10)


def test_stop_ends_an_endless_line() -> None:
    """A stop between frames, or while the belt is waited for, ends the iteration."""
    stop = threading.Event()
    line = SimulatedLine("cam", ("disc",), rate_hz=0.001, jitter=0, size=SIZE)
    seen = []
    for frame in line.frames(stop):
        seen.append(frame)
        threading.Timer(0.05, stop.set).start()
    assert len(seen) == 1


def test_faults_strike_by_frame_number_and_leave_truth_alone() -> None:
    """A frozen camera repeats a frame while the parts, and the truth about them, move on."""
    line = SimulatedLine(
        "cam", rate_hz=None, frames=5, seed=2, faults=[Fault("frozen", 2, 3)], size=SIZE
    )
    sound = SimulatedLine("cam", rate_hz=None, frames=5, seed=2, size=SIZE)
    frames, clean = (list(s.frames(threading.Event())) for s in (line, sound))
    same = [np.array_equal(a.image, b.image) for a, b in zip(frames, clean, strict=True)]
    assert same == [True, True, False, False, True]
    assert np.array_equal(frames[2].image, clean[1].image)
    assert [f.category for f in frames] == [f.category for f in clean]


@pytest.mark.parametrize(
    "settings",
    [{"parts": ()}, {"parts": ("gear",)}, {"rate_hz": 0}, {"defect_rate": 2}, {"jitter": -1}],
)
def test_impossible_lines_are_refused(settings: dict[str, object]) -> None:
    """A line that cannot be is a BadConfig when it is made, not a surprise on the belt."""
    with pytest.raises(BadConfig):
        SimulatedLine("cam", **settings)  # type: ignore[arg-type]


def test_truth_of_a_foreign_part_is_refused() -> None:
    """Only this camera's part ids have a truth here."""
    with pytest.raises(BadConfig, match="not of the simulated camera"):
        SimulatedLine("cam").truth("other-000001")


@pytest.mark.parametrize("rendered", [None, 2])
def test_exposures_may_be_scaled_as_a_camera_does(rendered: int | None) -> None:
    """They are what ingest would have made of them; truth stays in the geometry of the drawing."""
    line = SimulatedLine(
        "cam", rate_hz=None, frames=2, rendered=rendered, size=SIZE, shown=(32, 48)
    )
    plain = SimulatedLine("cam", rate_hz=None, frames=2, rendered=rendered, size=SIZE)
    stop = threading.Event()
    for scaled, drawn in zip(line.frames(stop), plain.frames(stop), strict=True):
        assert np.array_equal(scaled.image, to_model_input(drawn.image, (32, 48)))
    assert line.truth("cam-000000").mask.shape == SIZE
