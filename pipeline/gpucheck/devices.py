"""The GPU by each of the libraries that the worker may use it by; no engine is needed for that.

Page-locked copies, both row kernels and a captured graph do what they say, byte for byte, and a
request for more memory than there is harms nothing. Then each is timed by events on the device.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

import numpy as np

from engines.contracts import EngineFault
from engines.gpu.device import Unavailable
from engines.gpu.faults import NoMemory
from engines.gpu.lease import Lease
from engines.gpu.rows import Moves, Strip, padded_slots, send_once
from pipeline.bench.report import Result
from pipeline.gpucheck.outcome import Asked, Found, NotHere

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from engines.contracts import UInt8
    from engines.gpu.device import Device, Graph

CAPACITY, SIZE = 96, 64  # rows of a table; of a batch
WIDTHS = (4, 12, 20_480, 262_144)  # bytes of a row: a number, three, a latent, a large state
LOOKS = 5  # at each rate; the shortest counts
TOO_MUCH = 2  # times the memory that the GPU has


def device(library: str, asked: Asked) -> Found:
    """What the worker asks of a GPU, by one library; NotHere where that is not installed."""
    del asked
    try:
        opened: Device = import_module(f"engines.gpu.device_{library}").open_device()
    except Unavailable as reason:
        raise NotHere(str(reason)) from reason
    with Lease(opened) as lease:
        rows = Rows(lease, WIDTHS)
        rows.require_moves()
        is_captured = rows.require_graph()
        require_refusal(opened)
        results = tuple(rates(library, rows))
        graphs = "graphs captured" if is_captured else "without graphs, which lack cuda-bindings"
        found = Found(f"{opened.name}: rows move as they should, {graphs}", results)
        lease.close()
    return found


class Rows:
    """Random rows of some tensors on the device, their batch, and the same rows on the host."""

    def __init__(self, lease: Lease, widths: Sequence[int]) -> None:
        rng = np.random.default_rng(7)
        self._lease, self._device, self.stream = lease, lease.device, lease.stream()
        self._kept = [rng.integers(0, 256, (CAPACITY, width), np.uint8) for width in widths]
        self._tables = [self._sent(rows) for rows in self._kept]
        self._batches = [lease.zeroed(SIZE * width, self.stream) for width in widths]
        strips = [
            Strip(table, batch, width, width)
            for table, batch, width in zip(self._tables, self._batches, widths, strict=True)
        ]
        self._moves = Moves(lease, strips, self.stream)
        self._slots = lease.memory(SIZE * 4)
        self._told, self._host = lease.pinned(SIZE * 4), lease.pinned(CAPACITY * max(widths))
        self._marks = lease.event(timed=True), lease.event(timed=True)
        self.bytes = SIZE * sum(widths)  # of a batch

    def require_moves(self) -> None:
        """Raise EngineFault unless rows get to a batch, and back to the rows that are named."""
        chosen = self._choose(seed=1)
        self._queued()
        self._require_batch(chosen)
        for batch, rows in zip(self._batches, self._kept, strict=True):
            self._device.fill(batch, 9, SIZE * rows.shape[1], self.stream)
            rows[chosen] = 9
        self.scatter()
        for table, rows in zip(self._tables, self._kept, strict=True):
            self._require(table, rows, "scatter_rows")

    def require_graph(self) -> bool:
        """The same of a captured graph, which must read its slots anew; False without graphs."""
        graph = self.captured()
        if graph is None:
            return False
        for seed in (2, 3):
            chosen = self._choose(seed)
            graph.launch(self.stream)
            self._require_batch(chosen)
        return True

    def captured(self) -> Graph | None:
        """Sending the slots and gathering as one launch; None where nothing is captured."""
        if not self._device.has_graphs:
            return None
        return self._lease.keep(self._device.capture(self.stream, self._queued))

    def gather(self) -> None:
        """Queue the rows that were chosen last to the batch."""
        self._moves.queue("gather_rows", SIZE, self._slots, self.stream)

    def scatter(self) -> None:
        """Queue them back."""
        self._moves.queue("scatter_rows", SIZE, self._slots, self.stream)

    def copy(self) -> None:
        """Queue a copy of the largest tensor's batch within the device."""
        self._device.copy(self._batches[-1], self._tables[-1], self.widest, self.stream)

    def upload(self) -> None:
        """Queue as much from the host."""
        self._device.upload(self._batches[-1], self._host, self.widest, self.stream)

    def download(self) -> None:
        """Queue as much to the host."""
        self._device.download(self._host, self._tables[-1], self.widest, self.stream)

    @property
    def widest(self) -> int:
        """Bytes of the largest tensor's batch."""
        return SIZE * int(self._kept[-1].shape[1])

    def shortest_ms(self, queue: Callable[[], None]) -> float:
        """Milliseconds on the device of what is queued, once it has run before."""
        began, ended = self._marks
        spans = []
        for _ in range(LOOKS + 1):
            began.record(self.stream)
            queue()
            ended.record(self.stream)
            ended.synchronise()
            spans.append(ended.elapsed_ms(began))
        return max(min(spans[1:]), 1e-6)

    def _queued(self) -> None:
        self._device.upload(self._slots, self._told, SIZE * 4, self.stream)
        self.gather()

    def _choose(self, seed: int) -> list[int]:
        """Rows that the next moves are about: some of a batch, the rest of which only fills up."""
        chosen: list[int] = np.random.default_rng(seed).permutation(CAPACITY)[: SIZE - 5].tolist()
        self.stream.synchronise()  # nothing reads what is written now
        self._told.write(padded_slots(chosen, SIZE))
        return chosen

    def _require_batch(self, chosen: Sequence[int]) -> None:
        read = [*chosen, *[chosen[-1]] * (SIZE - len(chosen))]
        for batch, rows in zip(self._batches, self._kept, strict=True):
            self._require(batch, rows[read], "gather_rows")

    def _require(self, address: int, expected: UInt8, what: str) -> None:
        self._device.download(self._host, address, expected.nbytes, self.stream)
        self.stream.synchronise()
        if not np.array_equal(self._host.read(expected.nbytes), expected.reshape(-1)):
            width = expected.shape[1]
            raise EngineFault(f"{what} brings other bytes than it was given, in rows of {width}")

    def _sent(self, values: UInt8) -> int:
        address = self._lease.memory(values.nbytes)
        send_once(self._device, address, values, self.stream)
        return address


