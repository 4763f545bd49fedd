"""Laws of the pages over a real line: counts, thresholds, labels, hostile text, use by all."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import threading
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from playwright.sync_api import Page

from engines.contracts import Decision, Verdict
from engines.images import encode_png
from pipeline.applied import changes
from pipeline.cli import main
from pipeline.config import load_line
from pipeline.dashboard.history import History, Stretch
from pipeline.outputs.archive import Archive
from pipeline.recording import read_verdicts
from pipeline.review import ReviewLabels
from pipeline.stream import VerdictDelivery, open_stream
from tests.pipeline.pages import (
    NEEDS_BROWSER,
    PAGES,
    Running,
    answers,
    free_port,
    running_line,
    until,
    visiting,
)
from tests.tiny_line import bad_part, write_line

HOSTILE = "<img src=x onerror=window.hacked=1>{{7*7}}\u202e"
CSS = Path(__file__).parents[2] / "pipeline" / "dashboard" / "line.css"


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """One line for all of these."""
    pytest.importorskip("nicegui", reason="the extra 'dashboard' is not installed")
    metrics = {"port": free_ports_from(40)}
    with running_line(tmp_path_factory.mktemp("line"), metrics=metrics) as running:
        yield running


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """One browser for all of these."""
    with visiting() as visited:
        yield visited


def free_ports_from(count: int) -> int:
    """The first of so many ports in a row that nobody listens at now."""
    while True:
        first = free_port()
        if first + count < 65_000 and not any(is_taken(first + more) for more in range(count)):
            return first


def is_taken(port: int) -> bool:
    """Whether somebody listens there."""
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def served_number(line: Running, series: str) -> float:
    """What the page's own /metrics says of a series."""
    port = load_line(line.yaml).metrics.port_of("dashboard")
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        told = answer.read().decode()
    (value,) = re.findall(rf"^assayline_{re.escape(series)} (\S+)$", told, re.M)
    return float(value)


def numbers(page: Page) -> list[int]:
    """Captured, PASS, FAIL, UNDECIDED in the table of cameras."""
    cells = page.locator(".cameras td").all_inner_texts()[3:7]
    return [int(cell.replace("\u202f", "")) for cell in cells]


@NEEDS_BROWSER
def test_counts_on_the_page_are_those_of_the_ledger(line: Running, page: Page) -> None:
    """What the page says lies between two readings of the ledger around it."""
    page.goto(line.address, wait_until="commit")
    page.locator("a.reject").first.wait_for()
    with open_stream(f"unix://{line.run_dir}/redis/redis.sock", "assayline") as stream:
        before = stream.ledger("left")
        page.wait_for_timeout(2500)  # a page is a second behind
        shown = numbers(page)
        after = stream.ledger("left")
    for name, value in zip(("captured", "passed", "failed"), shown, strict=False):
        assert getattr(before, name) <= value <= getattr(after, name)
    assert shown[0] - sum(shown[1:]) <= 1  # a part in flight


