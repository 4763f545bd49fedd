"""Follow a line's verdicts without a consumer group, so that nothing waits for a watcher."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from engines.contracts import StreamLost
from pipeline.lanes import Lane
from pipeline.stream import Stream, VerdictDelivery

POLL_S = 0.1
BEGINNING = "0"


@contextmanager
def watching(
    stream: Stream, cameras: Sequence[str], see: Callable[[VerdictDelivery], None]
) -> Iterator[None]:
    """Call ``see`` with every verdict written during the block, in a thread; the last included.

    What ``see`` raises ends the watch, and is raised where the block ends.
    """
    after = {camera: _newest(stream, camera) for camera in cameras}

    def look() -> None:
        for camera in cameras:
            while found := stream.follow_verdicts(camera, after[camera]):
                after[camera] = found[-1].entry_id
                for delivery in found:
                    see(delivery)

    def follow(stop: threading.Event) -> None:
        while not stop.wait(POLL_S):
            try:
                look()
            except StreamLost:  # it comes back, or the line gives up
                continue

    try:
        with Lane("watch", follow):
            yield
    except BaseException:
        with suppress(StreamLost):  # what the block raised says more
            look()
        raise
    look()


def _newest(stream: Stream, camera: str) -> str:
    newest = stream.tail_verdicts(camera, 1)
    return newest[-1].entry_id if newest else BEGINNING
