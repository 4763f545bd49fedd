"""The promise on every server: one frame, one verdict, whoever dies, repeats or comes late."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from redis import Redis

from engines.contracts import BadFrame, Decision, Reason, StreamLost, UInt8, Verdict
from pipeline.server import embedded_server
from pipeline.stream import Delivery, Ledger, Placed, Stream, open_stream
from pipeline.wire import FrameEntry, entry_from, undecided

GATE_NS = 4_000_000_000_000_000_000  # far away: in the year 2096


def an_entry(frame_id: str, image: int = 7, deadline_ns: int = GATE_NS) -> FrameEntry:
    """A small grey frame captured at 0."""
    camera = frame_id.partition("/")[0]
    picture = np.full((8, 8, 3), image, np.uint8)
    return FrameEntry(frame_id, camera, 0, deadline_ns, picture, part_id=f"part of {frame_id}")


def admit_large(stream: Stream, count: int) -> None:
    """Open frames of 192 kB each, from cam/1-2 on."""
    for number in range(2, count):
        image = np.zeros((256, 256, 3), np.uint8)
        stream.admit(FrameEntry(f"cam/1-{number}", "cam", 0, GATE_NS, image))


def passed(frame_id: str) -> Verdict:
    """A PASS for a frame."""
    camera = frame_id.partition("/")[0]
    return Verdict(
        frame_id=frame_id, camera=camera, decision=Decision.PASS, captured_ns=0, decided_ns=1
    )


def admit(stream: Stream, *frame_ids: str) -> None:
    """Open these frames."""
    for frame_id in frame_ids:
        assert stream.admit(an_entry(frame_id))


def read(stream: Stream, consumer: str = "w1", count: int = 8) -> list[Delivery]:
    """What waits on camera ``cam``."""
    return stream.read(["cam"], consumer, count, 0)


def written(stream: Stream, camera: str = "cam") -> list[str]:
    """Frame ids of all verdicts written, in order."""
    return [found.verdict.frame_id for found in stream.follow_verdicts(camera, "0", 1000)]


def test_a_frame_goes_its_way_to_one_verdict(every_stream: Stream) -> None:
    """Admitted, read and answered, a frame leaves its verdict and its count, and nothing else."""
    stream = every_stream
    admit(stream, "cam/1-1")
    assert stream.open_ids("cam") == ["cam/1-1"]
    (delivery,) = read(stream)
    entry = entry_from(delivery.fields)
    assert (entry.frame_id, entry.part_id) == ("cam/1-1", "part of cam/1-1")
    assert entry.image.tolist() == an_entry("cam/1-1").image.tolist()
    assert stream.answer(delivery, "w1", passed("cam/1-1"), b"mask", b"picture")
    (found,) = stream.tail_verdicts("cam", 5)
    assert (found.verdict, found.mask_png, found.picture_png) == (
        passed("cam/1-1"),
        b"mask",
        b"picture",
    )
    assert stream.ledger("cam") == Ledger(1, 1, 0, {}, 0)
    assert (stream.backlog("cam"), stream.open_ids("cam"), stream.open_frame("cam/1-1")) == (
        0,
        [],
        None,
    )


def test_admitting_again_changes_nothing(every_stream: Stream) -> None:
    """A repeat, while the frame is open, in work or answered, neither counts nor reopens it."""
    stream = every_stream
    admit(stream, "cam/1-1", "cam/1-2")
    assert not stream.admit(an_entry("cam/1-2"))
    first, second = read(stream)
    assert not stream.admit(an_entry("cam/1-2"))
    assert stream.answer(second, "w1", passed("cam/1-2"))
    assert not stream.admit(an_entry("cam/1-2"))
    assert not stream.admit(an_entry("cam/1-1"))
    assert stream.ledger("cam") == Ledger(2, 1, 0, {}, 1)
    assert read(stream) == []
    assert stream.answer(first, "w1", passed("cam/1-1"))
    assert stream.backlog("cam") == 0


def test_a_server_that_has_not_begun_an_epoch_takes_no_frame_of_it(every_stream: Stream) -> None:
    """It came back unseen: a new frame would shut out those that were open at the loss."""
    stream = every_stream
    epoch = stream.begin_epoch("cam")
    assert stream.admit(an_entry(f"cam/{epoch}-1"), begun=True)
    with pytest.raises(StreamLost, match="has not begun the epoch"):
        stream.admit(an_entry(f"cam/{epoch + 1}-1"), begun=True)
    with pytest.raises(StreamLost, match="has not begun the epoch"):
        stream.refuse(passed(f"cam/{epoch + 1}-1"), begun=True)
    assert (stream.ledger("cam").captured, stream.backlog("cam")) == (1, 1)


def test_answering_again_changes_nothing(every_stream: Stream) -> None:
    """A repeated answer is refused and writes no second verdict."""
    stream = every_stream
    admit(stream, "cam/1-1")
    (delivery,) = read(stream)
    assert stream.answer(delivery, "w1", passed("cam/1-1"))
    assert not stream.answer(delivery, "w1", passed("cam/1-1"))
    assert not stream.quarantine(delivery, "w1", passed("cam/1-1"))
    assert not stream.answer_open(passed("cam/1-1"))
    assert not stream.refuse(passed("cam/1-1"))
    assert written(stream) == ["cam/1-1"]
    assert stream.ledger("cam").captured == 1


def test_answers_in_one_round_trip_are_decided_each_by_itself(every_stream: Stream) -> None:
    """One that is answered already, among others and another camera's, holds up none of them."""
    stream = every_stream
    admit(stream, "cam/1-1", "cam/1-2", "other/1-1")
    deliveries = sorted(
        stream.read(["cam", "other"], "w1", 16, 0), key=lambda delivery: delivery.frame_id
    )
    assert stream.answer_open(passed("cam/1-1"))
    pictures = {"mask_png": b"mask", "picture_png": b"picture", "map_png": b"map"}
    answers = [(delivery, passed(delivery.frame_id), pictures) for delivery in deliveries]
    assert stream.answer_all("w1", answers) == [False, True, True]
    assert (written(stream), written(stream, "other")) == (["cam/1-1", "cam/1-2"], ["other/1-1"])
    (found,) = stream.tail_verdicts("other", 5)
    assert (found.mask_png, found.picture_png, found.map_png) == (b"mask", b"picture", b"map")
    assert stream.answer_all("w1", []) == []


