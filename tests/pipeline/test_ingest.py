"""Every exposure is admitted or answered, whatever happens to source and server."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from engines.contracts import Decision, Frame, Reason, StreamLost, UInt8, Verdict
from engines.images import read_image, to_model_input
from pipeline import ingest
from pipeline.config import ArchiveSettings, LineSettings, SinkSettings
from pipeline.ingest import Intake, run_ingest
from pipeline.journal import COMPACT_LINES, Journal, journal_path
from pipeline.originals import original_of, originals_folder
from pipeline.outputs.archive import Archive
from pipeline.server import embedded_server
from pipeline.shared import FRAMES, FrameRing, FrameRings, remove_shared, shared_path
from pipeline.sink import run_sink
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
    **camera: Any,  # noqa: ANN401 - settings
) -> tuple[Stream, Journal, Intake]:
    """An intake by itself, whose exposures the test makes."""
    line = line_of(folder, folder, url, "test", **camera)
    stream = Stream(url, "test")
    journal = Journal(folder / "left.journal")
    return stream, journal, Intake(stream, journal, line.cameras[0], SIZE, ring=ring)


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
    monkeypatch.setattr(ingest, "BEHIND_MAX", 3)
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


def test_images_in_shared_memory_are_bounded_by_the_credits(
    tmp_path: Path, grey_bundle: Path, redis_url: str, namespace: str
) -> None:
    """Through two slots twelve parts reach their inspector whole, and the ring ends with them."""
    write_parts(tmp_path / "parts", 12)
    line = line_of(tmp_path, grey_bundle, redis_url, namespace, credits=2, transport="shared")
    ring = shared_path(line.run_dir, "left", FRAMES)
    fetch = FrameRings(line.run_dir, ["left"]).fetch
    with open_stream(redis_url, namespace) as stream, answering(stream, fetch) as seen:
        run_ingest(line, "left", threading.Event())
        ledger = stream.ledger("left")
    assert (ledger.captured, ledger.passed, ledger.open) == (12, 12, 0)
    assert not ring.exists()
    inputs = [to_model_input(read_image(path), SIZE) for path in _parts(tmp_path)]
    for entry, image in zip(seen, inputs, strict=True):
        np.testing.assert_array_equal(entry.image, image)


def test_packed_images_arrive_as_they_were(tmp_path: Path, redis_url: str) -> None:
    """A camera's codec changes the bytes on the stream, and nothing that an inspector sees."""
    stream, journal, intake = intake_on(redis_url, tmp_path, codec="lz4")
    grey = np.full((32, 48, 3), 99, np.uint8)
    with journal:
        taken = intake.take(Frame("", "left", time.time_ns(), grey))
        found = stream.read(["left"], "test", 64, 100)
    stream.close()
    [fields] = [each.fields for each in found if each.frame_id == taken.frame_id]
    assert fields.keys() == {b"head", b"lz4"}
    np.testing.assert_array_equal(entry_from(fields).image, to_model_input(grey, SIZE))


def test_a_killed_ingest_leaves_its_images_to_the_next(tmp_path: Path) -> None:
    """What was open at the kill keeps its slot: the next start overwrites none of it."""
    path = shared_path(tmp_path, "left", FRAMES)
    fetch = FrameRings(tmp_path, ["left"]).fetch
    taken = []
    with embedded_server(tmp_path / "server") as url:
        for first in (0, 3):
            ring = FrameRing(path, 4, SIZE[0] * SIZE[1] * 3)
            stream, journal, intake = intake_on(url, tmp_path, credits=4, ring=ring)
            with journal:
                taken += [intake.take(frame(number)).frame_id for number in range(first, first + 3)]
            ring.close()  # as the kernel does for a process that dies
        deliveries = stream.read(["left"], "test", 8, 20)
        assert [delivery.frame_id for delivery in deliveries] == taken[:4]  # as many as credits
        for number, delivery in enumerate(deliveries):
            image = entry_from(delivery.fields, fetch).image
            np.testing.assert_array_equal(image, to_model_input(good_part(number, (32, 48)), SIZE))
        stream.close()
    remove_shared(tmp_path)


def test_originals_are_there_before_a_verdict_can_be(
    tmp_path: Path, grey_bundle: Path, redis_url: str, namespace: str
) -> None:
    """Each exposure is kept whole and uncropped, those of refused parts too."""
    write_parts(tmp_path / "parts", 4)
    line = line_of(
        tmp_path,
        grey_bundle,
        redis_url,
        namespace,
        credits=2,
        crop=(4, 2, 20, 20),
        overrun="reject",
        gate_ms=50,
        originals_bytes=1_000_000,
    )
    found: dict[str, UInt8 | None] = {}
    with open_stream(redis_url, namespace) as stream:

        def look() -> None:
            while len(found) < 4:
                delivered = stream.read_verdicts(["left"], "sink", "sink", 8, 20)
                for seen in delivered:
                    frame_id = seen.verdict.frame_id
                    found[frame_id] = original_of(line.run_dir, frame_id)
                stream.acknowledge_verdicts("sink", delivered)

        looker = threading.Thread(target=look)
        looker.start()
        run_ingest(line, "left", threading.Event())
        looker.join()
    for frame_id, path in zip(sorted(found), _parts(tmp_path), strict=True):
        np.testing.assert_array_equal(found[frame_id], read_image(path))
    assert not originals_folder(line.run_dir, "left").exists()