@NEEDS_BROWSER
def test_what_if_is_a_recomputation_and_applying_it_judges_the_next_parts(
    line: Running, page: Page
) -> None:
    """Flips equal those counted from the log; the applied threshold is audited and in force."""
    log = line.run_dir / "verdicts.jsonl"
    until(lambda: log.exists() and log.read_bytes().count(b"\n") > 40)
    passed = sorted(v.surprise or 0 for v in read_verdicts(log) if v.decision is Decision.PASS)
    at = max(0.02, round(passed[len(passed) // 2], 2))
    page.goto(f"{line.address}/threshold?at={at}&who=Ada", wait_until="commit")
    page.locator(".to_fail").wait_for()
    told = int(re.findall(r"(\d+) verdicts from", page.inner_text("main"))[0])
    judged = [v for v in read_verdicts(log) if v.surprise is not None][:told]
    flips = [v for v in judged if (v.surprise > at) is not (v.decision is Decision.FAIL)]
    assert flips
    shown = int(page.locator(".to_fail").inner_text()), int(page.locator(".to_pass").inner_text())
    assert shown == (len([v for v in flips if v.decision is Decision.PASS]), 0)
    page.get_by_role("button", name="Apply").click()
    page.get_by_text("Say why.").wait_for()
    page.get_by_label("Reason").fill(HOSTILE)
    page.get_by_role("button", name="Apply").click()
    page.get_by_text("Workers take it at the next part").wait_for()
    (change,) = changes(line.run_dir)
    assert (change.who, change.why, change.new) == ("Ada", HOSTILE, at)
    assert HOSTILE in page.locator("main").inner_text()  # the log, as text
    until(lambda: change.calibration_id in log.read_text("utf-8"))
    later = [v for v in read_verdicts(log) if v.calibration_id == change.calibration_id]
    assert {v.threshold for v in later} == {at}
    assert all((v.decision is Decision.FAIL) is (v.surprise > at) for v in later if v.surprise)


@NEEDS_BROWSER
def test_labels_are_given_by_key_and_survive_a_killed_page(line: Running, page: Page) -> None:
    """The open page comes back by itself after its server was killed, and knows the answer."""
    page.goto(f"{line.address}/review", wait_until="commit")
    page.get_by_text("0 reviewed").wait_for()
    page.locator(".stage img").wait_for()
    page.keyboard.press("f")
    page.get_by_text("Say who you are first.").wait_for()
    page.get_by_label("Your name").fill("Ada")
    page.get_by_label("Your name").blur()
    was = page.locator(".which").first.inner_text()
    page.keyboard.press("f")
    page.get_by_text("· 1 reviewed").wait_for()
    assert page.locator(".which").first.inner_text() != was
    (label,) = ReviewLabels(line.run_dir).newest().values()
    assert (label.answer, label.who) == ("false_reject", "Ada")
    assert served_number(line, 'reviews_total{answer="false_reject",camera="left"}') == 1
    started = (line.run_dir / "logs" / "dashboard.log").read_text().splitlines()[0]
    page.evaluate("() => { window.isOld = true; }")
    os.kill(json.loads(started)["pid"], signal.SIGKILL)
    until(lambda: not answers(f"{line.address}/healthz"))
    until(lambda: answers(f"{line.address}/healthz"))
    page.wait_for_function("() => !window.isOld")
    page.get_by_text("· 1 reviewed").wait_for()
    page.locator(".stage img").wait_for()
    assert "who=Ada" in page.url


@NEEDS_BROWSER
def test_text_from_outside_is_shown_as_text(line: Running, page: Page) -> None:
    """Names of parts, categories, lots and recipes become no element and run no script."""
    verdict = Verdict(
        frame_id="left/9999999999999-1",
        camera="left",
        decision=Decision.FAIL,
        part_id=HOSTILE,
        category=HOSTILE,
        recipe=HOSTILE,
        lot=HOSTILE,
        captured_ns=1,
        decided_ns=2,
        latency_ms={HOSTILE: 1.0},
        backend=HOSTILE,
    )
    part = VerdictDelivery("left", "1-1", verdict, b"", encode_png(bad_part(1)))
    Archive(line.run_dir / "archive", 10**9).act(part, threading.Event())
    for path in ("/reject/left/9999999999999-1", "/review?part=left/9999999999999-1"):
        page.goto(f"{line.address}{path}", wait_until="commit")
        page.get_by_text("7*7").first.wait_for()
        page.locator(".stage img").wait_for()
        assert "<img src=x onerror" in page.inner_text("main")
        assert page.locator("img[src='x']").count() == 0
        assert page.evaluate("() => window.hacked") is None


@pytest.mark.parametrize("name", ["<b>left</b>", "../left", "left right", "\u202eleft"])
def test_a_hostile_name_in_the_yaml_is_refused(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It never reaches a page: the command says in one sentence what is wrong."""
    yaml = write_line(tmp_path, tmp_path / "none", camera={"name": name})
    monkeypatch.setattr("sys.argv", ["assayline", "dashboard", str(yaml)])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 5
    assert capsys.readouterr().err.startswith("assayline: ")


# Every control has a name, every picture its words, one heading of the first rank, one main place.
FAULTS = """() => {
  const name = e => (e.getAttribute('aria-label') || e.innerText || e.title
    || (e.labels && [...e.labels].map(l => l.innerText).join(' ')) || e.alt || '').trim();
  const seen = e => e.checkVisibility() && !e.closest('[aria-hidden=true]');
  const faults = [];
  for (const e of document.querySelectorAll('button, a[href], input, [role=slider], [role=button]'))
    if (seen(e) && e.type !== 'hidden' && !name(e)
        && !(e.closest('label') && e.closest('label').innerText.trim())
        && !(e.closest('[aria-label]'))) faults.push('no name: ' + e.outerHTML.slice(0, 160));
  for (const e of document.images)
    if (seen(e) && !e.alt) faults.push('no words: ' + e.outerHTML.slice(0, 160));
  for (const [what, count] of [['h1', 1], ['main', 1], ['nav', 1]])
    if (document.querySelectorAll(what).length !== count) faults.push(`not one ${what}`);
  if (!document.documentElement.lang) faults.push('no language');
  const ids = [...document.querySelectorAll('[id]')].map(e => e.id);
  for (const id of ids) if (ids.indexOf(id) !== ids.lastIndexOf(id)) faults.push('id twice: ' + id);
  for (const e of document.querySelectorAll('[tabindex]'))
    if (e.tabIndex > 0) faults.push('order of keys bent: ' + e.outerHTML.slice(0, 160));
  const wide = document.documentElement.scrollWidth - innerWidth;
  if (wide > 1) faults.push(`wider than the screen by ${wide}`);
  return faults;
}"""


@NEEDS_BROWSER
@pytest.mark.parametrize("size", [(1280, 720), (390, 844)])
def test_every_page_can_be_used_by_all(line: Running, page: Page, size: tuple[int, int]) -> None:
    """Names on controls, words for pictures, headings, language; nothing runs off the screen."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    for path in PAGES:
        page.goto(f"{line.address}{path}?lang=de", wait_until="commit")
        page.locator("main > *").first.wait_for()
        page.wait_for_timeout(500)
        assert page.evaluate(FAULTS) == [], path
        assert page.evaluate("() => document.documentElement.lang") == "de"


def luminance(colour: str) -> float:
    """Relative luminance of #rrggbb (WCAG 2)."""
    parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


@pytest.mark.parametrize("theme", [":root", ".body--dark"])
def test_the_palette_can_be_read(theme: str) -> None:
    """Every colour of words has a contrast of 4.5 or more on every ground, in both themes."""
    block = CSS.read_text().split(f"{theme} {{")[1].split("}")[0]
    colours = dict(re.findall(r"--(\w+): (#\w{6})", block))
    for ink in ("pass", "fail", "undecided", "accent", "ink", "faint"):
        for ground in ("page", "tile", "well"):
            light, dark = sorted((luminance(colours[ink]), luminance(colours[ground])))[::-1]
            assert (light + 0.05) / (dark + 0.05) >= 4.5, f"{ink} on {ground}"


def test_history_holds_what_a_threshold_decided(tmp_path: Path) -> None:
    """Torn and foreign lines are passed over, the log is followed as it grows."""
    log = tmp_path / "verdicts.jsonl"
    base = {"frame_id": "left/1-1", "camera": "left", "captured_ns": 1, "decided_ns": 2}
    made = [
        Verdict.model_validate(base | {"decision": "PASS", "surprise": 0.5, "backend": "b"}),
        Verdict.model_validate(base | {"decision": "FAIL", "surprise": 2.5, "backend": "b"}),
        Verdict.model_validate(base | {"decision": "UNDECIDED", "reason": "deadline"}),
    ]
    history = History(log)
    assert not history.look()
    log.write_text(made[0].model_dump_json() + "\nnull\n{\n" + made[1].model_dump_json())
    history.look()
    assert len(history.of("b", [""])) == 1
    with log.open("a") as file:
        file.write("\n" + made[2].model_dump_json() + "\n")
    history.look()
    found = history.of("b", [""]).what_if(0.4)
    assert found is not None
    assert (found.count, found.fails_then, found.fails) == (2, 1, 2)
    assert [one.surprise for one in found.to_fail] == [0.5]
    assert Stretch([]).what_if(1.0) is None
