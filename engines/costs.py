"""What one call of a graph costs on this machine, by graph and batch size: measured, kept fresh.

Each cost is a running mean and a running deviation, as TCP keeps them for its round trips (RFC
6298): the mean says what a machine gets done, mean plus twice the deviation what one may rely on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from engines.backend import BUCKETS, DEVICE_BUCKETS, bucket_of
from engines.bundle import GRAPHS

if TYPE_CHECKING:
    from collections.abc import Callable

    from engines.backend import BatchedBackend
    from engines.bundle import GraphName

WEIGHT = 0.1  # of the newest call
NEARLY = 1.05  # times the best cost of a row: as good as the best
DEVIATIONS = 2.0
REHEARSALS = 2
OUTLIER = 3.0  # times the mean: no single call counts for more
DOUBT = 0.9  # of a price that keeps itself from being measured again


class CostTable:
    """Nanoseconds of one call, by graph and bucket; 0 for what was never seen.

    ``widest``: the largest batch that the backend takes in one call.
    """

    def __init__(self, widest: int = BUCKETS[-1]) -> None:
        self.widest = widest
        self._means: dict[tuple[GraphName, int], float] = {}
        self._deviations: dict[tuple[GraphName, int], float] = {}
        self._fresh: set[tuple[GraphName, int]] = set()  # seen once
        self._sizes: dict[tuple[GraphName, int], int] = {}  # answers of ``rows_of``

    def note(self, graph: GraphName, rows: int, took_ns: float) -> None:
        """Learn of one call; a clock that was set back teaches nothing."""
        if took_ns <= 0:
            return
        key = (graph, bucket_of(rows))
        self._sizes.clear()
        known = self._means.get(key)
        if known is None:
            self._means[key], self._deviations[key] = took_ns, 0.0
            self._fresh.add(key)
            return
        if key in self._fresh:  # a first call may have compiled
            self._fresh.remove(key)
            known = self._means[key] = min(known, took_ns)
        off = min(took_ns, OUTLIER * known) - known
        self._means[key] += WEIGHT * off
        self._deviations[key] += WEIGHT * (abs(off) - self._deviations[key])

    def doubt(self, graph: GraphName) -> None:
        """Lower what a graph costs a little: what was once dear may have been a busy machine."""
        self._sizes.clear()
        for key in self._means:
            if key[0] == graph:
                self._means[key] *= DOUBT
                self._deviations[key] *= DOUBT

    def call_ns(self, graph: GraphName, rows: int) -> float:
        """Mean time of one call with so many rows."""
        return self._means.get((graph, bucket_of(rows)), 0.0)

    def sure_ns(self, graph: GraphName, rows: int) -> float:
        """A time that a call seldom exceeds."""
        key = (graph, bucket_of(rows))
        return self._means.get(key, 0.0) + DEVIATIONS * self._deviations.get(key, 0.0)

    def row_ns(self, graph: GraphName, rows: int) -> float:
        """Mean time of one row in a call with so many."""
        return self.call_ns(graph, rows) / rows

    def rows_of(self, graph: GraphName, at_hand: int) -> int:
        """How many of the rows at hand share a call: the fewest that get nearly most done.

        Where a batch costs what its rows would cost one by one, the most urgent go alone and are
        back sooner; nothing would be gained by waiting for the others.
        """
        if at_hand < 2 or not self.call_ns(graph, at_hand):
            return at_hand
        if (known := self._sizes.get((graph, at_hand))) is None:
            counts = [*(size for size in DEVICE_BUCKETS if size < at_hand), at_hand]
            enough_ns = min(self.row_ns(graph, count) for count in counts) * NEARLY
            known = next(count for count in counts if self.row_ns(graph, count) <= enough_ns)
            self._sizes[graph, at_hand] = known
        return known


def measure_costs(
    backend: BatchedBackend,
    clock: Callable[[], int],
    batch_max: int = DEVICE_BUCKETS[-1],
    rest: Callable[[int], None] = lambda _: None,
) -> CostTable:
    """Run every bucket up to ``batch_max`` of every graph twice; rows keep what they hold.

    The better counts: a first call compiles. ``clock`` gives nanoseconds; ``rest`` is called with
    those of each call, after it, for a machine that has other work.
    """
    costs = CostTable(backend.buckets[-1])
    largest = bucket_of(min(backend.capacity, batch_max, costs.widest))
    for graph in GRAPHS:
        for size in DEVICE_BUCKETS[: DEVICE_BUCKETS.index(largest) + 1]:
            took = []
            for _ in range(REHEARSALS):
                began = clock()
                if not backend.rehearse(graph, size):
                    return costs
                took.append(clock() - began)
                rest(took[-1])
            costs.note(graph, size, min(took))
    return costs
