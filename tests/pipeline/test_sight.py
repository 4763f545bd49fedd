"""Laws of a camera's state: what its process sees, what others conclude, what the page says."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from engines.contracts import Decision, Verdict
from pipeline.dashboard.view import LineState, camera_state
from pipeline.dashboard.window import SECOND_NS, LineWindow
from pipeline.dashboard.words import CAMERAS
from pipeline.sight import FROZEN_AFTER, CameraState, Sight, read_notes
from pipeline.stream import Ledger
from pipeline.telemetry import facts
from tests.pipeline.pages import NEEDS_BROWSER, Running, running_line, visiting

NOW = 1_800_000_000 * SECOND_NS
DEAD = "rtsp://127.0.0.1:9/none"  # nobody listens at the port of discard


def image(seed: int) -> np.ndarray:
    """A model input of noise."""
    return np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)


def sight(camera: str = "left") -> Sight:
    """Of a camera that is connected."""
    facts.gauge("camera_connected", 1, camera=camera)
    return Sight(camera)


# -- inside -----------------------------------------------------------------------------------


def test_a_camera_that_repeats_itself_is_frozen_until_it_moves() -> None:
    """So many equal images make it so, one other ends it; the fact can be read as a number."""
    seen = sight()
    for _ in range(FROZEN_AFTER):
        assert seen.state is CameraState.RUNNING
        seen.see(image(1))
    assert seen.note() == "frozen left"
    assert facts.last("camera_frozen", camera="left") == 1
    seen.see(image(2))
    assert seen.note() == "running left"
    assert facts.last("camera_frozen", camera="left") == 0


@given(st.lists(st.integers(0, 2), max_size=40))
def test_frozen_is_said_exactly_of_runs_of_equal_images(shown: list[int]) -> None:
    """Whatever came before, the newest exposures decide."""
    seen = sight()
    for number, seed in enumerate(shown, start=1):
        seen.see(image(seed))
        newest = shown[max(0, number - FROZEN_AFTER) : number]
        is_frozen = len(newest) == FROZEN_AFTER and len(set(newest)) == 1
        assert (seen.state is CameraState.FROZEN) == is_frozen


def test_a_lost_source_is_down_whatever_it_showed() -> None:
    """An outage outweighs what was seen before it."""
    seen = sight()
    for _ in range(FROZEN_AFTER):
        seen.see(image(1))
    facts.gauge("camera_connected", 0, camera="left")
    assert seen.note() == "down left"


# -- outside ----------------------------------------------------------------------------------


def test_of_two_processes_the_worse_is_believed() -> None:
    """One that was started again and one that is dying speak of the same camera."""
    assert read_notes(["running left", "down left", "running right"]) == {
        "left": CameraState.DOWN,
        "right": CameraState.RUNNING,
    }


@given(st.lists(st.text(max_size=20)))
def test_any_note_is_read(notes: list[str]) -> None:
    """What is no note of ours is nothing."""
    assert read_notes([*notes, "frozen left"])["left"] in {CameraState.FROZEN, CameraState.DOWN}


@pytest.mark.parametrize(
    ("told", "age_s", "state"),
    [
        (CameraState.RUNNING, 0.2, CameraState.RUNNING),
        (CameraState.RUNNING, 9.0, CameraState.STARVING),
        (CameraState.RUNNING, None, CameraState.STARVING),
        (CameraState.FROZEN, 0.2, CameraState.FROZEN),
        (CameraState.DOWN, 0.2, CameraState.DOWN),
    ],
)
def test_silence_makes_an_open_camera_starve(
    told: CameraState, age_s: float | None, state: CameraState
) -> None:
    """Only of a camera that is open and well can it be said that no part comes."""
    assert camera_state(told, age_s) is state


@pytest.mark.parametrize(
    ("told", "word"),
    [
        ({"left": CameraState.RUNNING}, LineState.CAMERA_DOWN),  # nobody speaks of the other
        ({"left": CameraState.FROZEN, "right": CameraState.RUNNING}, LineState.CAMERA_FROZEN),
        ({"left": CameraState.RUNNING, "right": CameraState.RUNNING}, LineState.RUNNING),
        (None, LineState.RUNNING),  # who may not listen goes by the frames alone
    ],
)
def test_the_line_takes_the_word_of_its_worst_camera(
    told: dict[str, CameraState] | None, word: LineState
) -> None:
    """A camera that is down or frozen is the line's first trouble."""
    line = LineWindow("demo", {"left": 250.0, "right": 250.0})
    for camera in ("left", "right"):
        line.see(answered(camera))
    line.hear(told)
    line.count(NOW, dict.fromkeys(("left", "right"), Ledger(1, 1, 0, {}, 0)), {})
    assert line.view(NOW).state is word


def answered(camera: str) -> Verdict:
    """A part that this camera has just seen."""
    return Verdict(
        frame_id=f"{camera}/1-1",
        camera=camera,
        decision=Decision.PASS,
        captured_ns=NOW,
        decided_ns=NOW,
    )


def test_every_state_has_an_icon_of_its_own() -> None:
    """Colour is never the only signal."""
    assert set(CAMERAS) == set(CameraState)
    assert len({icon for icon, _ in CAMERAS.values()}) == len(CAMERAS)


# -- a real line ------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """Four cameras: one that delivers, one without parts, one that hangs, one that is not there."""
    pytest.importorskip("nicegui", reason="the extra 'dashboard' is not installed")
    belt = {"kind": "simulator", "parts": ["disc"], "rendered": 12, "rate_hz": 2}
    hangs = {**belt, "faults": [{"kind": "frozen", "first": 4, "last": 10**6}]}
    sources = {
        "moves": belt,
        "stands": {**belt, "rate_hz": 0.01},
        "hangs": hangs,
        "gone": {"kind": "camera", "url": DEAD, "give_up_s": 600},
    }
    cameras = [
        {"name": name, "source": source, "gate_ms": 5000} for name, source in sources.items()
    ]
    with running_line(tmp_path_factory.mktemp("line"), cameras=cameras) as running:
        yield running


def pid_of(log: Path) -> int:
    """The process that wrote a log, and started last."""
    told = [json.loads(one) for one in log.read_text("utf-8").splitlines() if '"pid"' in one]
    return int(told[-1]["pid"])


@NEEDS_BROWSER
@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_page_tells_four_cameras_apart(line: Running) -> None:
    """Each is said to be what it is; one whose process is stopped is down, and comes back."""
    with visiting() as page:
        page.goto(line.address, wait_until="commit")
        rows = page.locator(".cameras tr")
        for camera, word in (
            ("moves", "running"),
            ("stands", "starving"),
            ("hangs", "frozen"),
            ("gone", "down"),
        ):
            row = rows.filter(has_text=camera)
            row.get_by_text(word, exact=True).wait_for()
            age = row.locator("td").nth(2).inner_text()
            assert re.fullmatch(r"now|none yet|\d+ (s|min) ago", age), age
        assert page.locator(".state").inner_text().endswith("CAMERA DOWN")
        (log,) = (line.run_dir / "logs").glob("ingest*moves*.log")
        os.kill(pid_of(log), signal.SIGSTOP)
        moves = rows.filter(has_text="moves")
        moves.get_by_text("down", exact=True).wait_for()
        moves.get_by_text("running", exact=True).wait_for()  # it was killed and started again
