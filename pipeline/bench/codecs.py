"""What packing an image costs, and what it saves on a link of 1 Gbit/s, on simulated frames."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING

from pipeline.bench.report import Result
from pipeline.simulator.render import PARTS, render
from pipeline.wire import Codec, FrameEntry, entry_from, to_fields

if TYPE_CHECKING:
    from engines.contracts import UInt8

PARTS_EACH = 3
TRIES = 5  # the fastest of them counts
LINK_BYTES_PER_MS = 125_000  # 1 Gbit/s
AS_THEY_ARE = "images as they are"
ON_A_LINK = "images as they are, over 1 Gbit/s"


def bench_codecs(side: int) -> tuple[Result, ...]:
    """Medians over parts of every kind; to pack and unpack is counted, the link is reckoned."""
    images = [
        render(part, seed=1, index=index, size=(side, side)).image
        for part in PARTS
        for index in range(PARTS_EACH)
    ]
    measured = [_measured(image) for image in images]
    share, cost_ms = (statistics.median(column) for column in zip(*measured, strict=True))
    plain_ms = images[0].nbytes / LINK_BYTES_PER_MS
    return (
        Result("transport.codec.lz4", share, "of bytes", AS_THEY_ARE, 1 / share),
        Result(
            "transport.codec.lz4.cost",
            cost_ms,
            "ms",
            ON_A_LINK,
            plain_ms / (cost_ms + share * plain_ms),
        ),
    )


def _measured(image: UInt8) -> tuple[float, float]:
    """Share of the bytes that is left, and what the codec adds to writing and reading a frame."""
    entry = FrameEntry("bench/1-1", "bench", 0, 1, image)
    left = image.nbytes - _field_bytes(entry, "none") + _field_bytes(entry, "lz4")
    added_ms = _way_ms(entry, "lz4") - _way_ms(entry, "none")
    return left / image.nbytes, max(0.0, added_ms)


def _field_bytes(entry: FrameEntry, codec: Codec) -> int:
    return sum(len(content) for content in to_fields(entry, codec=codec).values())


def _way_ms(entry: FrameEntry, codec: Codec) -> float:
    tries = []
    for _ in range(TRIES):
        began = time.perf_counter()
        fields = to_fields(entry, codec=codec)
        packed = time.perf_counter()
        received = {name.encode(): bytes(content) for name, content in fields.items()}
        arrived = time.perf_counter()
        entry_from(received)
        tries.append(packed - began + time.perf_counter() - arrived)
    return min(tries) * 1e3
