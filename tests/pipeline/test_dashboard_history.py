"""A shift of eight hours on the pages: updates stay quick, and a tab that stays open stays small.

Figures are printed (pytest -s); ASSAYLINE_SHIFT_S makes the watch longer than half a minute.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from playwright.sync_api import Page

from engines.contracts import Decision, Verdict
from pipeline.dashboard.history import KEPT, History
from pipeline.outputs.archive import SUFFIXES
from tests.pipeline.pages import NEEDS_BROWSER, Running, running_line, visiting
from tests.tiny_line import CATEGORY

HOURS, RATE_HZ = 8, 3.0
VERDICTS = int(HOURS * 3600 * RATE_HZ)
REJECTS = 3000  # in the archive
WATCH_S = float(os.environ.get("ASSAYLINE_SHIFT_S", "30"))
UPDATE_MS = 200.0  # on a machine that has time
GROWTH = 1.1  # of the tab's memory over the watch
BASE_NS = 1_780_000_000 * 10**9
BACKEND = "openvino:f32"
TASKS = """() => { window.tasks = [0]; new PerformanceObserver(found => {
  for (const one of found.getEntries()) window.tasks.push(one.duration);
}).observe({type: 'longtask'}); }"""
# From a key that moves the slider to the frame that shows what it asked for.
WATCH_KEY = """() => { window.took = 0;
  addEventListener('keydown', () => { window.began = performance.now(); },
    {once: true, capture: true});
  const watch = new MutationObserver(() => { watch.disconnect();
    requestAnimationFrame(() => { window.took = performance.now() - window.began; }); });
  const all = {childList: true, characterData: true, subtree: true};
  watch.observe(document.querySelector('.answer'), all); }"""


def shift(count: int = VERDICTS) -> Iterator[str]:
    """The log of a shift, a line for each verdict; every tenth part fails."""
    spread = np.random.default_rng(1).exponential(0.4, count)
    made = Verdict(
        frame_id="left/1-NUMBER",
        camera="left",
        part_id="part NUMBER",
        category=CATEGORY,
        decision=Decision.PASS,
        surprise=0.125,
        threshold=1.0,
        anomaly_score=0.5,
        steps=2,
        steps_planned=2,
        captured_ns=BASE_NS,
        decided_ns=BASE_NS + 1,
        backend=BACKEND,
        latency_ms={"queue": 1.0, "inspect": 9.0},
    ).model_dump_json()
    for number in range(count):
        surprise = 3.0 if number % 10 == 0 else min(float(spread[number]), 1.9)
        line = made.replace("NUMBER", str(number)).replace("0.125", f"{surprise:.4f}")
        line = line.replace(str(BASE_NS + 1), str(BASE_NS + int(number / RATE_HZ * 1e9)))
        yield line.replace('"PASS"', '"FAIL"') if number % 10 == 0 else line


def fill(run_dir: Path) -> None:
    """The log and the archive that eight hours leave behind."""
    archive = run_dir / "archive" / "left"
    archive.mkdir(parents=True)
    with (run_dir / "verdicts.jsonl").open("w") as log:
        for number, line in enumerate(shift()):
            log.write(line + "\n")
            if number % 10 == 0 and number < 10 * REJECTS:
                (archive / f"1-{number}{SUFFIXES[-1]}").write_text(line)
                for suffix in SUFFIXES[:-1]:
                    (archive / f"1-{number}{suffix}").touch()


def test_a_shift_is_read_whole(tmp_path: Path) -> None:
    """All verdicts of eight hours are kept, and asking for them takes no visible time."""
    assert VERDICTS <= KEPT
    (tmp_path / "verdicts.jsonl").write_text("\n".join(shift()) + "\n")
    history = History(tmp_path / "verdicts.jsonl")
    while history.look():
        pass
    judged = history.of(BACKEND, [CATEGORY])
    assert len(judged) == VERDICTS


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A line that runs on after eight hours."""
    pytest.importorskip("nicegui", reason="the extra 'dashboard' is not installed")
    folder = tmp_path_factory.mktemp("line")
    fill(folder / "run")
    with running_line(folder) as running:
        yield running


def within_ms() -> float:
    """How long an update may take: a core that others wait for as well is that much slower."""
    return UPDATE_MS * max(1.0, os.getloadavg()[0] / len(os.sched_getaffinity(0)))


def heap_mb(page: Page) -> float:
    """What the tab's scripts hold, after a collection."""
    session = page.context.new_cdp_session(page)
    session.send("HeapProfiler.collectGarbage")
    used = session.send("Runtime.getHeapUsage")["usedSize"]
    session.detach()
    return float(used) / 1e6


@NEEDS_BROWSER
@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_threshold_answers_at_once_after_eight_hours(line: Running) -> None:
    """Each move over a shift's verdicts is answered in a fifth of a second."""
    with visiting() as page:
        page.goto(f"{line.address}/threshold?at=1.0", wait_until="commit")
        page.locator(".to_fail").first.wait_for()
        while int(page.locator(".figures .fails_now").inner_text()) < VERDICTS // 10:
            page.wait_for_timeout(1000)  # the log is read a piece at a time
            page.reload(wait_until="commit")
            page.locator(".to_fail").first.wait_for()
        took = []
        for _ in range(12):
            page.locator("[role=slider] [tabindex='0']").focus()
            page.evaluate(WATCH_KEY)
            page.keyboard.press("ArrowRight")
            page.wait_for_function("() => window.took", timeout=30_000)
            took.append(page.evaluate("() => window.took"))
            page.wait_for_timeout(300)
    print(f"threshold over {VERDICTS} verdicts: {[round(ms) for ms in took]} ms")
    assert np.median(took) <= within_ms()


@NEEDS_BROWSER
@pytest.mark.slow
@pytest.mark.timeout(max(900, int(WATCH_S) + 600))
def test_tabs_left_open_stay_quick_and_small(line: Running) -> None:
    """While a shift goes on, no update blocks a tab, and its memory does not grow."""
    with visiting() as first:
        tabs = {"/": first, "/threshold": first.context.new_page()}
        for path, tab in tabs.items():
            tab.goto(f"{line.address}{path}", wait_until="commit")
            tab.locator(".value").first.wait_for()
        first.wait_for_timeout(10_000)  # until charts and caches are what they will be
        for tab in tabs.values():
            tab.evaluate(TASKS)
        heaps = [{path: heap_mb(tab) for path, tab in tabs.items()}]
        end = time.monotonic() + WATCH_S
        while time.monotonic() < end:
            first.wait_for_timeout(WATCH_S * 1000 / 6)
            heaps.append({path: heap_mb(tab) for path, tab in tabs.items()})
        tasks = {path: tab.evaluate("() => window.tasks") for path, tab in tabs.items()}
    for path in tabs:
        of_tab = [one[path] for one in heaps]
        print(
            f"{path}: heap {[round(mb, 1) for mb in of_tab]} MB, longest {max(tasks[path]):.0f} ms"
        )
        assert np.median(tasks[path]) <= within_ms()
        assert min(of_tab[-2:]) <= GROWTH * max(of_tab[:2])
