"""Frames become verdicts: real server, real OpenVINO, a bundle whose findings are known."""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
from redis import Redis

from engines.backend_openvino import OpenVinoBackend
from engines.bundle import open_bundle
from engines.contracts import (
    BadBundle,
    Decision,
    EngineFault,
    Progress,
    Reason,
    Rows,
    UInt8,
    Verdict,
)
from engines.images import decode_image, to_model_input
from pipeline.config import LineSettings, WorkerSettings
from pipeline.pulse import Pulse
from pipeline.reading import FrameReader
from pipeline.seats import Loop, Seat
from pipeline.shared import FRAMES, FrameRing, shared_path
from pipeline.stream import Stream, VerdictDelivery, open_stream
from pipeline.telemetry import facts
from pipeline.wire import FrameEntry
from pipeline.worker import run_worker
from pipeline.writing import Judged, VerdictWriter
from tests.tiny_line import (
    CATEGORY,
    SIZE,
    bad_part,
    good_part,
    seat_of,
    shared_bundle,
    write_tiny_bundle,
)
from tests.waiting import wait_for

GATE_NS = 60_000_000_000


@pytest.fixture
def grey_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that measures grey."""
    return shared_bundle(tmp_path_factory.getbasetemp())


@pytest.fixture
def stream(redis_url: str, namespace: str) -> Iterator[Stream]:
    """The stream of this test."""
    with open_stream(redis_url, namespace) as opened:
        yield opened


@pytest.fixture
def line(tmp_path: Path, grey_bundle: Path, redis_url: str, namespace: str) -> LineSettings:
    """A line of two cameras on the tiny bundle."""
    source = {"kind": "folder", "path": tmp_path}
    return LineSettings.model_validate(
        {
            "line": "tiny",
            "bundle": grey_bundle,
            "run_dir": tmp_path / "run",
            "redis": {"url": redis_url, "namespace": namespace},
            "cameras": [{"name": name, "source": source} for name in ("left", "right")],
            "worker": {"precision": "f32", "slots": 4, "batch_max": 4, "threads": 1},
            "log_level": "error",
        }
    )


@contextmanager
def working(line: LineSettings, count: int = 1) -> Iterator[threading.Event]:
    """Workers in threads; what one raises is raised here. Gives an event of their end."""
    stop, ended, errors = threading.Event(), threading.Event(), []

    def run() -> None:
        try:
            run_worker(line, stop)
        except BaseException as error:
            errors.append(error)
        finally:
            ended.set()

    threads = [threading.Thread(target=run) for _ in range(count)]
    for thread in threads:
        thread.start()
    try:
        yield ended
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    if errors:
        raise errors[0]


def _counter(named: tuple[str, Verdict]) -> int:
    """The number of a frame in its epoch."""
    return int(named[0].rpartition("-")[2])


def entry(stream: Stream, number: int, image: UInt8, camera: str = "left") -> FrameEntry:
    """A frame as ingest admits it."""
    now = stream.now_ns()
    return FrameEntry(
        frame_id=f"{camera}/1-{number}",
        camera=camera,
        captured_ns=now,
        deadline_ns=now + GATE_NS,
        image=to_model_input(image, SIZE),
        category=CATEGORY,
        part_id=str(number),
        lot="L1",
        recipe="thin",
        frame_size=(image.shape[0], image.shape[1]),
        crop=(0, 0, image.shape[1], image.shape[0]),
    )


def answered(stream: Stream, count: int, camera: str = "left") -> dict[str, VerdictDelivery]:
    """The verdicts of a camera by part, once there are so many."""
    wait_for(lambda: len(stream.tail_verdicts(camera, 100)) >= count)
    return {seen.verdict.part_id: seen for seen in stream.tail_verdicts(camera, 100)}


def test_depth_is_in_the_metrics(line: LineSettings, stream: Stream) -> None:
    """Level and calls of every frame are observed, as its verdict says them."""
    place = {"camera": "left", "recipe": "thin"}
    told = [f"assayline_{n}" for n in ("noise_level_sum", "noise_level_count", "depth_steps_sum")]
    before = [facts.registry.get_sample_value(name, place) or 0.0 for name in told]
    with working(line):
        stream.admit(entry(stream, 1, bad_part(3, (64, 96))))
        (seen,) = answered(stream, 1).values()
    after = [facts.registry.get_sample_value(name, place) or 0.0 for name in told]
    assert seen.verdict.level is not None
    grown = [one - other for one, other in zip(after, before, strict=True)]
    assert grown == [seen.verdict.level, 1, seen.verdict.steps]


def test_parts_are_judged_and_described(line: LineSettings, stream: Stream) -> None:
    """A complete record; mask in frame geometry exactly when failed; picture when not passed."""
    bad = bad_part(3, (64, 96))
    framed = replace(entry(stream, 2, bad), frame_size=(100, 200), crop=(50, 20, 96, 64))
    with working(line):
        stream.admit(entry(stream, 1, good_part(1, (64, 96))))
        stream.admit(framed)
        seen = answered(stream, 2)
    good, failed = seen["1"], seen["2"]
    assert (good.verdict.decision, good.mask_png, good.picture_png) == (Decision.PASS, b"", b"")
    verdict = failed.verdict
    assert (verdict.decision, verdict.reason) == (Decision.FAIL, None)
    assert (verdict.category, verdict.lot, verdict.recipe) == (CATEGORY, "L1", "thin")
    assert (verdict.plan, verdict.steps, verdict.steps_planned) == (0, 2, 2)
    assert verdict.surprise is not None
    assert verdict.threshold is not None
    assert verdict.surprise > verdict.threshold
    assert verdict.backend == "openvino:f32"
    assert len(verdict.bundle_id) == len(verdict.calibration_id) == 12
    assert verdict.latency_ms.keys() == {"queue", "inspect", "total"}
    assert np.array_equal(decode_image(failed.picture_png), framed.image)
    mask = decode_image(failed.mask_png)[:, :, 0] > 0
    rows, columns = np.nonzero(mask)
    assert mask.shape == (100, 200)
    [region] = verdict.regions
    assert (region.x, region.y) == (columns.min(), rows.min())
    assert region.x >= 50
    assert region.y >= 20
    assert region.area_px == mask.sum()


def test_every_camera_is_served_and_nothing_stays(line: LineSettings, stream: Stream) -> None:
    """More parts than slots from two cameras: one verdict each, streams empty, ledgers closed."""
    for number in range(1, 21):
        for camera in ("left", "right"):
            stream.admit(entry(stream, number, good_part(number), camera))
    with working(line, count=2):
        wait_for(lambda: not any(stream.ledger(c).open for c in ("left", "right")))
    for camera in ("left", "right"):
        ledger = stream.ledger(camera)
        assert (ledger.captured, ledger.residual, stream.backlog(camera)) == (20, 0, 0)
        assert ledger.passed + ledger.failed == 20


def test_a_forced_plan_is_honoured(line: LineSettings, stream: Stream) -> None:
    """A replay asks for the depth that was recorded and gets it."""
    stream.admit(replace(entry(stream, 1, good_part(1)), plan=1))
    with working(line):
        verdict = answered(stream, 1)["1"].verdict
    assert (verdict.plan, verdict.steps) == (1, 3)


@pytest.mark.parametrize(
    "damage",
    [
        {"image": good_part(1, (8, 8))},
        {"frame_size": (60_000, 60_000)},
        {"crop": (10, 10, 64, 64)},
        {"crop": (0, 0, 0, 16)},
        {"plan": 9},
    ],
)
def test_what_cannot_be_inspected_is_set_aside(
    line: LineSettings, stream: Stream, damage: dict[str, object]
) -> None:
    """Wrong size, impossible geometry, unknown plan: UNDECIDED(bad_frame); the next part passes."""
    stream.admit(replace(entry(stream, 1, good_part(1)), **damage))  # type: ignore[arg-type]
    stream.admit(entry(stream, 2, good_part(2)))
    with working(line):
        seen = answered(stream, 2)
    assert seen["1"].verdict.reason is Reason.BAD_FRAME
    assert seen["2"].verdict.decision is Decision.PASS


def test_what_is_set_aside_from_shared_memory_keeps_its_image(
    line: LineSettings, stream: Stream, redis_url: str, namespace: str
) -> None:
    """Its place in the ring is another part's soon; who looks into quarantine finds the pixels."""
    damaged, whole = replace(entry(stream, 1, good_part(1)), plan=9), entry(stream, 2, good_part(2))
    with FrameRing(shared_path(line.run_dir, "left", FRAMES), 2, damaged.image.nbytes) as ring:
        ring.release_all_but([])
        for one in (damaged, whole):
            stream.admit(one, slot=ring.put(one.frame_id, one.image) or b"")
        with working(line):  # which nobody told that its cameras share memory
            seen = answered(stream, 2)
    assert seen["1"].verdict.reason is Reason.BAD_FRAME
    assert seen["2"].verdict.decision is Decision.PASS
    with Redis.from_url(redis_url) as redis:
        ((_, kept),) = redis.xrange(f"{namespace}:{{left}}:quarantine")
    assert kept[b"entry:image"] == damaged.image.tobytes()


