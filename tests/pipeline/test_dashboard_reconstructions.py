"""Laws of the process that draws reconstructions, and of what the page says where none can be."""

from __future__ import annotations

import importlib.util
import io
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest

from engines.bundle import Bundle, open_bundle
from engines.contracts import BadBundle, Decision, Verdict
from engines.images import decode_image, encode_png
from pipeline.dashboard import reconstructions
from pipeline.dashboard.easel import draw, receive, send
from pipeline.dashboard.parts import Part
from pipeline.dashboard.reconstructions import Reconstructions
from pipeline.dashboard.texts import CATALOGUE
from pipeline.outputs.archive import Archive
from pipeline.stream import VerdictDelivery
from tests.pipeline.pages import NEEDS_BROWSER, free_port, served, until, visiting
from tests.tiny_line import write_line

DEMO = Path(__file__).parents[2] / "configs" / "bundles" / "demo"
PATIENCE_S = 600.0  # torch is loaded, while others load it too
pytestmark = [pytest.mark.slow, pytest.mark.timeout(2 * PATIENCE_S)]


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """The bundle that the demo runs, decoder and all."""
    return open_bundle(DEMO)


@pytest.fixture(autouse=True)
def _patient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A test waits for a slow machine longer than a person would."""
    monkeypatch.setattr(reconstructions, "LIMIT_S", PATIENCE_S)


def part(bundle: Bundle, number: int = 1, **more: object) -> Part:
    """A rejected part with the picture that the model saw."""
    known = {
        "frame_id": f"left/1-{number}",
        "camera": "left",
        "decision": Decision.FAIL,
        "category": "disc",
        "captured_ns": 1,
        "decided_ns": 2,
        "bundle_id": bundle.bundle_id,
        "plan": len(bundle.manifest.plans) - 1,
    }
    image = np.random.default_rng(number).integers(0, 255, (*bundle.frame_size, 3), np.uint8)
    verdict = Verdict.model_validate(known | more)
    return Part(f"left/1-{number}", verdict, encode_png(image), b"", b"")


def test_messages_arrive_whole_or_not_at_all() -> None:
    """A message that was cut is none."""
    pipe = io.BytesIO()
    send(pipe, {"plan": 2}, b"picture")
    whole = pipe.getvalue()
    assert receive(io.BytesIO(whole)) == ({"plan": 2, "bytes": 7}, b"picture")
    for cut in range(len(whole)):
        assert receive(io.BytesIO(whole[:cut])) is None


def test_a_part_that_cannot_be_drawn_does_not_end_the_drawing(bundle: Bundle) -> None:
    """Bytes that are no picture are answered in words, the next part is drawn."""
    orders, answers = io.BytesIO(), io.BytesIO()
    order = {"category": 0, "plan": 0}
    send(orders, order, b"no picture")
    send(orders, order, part(bundle).picture_png)
    orders.seek(0)
    draw(bundle, orders, answers)
    answers.seek(0)
    refusal, drawn = receive(answers), receive(answers)
    assert refusal is not None
    assert refusal[0]["problem"]
    assert drawn is not None
    assert decode_image(drawn[1]).shape == (*bundle.frame_size, 3)


def test_a_real_process_draws_and_is_started_again(bundle: Bundle) -> None:
    """Each part is drawn once, a process that was killed is replaced, and none is left."""
    drawings = Reconstructions(lambda: bundle)
    try:
        one = part(bundle)
        assert drawings.made(one.stem) == b""
        first = drawings.of(one)
        assert (first.refusal, first.why) == ("", "")
        assert first.steps > 0
        assert decode_image(first.png).shape == (*bundle.frame_size, 3)
        assert drawings.of(one) is first
        assert drawings.made(one.stem) == first.png
        easel = drawings._easel
        assert easel is not None
        easel.close()
        assert drawings.of(part(bundle, 2)).png
    finally:
        drawings.close()
    assert not [thread for thread in threading.enumerate() if isinstance(thread, threading.Timer)]


def test_a_process_that_draws_outlives_no_page(bundle: Bundle) -> None:
    """It ends by itself when nobody holds the other end of its input, whatever became of them."""
    command = [sys.executable, "-m", "pipeline.dashboard.easel", str(bundle.folder)]
    done = subprocess.run(command, input=b"", capture_output=True, check=True)
    assert done.stdout == b""


def test_a_bundle_that_draws_nothing_says_why(bundle: Bundle, tmp_path: Path) -> None:
    """A process that cannot open its bundle answers with the reason, not with silence."""
    drawings = Reconstructions(lambda: Bundle(tmp_path, bundle.manifest, bundle.bundle_id))
    try:
        drawing = drawings.of(part(bundle))
    finally:
        drawings.close()
    assert drawing.refusal == "not_drawn"
    assert "no bundle" in drawing.why


def test_a_process_that_ends_over_a_part_is_told(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A picture that takes for ever is given up, in words; nothing is kept of it."""
    monkeypatch.setattr(reconstructions, "LIMIT_S", 0.01)
    drawings = Reconstructions(lambda: bundle)
    try:
        assert drawings.of(part(bundle)).refusal == "drawing_ended"
        assert drawings.made(part(bundle).stem) == b""
    finally:
        drawings.close()
    assert "drawing_ended" in CATALOGUE


