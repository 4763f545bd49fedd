"""Laws of the page *Line*: what it counts, what it says, and what a browser really shows."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import redis
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.contracts import Decision, Reason, Verdict
from engines.images import decode_image, encode_png
from pipeline.config import LineSettings
from pipeline.dashboard import words
from pipeline.dashboard.feed import Feed
from pipeline.dashboard.picture import outlined
from pipeline.dashboard.view import LineState
from pipeline.dashboard.window import REJECTS_SHOWN, SECOND_NS, SMOOTH_S, LineWindow
from pipeline.server import embedded_server
from pipeline.stream import Ledger, Stream, open_stream
from pipeline.wire import FrameEntry
from tests.pipeline.pages import cameras_alive
from tests.waiting import wait_for

NOW = 1_800_000_000 * SECOND_NS
CHROMIUM = Path("/usr/bin/chromium")
SIDE = 96


def verdict(number: int, decision: Decision = Decision.PASS, **more: object) -> Verdict:
    """A verdict of camera left, decided NOW."""
    reason = Reason.DEADLINE if decision is Decision.UNDECIDED else None
    known = {
        "frame_id": f"left/1-{number}",
        "camera": "left",
        "decision": decision,
        "reason": reason,
        "captured_ns": NOW - 40_000_000,
        "decided_ns": NOW,
        "steps": 3,
    }
    return Verdict.model_validate(known | more)


def window() -> LineWindow:
    """A line of one camera with a gate of 250 ms."""
    return LineWindow("demo", {"left": 250.0})


def ledger(passed: int = 0, failed: int = 0, opened: int = 0, **undecided: int) -> Ledger:
    """A ledger whose residual is what is open."""
    captured = passed + failed + opened + sum(undecided.values())
    return Ledger(captured, passed, failed, undecided, opened)


# -- numbers ----------------------------------------------------------------------------------


def test_counts_come_from_the_ledger_alone() -> None:
    """A verdict the page never saw, or saw twice, changes no count."""
    line = window()
    for _ in range(3):
        line.see(verdict(1, Decision.FAIL))
    line.count(NOW, {"left": ledger(90, 7, 2, deadline=3)}, {"left": 2})
    view = line.view(NOW)
    assert (view.passed, view.failed, view.undecided) == (90, 7, {"deadline": 3})
    assert (view.captured, view.open, view.backlog, view.residual) == (102, 2, 2, 0)
    assert view.yield_fraction == pytest.approx(0.9)


def test_residual_is_what_is_neither_answered_nor_open() -> None:
    """A part without an answer and without a deadline shows, in a word of its own."""
    line = window()
    line.count(NOW, {"left": Ledger(10, 5, 1, {"overrun": 1}, 2)}, {})
    view = line.view(NOW)
    assert view.residual == 1
    assert view.state is LineState.UNACCOUNTED
    assert words.tiles(view)["residual"].tone == "fail"


def test_latency_and_depth_describe_judged_parts_of_the_last_minute() -> None:
    """What was answered without looking, or long ago, moves neither latency nor depth."""
    line = window()
    line.see(verdict(1, decided_ns=NOW - 61 * SECOND_NS, captured_ns=NOW - 99 * SECOND_NS))
    line.see(verdict(2, Decision.UNDECIDED, captured_ns=NOW - SECOND_NS, steps=0))
    for number, steps in enumerate((1, 3, 3), start=3):
        line.see(verdict(number, steps=steps))
    view = line.view(NOW)
    assert view.latency_p50_ms == pytest.approx(40.0)
    assert view.depth == ((0, 0), (1, 1), (2, 0), (3, 2))


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(0, 40), min_size=2, max_size=90))
def test_parts_per_minute_is_answers_over_time(answers: list[int]) -> None:
    """The rate over the window is the ledger's difference over its time, and the chart adds up."""
    line, passed = window(), np.cumsum(answers)
    for second, total in enumerate(passed):
        line.count(NOW + second * SECOND_NS, {"left": ledger(int(total))}, {})
    now = NOW + (len(answers) - 1) * SECOND_NS
    view = line.view(now)
    back = min(60, len(answers) - 1)
    assert view.parts_per_minute == pytest.approx(60 * (passed[-1] - passed[-1 - back]) / back)
    assert all(point.passed >= 0 for point in view.rates)
    assert len(view.rates) == max(0, len(answers) - int(SMOOTH_S))


