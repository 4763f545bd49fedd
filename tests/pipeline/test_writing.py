"""Answers of one turn travel together, and each of them is given once whatever happens to them."""

from __future__ import annotations

import select
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engines.bundle import Bundle, open_bundle
from engines.contracts import Finding, Frame, Reason, StreamLost, Verdict
from engines.inspector import Part
from pipeline import reading, writing
from pipeline.config import CameraSettings, WorkerSettings
from pipeline.intake import Intake
from pipeline.journal import Journal
from pipeline.pulse import Pulse
from pipeline.reading import ENOUGH, FrameReader
from pipeline.seats import Seat
from pipeline.server import embedded_server
from pipeline.stream import Stream, open_stream
from pipeline.telemetry import facts
from pipeline.wire import FrameEntry, undecided
from pipeline.writing import TOGETHER, VerdictWriter
from tests.pipeline.relaying import Relay
from tests.tiny_line import CATEGORY, SIZE, good_part, seat_of, shared_bundle

SLOTS = 16
GATE_NS = 60_000_000_000


@pytest.fixture
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle that measures grey."""
    return open_bundle(shared_bundle(tmp_path_factory.getbasetemp()))


@dataclass
class Desk:
    """A worker without its engine: the test makes the findings."""

    stream: Stream
    frames: FrameReader
    seat: Seat
    writer: VerdictWriter

    def take(self, count: int) -> list[Part]:
        """So many parts, read and held."""
        parts: list[Part] = []
        wait_for(
            lambda: parts.extend(self.frames.take(self.seat, SLOTS, 0.05)) or len(parts) >= count
        )
        return parts


@contextmanager
def desk(url: str, namespace: str, bundle: Bundle) -> Iterator[Desk]:
    """A worker of camera ``left`` that reads; its writer is not yet running."""
    stop = threading.Event()
    with (
        open_stream(url, namespace) as stream,
        closing(Pulse(url, namespace)) as pulse,
        FrameReader(
            stream,
            ["left"],
            "worker",
            pulse=pulse,
            settings=WorkerSettings(slots=SLOTS),
            stop=stop,
        ) as frames,
    ):
        seat = seat_of(bundle)
        frames.turn_to(seat)
        yield Desk(stream, frames, seat, VerdictWriter(stream, frames, "worker", SLOTS))
        stop.set()


def found(part: Part, score: float = 0.0) -> Finding:
    """A finding on a part: a good one, unless the score is high."""
    anomaly_map = np.full(SIZE, score, np.float32)
    return Finding(part.frame_id, CATEGORY, anomaly_map, score, 0, 0, 2, 2)


def an_entry(stream: Stream, number: int) -> FrameEntry:
    """A good part of camera ``left``."""
    now_ns = stream.now_ns()
    return FrameEntry(f"left/1-{number}", "left", now_ns, now_ns + GATE_NS, good_part(number))


def admit(stream: Stream, count: int) -> None:
    """So many good parts."""
    for number in range(1, count + 1):
        stream.admit(an_entry(stream, number))


def wait_for(what: Callable[[], object]) -> None:
    """Return once it is true."""
    until = time.monotonic() + 30
    while not what():
        assert time.monotonic() < until, "it never happened"
        time.sleep(0.01)


def round_trips(stream: Stream, monkeypatch: pytest.MonkeyPatch) -> list[list[Verdict]]:
    """The verdicts of each round trip from now on."""
    sent: list[list[Verdict]] = []
    at_once = stream.answer_all

    def noted(consumer: str, answers: list[Any]) -> list[bool]:
        sent.append([verdict for _, verdict, _ in answers])
        return at_once(consumer, answers)

    monkeypatch.setattr(stream, "answer_all", noted)
    return sent


@pytest.mark.parametrize(
    ("scores", "batches"),
    [
        ([0.0] * 5, [5]),
        ([0.0] * (TOGETHER + 3), [TOGETHER, 3]),
        ([0.0, 0.0, 9.0, 0.0], [3, 1]),
    ],
)
def test_answers_of_one_turn_share_a_round_trip(  # noqa: PLR0917 - fixtures
    scores: list[float],
    batches: list[int],
    bundle: Bundle,
    redis_url: str,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What is found together is sent together, eight at most, and nobody waits for two pictures."""
    with desk(redis_url, namespace, bundle) as here:
        sent = round_trips(here.stream, monkeypatch)
        admit(here.stream, len(scores))
        for part, score in zip(here.take(len(scores)), scores, strict=True):
            here.writer.put(found(part, score))
        with here.writer:
            wait_for(lambda: not here.stream.ledger("left").open)
        ledger = here.stream.ledger("left")
    failed = sum(score > 0 for score in scores)
    assert [len(verdicts) for verdicts in sent] == batches
    assert (ledger.passed, ledger.failed, ledger.residual) == (len(scores) - failed, failed, 0)