def test_a_place_in_shared_memory_is_admitted_like_an_image(every_stream: Stream) -> None:
    """In one command: taken once, refused with an epoch that was not begun, read as it was sent."""
    stream = every_stream
    entry = an_entry("cam/1-1")
    with pytest.raises(StreamLost, match="has not begun the epoch"):
        stream.admit(entry, begun=True, slot=b"place")
    assert (stream.backlog("cam"), stream.ledger("cam").captured) == (0, 0)
    assert stream.admit(entry, slot=b"place")
    assert not stream.admit(entry, slot=b"place")
    (delivery,) = read(stream)
    seen: list[tuple[str, bytes, tuple[int, int]]] = []

    def fetch(frame_id: str, slot: bytes, size: tuple[int, int]) -> UInt8:
        seen.append((frame_id, slot, size))
        return entry.image

    assert entry_from(delivery.fields, fetch).part_id == entry.part_id
    assert seen == [("cam/1-1", b"place", entry.image.shape[:2])]
    with pytest.raises(BadFrame, match="0 image bytes"):
        entry_from(delivery.fields)
    assert stream.answer(delivery, "w1", passed("cam/1-1"))
    assert stream.ledger("cam") == Ledger(1, 1, 0, {}, 0)


def test_frames_of_one_call_are_taken_in_order_and_once(every_stream: Stream) -> None:
    """A repeat takes none of them; where one cannot be taken, neither are those after it."""
    stream = every_stream
    placed = [Placed(an_entry(f"cam/1-{number}"), b"place") for number in range(1, 6)]
    assert stream.admit_placed(placed[:2]) == 2
    assert stream.admit_placed(placed[:3]) == 1
    assert stream.admit_placed(placed[:3]) == stream.admit_placed([]) == 0
    stream._commands.xadd(stream._of("cam").frames, {"head": b"thrown in"}, "1-5")
    later = Placed(an_entry("cam/1-6"), b"place")
    with pytest.raises(StreamLost, match="equal or smaller"):
        stream.admit_placed([placed[4], later])
    assert stream.ledger("cam").captured == len(stream.open_ids("cam")) == 3
    assert stream.admit_placed([later]) == 1
    with pytest.raises(StreamLost, match="has not begun the epoch"):
        stream.admit_placed([Placed(an_entry("cam/2-1"), b"place")], begun=True)


