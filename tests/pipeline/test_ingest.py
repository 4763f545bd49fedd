"""Every exposure is admitted or answered, whatever happens to source and server."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from engines.contracts import Decision, Frame, Reason, StreamLost, Verdict
from pipeline import gate
from pipeline.config import LineSettings
from pipeline.ingest import run_ingest
from pipeline.intake import Intake
from pipeline.journal import Journal
from pipeline.server import embedded_server
from pipeline.shared import FrameRing
from pipeline.sources import BadExposure
from pipeline.stream import Stream, VerdictDelivery, open_stream
from pipeline.wire import Fetch, FrameEntry, FrameHead, entry_from
from tests.tiny_line import SIZE, good_part, shared_bundle, write_parts


@pytest.fixture
def grey_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that measures grey."""
    return shared_bundle(tmp_path_factory.getbasetemp())


def line_of(
    folder: Path,
    bundle: Path,
    url: str,
    namespace: str,
    **camera: Any,  # noqa: ANN401 - settings
) -> LineSettings:
    """A line with one camera over ``folder/parts``."""
    source = {"kind": "folder", "path": folder / "parts"}
    return LineSettings.model_validate(
        {
            "line": "tiny",
            "bundle": bundle,
            "run_dir": folder / "run",
            "redis": {"url": url, "namespace": namespace},
            "cameras": [{"name": "left", "source": source, **camera}],
        }
    )


@contextmanager
def answering(stream: Stream, fetch: Fetch | None = None) -> Iterator[list[FrameEntry]]:
    """An inspector that passes every part; the frames it has seen."""
    stop = threading.Event()
    seen: list[FrameEntry] = []

    def answer() -> None:
        while not stop.is_set():
            for delivery in stream.read(["left"], "test", 8, 20):
                entry = entry_from(delivery.fields, fetch)
                seen.append(entry)
                verdict = Verdict(
                    frame_id=entry.frame_id,
                    camera="left",
                    decision=Decision.PASS,
                    captured_ns=entry.captured_ns,
                    decided_ns=stream.now_ns(),
                )
                stream.answer(delivery, "test", verdict)

    thread = threading.Thread(target=answer)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join()


def intake_on(
    url: str,
    folder: Path,
    ring: FrameRing | None = None,
    least_left_ms: Callable[[float], float] = lambda _: 0.0,
    **camera: Any,  # noqa: ANN401 - settings
) -> tuple[Stream, Journal, Intake]:
    """An intake by itself, whose exposures the test makes."""
    line = line_of(folder, folder, url, "test", **camera)
    stream = Stream(url, "test")
    journal = Journal(folder / "left.journal")
    taking = Intake(stream, journal, line.cameras[0], SIZE, ring=ring, least_left_ms=least_left_ms)
    return stream, journal, taking


def frame(number: int = 0) -> Frame:
    """An exposure of a good part, now."""
    return Frame("", "left", time.time_ns(), good_part(number, (32, 48)), part_id=str(number))


