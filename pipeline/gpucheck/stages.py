"""Where a call's time goes on the device, and what share of the GPU's own rates that is."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from engines.backend import open_backend
from engines.bundle import GRAPHS
from pipeline.bench.report import Result
from pipeline.gpucheck.bundles import tried
from pipeline.gpucheck.each import figures_of_each
from pipeline.gpucheck.outcome import Asked, Found

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from engines.backend import BatchedBackend
    from engines.bundle import Bundle, GraphName
    from engines.roof import Roof, Work

COMPUTE = "compute"
LOOKS = 5  # at each stage; the shortest counts, since events see the device alone


@runtime_checkable
class Staged(Protocol):
    """A backend that times the stages of a call by events on the device."""

    key: str

    def stages_ms(self, graph: GraphName, size: int) -> dict[str, float]:
        """Milliseconds of each stage of one call; ``compute`` is one of them."""
        ...

    def bytes_moved(self, graph: GraphName, size: int) -> tuple[int, int]:
        """Bytes that one call sends to the device and brings back."""
        ...


def rates(asked: Asked) -> Found:
    """The GPU's own rates: one large matrix product in each precision, and one large copy."""
    del asked
    from engines.roof import measured_roof

    roofs = {precision: measured_roof(precision) for precision in ("f32", "bf16")}
    slow, fast = roofs["f32"].operations_s, roofs["bf16"].operations_s
    copied = roofs["bf16"].bytes_s
    return Found(
        f"bf16 {fast / 1e12:,.0f} and f32 {slow / 1e12:,.0f} TFLOP/s, "
        f"memory {copied / 1e12:.2f} TB/s",
        (
            Result("roof.matmul.bf16", fast / 1e12, "TFLOP/s", "f32 without TF32", fast / slow),
            Result("roof.matmul.f32", slow / 1e12, "TFLOP/s", "bf16", slow / fast),
            Result("roof.copy", copied / 1e12, "TB/s", "read and written", 1.0),
        ),
    )


def stages(backend: str, precision: str, asked: Asked) -> Found:
    """Each stage of each graph by batch, its share of both rates and of its own roof."""
    from engines.roof import measured_roof

    roof = measured_roof("f32" if precision == "f32" else "bf16")

    def looked_at(name: str, bundle: Bundle) -> Iterator[Result]:
        with open_backend(bundle, backend, precision, max(asked.batches)) as engine:
            timed = engine if isinstance(engine, Staged) else Rehearsed(engine)
            yield from profiled(name, bundle, timed, roof, asked)

    return figures_of_each(tried(asked, engine=(backend, precision)), looked_at, _nearest)


class Rehearsed:
    """A backend without events: a whole call by the host's clock stands for its computing."""

    def __init__(self, backend: BatchedBackend) -> None:
        self.key, self._backend = backend.key, backend

    def stages_ms(self, graph: GraphName, size: int) -> dict[str, float]:
        """Milliseconds of one call from the host and back."""
        self._backend.rehearse(graph, size)  # the first ones load and capture
        began_s = time.perf_counter()
        self._backend.rehearse(graph, size)
        return {COMPUTE: 1e3 * (time.perf_counter() - began_s)}


def profiled(
    name: str, bundle: Bundle, engine: Staged | Rehearsed, roof: Roof, asked: Asked
) -> Iterator[Result]:
    """All stages of one bundle."""
    from engines.roof import work_of

    precision = "f32" if engine.key.endswith(":f32") else "bf16"
    for batch in asked.batches:
        work = work_of(bundle.manifest.configuration, precision, batch)
        for graph in GRAPHS:
            tail = f"{graph}.{name}.{engine.key}.b{batch}"
            took_ms = _shortest_ms(engine, graph, batch)
            whole_ms = sum(took_ms.values())
            for stage, ms in took_ms.items():
                share = whole_ms / max(ms, 1e-9)
                yield Result(f"stage.{stage.replace(' ', '_')}.{tail}", ms, "ms", "the call", share)
            yield from _shares(tail, work[graph], took_ms[COMPUTE] / 1e3, roof)
            if isinstance(engine, Staged):
                sent, back = engine.bytes_moved(graph, batch)
                yield Result(f"bus.{tail}", sent + back, "bytes", f"{sent} up, {back} down", 1.0)


def _shares(tail: str, work: Work, seconds: float, roof: Roof) -> Iterator[Result]:
    """What a call reaches of the GPU's rates, and of what is possible for its graph."""
    rate, moved = work.operations / seconds, work.bytes_moved / seconds
    reached = work.roof_s(roof) / seconds
    yield Result(f"of_peak.{tail}", rate / 1e12, "TFLOP/s", "matmul", rate / roof.operations_s)
    yield Result(f"of_memory.{tail}", moved / 1e12, "TB/s", "copy", moved / roof.bytes_s)
    yield Result(f"of_roof.{tail}", 100 * reached, "%", "the longer of both", reached)


def _nearest(results: Sequence[Result]) -> str:
    """The headline: the step that comes nearest to what is possible."""
    best = max((r for r in results if r.name.startswith("of_roof.step.")), key=lambda r: r.ratio)
    return f"step reaches {best.ratio:.0%} of its roof at best ({best.name})"


def _shortest_ms(engine: Staged | Rehearsed, graph: GraphName, batch: int) -> dict[str, float]:
    looks = [engine.stages_ms(graph, batch) for _ in range(LOOKS)]
    return {stage: min(look[stage] for look in looks) for stage in looks[0]}
