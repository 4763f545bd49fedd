"""A watcher sees every verdict of its block once, and nobody waits for it."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator

import pytest

from engines.contracts import Decision, Reason, Verdict
from pipeline.stream import Stream, VerdictDelivery, open_stream
from pipeline.watch import POLL_S, watching

CAMERAS = ("left", "right")
MANY = 700  # more than one read of the stream brings


@pytest.fixture
def stream(redis_url: str, namespace: str) -> Iterator[Stream]:
    """The stream of this test, each camera with its epoch."""
    with open_stream(redis_url, namespace) as opened:
        for camera in CAMERAS:
            opened.begin_epoch(camera)
        yield opened


def answer(stream: Stream, camera: str, numbers: range) -> list[str]:
    """Refuse frames, which writes their verdicts; their ids."""
    ids = [f"{camera}/1-{number}" for number in numbers]
    for frame_id in ids:
        verdict = Verdict(
            frame_id=frame_id,
            camera=camera,
            decision=Decision.UNDECIDED,
            reason=Reason.OVERRUN,
            captured_ns=time.time_ns(),
            decided_ns=time.time_ns(),
        )
        assert stream.refuse(verdict)
    return ids


def test_every_verdict_of_the_block_is_seen_once(stream: Stream) -> None:
    """Both cameras, more than one read, the last written just before the block ends."""
    before = answer(stream, "left", range(1, 4))
    seen: Counter[str] = Counter()
    with watching(stream, CAMERAS, lambda d: seen.update([d.verdict.frame_id])):
        written = [*answer(stream, "left", range(4, MANY)), *answer(stream, "right", range(1, 50))]
    assert seen == Counter(written)
    assert not set(before) & set(seen)


def test_verdicts_come_in_their_order(stream: Stream) -> None:
    """Of one camera each is seen after those before it."""
    seen: list[str] = []
    with watching(stream, ["left"], lambda d: seen.append(d.verdict.frame_id)):
        written = answer(stream, "left", range(1, 60))
    assert seen == written


def test_a_block_without_verdicts_sees_none(stream: Stream) -> None:
    """An old verdict is not shown again."""
    answer(stream, "left", range(1, 3))
    seen: list[VerdictDelivery] = []
    with watching(stream, CAMERAS, seen.append):
        pass
    assert not seen


def test_what_was_answered_is_seen_though_the_block_fails(stream: Stream) -> None:
    """An error inside the block comes out, after the last verdict."""
    seen: list[str] = []
    with (  # noqa: PT012 - the block is what is tested
        pytest.raises(RuntimeError, match="broken"),
        watching(stream, ["left"], lambda d: seen.append(d.verdict.frame_id)),
    ):
        written = answer(stream, "left", range(1, 5))
        raise RuntimeError("broken")
    assert seen == written


def test_a_watcher_that_fails_says_so(stream: Stream) -> None:
    """What it raises in its thread comes out of the block, and not into the void."""

    def fail(_: VerdictDelivery) -> None:
        raise ValueError("cannot be shown")

    with (  # noqa: PT012 - the block is what is tested
        pytest.raises(ValueError, match="cannot be shown"),
        watching(stream, ["left"], fail),
    ):
        answer(stream, "left", range(1, 3))
        time.sleep(2 * POLL_S)


def test_a_watcher_holds_nothing_back(stream: Stream) -> None:
    """Watching makes no consumer group, so verdicts may be trimmed beneath it."""
    with watching(stream, ["left"], lambda _: None):
        answer(stream, "left", range(1, 20))
    stream.trim_verdicts("left", keep=0)
    assert not stream.tail_verdicts("left", 5)
