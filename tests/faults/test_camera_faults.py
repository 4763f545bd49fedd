"""What is wrong with the camera rather than the part."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from engines.contracts import Decision, Frame
from engines.images import encode_png
from pipeline.config import load_line
from pipeline.intake import Intake
from pipeline.journal import Journal
from pipeline.simulator.faults import Fault, exposed
from pipeline.stream import open_stream
from pipeline.supervisor import run_line
from tests.faults.conftest import Runner, StubLine
from tests.faults.invariants import acted_on
from tests.faults.servers import HurtServer
from tests.pipeline.test_cameras import MjpegCamera
from tests.stub_line import CATEGORY, SIZE, numbered
from tests.tiny_line import good_part, write_line

FRAMES = 40
HOUR_NS = 3_600_000_000_000


@pytest.mark.parametrize("kind", ["black", "torn", "frozen"])
def test_a_camera_that_shows_no_part_passes_none(
    tmp_path: Path, grey_bundle: Path, kind: str
) -> None:
    """What is black cannot be good; what is torn or frozen has one verdict per exposure too."""
    fault = Fault(kind, 10, 29)
    folder = tmp_path / "parts"
    folder.mkdir()
    for number in range(FRAMES):
        picture = exposed(number, [fault], good_part)
        (folder / f"part-{number:04d}.png").write_bytes(encode_png(picture))
    path = write_line(tmp_path, grey_bundle, sinks={"jsonl": {}})
    ledger = run_line(load_line(path), threading.Event(), path)["left"]
    assert (ledger.captured, ledger.residual, ledger.open) == (FRAMES, 0, 0)
    hurt = [v for v in acted_on(tmp_path / "run") if 10 <= int(v.part_id.rpartition("-")[2]) < 30]
    assert len(hurt) == 20
    passed = [verdict for verdict in hurt if verdict.decision is Decision.PASS]
    assert not passed if kind == "black" else passed


def test_a_camera_without_its_cable_comes_back(
    tmp_path: Path, grey_bundle: Path, running: Runner
) -> None:
    """No frame comes meanwhile, nothing is given up, and the first pictures after it are judged."""
    camera = MjpegCamera(128)
    url = f"http://127.0.0.1:{camera.server_port}/live.mjpg"
    source = {"kind": "camera", "url": url, "read_timeout_s": 0.5, "give_up_s": 0.5}
    line = write_line(
        tmp_path,
        grey_bundle,
        camera={"source": source, "category": CATEGORY, "gate_ms": 20_000},
        sinks={"jsonl": {}},
    )
    with running(line) as here:
        here.wait_for(lambda: here.stream.ledger("left").captured > 5)
        camera.switch_off()
        time.sleep(4.0)  # longer than give_up_s: its process ends, and is started again
        captured = here.stream.ledger("left").captured
        back = MjpegCamera(128, port=camera.server_port)
        try:
            here.wait_for(lambda: here.stream.ledger("left").captured > captured + 5)
            here.stop.set()
            verdicts = here.finish()
        finally:
            back.switch_off()
        here.assert_all_answered_once(verdicts, here.ledgers["left"].captured)


def test_stamps_and_names_that_repeat_or_go_back_cost_no_part_its_verdict(
    stub_line: StubLine, hurt: HurtServer, tmp_path: Path
) -> None:
    """Two exposures of one name are two parts; none is answered later than its gate from now."""
    settings = load_line(stub_line())
    stamps = [0, -HOUR_NS, HOUR_NS, 0, 0, -1]
    with (
        open_stream(hurt.url, "stamps") as stream,
        Journal(tmp_path / "left.journal") as journal,
    ):
        intake = Intake(stream, journal, settings.camera("left"), SIZE)
        for offset_ns in stamps:
            exposure = _exposure(time.time_ns() + offset_ns)
            head = intake.take(exposure)
            assert head.captured_ns <= stream.now_ns()
        gate_ns = settings.camera("left").gate_ms * 1_000_000
        heads = stream.heads(stream.deadlines({"left": stream.now_ns() + gate_ns}))
        ledger = stream.ledger("left")
    assert len({head.frame_id for head in heads}) == len(heads) == len(stamps) - 1
    assert (ledger.captured, ledger.open) == (len(stamps), len(stamps) - 1)
    assert ledger.undecided == {"deadline": 1}  # exposed an hour ago: its gate has long passed


def _exposure(captured_ns: int) -> Frame:
    return Frame(
        "", "left", captured_ns, numbered(120), CATEGORY, part_id="P-good", source_frame_id="same"
    )
