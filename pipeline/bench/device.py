"""A GPU's engine: how fast its graphs are beside this machine's CPU, and what crosses the bus.

State rows stay on the device, so a step sends the slots of its rows and brings back the few
integers that the scheduler decides by. Against: all state rows of the bucket going up and coming
down with every call, as they would if they lived on the host.
"""

from __future__ import annotations

from functools import partial
from math import prod
from typing import TYPE_CHECKING, Protocol, runtime_checkable

import numpy as np

from engines.backend import open_backend
from engines.bundle import GRAPHS, open_bundle
from engines.parity import open_reference
from pipeline.bench.depth import refuse_tiles
from pipeline.bench.machine import machine_facts
from pipeline.bench.report import Report, Result
from pipeline.bench.turns import drawn_rows, in_turns, timed_pass

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

    from engines.bundle import Bundle, GraphName
    from engines.contracts import Backend

BATCHES, ROUNDS = (1, 8, 64), 5
ON_HOST = "state rows kept on the host"


@runtime_checkable
class Moving(Protocol):
    """A backend that knows what its calls send over the bus."""

    key: str

    def bytes_moved(self, graph: GraphName, size: int) -> tuple[int, int]:
        """Bytes that one call sends to the device and brings back."""
        ...


def bench_device(
    bundle_path: Path | str,
    backend: str,
    precision: str = "auto",
    *,
    rounds: int = ROUNDS,
    batches: Sequence[int] = BATCHES,
) -> Report:
    """One engine of a device at each batch size, which must be buckets of it."""
    bundle = refuse_tiles(open_bundle(bundle_path))
    results: list[Result] = []
    with (
        open_backend(bundle, backend, precision, max(batches)) as ours,
        open_reference(bundle, max(batches)) as reference,
    ):
        for batch in batches:
            results += against_cpu(bundle, ours, reference, batch, rounds)
            if isinstance(ours, Moving):
                results += across_the_bus(bundle, ours, batch)
        facts = {"bundle": bundle.bundle_id, "engine": ours.key}
    return Report(machine_facts() | facts, tuple(results))


def against_cpu(
    bundle: Bundle, ours: Backend, reference: Backend, batch: int, rounds: int
) -> Iterator[Result]:
    """Whole passes at the deepest plan and their graphs, in turns."""
    rows = drawn_rows(bundle, batch)
    runs = {one.key: partial(timed_pass, one, rows) for one in (ours, reference)}
    took = in_turns(runs, rounds)
    for part, seconds in took[ours.key].items():
        name = f"engine.vs_cpu.{part}.{ours.key}_b{batch}"
        ratio = took[reference.key][part] / seconds
        yield Result(name, 1e3 * seconds / batch, "ms/frame", f"{reference.key} on the CPU", ratio)


def across_the_bus(bundle: Bundle, engine: Moving, batch: int) -> Iterator[Result]:
    """Bytes of one call of each graph, both ways."""
    for graph in GRAPHS:
        up, down = engine.bytes_moved(graph, batch)
        yield Result(
            f"engine.bus.{graph}.{engine.key}_b{batch}",
            up + down,
            "bytes/call",
            f"{ON_HOST} ({up} up, {down} down)",
            (up + down + state_bytes(bundle, graph, batch)) / (up + down),
        )


def state_bytes(bundle: Bundle, graph: GraphName, batch: int) -> int:
    """What the state tensors that a graph reads and writes weigh, for a bucket."""
    spec = bundle.manifest.spec
    weights = {t.name: prod(t.shape) * np.dtype(t.dtype).itemsize for t in spec.state}
    read = () if graph == "start" else spec.graphs[graph].inputs
    written = () if graph == "finish" else spec.graphs[graph].outputs
    return batch * sum(weights[name] for name in (*read, *written))
