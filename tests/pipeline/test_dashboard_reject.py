"""Laws of the page *Reject*: what is found of a part, and what a browser shows over a real line."""

from __future__ import annotations

import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from engines.bundle import open_bundle
from engines.contracts import Decision, Verdict
from engines.images import decode_image, encode_map, encode_png
from pipeline.dashboard.good import entry_of, good_parts
from pipeline.dashboard.parts import Parts
from pipeline.dashboard.picture import heated
from pipeline.dashboard.texts import CATALOGUE, Speech
from pipeline.outputs.archive import Archive
from pipeline.recording import read_verdicts
from pipeline.stream import VerdictDelivery
from tests.pipeline.pages import NEEDS_BROWSER, Running, running_line, until, visiting
from tests.tiny_line import CATEGORY, shared_bundle

pytestmark = pytest.mark.slow


def rejected(number: int, **more: object) -> VerdictDelivery:
    """A failed part as the sink sees it."""
    known = {
        "frame_id": f"left/1-{number}",
        "camera": "left",
        "decision": Decision.FAIL,
        "category": CATEGORY,
        "captured_ns": 1,
        "decided_ns": 2 + number,
    }
    verdict = Verdict.model_validate(known | more)
    grey = np.full((16, 16, 3), 99, np.uint8)
    heat = encode_map(np.full((4, 4), 1.5, np.float32))
    return VerdictDelivery("left", f"1-{number}", verdict, b"", encode_png(grey), heat)


def archive_with(folder: Path, *numbers: int) -> Archive:
    """An archive that holds these parts."""
    archive = Archive(folder, 10**9)
    for number in numbers:
        archive.act(rejected(number), threading.Event())
        time.sleep(0.01)  # stamps of files are coarse
    return archive


# -- parts ------------------------------------------------------------------------------------


def test_archived_parts_are_found_newest_first(tmp_path: Path) -> None:
    """What the archive keeps is listed and read whole, its anomaly map too."""
    archive_with(tmp_path, 1, 2, 3)
    parts = Parts(tmp_path)
    parts.look()
    assert parts.stems == ("left/1-3", "left/1-2", "left/1-1")
    part = parts.find("left/1-2")
    assert part is not None
    assert part.verdict.frame_id == "left/1-2"
    assert part.map_png
    assert parts.place("left/1-2") == 1


def test_what_the_archive_forgets_leaves_the_list(tmp_path: Path) -> None:
    """A part that made room for others is gone, and is said to be."""
    archive_with(tmp_path, 1, 2)
    parts = Parts(tmp_path)
    parts.look()
    (tmp_path / "left" / "1-1.json").unlink()
    parts.look()
    assert parts.stems == ("left/1-2",)
    assert parts.find("left/1-1") is None


@pytest.mark.parametrize("stem", ["../left/1-1", "left/../left/1-1", "/etc/passwd", "left/", ""])
def test_no_address_leaves_the_archive(tmp_path: Path, stem: str) -> None:
    """Only names that were found in the archive are read."""
    archive_with(tmp_path / "archive", 1)
    parts = Parts(tmp_path / "archive")
    parts.look()
    assert parts.find(stem) is None
    assert parts.original(stem) == b""


# -- drawings and words -----------------------------------------------------------------------


def test_the_map_hides_only_what_is_strange() -> None:
    """A calm place keeps its pixels, a strange one takes the colour of heat."""
    picture = np.full((32, 32, 3), 90, np.uint8)
    heat = np.zeros((32, 32), np.float32)
    heat[:8, :8] = 2.0
    drawn = decode_image(heated(encode_png(picture), encode_map(heat)))
    assert (drawn[20:, 20:] == 90).all()
    assert drawn[2, 2].min() > 120
    assert heated(b"as it is", b"") == b"as it is"


def test_good_parts_are_those_of_the_calibration(tmp_path: Path) -> None:
    """The histogram holds all held-out good parts, its limit has the threshold's surprise."""
    calibration = open_bundle(shared_bundle(tmp_path)).calibration()
    told = {"plan": 0, "steps": 2, "steps_planned": 2, "anomaly_score": 0.5}
    verdict = rejected(1, backend="openvino:f32", threshold=1.5, **told).verdict
    entry = entry_of(calibration, verdict)
    assert entry is not None
    found = good_parts(verdict, entry)
    assert found is not None
    assert sum(found.counts) == pytest.approx(entry.tails[0].good, rel=0.02)
    assert found.limit is not None
    assert entry.tails[0].surprise(found.limit) == pytest.approx(1.5)
    assert good_parts(verdict.model_copy(update={"plan": None}), entry) is None
    assert entry_of(None, verdict) is None