def test_a_frame_taken_over_is_no_longer_the_first_ones_to_answer(every_stream: Stream) -> None:
    """After a reclaim only the new owner's delivery count answers, even under the same name."""
    stream = every_stream
    admit(stream, "cam/1-1")
    (first,) = read(stream)
    (second,) = stream.reclaim(["cam"], "w2", 0, 8)
    (third,) = stream.reclaim(["cam"], "w1", 0, 8)
    assert [first.deliveries, second.deliveries, third.deliveries] == [1, 2, 3]
    assert third.fields == first.fields
    assert not stream.answer(first, "w1", passed("cam/1-1"))
    assert not stream.answer(second, "w2", passed("cam/1-1"))
    assert stream.answer(third, "w1", passed("cam/1-1"))
    assert written(stream) == ["cam/1-1"]


def test_no_decision_stands_that_comes_after_the_gate(every_stream: Stream) -> None:
    """Though nobody keeps the gate: the part stays open, and UNDECIDED is all it can be yet."""
    stream = every_stream
    assert stream.admit(an_entry("cam/1-1", deadline_ns=stream.now_ns() - 1_000_000))
    (delivery,) = read(stream)
    failed = passed("cam/1-1").model_copy(update={"decision": Decision.FAIL})
    for late in (passed("cam/1-1"), failed):
        assert not stream.answer(delivery, "w1", late)
    assert (stream.ledger("cam").open, written(stream)) == (1, [])
    late = undecided(an_entry("cam/1-1"), Reason.DEADLINE, 1)
    assert stream.answer(delivery, "w1", late)
    assert stream.ledger("cam") == Ledger(1, 0, 0, {"deadline": 1}, 0)


def test_a_stranger_cannot_answer(every_stream: Stream) -> None:
    """An answer needs the frame to be pending for the very consumer, and to be its own frame."""
    stream = every_stream
    admit(stream, "cam/1-1", "cam/1-2")
    first, _ = read(stream)
    assert not stream.answer(first, "w2", passed("cam/1-1"))
    assert not stream.answer(Delivery("cam", "1-9", 1, {}), "w1", passed("cam/1-9"))
    with pytest.raises(BadFrame, match="does not answer"):
        stream.answer(first, "w1", passed("cam/1-2"))
    assert stream.ledger("cam").open == 2


def test_renewal_keeps_only_what_is_still_held(every_stream: Stream) -> None:
    """Renewing resets the idle time of one's own frames and never takes a lost one back."""
    stream = every_stream
    admit(stream, "cam/1-1", "cam/1-2")
    first, second = read(stream)
    (taken,) = stream.reclaim(["cam"], "w2", 0, 1)
    assert taken.entry_id == first.entry_id
    assert stream.renew("w1", [first, second]) == [second]
    assert stream.renew("w2", [taken]) == [taken]
    assert stream.reclaim(["cam"], "w3", 60_000, 8) == []
    (again,) = stream.reclaim(["cam"], "w2", 0, 1)
    assert stream.renew("w2", [taken, second]) == []
    assert stream.answer(again, "w2", passed("cam/1-1"))
    assert stream.renew("w2", [again]) == []


def test_the_gate_keeper_and_the_inspector_cannot_both_answer(every_stream: Stream) -> None:
    """Whoever is second is refused, and the frame is gone for every reader."""
    stream = every_stream
    admit(stream, "cam/1-1", "cam/1-2", "cam/1-3")
    first, second = read(stream, count=2)
    assert stream.answer_open(undecided(an_entry("cam/1-1"), Reason.DEADLINE, 1))
    assert not stream.answer(first, "w1", passed("cam/1-1"))
    assert stream.answer(second, "w1", passed("cam/1-2"))
    assert not stream.answer_open(undecided(an_entry("cam/1-2"), Reason.DEADLINE, 1))
    assert stream.answer_open(undecided(an_entry("cam/1-3"), Reason.DEADLINE, 1))
    assert read(stream) == []
    assert stream.reclaim(["cam"], "w2", 0, 8) == []
    assert stream.ledger("cam") == Ledger(3, 1, 0, {"deadline": 2}, 0)


def test_a_frame_whose_payload_vanished_is_answered(every_stream: Stream, namespace: str) -> None:
    """An entry deleted under its owner becomes UNDECIDED(bad_frame), not an eternal pending one."""
    stream = every_stream
    admit(stream, "cam/1-1", "cam/1-2")
    read(stream)
    stream._commands.xdel(f"{namespace}:{{cam}}:frames", "1-1")
    (left,) = stream.reclaim(["cam"], "w2", 0, 8)
    assert left.entry_id == "1-2"
    assert stream.ledger("cam") == Ledger(2, 0, 0, {"bad_frame": 1}, 1)
    (found,) = stream.tail_verdicts("cam", 5)
    assert found.verdict.part_id == "part of cam/1-1"
    pending = stream._commands.xpending(f"{namespace}:{{cam}}:frames", "inspect")
    assert pending["pending"] == 1