def test_a_server_that_forgot_counts_as_nothing_not_as_less() -> None:
    """After a restart the totals begin at 0; no rate goes below 0."""
    line = window()
    line.count(NOW, {"left": ledger(500)}, {})
    later = NOW + int(SMOOTH_S) * SECOND_NS
    line.count(later, {"left": ledger(3)}, {})
    view = line.view(later)
    assert view.parts_per_minute == 0
    assert view.rates[0].passed == 0


def test_two_parts_in_an_instant_are_no_rate() -> None:
    """The chart begins with a rate over seconds, not with the luck of its first readings."""
    line = window()
    for tenth in range(100):  # 60 parts a minute, each pair of them at once
        line.count(NOW + tenth * SECOND_NS // 10, {"left": ledger(2 * (tenth // 20))}, {})
    rates = [point.passed for point in line.view(NOW + 10 * SECOND_NS).rates]
    assert rates
    assert max(rates) <= 90


def test_the_chart_has_one_point_of_a_second() -> None:
    """However often the ledgers are read, a visitor is sent the last reading of each second."""
    line = window()
    for tenth in range(200):
        line.count(NOW + tenth * SECOND_NS // 10, {"left": ledger(tenth)}, {})
    rates = line.view(NOW + 20 * SECOND_NS).rates
    assert [point.at_ns - NOW for point in rates] == [
        second * SECOND_NS + 9 * SECOND_NS // 10 for second in range(int(SMOOTH_S), 20)
    ]


def test_states_from_waiting_to_silence() -> None:
    """The one word for the line follows its frames: none yet, coming, late, stopped."""
    line = window()
    assert line.view(NOW).state is LineState.WAITING
    line.see(verdict(1))
    assert line.view(NOW).state is LineState.RUNNING
    for number in range(2, 6):
        line.see(verdict(number, captured_ns=NOW - 400_000_000))
    assert line.view(NOW).state is LineState.LATE
    later = line.view(NOW + 20 * SECOND_NS)
    assert later.state is LineState.NO_FRAMES
    assert later.cameras[0].is_silent


def test_last_rejects_are_the_newest_bounded_and_not_flooded() -> None:
    """FAIL is always shown; an UNDECIDED without a picture is counted, not shown."""
    line = window()
    for number in range(40):
        line.see(verdict(number, Decision.FAIL), b"mask", b"picture")
        line.see(verdict(100 + number, Decision.UNDECIDED))
        line.see(verdict(200 + number))
    rejects = line.view(NOW).rejects
    assert len(rejects) == REJECTS_SHOWN
    assert [one.verdict.frame_id for one in rejects][:2] == ["left/1-39", "left/1-38"]
    assert line.reject(rejects[0].key) is rejects[0]
    assert line.reject("r-1") is None


# -- words ------------------------------------------------------------------------------------


def test_every_state_and_decision_has_an_icon_and_a_word() -> None:
    """Colour is never the only signal."""
    assert set(words.STATES) == set(LineState)
    assert set(words.DECISION_ICONS) == set(Decision)
    assert all(state.value.isupper() for state in LineState)


@pytest.mark.parametrize(
    ("p99", "tone", "said"), [(100.0, "pass", "40 %"), (251.0, "fail", "too late")]
)
def test_the_gate_is_said_in_words(p99: float, tone: str, said: str) -> None:
    """Whether the slowest hundredth makes the gate is a sentence, not only a bar."""
    view = SimpleNamespace(gate_ms=250.0, latency_p99_ms=p99)
    says = words.gate_sentence(view)  # type: ignore[arg-type]
    assert says.tone == tone
    assert said in says.note


def test_numbers_read_from_far() -> None:
    """Counts are grouped, ages are short."""
    assert words.count(1234567) == "1.23 M"
    assert words.count(12345) == "12\u202f345"
    assert [words.age(age) for age in (None, 0.21, 42.0, 600.0, 9000.0)] == [
        "none yet",
        "now",
        "42 s",
        "10 min",
        "2 h",
    ]


def test_the_outline_lies_where_the_mask_is_after_the_crop() -> None:
    """A mask in frame geometry is drawn onto the crop that the model saw."""
    picture = np.full((SIDE, SIDE, 3), 90, np.uint8)
    mask = np.zeros((400, 400), np.bool_)
    mask[250:300, 250:300] = True
    drawn = decode_image(outlined(encode_png(picture), encode_png(mask), (200, 200, 192, 192)))
    changed = np.argwhere((drawn != picture).any(axis=2))
    assert changed.min() >= 23
    assert changed.max() <= 52
    assert outlined(b"as it is", b"") == b"as it is"


# -- a real server ----------------------------------------------------------------------------


def line_settings(redis_url: str, namespace: str, port: int = 0) -> LineSettings:
    """Two simulated cameras on the test's server."""
    source = {"kind": "simulator"}
    return LineSettings.model_validate(
        {
            "line": "demo",
            "bundle": "none",
            "redis": {"url": redis_url, "namespace": namespace},
            "cameras": [
                {"name": name, "source": source, "gate_ms": 250} for name in ("left", "right")
            ],
            "dashboard": {"port": port},
        }
    )


def inspect_parts(stream: Stream, camera: str, epoch: int, numbers: range) -> None:
    """Admit and answer parts on the real stream: every seventh fails, every 29th is too late."""
    for number in numbers:
        draw = np.random.default_rng(number)
        image = draw.integers(60, 120, (SIDE, SIDE, 3), np.uint8)
        now = stream.now_ns()
        frame_id = f"{camera}/{epoch}-{number}"
        stream.admit(
            FrameEntry(frame_id, camera, now, now + 60_000_000_000, image, part_id=str(number))
        )
        (delivery,) = stream.read([camera], "one", 1, 500)
        mask = np.zeros((SIDE, SIDE), np.bool_)
        mask[20:50, 30:60] = number % 7 == 0
        fails = bool(mask.any())
        decision = Decision.FAIL if fails else Decision.PASS
        reason = None
        if number % 29 == 0:
            decision, reason = Decision.UNDECIDED, Reason.DEADLINE
        made = Verdict(
            frame_id=frame_id,
            camera=camera,
            part_id=f"{camera}-{number:06d}",
            category="disc",
            decision=decision,
            reason=reason,
            surprise=6.5,
            threshold=3.2,
            steps=1 + number % 4,
            captured_ns=now,
            decided_ns=stream.now_ns(),
        )
        picture = encode_png(image) if fails else b""
        stream.answer(delivery, "one", made, encode_png(mask) if fails else b"", picture)


def test_the_feed_agrees_with_the_ledger_and_leaves_no_group(
    redis_url: str, namespace: str
) -> None:
    """The page sees every verdict and every count of a real stream, and no group stays behind."""
    feed, stop = Feed(line_settings(redis_url, namespace)), threading.Event()
    reader = threading.Thread(target=feed.run, args=(stop,))
    with open_stream(redis_url, namespace) as stream:
        reader.start()
        try:
            epoch = stream.begin_epoch("left")
            inspect_parts(stream, "left", epoch, range(1, 31))
            wait_for(lambda: feed.view.answered == 30 and len(feed.view.rejects) == 4)
            view = feed.view
            assert (view.failed, view.undecided, view.residual) == (4, {"deadline": 1}, 0)
            assert sum(frames for _, frames in view.depth) == 29
            assert stream.trim_verdicts("left") == 30
        finally:
            stop.set()
            reader.join(10)
    assert not reader.is_alive()


def test_nobody_waits_at_the_server_for_verdicts(redis_url: str, namespace: str) -> None:
    """Rejects are found by looking: the server never has to wake the page for one."""
    feed, stop = Feed(line_settings(redis_url, namespace)), threading.Event()
    reader = threading.Thread(target=feed.run, args=(stop,))
    waiting = []
    with open_stream(redis_url, namespace) as stream, redis.Redis.from_url(redis_url) as server:

        def is_seen() -> bool:
            waiting.append(server.info("clients")["blocked_clients"])
            return len(feed.view.rejects) == 2

        reader.start()
        try:
            inspect_parts(stream, "left", stream.begin_epoch("left"), range(7, 15))
            wait_for(is_seen)
        finally:
            stop.set()
            reader.join(10)
    assert set(waiting) == {0}


def test_a_lost_server_is_said_and_its_return_is_seen(namespace: str, tmp_path: Path) -> None:
    """The page says NO SERVER while there is none, and goes on by itself when it is back."""
    with embedded_server(tmp_path / "redis") as url:
        feed, stop = Feed(line_settings(url, namespace)), threading.Event()
        reader = threading.Thread(target=feed.run, args=(stop,))
        reader.start()
        with open_stream(url, namespace) as stream:
            inspect_parts(stream, "left", stream.begin_epoch("left"), range(1, 4))
        wait_for(lambda: feed.view.passed == 3)
    try:
        wait_for(lambda: feed.server_lost)
        assert feed.view.passed == 3
        with (
            embedded_server(tmp_path / "redis") as url,
            cameras_alive(url, namespace, "left", "right"),
            open_stream(url, namespace) as stream,
        ):
            inspect_parts(stream, "left", stream.begin_epoch("left"), range(1, 3))
            wait_for(lambda: feed.view.passed == 2)
            wait_for(lambda: feed.view.state is LineState.CAMERA_STARVING)  # the right one
    finally:
        stop.set()
        reader.join(10)
    assert not reader.is_alive()


SERVE = """
import sys, threading
from pipeline.cli.terminal import stop_on_signals
from pipeline.config import load_line
from pipeline.dashboard import run_dashboard
with stop_on_signals() as stop:
    run_dashboard(load_line(sys.argv[1]), stop, lambda url: print(url, flush=True))
"""


@contextmanager
def served_page(folder: Path, redis_url: str, namespace: str) -> Iterator[str]:
    """The dashboard as a process of its own; yields its address and stops it by SIGTERM."""
    yaml = folder / "line.yaml"
    cameras = ", ".join(
        f"{{name: {name}, source: {{kind: simulator}}, gate_ms: 250}}" for name in ("left", "right")
    )
    yaml.write_text(
        f"line: demo\nbundle: none\nredis: {{url: '{redis_url}', namespace: {namespace}}}\n"
        f"cameras: [{cameras}]\ndashboard: {{port: 0}}\n"
    )
    page = subprocess.Popen(
        [sys.executable, "-c", SERVE, str(yaml)], stdout=subprocess.PIPE, text=True
    )
    try:
        assert page.stdout is not None
        address = page.stdout.readline().strip()
        assert address.startswith("http://127.0.0.1:"), "the page did not start"
        yield address
        page.terminate()
        assert page.wait(15) == 0
    finally:
        page.kill()
        page.wait()
        if page.stdout is not None:
            page.stdout.close()


@pytest.mark.skipif(not CHROMIUM.exists(), reason="chromium is not installed")
def test_a_browser_shows_the_line_without_leaving_the_machine(
    redis_url: str, namespace: str, tmp_path: Path
) -> None:
    """Numbers, words and pictures stand on the page, and every request goes to loopback."""
    pytest.importorskip("nicegui", reason="the extra 'dashboard' is not installed")
    from playwright.sync_api import sync_playwright

    asked: list[str] = []
    with (
        open_stream(redis_url, namespace) as stream,
        cameras_alive(redis_url, namespace, "left", "right"),
        served_page(tmp_path, redis_url, namespace) as address,
        sync_playwright() as playwright,
    ):
        inspect_parts(stream, "left", stream.begin_epoch("left"), range(1, 30))
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 1920, "height": 1080})
        page.on("request", lambda request: asked.append(request.url))
        page.goto(address, wait_until="commit")
        page.get_by_text("of 29 answered").wait_for(timeout=60_000)
        page.get_by_text("left-000028").first.wait_for(timeout=60_000)  # lists come in turn
        text = page.inner_text("body")
        page.wait_for_function(
            "() => [...document.images].filter(one => one.naturalWidth).length == 4"
        )
        page.screenshot(path=str(tmp_path / "line.png"))
        browser.close()
    for word in (
        "PASS",
        "FAIL",
        "UNDECIDED",
        "deadline 1",
        "CAMERA STARVING",
        "left-000028",
        "Yield",
    ):
        assert word in text
    outside = [url for url in asked if not url.startswith((address, "data:", "blob:", "ws://127."))]
    assert outside == []