def test_every_text_has_two_languages_with_the_same_blanks() -> None:
    """No text is only in English, and none loses what it tells."""
    for key, (english, german) in CATALOGUE.items():
        assert english, key
        assert german, key
        assert set(re.findall(r"{\w+}", english)) == set(re.findall(r"{\w+}", german)), key


def test_times_are_local_and_carry_their_date() -> None:
    """A time is never without its day and zone; a stamp of no year is a dash."""
    at_ns = 1_800_000_000 * 10**9
    assert re.fullmatch(r"2027-01-1\d \d\d:\d\d:\d\d \S+", Speech("en").when(at_ns))
    assert re.fullmatch(r"1\d\.01\.2027 \d\d:\d\d:\d\d \S+", Speech("de").when(at_ns))
    assert Speech().when(2**62 * 1000) == "–"


# -- a browser over a real line ---------------------------------------------------------------


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Running:
    """One line for all of these."""
    pytest.importorskip("nicegui", reason="the extra 'dashboard' is not installed")
    with running_line(tmp_path_factory.mktemp("line")) as running:
        yield running


@NEEDS_BROWSER
def test_a_reject_can_be_looked_at_and_stepped_through(line: Running) -> None:
    """From the line to its newest reject; every picture is there; keys step, the address tells."""
    with visiting() as page:
        page.goto(line.address, wait_until="commit")
        page.locator("a.reject img").nth(1).wait_for()  # so that there is one to step to
        page.locator("a.reject").first.click()
        page.get_by_text("FAIL plate").first.wait_for()
        for view in ("map", "frame", "mask"):
            page.get_by_role("button", name=re.compile(view, re.I)).first.click()
            page.wait_for_function(
                f"() => {{ const i = document.querySelector('.big');"
                f" return i.src.includes('/{view}.png') && i.complete && i.naturalWidth; }}"
            )
        assert page.locator("dt", has_text="Threshold").count() == 1
        was = page.url
        page.keyboard.press("ArrowRight")
        page.wait_for_url(lambda url: url != was and "/reject/left/" in url)

        def is_map() -> bool:  # a press before the new page is connected is lost
            page.get_by_role("button", name=re.compile("map", re.I)).first.click()
            return page.url.endswith("view=map")

        until(is_map)
        was = page.url
        page.keyboard.press("ArrowLeft")  # there was a newer one
        page.wait_for_url(lambda url: url != was and url.endswith("view=map"))
        page.goto(f"{line.address}/reject?lang=de", wait_until="commit")
        page.get_by_text("Werte je").or_(page.get_by_text("Zeiten je Stufe")).wait_for()


@NEEDS_BROWSER
def test_a_reject_is_on_the_page_within_a_second_of_its_verdict(line: Running) -> None:
    """A browser that only looks sees each reject soon after it was decided."""
    with visiting() as page:
        page.goto(line.address, wait_until="commit")
        page.locator("a.reject").first.wait_for()
        page.wait_for_timeout(3000)  # until the page has settled
        page.evaluate(
            "() => { window.begun = Date.now(); window.seen = {}; setInterval(() => {"
            " for (const a of document.querySelectorAll('a.reject')) {"
            " const id = new URL(a.href).pathname.slice(8);"
            " if (!(id in window.seen)) window.seen[id] = Date.now(); } }, 20); }"
        )
        page.wait_for_timeout(8000)
        begun, seen = page.evaluate("() => [window.begun, window.seen]")
    verdicts = read_verdicts(line.run_dir / "verdicts.jsonl")
    decided = {verdict.frame_id: verdict.decided_ns / 1e6 for verdict in verdicts}
    delays = sorted(at - decided[one] for one, at in seen.items() if decided.get(one, 0) > begun)
    print(f"from verdict to page: {[round(delay) for delay in delays]} ms")
    assert len(delays) >= 3
    assert np.median(delays) <= 1000


@NEEDS_BROWSER
def test_no_picture_stands_by_the_words_of_another_part(line: Running) -> None:
    """A place that another part takes shows nothing until that part's own picture is there."""
    with visiting() as page:
        page.goto(line.address, wait_until="commit")
        page.locator("a.reject img").first.wait_for()
        page.evaluate(
            "() => { for (const i of document.querySelectorAll('a.reject img'))"
            " i.held = i.getAttribute('src'); }"
        )
        page.wait_for_function(
            "() => [...document.querySelectorAll('a.reject img')].some("
            "i => i.getAttribute('src') && !i.held)"
        )
        kept = page.evaluate(
            "() => [...document.querySelectorAll('a.reject img')].filter(i => i.held)"
            ".map(i => [i.held, i.getAttribute('src')])"
        )
    assert all(held == shown for held, shown in kept)
