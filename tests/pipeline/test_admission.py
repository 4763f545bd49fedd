"""Frames that come in a row share a call, and none of them is lost or late for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, nullcontext
from pathlib import Path
from typing import Any

import pytest

from engines.contracts import BadConfig, BadFrame, Frame, Reason, StreamFull
from pipeline.admission import FAR_MS, TOGETHER, Admission
from pipeline.ingest import run_ingest
from pipeline.intake import Intake
from pipeline.journal import Journal
from pipeline.lanes import Lane
from pipeline.server import embedded_server
from pipeline.shared import FRAMES, FrameRing, FrameRings, remove_shared, shared_path
from pipeline.sources import BadExposure
from pipeline.stream import Placed, Stream, open_stream
from pipeline.wire import entry_from
from tests.pipeline.test_ingest import answering, frame, intake_on, line_of
from tests.pipeline.test_ingest_images import beside_its_own_server
from tests.tiny_line import SIZE, shared_bundle
from tests.waiting import wait_for

NEVER = threading.Event()


@contextmanager
def intake(
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    **camera: Any,  # noqa: ANN401 - settings
) -> Iterator[tuple[Stream, Journal, Intake, list[int]]]:
    """An intake with a ring on a server of its own, and how many frames each call admitted.

    However slowly the test makes them, exposures come in a row.
    """
    monkeypatch.setattr("pipeline.intake.IN_A_ROW_S", 60.0)
    sent: list[int] = []
    with ExitStack() as stack:
        url = stack.enter_context(embedded_server(folder / "server"))
        slots = camera.get("credits", 32)
        path = shared_path(folder, "left", FRAMES)
        ring = stack.enter_context(FrameRing(path, slots, SIZE[0] * SIZE[1] * 3))
        stream, journal, taking = intake_on(url, folder, ring, **camera)
        stack.callback(stream.close)
        stack.enter_context(journal)
        admit = stream.admit_placed

        def admit_placed(placed: list[Placed], *, begun: bool = False) -> int:
            sent.append(len(placed))
            return admit(placed, begun=begun)

        monkeypatch.setattr(stream, "admit_placed", admit_placed)
        yield stream, journal, taking, sent
    remove_shared(folder)


def settle_never(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing but the frames themselves says when they are sent."""
    monkeypatch.setattr("pipeline.intake.SETTLE_S", 3600.0)


def take(taking: Intake, count: int) -> list[str]:
    """The ids of so many exposures, taken one after the other."""
    return [taking.take(frame(number)).frame_id for number in range(count)]


def room_soon(stream: Stream) -> threading.Timer:
    """Make a server full, for a moment; what gives it room again, and is to be waited for."""
    stream._commands.config_set("maxmemory", 1)
    room = threading.Timer(0.3, stream._commands.config_set, ("maxmemory", 0))
    room.start()
    return room


def test_frames_in_a_row_share_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as go together, in order and whole; what is left goes when the source has ended."""
    settle_never(monkeypatch)
    with intake(tmp_path, monkeypatch) as (stream, journal, taking, sent):
        taken = take(taking, TOGETHER + 3)
        assert sent == [TOGETHER]
        assert stream.open_ids("left") == taken[:TOGETHER]
        with answering(stream, FrameRings(tmp_path, ["left"]).fetch) as seen:
            taking.finish(NEVER)
        assert sent == [TOGETHER, 3]
        assert [entry.frame_id for entry in seen] == taken
        assert [entry.part_id for entry in seen] == [str(number) for number in range(len(taken))]
        assert stream.ledger("left").passed == len(taken)
        assert not journal.owed


PACED = {"source": {"kind": "simulator", "rate_hz": 5}, "overrun": "wait", "gate_ms": 60_000}


@pytest.mark.parametrize("camera", [{"gate_ms": FAR_MS - 1}, {"overrun": "reject"}, PACED])
def test_who_has_a_gate_near_waits_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, camera: dict[str, object]
) -> None:
    """Nor does a belt, whose next part may be far away, even where it could be stopped."""
    with intake(tmp_path, monkeypatch, **camera) as (_, _, taking, sent):
        take(taking, 3)
        assert sent == [1, 1, 1]


def test_an_exposure_that_was_long_in_coming_waits_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its successor may be as long."""
    with intake(tmp_path, monkeypatch) as (_, _, taking, sent):
        monkeypatch.setattr("pipeline.intake.IN_A_ROW_S", 0.0)
        taking.take(frame(0))
        assert sent == [1]