def test_an_entry_that_nobody_admitted_leaves_no_verdict(
    every_stream: Stream, namespace: str
) -> None:
    """A foreign entry is set aside and deleted, without being counted."""
    stream = every_stream
    stream._commands.xadd(f"{namespace}:{{cam}}:frames", {"junk": b"\x00" * 100}, id="5-5")
    (delivery,) = read(stream)
    with pytest.raises(BadFrame):
        entry_from(delivery.fields)
    assert not stream.quarantine(delivery, "w1", passed("cam/5-5"))
    assert (stream.backlog("cam"), written(stream)) == (0, [])
    assert stream.ledger("cam") == Ledger(0, 0, 0, {}, 0)
    assert stream._commands.xlen(f"{namespace}:{{cam}}:quarantine") == 1


def test_quarantine_keeps_the_last_few_cut_to_size(every_stream: Stream, namespace: str) -> None:
    """Neither many nor huge bad frames fill the memory, and each has its verdict."""
    stream = every_stream
    ids = [f"cam/1-{n}" for n in range(1, 71)]
    admit(stream, *ids)
    for delivery in read(stream, count=70):
        huge = Delivery("cam", delivery.entry_id, 1, {b"image": b"x" * 600_000, b"more": b"y"})
        verdict = undecided(an_entry(delivery.frame_id), Reason.BAD_FRAME, 1)
        fields = huge if delivery.entry_id == "1-70" else delivery
        assert stream.quarantine(fields, "w1", verdict)
    kept = stream._commands.xrange(f"{namespace}:{{cam}}:quarantine")
    assert len(kept) == 64
    assert kept[0][1][b"frame_id"] == b"cam/1-7"
    assert sum(len(value) for value in kept[-1][1].values()) < 530_000
    assert stream.ledger("cam") == Ledger(70, 0, 0, {"bad_frame": 70}, 0)


def test_a_refused_frame_is_captured_and_answered_once(every_stream: Stream) -> None:
    """An overrun counts as captured with its reason, once, and never opens or reaches a worker."""
    stream = every_stream
    verdict = undecided(an_entry("cam/1-1"), Reason.OVERRUN, 1)
    assert stream.refuse(verdict)
    assert not stream.refuse(verdict)
    admit(stream, "cam/1-2")
    assert stream.refuse(undecided(an_entry("cam/1-2"), Reason.TRANSPORT_RESTART, 1))
    assert read(stream) == []
    assert stream.ledger("cam") == Ledger(2, 0, 0, {"overrun": 1, "transport_restart": 1}, 0)


def test_credits_are_what_is_left_of_the_budget(every_stream: Stream) -> None:
    """Open frames take credits, in work or not; answered frames give them back."""
    stream = every_stream
    admit(stream, "cam/1-1", "cam/1-2")
    assert (stream.credits("cam", 3), stream.credits("cam", 1)) == (1, 0)
    (delivery,) = read(stream, count=1)
    assert stream.credits("cam", 3) == 1
    stream.answer(delivery, "w1", passed("cam/1-1"))
    assert stream.credits("cam", 3) == 2


def test_a_read_never_exceeds_its_count_and_serves_every_camera(every_stream: Stream) -> None:
    """However many cameras have frames, a reader gets what it has slots for, and starves none."""
    stream = every_stream
    cameras = [f"cam{n}" for n in range(5)]
    admit(stream, *(f"{camera}/1-{n}" for camera in cameras for n in range(1, 4)))
    seen: list[str] = []
    for _ in range(40):
        found = stream.read(cameras, "w1", 2, 0)
        assert len(found) <= 2
        seen += [delivery.frame_id for delivery in found]
    assert len(seen) == len(set(seen)) == 15
    assert stream.read(cameras, "w1", 0, 0) == stream.read([], "w1", 4, 0) == []


def test_a_blocked_reader_wakes_or_returns_empty(every_stream: Stream) -> None:
    """With nothing to read the block ends with an empty list."""
    assert every_stream.read(["cam"], "w1", 4, 10) == []


def test_epochs_ascend(every_stream: Stream) -> None:
    """Each epoch is above all before it, at once and over a server that has forgotten them."""
    first, second = every_stream.begin_epoch("cam"), every_stream.begin_epoch("cam")
    assert second > first
    every_stream._commands.delete(f"{every_stream.namespace}:{{cam}}:epoch")
    assert every_stream.begin_epoch("cam") >= first