def test_a_finite_source_ends_when_every_part_is_answered(
    tmp_path: Path, grey_bundle: Path, redis_url: str, namespace: str
) -> None:
    """More parts than credits wait their turn, a damaged file is UNDECIDED(bad_frame)."""
    write_parts(tmp_path / "parts", 12)
    (tmp_path / "parts" / "0005.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    line = line_of(tmp_path, grey_bundle, redis_url, namespace, credits=3)
    with open_stream(redis_url, namespace) as stream, answering(stream):
        run_ingest(line, "left", threading.Event())
        ledger = stream.ledger("left")
    assert (ledger.captured, ledger.passed, ledger.open) == (12, 11, 0)
    assert ledger.undecided == {Reason.BAD_FRAME: 1}


def test_a_belt_does_not_wait_for_credits(
    tmp_path: Path, grey_bundle: Path, redis_url: str, namespace: str
) -> None:
    """Beyond the credits parts are UNDECIDED(overrun); the last ones are answered at the end."""
    write_parts(tmp_path / "parts", 5)
    line = line_of(
        tmp_path, grey_bundle, redis_url, namespace, credits=2, overrun="reject", gate_ms=50
    )
    with open_stream(redis_url, namespace) as stream:
        run_ingest(line, "left", threading.Event())
        ledger = stream.ledger("left")
    assert ledger.undecided == {Reason.OVERRUN: 3, Reason.DEADLINE: 2}
    assert (ledger.residual, ledger.open) == (0, 0)


def test_a_stopped_ingest_answers_for_what_it_leaves(
    tmp_path: Path, grey_bundle: Path, redis_url: str, namespace: str
) -> None:
    """With nobody left to decide, open parts are UNDECIDED(shutdown)."""
    write_parts(tmp_path / "parts", 4)
    line = line_of(tmp_path, grey_bundle, redis_url, namespace, credits=2, gate_ms=50)
    stop = threading.Event()
    timer = threading.Timer(0.5, stop.set)
    timer.start()
    with open_stream(redis_url, namespace) as stream:
        run_ingest(line, "left", stop)
        ledger = stream.ledger("left")
    assert ledger.undecided == {Reason.SHUTDOWN: 2}
    timer.join()


def test_what_is_admitted_says_where_it_came_from(tmp_path: Path, redis_url: str) -> None:
    """Crop, frame size, deadline, and the camera's category and lot travel with the model input."""
    stream, journal, intake = intake_on(
        redis_url, tmp_path, crop=(4, 2, 40, 30), gate_ms=250, category="plate", lot="L1"
    )
    with journal:
        intake.take(frame(7))
        [delivery] = stream.read(["left"], "test", 1, 100)
    entry = entry_from(delivery.fields)
    stream.close()
    assert (entry.crop, entry.frame_size, entry.image.shape[:2]) == ((4, 2, 40, 30), (32, 48), SIZE)
    assert (entry.category, entry.lot, entry.part_id) == ("plate", "L1", "7")
    assert entry.deadline_ns - entry.captured_ns == pytest.approx(250e6, abs=60e6)


@pytest.mark.parametrize("kind", ["outside", "exposure"])
def test_an_exposure_without_a_usable_image_is_a_bad_frame(tmp_path: Path, kind: str) -> None:
    """A crop beyond the frame and a damaged exposure are answered at once."""
    with embedded_server(tmp_path / "server") as url:
        stream, journal, intake = intake_on(url, tmp_path, crop=(0, 0, 400, 400))
        with journal:
            bad = BadExposure("left", time.time_ns(), "the packet was lost", part_id="3")
            intake.take(frame() if kind == "outside" else bad)
            assert stream.ledger("left").undecided == {Reason.BAD_FRAME: 1}
            intake.finish(threading.Event())
            assert not journal.owed
        stream.close()


def test_a_lost_server_costs_no_part_its_verdict(tmp_path: Path) -> None:
    """Parts open at the loss, and parts exposed during it, are UNDECIDED(transport_restart)."""
    with embedded_server(tmp_path / "server") as url:
        stream, journal, intake = intake_on(url, tmp_path)
        for number in range(3):
            intake.take(frame(number))
    intake.take(frame(3))
    intake.take(frame(4))
    with embedded_server(tmp_path / "server"), journal:
        intake.wait_for_room(threading.Event())
        intake.take(frame(5))
        ledger = stream.ledger("left")
        verdicts = [seen.verdict for seen in stream.tail_verdicts("left", 10)]
        assert ledger.undecided == {Reason.TRANSPORT_RESTART: 5}
        assert (ledger.captured, ledger.open, ledger.residual) == (6, 1, 1)
        assert sorted(verdict.part_id for verdict in verdicts) == list("01234")
        assert len({v.frame_id.split("/")[1].split("-")[0] for v in verdicts}) == 1
        [still_open] = stream.open_ids("left")
        assert still_open > max(verdict.frame_id for verdict in verdicts)
    stream.close()


def test_a_verdict_that_no_sink_had_acted_on_is_given_again(tmp_path: Path) -> None:
    """Answered is not yet dealt with: the loss of a server costs neither verdict nor count."""
    none = threading.Event()
    with embedded_server(tmp_path / "server") as url:
        stream, journal, intake = intake_on(url, tmp_path)
        for number in range(3):
            intake.take(frame(number))
        with answering(stream):
            found = _verdicts_of(stream, 3)
        stream.acknowledge_verdicts("sink", found[:1])
        intake.wait_for_room(none)
        intake.finish(none)
        assert list(journal.owed) == [delivery.verdict.frame_id for delivery in found[1:]]
    with embedded_server(tmp_path / "server"), journal:
        late = threading.Thread(target=_act_on_all, args=(stream, {found[1].verdict.frame_id}))
        intake.take(frame(3))  # which is how the loss is noticed
        late.start()
        intake.finish(none)
        late.join()
        ledger = stream.ledger("left")
        assert not journal.owed
    assert (ledger.captured, ledger.passed, ledger.residual) == (4, 2, 0)
    assert ledger.undecided == {Reason.TRANSPORT_RESTART: 2}
    assert sum(journal.totals.values()) == 4
    stream.close()


def test_a_source_that_can_wait_lets_a_slow_sink_catch_up(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Verdicts that nobody has acted on do not pile up without end."""
    monkeypatch.setattr("pipeline.intake.BEHIND_MAX", 3)
    stream, journal, intake = intake_on(redis_url, tmp_path, credits=8)
    with journal, closing(stream), answering(stream):
        _act_on_none(stream)
        for number in range(3):
            intake.take(frame(number))
        found = _verdicts_of(stream, 3)
        stopped, ready = threading.Event(), threading.Event()

        def wait() -> None:
            intake.wait_for_room(stopped)
            ready.set()

        waiting = threading.Thread(target=wait)
        waiting.start()
        assert not ready.wait(0.5)
        stream.acknowledge_verdicts("sink", found[:1])
        assert ready.wait(5)
        waiting.join()


def _act_on_none(stream: Stream) -> None:
    """There is a sink, and nothing for it to do yet."""
    assert not stream.read_verdicts(["left"], "sink", "sink", 10, 20)


def _verdicts_of(stream: Stream, count: int) -> list[VerdictDelivery]:
    found: list[VerdictDelivery] = []
    while len(found) < count:
        found += stream.read_verdicts(["left"], "sink", "sink", 10, 20)
    return found


def _act_on_all(stream: Stream, passed_before: set[str]) -> None:
    """A sink of three verdicts that remembers to have passed some of these frames."""
    found = _verdicts_of(stream, 3)
    stream.acknowledge_verdicts("sink", found, dict.fromkeys(passed_before, "pass"))


def test_a_killed_ingest_leaves_its_debts_to_the_next(tmp_path: Path) -> None:
    """A part journalled and never admitted is answered by the next start; the open ones go on."""
    with embedded_server(tmp_path / "server") as url:
        stream, journal, intake = intake_on(url, tmp_path)
        intake.take(frame(0))
        [open_id] = stream.open_ids("left")
        epoch = open_id.split("/")[1].split("-")[0]
        lost = FrameHead(
            frame_id=f"left/{epoch}-2", camera="left", captured_ns=1, deadline_ns=2, part_id="1"
        )
        journal.add(lost)  # and then the process dies
        journal.close()
        again, journal, _ = intake_on(url, tmp_path)
        assert stream.open_ids("left") == [open_id]
        assert stream.ledger("left").undecided == {Reason.TRANSPORT_RESTART: 1}
        assert list(journal.owed) == [open_id]
        journal.close()
        stream.close()
        again.close()


def test_ingest_says_that_there_is_no_server(tmp_path: Path, grey_bundle: Path) -> None:
    """A server that was never there is one sentence, at once."""
    line = line_of(tmp_path, grey_bundle, f"unix://{tmp_path}/none.sock", "test")
    with pytest.raises(StreamLost, match="cannot be reached"):
        run_ingest(line, "left", threading.Event())


class Clock:
    """A stop that is never set, and whose waiting alone lets time pass."""

    def __init__(self) -> None:
        self.now_s = 100.0
        self.waits_s: list[float] = []

    def wait(self, timeout: float) -> bool:
        """Let so much time pass."""
        self.now_s += timeout
        self.waits_s.append(timeout)
        return False


def test_a_waiting_source_learns_how_long_credits_take(
    tmp_path: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It looks when they came last time, whether parts are answered more slowly now or faster."""
    clock = Clock()
    stream, journal, intake = intake_on(redis_url, tmp_path, credits=8)
    began_s = each_s = 0.0

    def answered(*_: object) -> int:
        return min(8, int((clock.now_s - began_s) / each_s + 1e-6))

    with journal, closing(stream), monkeypatch.context() as patched:
        patched.setattr("pipeline.intake.time.monotonic", lambda: clock.now_s)
        patched.setattr(stream, "credits", answered)
        for each_s in (0.03, 0.004, 0.03):
            for _ in range(6):
                began_s, clock.waits_s, intake._admission.credits = clock.now_s, [], 0
                intake.wait_for_room(clock)  # type: ignore[arg-type]
            assert 1.9 * each_s <= sum(clock.waits_s) <= 4 * each_s
            assert len(clock.waits_s) <= 2


def test_a_part_that_comes_too_late_is_answered_at_once(tmp_path: Path) -> None:
    """The gate keeper might see it too late, should no worker look at it."""
    with embedded_server(tmp_path / "redis") as url:
        least_left_ms = partial(gate.least_left_ms, [1000.0], 195.0)
        stream, journal, taking = intake_on(
            url, tmp_path, least_left_ms=least_left_ms, gate_ms=1000, overrun="reject"
        )
        with closing(stream), closing(journal):
            for age_ms, late_ms, backlog in (
                (710, 0, 0),
                (400, 200, 1),
                (610, 100, 1),
                (610, 0, 2),
            ):
                stream.tell_lateness(["left"], late_ms)
                taking.take(replace(frame(), captured_ns=time.time_ns() - age_ms * 1_000_000))
                assert stream.backlog("left") == backlog
            assert stream.ledger("left").undecided == {"deadline": 2}


def test_ingest_goes_by_the_nearest_gate_of_its_line(
    tmp_path: Path, grey_bundle: Path, redis_url: str, namespace: str
) -> None:
    """So near that no look of the keeper would be in time: nothing is admitted, all is answered."""
    write_parts(tmp_path / "parts", 3)
    line = line_of(tmp_path, grey_bundle, redis_url, namespace, gate_ms=12)
    with open_stream(redis_url, namespace) as stream:
        run_ingest(line, "left", threading.Event())
        found = stream.follow_verdicts("left", "0")
    assert [one.verdict.reason for one in found] == [Reason.DEADLINE] * 3
    assert min(one.verdict.latency_ms["total"] for one in found) < 12  # and not when it is over