@pytest.mark.skipif(not CHROMIUM.exists(), reason="chromium is not installed")
def test_a_card_keeps_its_part(redis_url: str, namespace: str, tmp_path: Path) -> None:
    """A new reject comes before the others; theirs are the same cards, drawn once."""
    pytest.importorskip("nicegui", reason="the extra 'dashboard' is not installed")
    from playwright.sync_api import sync_playwright

    newest = "document.querySelector('a.reject')"
    with (
        open_stream(redis_url, namespace) as stream,
        served_page(tmp_path, redis_url, namespace) as address,
        sync_playwright() as playwright,
    ):
        epoch = stream.begin_epoch("left")
        inspect_parts(stream, "left", epoch, range(1, 8))
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        page = browser.new_page()
        page.goto(address, wait_until="commit")
        page.get_by_text("left-000007").wait_for(timeout=60_000)
        page.evaluate(f"() => {{ {newest}.dataset.was = 'newest' }}")
        inspect_parts(stream, "left", epoch, range(8, 15))
        page.get_by_text("left-000014").wait_for(timeout=60_000)
        first, second = page.locator("a.reject:visible").all()
        assert "left-000014" in first.inner_text()
        assert "left-000007" in second.inner_text()
        assert second.get_attribute("data-was") == "newest"
        browser.close()
