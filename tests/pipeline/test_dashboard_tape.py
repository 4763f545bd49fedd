"""Laws of the page *Replay*: what a recording shows, whole or cut, and what differs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from engines.contracts import BadData, Decision, Frame, Verdict
from engines.images import decode_image, encode_png
from pipeline.dashboard.tape import Tape, Tapes, next_difference
from pipeline.recording import Recorder
from tests.pipeline.pages import NEEDS_BROWSER, free_port, served, visiting
from tests.tiny_line import write_line

PARTS = 12
SIZE = (40, 60)


def verdict(number: int, **more: object) -> Verdict:
    """Every third part failed."""
    known = {
        "frame_id": f"left/1-{number}",
        "camera": "left",
        "part_id": f"part {number}",
        "decision": Decision.PASS if number % 3 else Decision.FAIL,
        "captured_ns": 10**18 + number * 10**8,
        "decided_ns": 10**18 + number * 10**8 + 10**7,
        "anomaly_score": float(number),
    }
    return Verdict.model_validate(known | more)


def exposure(number: int) -> Frame:
    """A frame of noise, so that a recording of it has some size."""
    image = np.random.default_rng(number).integers(0, 99, (*SIZE, 3), np.uint8)
    return Frame(f"left/1-{number}", "left", 10**18 + number * 10**8, image)


def record(path: Path, parts: int = PARTS) -> Path:
    """A recording of so many parts, each frame followed by its verdict."""
    mask = np.zeros(SIZE, np.bool_)
    mask[5:9, 5:9] = True
    with Recorder(path) as recorder:
        for number in range(parts):
            while not recorder.frame(exposure(number)):
                pass
            while not recorder.verdict(verdict(number), b"" if number % 3 else encode_png(mask)):
                pass
    return path


def cut(path: Path, share: float) -> Path:
    """The beginning of a recording, as a crash leaves it."""
    data = path.read_bytes()
    torn = path.with_name("torn.mcap")
    torn.write_bytes(data[: int(share * len(data))])
    return torn


def test_a_recording_shows_every_part_with_its_mask(tmp_path: Path) -> None:
    """In the order of time, each with its own picture; a mask is drawn where there is one."""
    with Tape(record(tmp_path / "a.mcap")) as tape:
        assert [one.frame_id for one in tape.verdicts] == [f"left/1-{n}" for n in range(PARTS)]
        assert not tape.is_cut
        for number in range(PARTS):
            drawn = decode_image(tape.picture(number))
            changed = (drawn != exposure(number).image).any(axis=2)
            assert changed.any() == (number % 3 == 0)
        assert tape.picture(-1) == tape.picture(PARTS) == b""


def test_a_recording_cut_in_half_opens_up_to_the_cut(tmp_path: Path) -> None:
    """What is whole is shown, and that there is no more."""
    with Tape(cut(record(tmp_path / "a.mcap"), 0.5)) as tape:
        assert tape.is_cut
        assert 0 < len(tape.verdicts) < PARTS
        assert decode_image(tape.picture(1)).shape == (*SIZE, 3)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.1, 0.3, 0.7, 0.9, 0.999])
def test_no_cut_breaks_the_page(tmp_path: Path, share: float) -> None:
    """Wherever a recording ends, it opens or is refused in one sentence."""
    torn = cut(record(tmp_path / "a.mcap"), share)
    if share < 0.01:  # not even the first bytes of one
        with pytest.raises(BadData, match=r"torn\.mcap"):
            Tape(torn)
        return
    with Tape(torn) as tape:
        assert tape.is_cut


@pytest.mark.parametrize("name", ["../a.mcap", "/etc/passwd", "b.mcap", "", "archive/x.mcap"])
def test_only_recordings_of_the_run_folder_are_opened(tmp_path: Path, name: str) -> None:
    """A name in an address is one of those that were offered, or nothing."""
    record(tmp_path / "a.mcap", 1)
    tapes = Tapes(tmp_path / "run")
    (tmp_path / "run").mkdir()
    record(tmp_path / "run" / "mine.mcap", 1)
    assert tapes.names() == ["mine.mcap"]
    with pytest.raises(BadData):
        tapes.open(name)


def test_differences_are_those_of_the_recorded_parts(tmp_path: Path) -> None:
    """A replay's verdict is compared with the part that it came from."""
    record(tmp_path / "a.mcap")
    again = [
        verdict(
            n,
            frame_id=f"left/2-{n}",
            source_frame_id=f"left/1-{n}",
            anomaly_score=9.5 if n == 4 else float(n),
        )
        for n in range(PARTS - 1)
    ]
    log = "\n".join(one.model_dump_json() for one in (*again, verdict(99)))
    (tmp_path / "verdicts.jsonl").write_text(log)
    tapes = Tapes(tmp_path)
    tape = tapes.open("a.mcap")
    differences, others = tapes.compared(tape, "verdicts.jsonl")
    assert {name: one.kind for name, one in differences.items()} == {
        "left/1-4": "changed",
        "left/1-11": "missing",
    }
    assert others["left/1-4"].anomaly_score == 9.5
    assert next_difference(tape.verdicts, differences, 0) == 4
    assert next_difference(tape.verdicts, differences, 4) == 11
    assert next_difference(tape.verdicts, differences, 11) == 4
    assert next_difference(tape.verdicts, {}, 3) == 3
    tapes.close()
    assert tapes.picture(tape.key, 0) == b""


@NEEDS_BROWSER
def test_a_browser_plays_seeks_and_is_told_of_the_cut(tmp_path: Path) -> None:
    """Keys step and play, the address keeps the place, a cut recording says so."""
    pytest.importorskip("nicegui", reason="the extra 'dashboard' is not installed")
    run_dir = tmp_path / "run"
    run_dir.mkdir()
    cut(record(run_dir / "a.mcap"), 0.5)
    log = "\n".join(verdict(n, decision="FAIL").model_dump_json() for n in range(PARTS))
    (run_dir / "verdicts.jsonl").write_text(log)
    redis = {"url": f"unix://{tmp_path}/none.sock"}  # a replay is looked at without a server
    yaml = write_line(tmp_path, tmp_path / "none", redis=redis)
    with served(yaml, free_port()) as address, visiting() as page:
        page.goto(f"{address}/replay?recording=a.mcap&against=verdicts.jsonl", wait_until="commit")
        page.get_by_text(f"8 of {PARTS} parts differ").wait_for()
        page.keyboard.press("n")
        page.get_by_text(f"Part 2 of {PARTS}").wait_for()
        page.keyboard.press("ArrowRight")
        page.get_by_text(f"Part 3 of {PARTS}").wait_for()
        page.wait_for_url(lambda url: "part=3" in url)
        page.keyboard.press(" ")
        page.get_by_text(f"Part {PARTS} of {PARTS}").wait_for()
        page.get_by_role("button", name="Play").wait_for()  # it stops at the end
        page.goto(f"{address}/replay?recording=torn.mcap", wait_until="commit")
        page.get_by_text("This recording breaks off").wait_for()
        page.wait_for_function(
            "() => { const i = document.querySelector('.big');"
            " return i && i.complete && i.naturalWidth > 0; }"
        )
