"""Sinks see every verdict, dashboards see the newest, and nothing that is done with stays."""

from __future__ import annotations

from engines.contracts import Decision, Verdict
from pipeline.stream import Stream


def write(stream: Stream, *numbers: int, camera: str = "cam") -> None:
    """Give these frames a PASS."""
    for number in numbers:
        verdict = Verdict(
            frame_id=f"{camera}/1-{number}",
            camera=camera,
            decision=Decision.PASS,
            captured_ns=0,
            decided_ns=1,
        )
        assert stream.refuse(verdict)


def read(stream: Stream, group: str, consumer: str = "c", count: int = 100) -> list[str]:
    """Frame numbers a sink gets, unacknowledged."""
    found = stream.read_verdicts(["cam"], group, consumer, count, 0)
    return [delivery.verdict.frame_id.removeprefix("cam/1-") for delivery in found]


def act(stream: Stream, group: str, count: int = 100) -> list[str]:
    """Frame numbers a sink gets and acknowledges."""
    found = stream.read_verdicts(["cam"], group, "c", count, 0)
    stream.acknowledge_verdicts(group, found)
    return [delivery.verdict.frame_id.removeprefix("cam/1-") for delivery in found]


def kept(stream: Stream) -> list[str]:
    """Frame numbers of the verdicts still on the stream."""
    return [d.verdict.frame_id.removeprefix("cam/1-") for d in stream.tail_verdicts("cam", 100)]


def test_every_sink_sees_every_verdict_once(every_stream: Stream) -> None:
    """Each group is delivered all verdicts, also those written before it first read."""
    stream = every_stream
    write(stream, 1, 2)
    assert act(stream, "jsonl") == ["1", "2"]
    write(stream, 3)
    assert act(stream, "jsonl") == ["3"]
    assert act(stream, "reject") == ["1", "2", "3"]
    assert act(stream, "reject") == []


def test_a_sink_that_died_finds_its_unacknowledged_verdicts_again(every_stream: Stream) -> None:
    """A new process under the same consumer name begins with what the dead one had not finished."""
    stream = every_stream
    write(stream, 1, 2, 3, 4)
    assert act(stream, "reject", count=1) == ["1"]
    assert read(stream, "reject", count=2) == ["2", "3"]
    stream._position.clear()  # all that a process remembers of it
    assert read(stream, "reject", count=1) == ["2"]
    assert read(stream, "reject", count=5) == ["3"]
    assert read(stream, "reject") == ["4"]


def test_a_dead_consumers_verdicts_can_be_taken_over(every_stream: Stream) -> None:
    """Another consumer of the group reclaims what has been idle too long, and only that."""
    stream = every_stream
    write(stream, 1, 2)
    assert read(stream, "reject", "dead") == ["1", "2"]
    assert stream.reclaim_verdicts(["cam"], "reject", "c", 60_000, 8) == []
    taken = stream.reclaim_verdicts(["cam"], "reject", "c", 0, 8)
    assert [delivery.verdict.frame_id for delivery in taken] == ["cam/1-1", "cam/1-2"]
    stream.acknowledge_verdicts("reject", taken)
    assert stream.reclaim_verdicts(["cam"], "reject", "c", 0, 8) == []


def test_trimming_stops_at_the_slowest_sink(every_stream: Stream) -> None:
    """A verdict goes when every group has acknowledged it: undelivered and pending ones stay."""
    stream = every_stream
    write(stream, 1, 2, 3, 4)
    assert stream.trim_verdicts("cam") == 4 - len(kept(stream)) == 4  # nobody waits for them
    write(stream, 5, 6, 7, 8)
    assert read(stream, "slow", count=1) == ["5"]
    assert act(stream, "fast") == ["5", "6", "7", "8"]
    assert stream.trim_verdicts("cam") == 0
    stream.acknowledge_verdicts("slow", stream.tail_verdicts("cam", 4)[:1])
    assert stream.trim_verdicts("cam") == 1
    assert kept(stream) == ["6", "7", "8"]
    assert read(stream, "slow", count=2) == ["6", "7"]
    stream.acknowledge_verdicts("slow", stream.tail_verdicts("cam", 4)[1:2])  # 7, not 6
    assert stream.trim_verdicts("cam") == 0


def test_trimming_keeps_the_newest_for_the_dashboard(every_stream: Stream) -> None:
    """The newest ``keep`` verdicts stay although every sink is done with them."""
    stream = every_stream
    write(stream, *range(1, 8))
    act(stream, "reject")
    assert stream.trim_verdicts("cam", keep=10) == 0
    assert stream.trim_verdicts("cam", keep=3) == 4
    assert kept(stream) == ["5", "6", "7"]
    assert stream.trim_verdicts("cam", keep=3) == 0
    assert stream.trim_verdicts("cam") == 3
    assert stream.trim_verdicts("nothing-ever") == 0