@pytest.mark.parametrize(("gate_s", "batches"), [(60.0, [2]), (2.0, [1, 1])])
def test_answers_of_a_busy_worker_wait_for_others(  # noqa: PLR0917 - fixtures
    gate_s: float,
    batches: list[int],
    bundle: Bundle,
    redis_url: str,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """While frames queue for the engine, answers of two turns go together; near a gate they do not.

    A frame that ends alone is sent after a moment all the same, and is stamped when it is sent.
    """
    monkeypatch.setattr(writing, "GATHER_S", (1.0, 1.0))
    monkeypatch.setattr("tests.pipeline.test_writing.GATE_NS", int(gate_s * 1e9))
    with desk(redis_url, namespace, bundle) as here:
        sent = round_trips(here.stream, monkeypatch)
        admit(here.stream, SLOTS)
        first, second, *_ = here.take(SLOTS)
        with here.writer:
            for part in (first, second):
                here.writer.put(found(part))
                time.sleep(0.1)
            wait_for(lambda: sum(map(len, sent)) == 2)
    assert [len(verdicts) for verdicts in sent] == batches
    assert len({verdict.decided_ns for verdicts in sent for verdict in verdicts}) == len(batches)


def test_answers_that_come_one_by_one_fill_their_round_trips(
    bundle: Bundle, redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full one leaves the next no hurry of its own: it gathers as well."""
    monkeypatch.setattr(writing, "GATHER_S", (1.0, 1.0))
    monkeypatch.setattr(FrameReader, "is_busy", True)
    with desk(redis_url, namespace, bundle) as here:
        sent = round_trips(here.stream, monkeypatch)
        admit(here.stream, SLOTS)
        with here.writer:
            for part in here.take(SLOTS):
                here.writer.put(found(part))
                time.sleep(0.02)  # one by one: the writer wakes before the next comes
            wait_for(lambda: sum(map(len, sent)) == SLOTS)
    assert [len(verdicts) for verdicts in sent] == [TOGETHER] * (SLOTS // TOGETHER)


def test_an_answer_near_its_gate_waits_for_none_before_it(
    bundle: Bundle, redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that comes while another gathers company, with less time left, takes it along at once."""
    monkeypatch.setattr(writing, "GATHER_S", (1.0, 60.0))
    monkeypatch.setattr("tests.pipeline.test_writing.GATE_NS", 600_000_000_000)
    with desk(redis_url, namespace, bundle) as here:
        sent = round_trips(here.stream, monkeypatch)
        admit(here.stream, SLOTS - 1)
        monkeypatch.setattr("tests.pipeline.test_writing.GATE_NS", 5_000_000_000)
        here.stream.admit(an_entry(here.stream, SLOTS))
        far, *_, near = here.take(SLOTS)
        with here.writer:
            here.writer.put(found(far))
            time.sleep(0.1)
            assert not sent
            here.writer.put(found(near))
            wait_for(lambda: sum(map(len, sent)) == 2)
    assert [len(verdicts) for verdicts in sent] == [2]


def test_a_finding_may_be_answered_before_whoever_put_it_goes_on(
    bundle: Bundle, redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing is asked of a part that has gone."""
    with desk(redis_url, namespace, bundle) as here:
        sent = round_trips(here.stream, monkeypatch)
        admit(here.stream, 1)
        [part] = here.take(1)
        hand_over = here.writer._found.put

        def put(*given: Any, **named: Any) -> None:  # noqa: ANN401 - those of a queue
            hand_over(*given, **named)
            wait_for(lambda: bool(sent) and here.frames.is_idle)

        monkeypatch.setattr(here.writer._found, "put", put)
        with here.writer:
            here.writer.put(found(part))
    assert [len(verdicts) for verdicts in sent] == [1]


def test_a_busy_worker_reads_frames_together(
    bundle: Bundle, redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One free place is no reason to ask the server while half the slots are taken; several are."""
    monkeypatch.setattr(reading, "GATHER_S", 3.0)
    with desk(redis_url, namespace, bundle) as here:
        admit(here.stream, SLOTS // 2 + 1)
        here.take(SLOTS // 2 + 1)
        here.frames.take(here.seat, 0, 0.0)
        time.sleep(0.2)  # the reader sees that it has to wait
        for number in range(SLOTS, SLOTS + ENOUGH):
            here.stream.admit(an_entry(here.stream, number))
        assert here.frames.take(here.seat, 1, 0.05) == []
        assert here.frames.take(here.seat, 1, 0.05) == []
        parts: list[Part] = []
        wait_for(lambda: parts.extend(here.frames.take(here.seat, ENOUGH, 0.05)) or len(parts) > 1)


@pytest.mark.parametrize(("gate_s", "longest_s"), [(60.0, 0.1), (0.32, 0.04), (0.05, 0.025)])
def test_a_busy_worker_asks_less_often_where_nothing_comes(gate_s: float, longest_s: float) -> None:
    """An empty read makes the next one later, by an eighth of the shortest gate at the most."""
    frames = FrameReader.__new__(FrameReader)
    frames._gate_s, frames._gather_s = gate_s, reading.GATHER_S
    for _ in range(9):
        frames._gather_s = frames._longer()
    assert frames._gather_s == pytest.approx(longest_s)


class CutLine(Relay):
    """Breaks in the middle of the first batch of answers after it is armed."""

    def __init__(self, folder: Path, server: str) -> None:
        super().__init__(folder, server)
        self.is_armed = threading.Event()

    def carry(self, client: socket.socket, server: socket.socket) -> None:
        """Until it breaks."""
        asked = 0  # answers since the last reply
        while True:
            ready, _, _ = select.select([client, server], [], [])
            if server in ready:
                if not (reply := server.recv(1 << 20)):
                    return
                client.sendall(reply)
                asked = 0
            if client not in ready:
                continue
            if not (request := client.recv(1 << 20)):
                return
            asked += request.count(b"EVALSHA")  # a batch may come in pieces
            if self.is_armed.is_set() and asked > 1:
                self.is_armed.clear()
                server.sendall(request[: len(request) // 2])
                server.recv(1 << 20)  # some are answered, and nobody learns of it
                return
            server.sendall(request)


def stale() -> float:
    """Answers of camera ``left`` that were refused."""
    labels = {"camera": "left"}
    return facts.registry.get_sample_value("assayline_verdicts_stale_total", labels) or 0.0


def test_a_batch_cut_in_the_middle_is_answered_once(
    bundle: Bundle, redis_url: str, namespace: str, tmp_path: Path
) -> None:
    """What the server took before the line broke is not taken again, and the rest is."""
    line = CutLine(tmp_path, redis_url)
    with closing(line), desk(line.url, namespace, bundle) as here:
        admit(here.stream, 7)
        for part in here.take(7):
            here.writer.put(found(part))
        before = stale()
        with open_stream(redis_url, namespace) as direct:
            direct.refuse(undecided(an_entry(direct, 8), Reason.OVERRUN, direct.now_ns()))
            line.is_armed.set()  # the server knows the script now
            with here.writer:
                wait_for(lambda: not direct.ledger("left").open)
            verdicts = [seen.verdict for seen in direct.tail_verdicts("left", 100)]
            ledger = direct.ledger("left")
    assert not line.is_armed.is_set()
    assert 0 < stale() - before < 7
    assert len(verdicts) == len({verdict.frame_id for verdict in verdicts}) == 8
    assert (ledger.captured, ledger.residual, ledger.open) == (8, 0, 0)


def test_a_server_lost_in_a_batch_costs_no_frame_its_verdict(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half a batch is answered when the server dies: ingest answers for all."""
    camera = CameraSettings.model_validate(
        {"name": "left", "source": {"kind": "folder", "path": tmp_path}, "category": CATEGORY}
    )
    server, folder, lost = ExitStack(), tmp_path / "server", threading.Event()
    url = server.enter_context(embedded_server(folder))
    with (
        desk(url, "test", bundle) as here,
        open_stream(url, "test") as stream,
        Journal(tmp_path / "left.journal") as journal,
    ):
        at_once = here.stream.answer_all

        def lose_half(consumer: str, answers: list[Any]) -> list[bool]:
            if not lost.is_set():
                assert at_once(consumer, answers[:3]) == [True] * 3
                server.close()
                lost.set()
                raise StreamLost("in the middle")
            return at_once(consumer, answers)

        monkeypatch.setattr(here.stream, "answer_all", lose_half)
        intake = Intake(stream, journal, camera, SIZE)
        for number in range(6):
            intake.take(Frame("", "left", time.time_ns(), good_part(number)))
        for part in here.take(6):
            here.writer.put(found(part))
        with here.writer:
            assert lost.wait(30)
            server.enter_context(embedded_server(folder))
            intake.finish(threading.Event())
        verdicts = [seen.verdict for seen in stream.tail_verdicts("left", 100)]
        ledger = stream.ledger("left")
        assert not journal.owed
    server.close()
    assert set(Counter(verdict.frame_id for verdict in verdicts).values()) == {1}
    assert ledger.undecided == {Reason.TRANSPORT_RESTART: 6}
    assert (ledger.captured, ledger.residual, ledger.open) == (6, 0, 0)