def test_no_frame_waits_longer_than_for_the_last_credit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for an answer has asked for it."""
    settle_never(monkeypatch)
    with intake(tmp_path, monkeypatch, credits=3) as (stream, _, taking, sent):
        taken = take(taking, 3)
        assert sent == [3]
        assert stream.open_ids("left") == taken


def test_a_refused_part_comes_after_those_that_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids ascend at the server: a frame sent after a later one would be taken for a repeat."""
    settle_never(monkeypatch)
    with intake(tmp_path, monkeypatch) as (stream, _, taking, sent):
        taken = take(taking, 2)
        taking.take(BadExposure("left", time.time_ns(), "torn"))
        assert sent == [2]
        assert stream.open_ids("left") == taken
        ledger = stream.ledger("left")
        assert (ledger.captured, ledger.undecided) == (3, {Reason.BAD_FRAME: 1})


def test_what_waits_is_not_taken_for_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame that the server has not heard of is neither open nor unacted; it is owed still."""
    settle_never(monkeypatch)
    with intake(tmp_path, monkeypatch) as (stream, journal, taking, _):
        taken = take(taking, 3)
        taking._settle(at_once=True)
        assert (list(journal.owed), stream.open_ids("left")) == (taken, [])


def test_what_is_sent_while_the_journal_asks_stays_owed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another thread may send between one answer of the server and the next."""
    settle_never(monkeypatch)
    with intake(tmp_path, monkeypatch) as (stream, journal, taking, _):
        taken = take(taking, 3)
        ask = stream.server_incarnation

        def meanwhile() -> str:
            taking._admission.send_all()
            return ask()

        monkeypatch.setattr(stream, "server_incarnation", meanwhile)
        taking._settle(at_once=True)
        assert list(journal.owed) == stream.open_ids("left") == taken


def test_a_silent_source_at_a_full_server_has_its_parts_answered_in_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody but the thread beside it could: the keeper of the gate has never heard of them."""
    settle_never(monkeypatch)
    with intake(tmp_path, monkeypatch) as (stream, _, taking, _):
        take(taking, 3)
        stream._commands.config_set("maxmemory", 1)
        with Lane("admit", taking.send_on):
            wait_for(lambda: taking._admission.waits_for_room)
            assert stream.ledger("left").captured == 0
            monkeypatch.setattr("pipeline.admission.FAR_MS", 2_000_000)  # as time goes by
            wait_for(lambda: stream.ledger("left").undecided == {Reason.TRANSPORT: 3})
        assert taking._admission.unsent == set()


def test_a_torn_file_at_a_full_server_costs_no_other_part(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those before it have to be said first, and a moment may bring room for them."""
    settle_never(monkeypatch)
    with intake(tmp_path, monkeypatch) as (stream, _, taking, _):
        taken = take(taking, 3)
        room = room_soon(stream)
        taking.take(BadExposure("left", time.time_ns(), "torn"))
        room.join()
        assert stream.open_ids("left") == taken
        assert stream.ledger("left").undecided == {Reason.BAD_FRAME: 1}


def test_no_frame_waits_for_a_source_that_falls_silent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody need give another exposure, or end."""
    settle_never(monkeypatch)
    with intake(tmp_path, monkeypatch) as (stream, _, taking, sent):
        with Lane("admit", taking.send_on):
            taken = take(taking, 3)
            wait_for(lambda: stream.open_ids("left") == taken)
        assert sent == [3]


def test_a_part_is_inspected_while_its_source_is_silent(
    tmp_path: Path, redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A whole process of a camera: its storage stalls after three parts, and all are answered."""
    bundle = shared_bundle(tmp_path / "bundles")
    line = beside_its_own_server(line_of(tmp_path, bundle, redis_url, namespace))
    monkeypatch.setattr("pipeline.intake.IN_A_ROW_S", 60.0)
    with open_stream(redis_url, namespace) as stream:

        class Stalling:
            def frames(self, _: threading.Event) -> Iterator[Frame]:
                yield from (frame(number) for number in range(3))
                wait_for(lambda: stream.ledger("left").passed == 3)

        monkeypatch.setattr("pipeline.ingest.open_source", lambda *_: nullcontext(Stalling()))
        with answering(stream, FrameRings(line.run_dir, ["left"]).fetch):
            run_ingest(line, "left", threading.Event())
        assert stream.ledger("left").captured == 3