def test_foreign_bytes_are_set_aside_with_what_admission_knew(
    line: LineSettings, stream: Stream, redis_url: str, namespace: str
) -> None:
    """An entry overwritten with noise keeps its part's id in the verdict."""
    stream.admit(entry(stream, 1, good_part(1)))
    key = f"{namespace}:{{left}}:frames"
    with Redis.from_url(redis_url) as redis:
        redis.delete(key)
        redis.xadd(key, {"head": b"\xff\x00", "image": b"x"}, id="1-1")
        with working(line):
            seen = answered(stream, 1)
        kept = redis.xlen(f"{namespace}:{{left}}:quarantine")
    assert seen["1"].verdict.reason is Reason.BAD_FRAME
    assert kept == 1


def test_a_late_part_is_not_inspected(line: LineSettings, stream: Stream) -> None:
    """Past its gate a part is answered, not computed."""
    stream.admit(replace(entry(stream, 1, good_part(1)), deadline_ns=stream.now_ns() - 1))
    with working(line):
        verdict = answered(stream, 1)["1"].verdict
    assert (verdict.reason, verdict.steps) == (Reason.DEADLINE, 0)


def test_a_part_whose_gate_passes_meanwhile_is_undecided_though_no_sink_lives(
    line: LineSettings, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A worker that stood still has its decision refused; the part's answer is the deadline."""
    deadline_ns = stream.now_ns() + 1_000_000_000
    stream.admit(replace(entry(stream, 1, good_part(1)), deadline_ns=deadline_ns))
    send = VerdictWriter._send

    def send_late(writer: VerdictWriter, judged: Sequence[Judged]) -> list[bool]:
        time.sleep(max(0.0, deadline_ns - stream.now_ns()) / 1e9 + 0.01)
        return send(writer, judged)

    monkeypatch.setattr(VerdictWriter, "_send", send_late)
    hasty = line.worker.model_copy(update={"reclaim_idle_ms": 100})
    with working(line.model_copy(update={"worker": hasty})):
        verdict = answered(stream, 1)["1"].verdict
    assert verdict.reason is Reason.DEADLINE
    assert stream.ledger("left").passed == 0


def test_parts_of_a_silent_worker_are_taken_over(line: LineSettings, stream: Stream) -> None:
    """What another consumer has read and let go cold is inspected here, and its answer refused."""
    stream.admit(entry(stream, 1, good_part(1)))
    [stolen] = stream.read(["left"], "silent", 1, 100)
    hasty = line.model_copy(
        update={"worker": line.worker.model_copy(update={"reclaim_idle_ms": 100})}
    )
    with working(hasty):
        verdict = answered(stream, 1)["1"].verdict
    assert verdict.decision is Decision.PASS
    late = Verdict(
        frame_id="left/1-1", camera="left", decision=Decision.FAIL, captured_ns=1, decided_ns=2
    )
    assert not stream.answer(stolen, "silent", late)
    assert stream.ledger("left").failed == 0


def test_a_part_that_kills_its_workers_is_quarantined(line: LineSettings, stream: Stream) -> None:
    """After three deliveries nobody tries it again: UNDECIDED(bad_frame)."""
    stream.admit(entry(stream, 1, good_part(1)))
    assert stream.read(["left"], "first", 1, 100)
    for name in ("second", "third"):
        assert stream.reclaim(["left"], name, 0, 1)
    hasty = line.model_copy(
        update={"worker": line.worker.model_copy(update={"reclaim_idle_ms": 50})}
    )
    with working(hasty):
        verdict = answered(stream, 1)["1"].verdict
    assert verdict.reason is Reason.BAD_FRAME


@pytest.mark.parametrize(
    ("renew_ms", "reclaim_idle_ms"), [(200, 1000), (100, 500), (100, 300), (50, 200), (800, 1000)]
)
def test_no_frame_looks_cold_for_having_been_young(
    monkeypatch: pytest.MonkeyPatch, renew_ms: int, reclaim_idle_ms: int
) -> None:
    """Renewals that are late by a whole period each let it lie no longer than that ever did."""
    settings = WorkerSettings(renew_ms=renew_ms, reclaim_idle_ms=reclaim_idle_ms)
    none = cast("Any", None)
    reader = FrameReader(none, [], "", pulse=none, settings=settings, stop=none)
    period_s, idle_s = 2 * renew_ms / 1e3, reclaim_idle_ms / 1e3
    longest_s = 0.0
    for first_s in np.arange(0.01, period_s, 0.01):  # from reading to the next renewal
        renewed_s = 100.0
        for at_s in np.arange(100.0 + first_s, 105.0, period_s):
            monkeypatch.setattr("pipeline.reading.time.monotonic", lambda at_s=at_s: at_s)
            if reader._is_old(cast("Any", SimpleNamespace(read_s=100.0))):
                longest_s = max(longest_s, at_s - renewed_s)
                renewed_s = at_s
    assert period_s - 0.02 <= longest_s < max(period_s + 1e-6, idle_s)


@pytest.fixture
def pulse(redis_url: str, namespace: str) -> Iterator[Pulse]:
    """Signs of life."""
    with closing(Pulse(redis_url, namespace)) as beating:
        yield beating


@contextmanager
def renewing(line: LineSettings, stream: Stream, pulse: Pulse, seat: Seat) -> Iterator[FrameReader]:
    """A reader that has a frame to read for a seat, and renews whatever it holds every 20 ms."""
    chosen = line.worker.model_copy(update={"renew_ms": 20, "reclaim_idle_ms": 60_000})
    stop = threading.Event()
    stream.admit(entry(stream, 1, good_part(1)))
    with (
        pytest.MonkeyPatch.context() as patched,
        FrameReader(stream, ["left"], "beating", pulse=pulse, settings=chosen, stop=stop) as frames,
    ):
        patched.setattr(FrameReader, "_is_old", lambda *_: True)
        frames.turn_to(seat)
        yield frames
        stop.set()


def test_frames_stay_ours_only_while_the_loop_beats(
    line: LineSettings, stream: Stream, grey_bundle: Path, pulse: Pulse
) -> None:
    """A loop that turns keeps its frames from being reclaimed; one that hangs loses them."""
    seat = seat_of(open_bundle(grey_bundle))
    with renewing(line, stream, pulse, seat) as frames:
        wait_for(lambda: frames.take(seat, 4, 1.0))
        for _ in range(30):
            frames.beat(seat)
            time.sleep(0.02)
            assert not stream.reclaim(["left"], "other", 1000, 1)
        assert pulse.living("inspect") == ["beating"]
        wait_for(lambda: stream.reclaim(["left"], "other", 1000, 1))
    assert pulse.living("inspect") == []


def test_frames_are_ours_while_every_loop_of_the_seat_beats(
    line: LineSettings, stream: Stream, grey_bundle: Path, pulse: Pulse
) -> None:
    """Of two engines one that hangs is not covered for by the other."""
    seat = replace(seat_of(open_bundle(grey_bundle)), loops=(Loop(), Loop()))
    with renewing(line, stream, pulse, seat) as frames:
        wait_for(lambda: frames.take(seat, 4, 1.0, 1))

        def taken() -> bool:
            frames.beat(seat, 0)
            return bool(stream.reclaim(["left"], "other", 1000, 1))

        wait_for(taken)


@pytest.fixture
def both(line: LineSettings) -> LineSettings:
    """The line with two engines to a worker."""
    return line.model_copy(
        update={"worker": line.worker.model_copy(update={"engines": 2, "threads": 2})}
    )


def test_two_engines_of_a_worker_say_what_one_says(
    line: LineSettings, both: LineSettings, stream: Stream
) -> None:
    """Each part gets one verdict, and the one that it would have got."""
    told = []
    for settings, first in ((line, 1), (both, 101)):
        parts = [bad_part(n) if n % 3 == 0 else good_part(n) for n in range(12)]
        for number, image in enumerate(parts):
            stream.admit(entry(stream, first + number, image))
        with working(settings):
            wait_for(lambda: not stream.open_ids("left"))
        found = {d.verdict.frame_id: d.verdict for d in stream.tail_verdicts("left", 12)}
        told.append([(v.decision, v.steps) for _, v in sorted(found.items(), key=_counter)])
    assert len(told[0]) == 12
    assert told[0] == told[1]


def test_a_worker_ends_when_any_of_its_engines_fails(
    both: LineSettings, stream: Stream, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many parts come meanwhile, the other one takes no more of them."""
    failing = threading.Event()
    start = OpenVinoBackend._start

    def starts_once(self: OpenVinoBackend, rows: Rows, slots: list[int]) -> Progress:
        if failing.is_set():
            raise EngineFault("the second engine is broken")
        failing.set()
        return start(self, rows, slots)

    monkeypatch.setattr(OpenVinoBackend, "_start", starts_once)
    numbers = itertools.count(1)

    def has_ended(ended: threading.Event) -> bool:
        for _ in range(4):
            stream.admit(entry(stream, next(numbers), good_part(1)))
        return ended.is_set()

    with pytest.raises(EngineFault, match="broken"), working(both) as ended:
        wait_for(lambda: has_ended(ended))


def test_a_stopped_worker_finishes_what_it_holds(line: LineSettings, stream: Stream) -> None:
    """Stopping drains: nothing that was read stays unanswered."""
    for number in range(1, 9):
        stream.admit(entry(stream, number, good_part(number)))
    with working(line):
        wait_for(lambda: stream.ledger("left").open < 8)
    unread = stream.read(["left"], "after", 8, 50)
    assert len(unread) == stream.ledger("left").open


def test_an_uncalibrated_bundle_is_refused(line: LineSettings, tmp_path: Path) -> None:
    """Before any frame is read, with the mend."""
    bundle = write_tiny_bundle(tmp_path / "raw")
    (bundle.folder / "calibration.json").unlink()
    with pytest.raises(BadBundle, match="assayline calibrate"):
        run_worker(line.model_copy(update={"bundle": bundle.folder}), threading.Event())
