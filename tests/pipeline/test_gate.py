"""No part reaches its gate without a verdict, and no part gets a second one there."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest

from engines.contracts import BadConfig, Decision, Reason, Verdict
from pipeline.gate import (
    LATE_AT_FIRST_MS,
    LEAST_MS,
    PERIOD_MS,
    GateKeeper,
    Lateness,
    SteadyClock,
    least_left_ms,
)
from pipeline.server import embedded_server
from pipeline.stream import Ledger, Stream, open_stream
from pipeline.telemetry import facts
from pipeline.wire import FrameEntry, undecided
from tests.waiting import wait_for

MS = 1_000_000
MARGIN_MS = 5.0


@pytest.fixture
def stream(redis_url: str, namespace: str) -> Iterator[Stream]:
    """A stream on the embedded server."""
    with open_stream(redis_url, namespace) as opened:
        yield opened


def admit(stream: Stream, frame_id: str, deadline_ns: int, captured_ns: int = 0) -> FrameEntry:
    """Open a frame with this deadline."""
    camera = frame_id.partition("/")[0]
    image = np.zeros((8, 8, 3), np.uint8)
    entry = FrameEntry(frame_id, camera, captured_ns, deadline_ns, image, part_id="P", lot="L")
    assert stream.admit(entry)
    return entry


def test_it_answers_in_time_and_not_before(stream: Stream) -> None:
    """A frame is left to the inspectors until the margin, then answered before its deadline."""
    keeper = GateKeeper(stream, ["cam"], MARGIN_MS)
    admit(stream, "cam/1-1", deadline_ns=1000 * MS)
    stream.now_ns()  # the uncertainty is known from here on
    ahead_ns = int((MARGIN_MS + PERIOD_MS) * MS) + int(stream.clock_uncertainty_ms * MS)
    early_ns = 1000 * MS - ahead_ns - 2 * int(LATE_AT_FIRST_MS) * MS
    assert keeper.tick(early_ns) == []
    (verdict,) = keeper.tick(1000 * MS - int((MARGIN_MS + PERIOD_MS) * MS))
    assert verdict.decided_ns <= 1000 * MS - MARGIN_MS * MS
    assert (verdict.decision, verdict.reason) == (Decision.UNDECIDED, Reason.DEADLINE)
    assert (verdict.frame_id, verdict.part_id, verdict.lot) == ("cam/1-1", "P", "L")
    assert keeper.tick(2000 * MS) == []
    assert stream.ledger("cam") == Ledger(1, 0, 0, {"deadline": 1}, 0)


def test_it_takes_the_most_urgent_first_on_every_camera(stream: Stream) -> None:
    """Whatever the order of arrival, verdicts come by deadline, camera by camera."""
    for number, deadline in ((1, 30), (2, 10), (3, 20), (4, 9000)):
        admit(stream, f"a/1-{number}", deadline * MS)
    admit(stream, "b/1-1", 5 * MS)
    given = [verdict.frame_id for verdict in GateKeeper(stream, ["a", "b"]).tick(40 * MS)]
    assert given == ["a/1-2", "a/1-3", "a/1-1", "b/1-1"]
    assert stream.open_ids("a") == ["a/1-4"]


def test_more_late_frames_than_one_look_are_all_answered(stream: Stream) -> None:
    """After a standstill every late frame is answered by one tick."""
    for number in range(1, 151):
        admit(stream, f"cam/1-{number}", MS)
    assert len(GateKeeper(stream, ["cam"]).tick(10 * MS)) == 150
    assert stream.ledger("cam").residual == 0


def test_what_expires_together_is_answered_in_one_round_trip(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two cameras full of frames with one deadline: one look, one batch, then none is left."""
    for camera in ("a", "b"):
        for number in range(1, 33):
            admit(stream, f"{camera}/1-{number}", 1000 * MS)
    keeper = GateKeeper(stream, ["a", "b"])
    batches: list[int] = []
    answer_all = stream.answer_all_open

    def counted(verdicts: Sequence[Verdict]) -> list[Verdict]:
        batches.append(len(verdicts))
        return answer_all(verdicts)

    monkeypatch.setattr(stream, "answer_all_open", counted)
    assert len(keeper.tick(1000 * MS)) == 64
    assert batches == [64]
    assert not stream.open_ids("a") + stream.open_ids("b")


def test_lateness_is_its_peak_and_is_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    """A delay is believed at once, a smaller one changes nothing, and time heals."""
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    lateness = Lateness()
    assert lateness.ms == LATE_AT_FIRST_MS
    lateness.note(80.0)
    lateness.note(1.0)
    assert lateness.ms == 80.0
    now_s += 20.0
    assert 20.0 < lateness.ms < 40.0
    now_s += 600.0
    lateness.note(3.0)
    assert lateness.ms == 3.0