def test_a_lost_group_is_made_anew_from_the_first_entry(every_stream: Stream) -> None:
    """After a NOGROUP the waiting frames are delivered again, and old deliveries cannot answer."""
    stream = every_stream
    admit(stream, "cam/1-1", "cam/1-2")
    (first,) = read(stream, count=1)
    stream._commands.xgroup_destroy(f"{stream.namespace}:{{cam}}:frames", "inspect")
    assert not stream.answer(first, "w1", passed("cam/1-1"))
    assert stream.reclaim(["cam"], "w1", 0, 8) == []
    assert [found.frame_id for found in read(stream)] == ["cam/1-1", "cam/1-2"]


def test_expiring_frames_come_most_urgent_first(every_stream: Stream) -> None:
    """The gate keeper sees whose deadline is near, with all that is known of the part."""
    stream = every_stream
    for number, deadline_ns in ((1, 3_000_000), (2, 1_000_500), (3, 9_000_000)):
        stream.admit(an_entry(f"cam/1-{number}", deadline_ns=deadline_ns))
    found = stream.heads(stream.deadlines({"cam": 3_000_000}))
    assert [head.frame_id for head in found] == ["cam/1-2", "cam/1-1"]
    assert (found[0].deadline_ns, found[0].part_id) == (1_000_500, "part of cam/1-2")


def test_an_unreadable_head_does_not_hide_a_frame(every_stream: Stream) -> None:
    """A frame whose description is lost or foreign is still found at its gate, by its name."""
    stream = every_stream
    admit(stream, "cam/1-1", "cam/1-2", "cam/1-3")
    heads = f"{stream.namespace}:{{cam}}:heads"
    stream._commands.hset(heads, "1-1", b'{"schema_version":9}')
    stream._commands.hdel(heads, "1-2")
    found = stream.heads(stream.deadlines({"cam": GATE_NS}))
    assert [head.frame_id for head in found] == ["cam/1-1", "cam/1-2", "cam/1-3"]
    assert [head.part_id for head in found] == ["", "", "part of cam/1-3"]
    for head in found:
        assert stream.answer_open(undecided(head, Reason.DEADLINE, GATE_NS))
    assert stream.ledger("cam") == Ledger(3, 0, 0, {"deadline": 3}, 0)


@pytest.fixture(params=["valkey", "redis"])
def small_url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """A server of either kind that is soon full."""
    binary = request.getfixturevalue("debian_server") if request.param == "redis" else None
    with embedded_server(tmp_path, maxmemory="8mb", binary=binary) as url:
        yield url


def test_a_full_server_admits_nothing_and_still_answers(small_url: str) -> None:
    """Out of memory, an admission fails whole, while answers and refusals go on and free memory."""
    with open_stream(small_url) as stream:
        admit(stream, "cam/1-1")
        (delivery,) = read(stream)
        with pytest.raises(StreamLost, match="full"):
            admit_large(stream, 200)
        ledger = stream.ledger("cam")
        assert ledger.captured == ledger.open == stream.backlog("cam")
        assert stream.answer(delivery, "w1", passed("cam/1-1"), b"m" * 1000)
        refused = f"cam/1-{ledger.captured + 1}"
        assert stream.refuse(undecided(an_entry(refused), Reason.OVERRUN, 1))
        assert written(stream) == ["cam/1-1", refused]
        assert stream.ledger("cam").residual == stream.ledger("cam").open == ledger.open - 1


def test_a_full_server_takes_no_place_in_shared_memory(small_url: str) -> None:
    """It refuses as it refuses an image: nothing is changed, and the same frame is taken later."""
    with open_stream(small_url) as stream, Redis.from_url(small_url) as admin:
        assert stream.admit(an_entry("cam/1-1"), slot=b"place")
        admin.config_set("maxmemory", "1mb")
        with pytest.raises(StreamLost, match="full"):
            stream.admit(an_entry("cam/1-2"), slot=b"place")
        assert (stream.backlog("cam"), stream.ledger("cam").captured) == (1, 1)
        admin.config_set("maxmemory", "8mb")
        assert stream.admit(an_entry("cam/1-2"), slot=b"place")
        assert stream.ledger("cam").captured == stream.backlog("cam") == 2


def test_a_camera_is_named_plainly(every_stream: Stream) -> None:
    """A name that would break keys or frame ids is refused before it is used."""
    with pytest.raises(BadFrame, match="is expected"):
        every_stream.admit(an_entry("c{a}m/1-1"))
