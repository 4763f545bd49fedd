"""Images on their way to an inspector and exposures to the archive, by stream or shared memory."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from engines.contracts import BadConfig, Frame, Reason, UInt8
from engines.images import read_image, to_model_input
from pipeline import intake
from pipeline.config import ArchiveSettings, LineSettings, SinkSettings
from pipeline.ingest import run_ingest
from pipeline.journal import Journal, journal_path
from pipeline.originals import original_of, originals_folder
from pipeline.outputs.archive import Archive
from pipeline.server import embedded_server
from pipeline.shared import FRAMES, FrameRing, FrameRings, remove_shared, shared_path
from pipeline.sink import run_sink
from pipeline.stream import VerdictDelivery, open_stream
from pipeline.wire import entry_from
from tests.pipeline.test_ingest import answering, frame, intake_on, line_of
from tests.tiny_line import SIZE, good_part, shared_bundle, write_parts


@pytest.fixture
def grey_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that measures grey."""
    return shared_bundle(tmp_path_factory.getbasetemp())


def beside_its_own_server(line: LineSettings) -> LineSettings:
    """The same line, had it started the server that it is given."""
    return line.model_copy(update={"redis": line.redis.model_copy(update={"owned": True})})


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


def test_without_memory_to_share_images_travel_inline(
    tmp_path: Path, grey_bundle: Path, redis_url: str, namespace: str
) -> None:
    """A camera that shares by itself goes on where it may not; one that was told to does not."""
    write_parts(tmp_path / "parts", 3)
    line = line_of(tmp_path, grey_bundle, redis_url, namespace)
    told = line_of(tmp_path, grey_bundle, redis_url, namespace, transport="shared")
    with (
        FrameRing(shared_path(line.run_dir, "left", FRAMES), 2, 12),
        open_stream(redis_url, namespace) as stream,
        answering(stream) as seen,
    ):
        with pytest.raises(BadConfig, match="cannot be had"):
            run_ingest(told, "left", threading.Event())
        run_ingest(beside_its_own_server(line), "left", threading.Event())
        assert stream.ledger("left").passed == len(seen) == 3


def test_no_disk_is_taken_for_memory(
    tmp_path: Path,
    grey_bundle: Path,
    redis_url: str,
    namespace: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """On a host without shared memory a camera sends inline, unless it is told otherwise."""
    write_parts(tmp_path / "parts", 3)
    line = line_of(tmp_path, grey_bundle, redis_url, namespace)
    monkeypatch.setattr("pipeline.shared.places.MEMORY", tmp_path / "nowhere")
    with open_stream(redis_url, namespace) as stream, answering(stream) as seen:
        run_ingest(beside_its_own_server(line), "left", threading.Event())
        assert stream.ledger("left").passed == len(seen) == 3


def test_packed_images_arrive_as_they_were(tmp_path: Path, redis_url: str) -> None:
    """A camera's codec changes the bytes on the stream, and nothing that an inspector sees."""
    stream, journal, taking = intake_on(redis_url, tmp_path, codec="lz4")
    grey = np.full((32, 48, 3), 99, np.uint8)
    with journal:
        taken = taking.take(Frame("", "left", time.time_ns(), grey))
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
            stream, journal, taking = intake_on(url, tmp_path, credits=4, ring=ring, gate_ms=1000)
            with journal:
                taken += [taking.take(frame(number)).frame_id for number in range(first, first + 3)]
            ring.close()  # as the kernel does for a process that dies
        deliveries = stream.read(["left"], "test", 8, 20)
        assert [delivery.frame_id for delivery in deliveries] == taken[:4]  # as many as credits
        for number, delivery in enumerate(deliveries):
            image = entry_from(delivery.fields, fetch).image
            np.testing.assert_array_equal(image, to_model_input(good_part(number, (32, 48)), SIZE))
        stream.close()
    remove_shared(tmp_path)


def test_a_full_server_costs_no_place_in_the_ring(tmp_path: Path) -> None:
    """Parts that it had no room for are answered, and their places are free for those after."""
    ring = FrameRing(shared_path(tmp_path, "left", FRAMES), 2, SIZE[0] * SIZE[1] * 3)
    with embedded_server(tmp_path / "server") as url:
        stream, journal, taking = intake_on(url, tmp_path, credits=2, overrun="reject", ring=ring)
        with journal:
            stream._commands.config_set("maxmemory", 1)
            full = [taking.take(frame(number)).frame_id for number in range(5)]
            stream._commands.config_set("maxmemory", 0)
            taken = taking.take(frame(5)).frame_id
        told = {one.verdict.frame_id: one.verdict.reason for one in stream.tail_verdicts("left", 9)}
        assert told == dict.fromkeys(full, Reason.TRANSPORT)
        assert stream.open_ids("left") == [taken]
        stream.close()
    ring.close()
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
    monkeypatch.setattr(intake, "ACT_PATIENCE_S", 0.1)
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