def require_refusal(opened: Device) -> None:
    """Raise EngineFault unless too much memory is refused, and some is still given afterwards."""
    try:
        opened.free(opened.allocate(TOO_MUCH * opened.memory().total))
    except NoMemory:
        opened.free(opened.allocate(1 << 20))
        return
    raise EngineFault("the GPU gives more memory than it has")


def rates(library: str, rows: Rows) -> Iterator[Result]:
    """Bytes per second of copies and of the kernels, and what a launch costs."""

    def result(what: str, moved: int, ms: float, against: str, other_hz: float) -> Result:
        rate = moved / ms / 1e6  # GB/s
        return Result(f"device.{what}.{library}", rate, "GB/s", against, rate / other_hz)

    down, copied = rows.shortest_ms(rows.download), rows.shortest_ms(rows.copy)
    down_rate, copy_rate = rows.widest / down / 1e6, 2 * rows.widest / copied / 1e6
    up = rows.shortest_ms(rows.upload)
    yield result("upload", rows.widest, up, "download", down_rate)
    yield result("download", rows.widest, down, "copy within the GPU", copy_rate)
    for what, queue in (("gather", rows.gather), ("scatter", rows.scatter)):
        ms = rows.shortest_ms(queue)
        yield result(what, 2 * rows.bytes, ms, "copy, read and written", copy_rate)
    if (graph := rows.captured()) is not None:
        alone = rows.shortest_ms(rows.gather)
        ms = rows.shortest_ms(lambda: graph.launch(rows.stream))
        name = f"device.graph.{library}"
        yield Result(name, 1e3 * ms, "us", "its kernel alone, without its copy", alone / ms)