def test_originals_stay_until_the_archive_has_them(
    tmp_path: Path,
    grey_bundle: Path,
    redis_url: str,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An archive slower than the patience of an orderly stop still finds every exposure."""
    write_parts(tmp_path / "parts", 4)
    camera = {"credits": 2, "overrun": "reject", "gate_ms": 50, "originals_bytes": 1_000_000}
    line = line_of(tmp_path, grey_bundle, redis_url, namespace, **camera)
    line = line.model_copy(update={"sinks": SinkSettings(archive=ArchiveSettings())})
    monkeypatch.setattr(ingest, "ACT_PATIENCE_S", 0.1)
    ended, sink_stop, at_once = threading.Event(), threading.Event(), Archive.act

    def act_late(archive: Archive, delivery: VerdictDelivery, closing: threading.Event) -> None:
        ended.wait(30)
        at_once(archive, delivery, closing)

    monkeypatch.setattr(Archive, "act", act_late)
    sink = threading.Thread(target=run_sink, args=(line, sink_stop))
    sink.start()
    with open_stream(redis_url, namespace) as stream:
        while not stream.standing("left").has_sink:
            time.sleep(0.01)
        run_ingest(line, "left", threading.Event())
    ended.set()
    sink_stop.set()
    sink.join()
    assert len(list((line.run_dir / "archive").rglob("*.original.png"))) == 4
    with Journal(journal_path(line.run_dir, "left")) as journal:
        assert len(journal.owed) == 4
    remove_shared(line.run_dir)


def _parts(folder: Path) -> list[Path]:
    return sorted((folder / "parts").iterdir())


def test_ingest_says_that_there_is_no_server(tmp_path: Path, grey_bundle: Path) -> None:
    """A server that was never there is one sentence, at once."""
    line = line_of(tmp_path, grey_bundle, f"unix://{tmp_path}/none.sock", "test")
    with pytest.raises(StreamLost, match="cannot be reached"):
        run_ingest(line, "left", threading.Event())


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.integers(0, 9)), max_size=60), st.binary(max_size=40))
def test_a_journal_read_again_owes_the_same(
    tmp_path_factory: pytest.TempPathFactory, changes: list[tuple[bool, int]], torn: bytes
) -> None:
    """Any adding and settling survives a reopening, even behind a line torn by a crash."""
    path = tmp_path_factory.mktemp("journal") / "left.journal"
    with Journal(path) as journal:
        journal.belong_to("server-1")
        for adds, number in changes:
            head = FrameHead(
                frame_id=f"left/1-{number}", camera="left", captured_ns=number, deadline_ns=number
            )
            if adds:
                journal.add(head)
            else:
                journal.settle([head.frame_id])
        expected = dict(journal.owed)
    with path.open("ab") as file:
        file.write(torn.replace(b"\n", b"").replace(b"{", b""))
    with Journal(path) as journal:
        assert (journal.owed, journal.incarnation) == (expected, "server-1")


def test_a_journal_stays_small(tmp_path: Path) -> None:
    """Settled frames leave the file."""
    path = tmp_path / "left.journal"
    with Journal(path) as journal:
        for number in range(3 * COMPACT_LINES):
            head = FrameHead(
                frame_id=f"left/1-{number}", camera="left", captured_ns=0, deadline_ns=0
            )
            journal.add(head)
            journal.settle([head.frame_id])
    assert len(path.read_bytes().splitlines()) <= COMPACT_LINES + 2


def test_a_full_disk_keeps_no_part_from_the_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The journal then remembers in memory, says so once, and writes whole lines again later."""
    path = tmp_path / "left.journal"
    heads = [
        FrameHead(frame_id=f"left/1-{n}", camera="left", captured_ns=n, deadline_ns=n)
        for n in range(4)
    ]
    with Journal(path) as journal, Path("/dev/full").open("ab", buffering=0) as full:
        journal.add(heads[0])
        disk, journal._file = journal._file, full
        journal.add(heads[1])
        journal.add(heads[2])
        journal._file = disk
        journal.add(heads[3])
        assert list(journal.owed.values()) == heads
    assert capsys.readouterr().err.count("journal_failed") == 1
    with Journal(path) as journal:
        assert list(journal.owed.values()) == [heads[0], heads[3]]