def test_what_a_killed_process_held_is_answered_by_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was never inspected, which is said of each part once."""
    settle_never(monkeypatch)
    with intake(tmp_path, monkeypatch) as (stream, _, taking, _):
        take(taking, 3)
        again, journal, _ = intake_on(stream.address, tmp_path)
        with journal, closing(again):
            ledger = again.ledger("left")
    assert (ledger.captured, ledger.undecided) == (3, {Reason.TRANSPORT_RESTART: 3})


@pytest.mark.parametrize("transport", ["shared", "inline"])
def test_a_full_server_is_waited_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, transport: str
) -> None:
    """Parts that can wait at their source are not given up: with room there are all of them."""
    with intake(tmp_path, monkeypatch) as (stream, journal, taking, _):
        if transport == "inline":
            monkeypatch.setattr(taking._admission, "_ring", None)
        taken = [taking.take(frame(0)).frame_id]
        room = room_soon(stream)
        taken.append(taking.take(frame(1)).frame_id)
        assert not taking._admission.try_send()
        taking.wait_for_room(NEVER)
        room.join()
        taken.append(taking.take(frame(2)).frame_id)
        taking._admission.send_all()
        assert list(journal.owed) == stream.open_ids("left") == taken
        assert stream.ledger("left").undecided == {}


@pytest.mark.parametrize("gate_ms", [1000, 600_000])
def test_no_part_waits_for_room_until_its_gate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate_ms: int
) -> None:
    """It is answered while there is time: at once where the gate is near, else after a wait."""
    with intake(tmp_path, monkeypatch, gate_ms=gate_ms) as (stream, _, taking, _):
        monkeypatch.setattr("pipeline.intake.IN_A_ROW_S", 0.0)
        stream._commands.config_set("maxmemory", 1)
        taking.take(frame(0))
        wait_a_moment(taking)
        answered = {Reason.TRANSPORT: 1}
        assert stream.ledger("left").undecided == (answered if gate_ms < FAR_MS else {})
        monkeypatch.setattr("pipeline.admission.FAR_MS", 2 * gate_ms)  # as time goes by
        wait_a_moment(taking)
        assert stream.ledger("left").undecided == answered


def wait_a_moment(taking: Intake) -> None:
    """As a source does that can wait, for half a second at the most."""
    stop = threading.Event()
    timer = threading.Timer(0.5, stop.set)
    timer.start()
    taking.wait_for_room(stop)
    timer.cancel()
    timer.join()


def test_an_error_that_ends_a_process_leaves_its_debts_to_the_next(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What the server may never have heard of is not taken for done."""
    settle_never(monkeypatch)
    with intake(tmp_path, monkeypatch) as (stream, journal, taking, _):
        taken = take(taking, TOGETHER - 1)

        def refused(*_: object, **__: object) -> int:
            raise BadConfig("this user may not")

        with monkeypatch.context() as patched:
            patched.setattr(stream, "admit_placed", refused)
            with pytest.raises(BadConfig):
                taking.take(frame(TOGETHER))
            with pytest.raises(BadConfig):
                taking.finish(NEVER)
        taking._settle(at_once=True)
        assert list(journal.owed)[:-1] == taken
        assert len(journal.owed) == TOGETHER


def test_what_waits_when_the_server_is_lost_is_answered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like parts that were open at the loss, and those of the call that noticed it."""
    settle_never(monkeypatch)
    with intake(tmp_path, monkeypatch) as (stream, _, taking, _):
        take(taking, 3)
        stream._commands.flushall()  # a server that has begun again knows no epoch
        take(taking, TOGETHER - 3)  # the last one sends all
        taking.wait_for_room(NEVER)
        later = taking.take(frame(TOGETHER)).frame_id
        taking._admission.send_all()
        ledger = stream.ledger("left")
        assert ledger.undecided == {Reason.TRANSPORT_RESTART: TOGETHER}
        assert stream.open_ids("left") == [later]
        verdicts = [found.verdict.frame_id for found in stream.tail_verdicts("left", 99)]
        assert len(set(verdicts)) == len(verdicts) == TOGETHER


def test_a_full_server_takes_all_of_a_call_or_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who can wait is told so."""
    settle_never(monkeypatch)
    with intake(tmp_path, monkeypatch) as (stream, _, taking, _):
        admission: Admission = taking._admission
        take(taking, 3)
        stream._commands.config_set("maxmemory", 1)
        monkeypatch.setattr("pipeline.admission.ROOM_S", 0.0)
        with pytest.raises(StreamFull):
            admission.send_all()
        stream._commands.config_set("maxmemory", 0)
        assert (stream.backlog("left"), stream.ledger("left").captured) == (0, 0)


def test_what_shares_a_call_is_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is an entry of its own, with its own place in the ring."""
    settle_never(monkeypatch)
    with intake(tmp_path, monkeypatch) as (stream, _, taking, _):
        take(taking, TOGETHER)
        found = stream.read(["left"], "worker", 2, 0)
        slots = {one.fields[b"slot"] for one in found}
        assert len(found) == len(slots) == 2
        with pytest.raises(BadFrame):
            entry_from(found[0].fields)  # its image is elsewhere
