"""Frames that come in a row share a call, and none of them is lost or late for it."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from engines.contracts import BadFrame, Reason, StreamFull
from pipeline.admission import FAR_MS, TOGETHER, Admission
from pipeline.intake import Intake
from pipeline.journal import Journal
from pipeline.server import embedded_server
from pipeline.shared import FRAMES, FrameRing, FrameRings, remove_shared, shared_path
from pipeline.sources import BadExposure
from pipeline.stream import Placed, Stream
from pipeline.wire import entry_from
from tests.pipeline.test_ingest import answering, frame, intake_on
from tests.tiny_line import SIZE

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


def test_frames_in_a_row_share_a_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As many as go together, in order and whole; what is left goes when the source has ended."""
    settle_never(monkeypatch)
    with intake(tmp_path, monkeypatch) as (stream, journal, taking, sent):
        taken = [taking.take(frame(number)).frame_id for number in range(TOGETHER + 3)]
        assert sent == [TOGETHER]
        assert stream.open_ids("left") == taken[:TOGETHER]
        with answering(stream, FrameRings(tmp_path, ["left"]).fetch) as seen:
            taking.finish(NEVER)
        assert sent == [TOGETHER, 3]
        assert [entry.frame_id for entry in seen] == taken
        assert [entry.part_id for entry in seen] == [str(number) for number in range(len(taken))]
        assert stream.ledger("left").passed == len(taken)
        assert not journal.owed


@pytest.mark.parametrize("camera", [{"gate_ms": FAR_MS - 1}, {"overrun": "reject"}])
def test_who_has_a_gate_near_waits_for_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, camera: dict[str, object]
) -> None:
    """Nor does a belt, whose next part may be far away."""
    with intake(tmp_path, monkeypatch, **camera) as (_, _, taking, sent):
        for number in range(3):
            taking.take(frame(number))
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
        taken = [taking.take(frame(number)).frame_id for number in range(3)]
        assert sent == [3]
        assert stream.open_ids("left") == taken


def test_a_refused_part_comes_after_those_that_wait(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids ascend at the server: a frame sent after a later one would be taken for a repeat."""
    settle_never(monkeypatch)
    with intake(tmp_path, monkeypatch) as (stream, _, taking, sent):
        taken = [taking.take(frame(number)).frame_id for number in range(2)]
        taking.take(BadExposure("left", time.time_ns(), "torn"))
        assert sent == [2]
        assert stream.open_ids("left") == taken
        ledger = stream.ledger("left")
        assert (ledger.captured, ledger.undecided) == (3, {Reason.BAD_FRAME: 1})


def test_what_waits_is_not_taken_for_answered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before the journal learns what the server has done with, it has everything."""
    settle_never(monkeypatch)
    with intake(tmp_path, monkeypatch) as (stream, journal, taking, _):
        taken = [taking.take(frame(number)).frame_id for number in range(3)]
        taking._settle(at_once=True)
        assert list(journal.owed) == stream.open_ids("left") == taken


def test_what_waits_when_the_server_is_lost_is_answered_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Like parts that were open at the loss, and those of the call that noticed it."""
    settle_never(monkeypatch)
    with intake(tmp_path, monkeypatch) as (stream, _, taking, _):
        for number in range(3):
            taking.take(frame(number))
        stream._commands.flushall()  # a server that has begun again knows no epoch
        for number in range(3, TOGETHER):
            taking.take(frame(number))  # the last one sends all
        taking.wait_for_room(NEVER)
        later = taking.take(frame(TOGETHER)).frame_id
        taking._settle(at_once=True)
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
        for number in range(3):
            taking.take(frame(number))
        stream._commands.config_set("maxmemory", 1)
        with pytest.raises(StreamFull):
            admission.send()
        stream._commands.config_set("maxmemory", 0)
        assert (stream.backlog("left"), stream.ledger("left").captured) == (0, 0)


def test_what_shares_a_call_is_read_one_by_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is an entry of its own, with its own place in the ring."""
    settle_never(monkeypatch)
    with intake(tmp_path, monkeypatch) as (stream, _, taking, _):
        for number in range(TOGETHER):
            taking.take(frame(number))
        found = stream.read(["left"], "worker", 2, 0)
        slots = {one.fields[b"slot"] for one in found}
        assert len(found) == len(slots) == 2
        with pytest.raises(BadFrame):
            entry_from(found[0].fields)  # its image is elsewhere
