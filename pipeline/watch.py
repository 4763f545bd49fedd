"""Follow a line's verdicts without taking part: no consumer group, so nothing waits for a watcher."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

from engines.contracts import StreamLost

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from pipeline.stream import Stream, VerdictDelivery

POLL_S = 0.1


@contextmanager
def watching(
    stream: Stream, cameras: Sequence[str], see: Callable[[VerdictDelivery], None]
) -> Iterator[None]:
    """Call ``see`` with every verdict, in a thread, until the block ends; the last ones included."""
    stop = threading.Event()
    after = dict.fromkeys(cameras, "0")

    def look() -> None:
        for camera in cameras:
            for delivery in stream.follow_verdicts(camera, after[camera]):
                after[camera] = delivery.entry_id
                see(delivery)

    def follow() -> None:
        while not stop.wait(POLL_S):
            try:
                look()
            except StreamLost:
                continue

    thread = threading.Thread(target=follow, name="watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        look()