def test_following_needs_no_group_and_misses_nothing(every_stream: Stream) -> None:
    """A reader goes on after the id it has seen; ids end in a gapless number per camera."""
    stream = every_stream
    assert stream.follow_verdicts("cam", "0") == []
    write(stream, 1, 2, 3)
    first = stream.follow_verdicts("cam", "0", count=2)
    rest = stream.follow_verdicts("cam", first[-1].entry_id, block_ms=10)
    numbers = [int(found.entry_id.partition("-")[2]) for found in first + rest]
    assert numbers == [1, 2, 3]
    assert stream.follow_verdicts("cam", rest[-1].entry_id, block_ms=10) == []
    assert [found.verdict.frame_id for found in stream.tail_verdicts("cam", 2)] == [
        "cam/1-2",
        "cam/1-3",
    ]


def test_cameras_are_kept_apart(every_stream: Stream) -> None:
    """Verdicts and counts of one camera never show on another."""
    stream = every_stream
    write(stream, 1, 2, camera="left")
    write(stream, 1, camera="right")
    found = stream.read_verdicts(["left", "right"], "reject", "c", 10, 0)
    assert sorted((d.camera, d.verdict.frame_id) for d in found) == [
        ("left", "left/1-1"),
        ("left", "left/1-2"),
        ("right", "right/1-1"),
    ]
    assert (stream.ledger("left").passed, stream.ledger("right").passed) == (2, 1)


def test_a_foreign_entry_blocks_no_sink(every_stream: Stream) -> None:
    """What is no verdict is skipped, and does not keep the stream from being trimmed."""
    stream = every_stream
    write(stream, 1)
    stream._commands.xadd(f"{stream.namespace}:{{cam}}:verdicts", {"junk": "1"}, id="*")
    assert act(stream, "reject") == ["1"]
    assert stream.trim_verdicts("cam") >= 1


def test_foreign_entries_block_nobody_who_looks_on(every_stream: Stream) -> None:
    """However many come in a row, the verdict behind them is found; behind the last is nothing."""
    stream = every_stream
    write(stream, 1)
    (first,) = stream.follow_verdicts("cam", "0")
    keys, (start, number) = stream._of("cam"), map(int, first.entry_id.split("-"))
    for junk in range(number + 1, number + 6):
        stream._commands.xadd(keys.verdicts, {"junk": "1"}, id=f"{start}-{junk}")
    assert stream.follow_verdicts("cam", first.entry_id, count=2, block_ms=10) == []
    stream._commands.hincrby(keys.ledger, "verdicts", 5)  # so that the next id lies behind them
    write(stream, 2)
    (second,) = stream.follow_verdicts("cam", first.entry_id, count=2)
    assert second.verdict.frame_id == "cam/1-2"


def test_what_is_answered_stands_until_a_sink_has_acted_on_it(every_stream: Stream) -> None:
    """A frame is open, then unacted, then counted as acted; at each instant it is one of them."""
    stream = every_stream
    write(stream, 1)
    assert not stream.standing("cam").has_sink
    assert stream.standing("cam").acted == {"pass": 1}  # nobody listens
    assert stream.standing("cam", knows_sink=True).unacted == {"cam/1-1": "pass"}
    assert read(stream, "jsonl") == ["1"]
    standing = stream.standing("cam")
    assert (standing.has_sink, standing.unacted, standing.acted) == (True, {"cam/1-1": "pass"}, {})
    stream.acknowledge_verdicts("jsonl", stream.tail_verdicts("cam", 1))
    standing = stream.standing("cam")
    assert (standing.open, standing.unacted, standing.acted) == (set(), {}, {"pass": 1})


def test_the_ledger_goes_by_what_was_acted_on(every_stream: Stream) -> None:
    """A frame answered again after a loss counts as its first verdict, however often told."""
    stream = every_stream
    write(stream, 1, 2)
    found = stream.read_verdicts(["cam"], "jsonl", "c", 10, 0)
    for _ in range(2):
        stream.acknowledge_verdicts("jsonl", found, {"cam/1-1": "fail", "cam/1-2": ""})
    ledger = stream.ledger("cam")
    assert (ledger.captured, ledger.passed, ledger.failed, ledger.residual) == (2, 1, 1, 0)


def test_only_a_server_without_a_ledger_recalls_one(every_stream: Stream) -> None:
    """Totals of before a loss begin the new ledger, once; a server that remembers keeps its own."""
    stream = every_stream
    before = {"pass": 3, "undecided:overrun": 2}
    assert stream.recall("cam", before)
    assert not stream.recall("cam", before)
    write(stream, 1)
    ledger = stream.ledger("cam")
    assert (ledger.captured, ledger.passed, ledger.undecided) == (6, 4, {"overrun": 2})
    assert ledger.residual == 0