def test_what_cannot_be_drawn_here_is_refused_by_name(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another bundle's part, a line without its bundle, a machine without torch: each in words."""
    drawings = Reconstructions(lambda: bundle)
    foreign = drawings.of(part(bundle, bundle_id="0123456789ab"))
    assert foreign.refusal == "other_bundle"

    def gone() -> Bundle:
        raise BadBundle("it is gone")

    lost = Reconstructions(gone).of(part(bundle))
    assert (lost.refusal, lost.why) == ("not_drawn", "it is gone")
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    bare = drawings.of(part(bundle))
    assert bare.refusal == "no_torch"
    assert {foreign.refusal, lost.refusal, bare.refusal} <= CATALOGUE.keys()
    assert reconstructions.refused(part(bundle, bundle_id=""), bundle) == "no_torch"


@NEEDS_BROWSER
def test_a_reconstruction_is_drawn_when_it_is_asked_for(bundle: Bundle, tmp_path: Path) -> None:
    """A key asks, the picture comes and the address tells; the page says what it is."""
    pytest.importorskip("nicegui", reason="the extra 'dashboard' is not installed")
    yaml = write_line(tmp_path, DEMO, sinks={"jsonl": {}, "archive": {}})
    archive, kept = Archive(tmp_path / "run" / "archive", 10**9), part(bundle)
    told = VerdictDelivery("left", "1-1", kept.verdict, b"", kept.picture_png, b"")
    archive.act(told, threading.Event())
    with served(yaml, free_port()) as address, visiting() as page:
        picture = f"{address}/parts/{kept.stem}/reconstruction.png"
        assert page.request.get(picture).status == 404  # an address alone draws nothing
        page.goto(f"{address}/reject/{kept.stem}", wait_until="commit")
        page.locator(".big").wait_for()

        def is_asked() -> bool:
            page.keyboard.press("r")
            return page.locator(".tile [role=status]").inner_text() != ""

        until(is_asked)
        page.get_by_text("as the model would have it").wait_for(timeout=PATIENCE_S * 1000)
        page.wait_for_function(
            "() => { const i = document.querySelector('.big');"
            " return i.src.endsWith('/reconstruction.png') && i.complete && i.naturalWidth; }"
        )
        assert "view=reconstruction" in page.url
        assert page.request.get(picture).status == 200
        page.goto(f"{page.url}&lang=de", wait_until="commit")
        page.get_by_text("wie das Modell es erwartet").wait_for()