def test_what_nobody_measured_is_not_believed_for_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks are taken all the while; a gate 100 ms away could not be kept by a guess of 50."""
    now_s = 100.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    lateness = Lateness()
    lateness.note(4.0)
    assert lateness.ms == LATE_AT_FIRST_MS
    now_s += 12.0
    assert 2.0 < lateness.ms < 3.0


def test_a_long_tick_teaches_no_more_than_its_longest_look(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Parts that come due while others are answered take looks of their own; none is foreseen."""
    for number in range(1, 31):
        admit(stream, f"cam/1-{number}", number * MS)
    keeper, passed_ms = GateKeeper(stream, ["cam"]), []
    answer_all = stream.answer_all_open

    def slowly(verdicts: Sequence[Verdict]) -> list[Verdict]:
        time.sleep(0.03)
        passed_ms.append(30)
        return answer_all(verdicts[:1])

    monkeypatch.setattr(stream, "answer_all_open", slowly)
    assert len(keeper.tick(100 * MS)) == 30
    assert sum(passed_ms) > 800 > 2 * keeper.lateness.ms


def test_it_rests_while_nothing_is_near(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> None:
    """Looks are rare on an idle line; where a frame is due within a rest, the next comes then."""
    keeper = GateKeeper(stream, ["cam"], MARGIN_MS, {"cam": 3000.0})
    keeper.lateness = Lateness(0.0)
    monkeypatch.setattr(Lateness, "note", lambda *_: None)  # of a machine that is never late
    admit(stream, "cam/1-1", 10_000 * MS)
    pauses = []
    for now_ms in (1_000, 9_000, 9_920):
        assert keeper.tick(now_ms * MS) == []
        pauses.append(keeper.pause_ms)
    assert pauses[:2] == [100.0, 100.0]
    assert LEAST_MS < pauses[2] < 80.0 - MARGIN_MS
    assert len(keeper.tick(int((9_921 + pauses[2]) * MS))) == 1


@pytest.mark.parametrize(
    ("gate_ms", "rest_ms"),
    [(10.0, PERIOD_MS), (60.0, 15.0), (100.0, 25.0), (200.0, 25.0), (400.0, 40.0), (9e5, 500.0)],
)
def test_a_near_gate_allows_no_long_rest(stream: Stream, gate_ms: float, rest_ms: float) -> None:
    """It rests a share of the shortest gate, and less where it has been late."""
    keeper = GateKeeper(stream, ["cam", "far"], MARGIN_MS, {"cam": gate_ms, "far": 1e6})
    keeper.lateness = Lateness(0.0)
    keeper.tick(0)
    assert keeper.pause_ms == pytest.approx(rest_ms)
    keeper.lateness.note(4.0)
    assert keeper.pause_ms == pytest.approx(max(PERIOD_MS, rest_ms - 4.0), abs=0.1)


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("share", [0.0, 0.3, 0.8])
@pytest.mark.parametrize("gate_ms", [60.0, 100.0, 500.0, 9e5])
def test_what_is_admitted_at_the_last_moment_is_answered_in_time(
    stream: Stream, monkeypatch: pytest.MonkeyPatch, gate_ms: float, share: float, times: int
) -> None:
    """It comes just after a look, or after what is said then; the next look is late as others."""
    keeper = GateKeeper(stream, ["cam"], MARGIN_MS, {"cam": gate_ms})
    late_ms = share * keeper._rest_ms
    keeper.lateness = Lateness(0.0)
    keeper.lateness.note(late_ms)
    monkeypatch.setattr(Lateness, "note", lambda *_: None)  # of a machine that is later still
    now_ns = 10**15
    stream.tell_lateness(["cam"], 0.0)
    told_ms = []
    for _ in range(times):
        told_ms = [stream.told_lateness_ms("cam")]
        keeper.tick(now_ns)
        keeper.tell()
        told_ms += [stream.told_lateness_ms("cam")]
    assert told_ms[-1] == pytest.approx(min(late_ms, keeper._borne_ms), rel=0.01)
    due_ns = now_ns + int(least_left_ms([gate_ms, 1e6], MARGIN_MS, min(told_ms)) * MS)
    pause_ms = keeper.pause_ms
    admit(stream, "cam/1-1", deadline_ns=due_ns)
    (verdict,) = keeper.tick(now_ns + int((pause_ms + late_ms) * MS))
    assert due_ns - verdict.decided_ns >= MARGIN_MS * MS


def test_a_late_keeper_rests_as_long_once_it_has_said_so(stream: Stream) -> None:
    """What it says holds for what is admitted from then on, and a fall holds at once."""
    keeper = GateKeeper(stream, ["cam", "other"], MARGIN_MS, {"cam": 100.0})
    keeper.lateness = Lateness(0.0)
    keeper.lateness.note(10.0)
    pauses_ms = []
    for _ in range(2):
        keeper.tick(0)
        keeper.tell()
        pauses_ms.append(keeper.pause_ms)
    assert pauses_ms == pytest.approx([15.0, 25.0], abs=0.1)
    assert stream.told_lateness_ms("cam") == stream.told_lateness_ms("other") > 9
    keeper.lateness = Lateness(0.0)
    keeper._tell_at_s = 0.0
    keeper.tell()
    assert stream.told_lateness_ms("cam") == 0
    keeper.lateness.note(10.0)
    assert keeper.pause_ms == pytest.approx(15.0, abs=0.1)


def test_a_keeper_that_nobody_heard_rests_less(tmp_path: Path, namespace: str) -> None:
    """A full server does not take what it says, and goes on with what it said; it is no loss."""
    with embedded_server(tmp_path) as url, open_stream(url, namespace) as stream:
        keeper = GateKeeper(stream, ["cam"], MARGIN_MS, {"cam": 100.0})
        keeper.lateness = Lateness(0.0)
        keeper.lateness.note(4.0)
        keeper.tell()
        stream._commands.config_set("maxmemory", 1)
        keeper.lateness.note(14.0)
        keeper.tell()
        keeper.tick(0)
        assert stream.told_lateness_ms("cam") == pytest.approx(4.0, abs=0.1)
        assert keeper.pause_ms == pytest.approx(25.0 - 10.0, abs=0.1)


@pytest.mark.parametrize("told", ["much", "nan", "-1"])
def test_what_is_no_lateness_counts_as_the_longest(stream: Stream, told: str) -> None:
    """Whoever wrote it there, parts that come late are refused and not risked."""
    stream._commands.set(stream._of("cam").lateness, told)
    assert stream.told_lateness_ms("cam") == math.inf
    assert stream.told_lateness_ms("other") == math.inf


@pytest.mark.parametrize(
    ("gate_ms", "least_ms", "most_ms"),
    [(20.0, 15.0, 17.5), (100.0, 35.0, 47.5), (500.0, 60.0, 110.0), (9e5, 510.0, 1010.0)],
)
def test_parts_bear_a_share_of_the_lateness(
    gate_ms: float, least_ms: float, most_ms: float
) -> None:
    """As long as a rest at the most, and near a gate an eighth of the way to it."""
    for late_ms, left_ms in ((0.0, least_ms), (math.inf, most_ms)):
        assert least_left_ms([gate_ms, 1e6], MARGIN_MS, late_ms) == left_ms


def test_it_is_early_by_its_lateness_and_by_a_share_of_the_gate_at_most(stream: Stream) -> None:
    """A keeper that was 300 ms late answers 300 ms earlier, where the gate is far enough."""
    for camera in ("far", "near"):
        admit(stream, f"{camera}/1-1", 10_000 * MS)
    keeper = GateKeeper(stream, ["far", "near"], MARGIN_MS, {"far": 2000.0, "near": 100.0})
    keeper.lateness.note(300.0)
    given = [verdict.frame_id for verdict in keeper.tick(9_750 * MS)]
    assert given == ["far/1-1"]
    assert keeper.tick(9_970 * MS) == []
    assert [verdict.frame_id for verdict in keeper.tick(9_981 * MS)] == ["near/1-1"]


def test_a_frozen_inspector_comes_too_late(stream: Stream) -> None:
    """A frame in work is answered at its gate; the inspector's own answer is then refused."""
    entry = admit(stream, "cam/1-1", 10 * MS)
    (delivery,) = stream.read(["cam"], "frozen", 4, 0)
    assert len(GateKeeper(stream, ["cam"]).tick(10 * MS)) == 1
    assert not stream.answer(delivery, "frozen", undecided(entry, Reason.NO_EVIDENCE, 11 * MS))
    assert stream.backlog("cam") == 0


def test_it_runs_by_itself_with_no_inspector_at_all(stream: Stream) -> None:
    """The loop answers each frame before its real deadline, on the server's clock."""
    gate_ms, stop = 150, threading.Event()
    keeper = GateKeeper(stream, ["cam"])
    thread = threading.Thread(target=keeper.run, args=(stop,))
    thread.start()
    try:
        for number in range(1, 6):
            now_ns = stream.now_ns()
            admit(stream, f"cam/1-{number}", now_ns + gate_ms * MS, now_ns)
        last = "0"
        found: list[Verdict] = []
        while len(found) < 5:
            more = stream.follow_verdicts("cam", last, block_ms=500)
            last = more[-1].entry_id if more else last
            found += [delivery.verdict for delivery in more]
        assert stream.told_lateness_ms("cam") < math.inf
    finally:
        stop.set()
        thread.join()
    assert all(verdict.reason is Reason.DEADLINE for verdict in found)
    assert all(verdict.decided_ns <= verdict.captured_ns + gate_ms * MS for verdict in found)
    assert [verdict.frame_id for verdict in found] == [f"cam/1-{n}" for n in range(1, 6)]


def test_it_outlives_a_restart_of_the_server(tmp_path: Path, namespace: str) -> None:
    """While the server is away the keeper waits, and goes on keeping the gate afterwards."""
    stop = threading.Event()
    with embedded_server(tmp_path) as url, open_stream(url, namespace) as stream:
        thread = threading.Thread(target=GateKeeper(stream, ["cam"]).run, args=(stop,))
        thread.start()
    try:
        with embedded_server(tmp_path), open_stream(url, namespace) as stream:
            admit(stream, "cam/1-1", stream.now_ns() + 50 * MS)
            while not stream.follow_verdicts("cam", "0", block_ms=500):
                assert thread.is_alive()
    finally:
        stop.set()
        thread.join()


@pytest.mark.parametrize("tell_s", [0.05, 1e9])
def test_a_server_that_forgot_is_told_again(
    tmp_path: Path, namespace: str, monkeypatch: pytest.MonkeyPatch, tell_s: float
) -> None:
    """After a loss that the keeper saw at once, after any other in a while."""
    monkeypatch.setattr("pipeline.gate.TELL_S", tell_s)
    stop = threading.Event()

    def is_told(stream: Stream) -> bool:
        return stream.told_lateness_ms("cam") < math.inf

    with ExitStack() as first:
        url = first.enter_context(embedded_server(tmp_path))
        stream = first.enter_context(open_stream(url, namespace))
        keeper = GateKeeper(stream, ["cam"], gates_ms={"cam": 400.0})
        thread = threading.Thread(target=keeper.run, args=(stop,))
        thread.start()
        try:
            wait_for(lambda: is_told(stream))
            if tell_s < 1:
                stream._commands.delete(stream._of("cam").lateness)
                wait_for(lambda: is_told(stream))
            first.close()
            with embedded_server(tmp_path), open_stream(url, namespace) as again:
                wait_for(lambda: is_told(again))
        finally:
            stop.set()
            thread.join()


def test_a_keeper_that_may_not_tell_keeps_its_gate(
    stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A user that was made before there was anything to tell: it rests less, and says so once."""
    events: list[str] = []

    def refused(*_: object) -> None:
        raise BadConfig("NOPERM")

    monkeypatch.setattr(stream, "tell_lateness", refused)
    monkeypatch.setattr(facts, "event", lambda name, **_: events.append(name))
    keeper = GateKeeper(stream, ["cam"], MARGIN_MS, {"cam": 100.0})
    keeper.lateness = Lateness(0.0)
    keeper.lateness.note(10.0)
    for _ in range(2):
        keeper.tick(0)
        keeper.tell()
        assert keeper.pause_ms == pytest.approx(15.0, abs=0.1)
    assert events == ["lateness_untold"]


def test_a_clock_that_is_set_back_is_noticed_for_as_long_as_parts_are_on_their_way() -> None:
    """A step counts, also two in a row; what a clock is not known by, and going forward, do not."""
    clock = SteadyClock(gate_ms=500)
    hour_ns = 3_600_000 * MS
    now_ns = time.monotonic_ns() + hour_ns
    assert clock.read(now_ns, 1.0) == now_ns
    assert clock.set_back_ms == 0
    clock.read(time.monotonic_ns() + hour_ns - 40 * MS, 25.0)
    assert clock.set_back_ms == 0
    clock.read(time.monotonic_ns() + 2 * hour_ns, 1.0)
    assert clock.set_back_ms == 0
    clock.read(time.monotonic_ns() + hour_ns, 1.0)
    assert clock.set_back_ms == pytest.approx(hour_ns / MS, abs=100)
    clock.read(time.monotonic_ns(), 1.0)
    assert clock.set_back_ms == pytest.approx(2 * hour_ns / MS, abs=200)


def test_what_no_honest_part_could_be_due_at_is_found(stream: Stream) -> None:
    """Frames whose gate lies beyond a moment, the nearest first."""
    for number, deadline in enumerate((10, 5000, 9000), start=1):
        admit(stream, f"cam/1-{number}", deadline * MS)
    assert [head.frame_id for head in stream.due_after("cam", 5000 * MS)] == ["cam/1-3"]
    assert [head.frame_id for head in stream.due_after("cam", 10 * MS)] == ["cam/1-2", "cam/1-3"]
