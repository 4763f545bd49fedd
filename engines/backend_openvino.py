"""The CPU default: a bundle's three graphs on OpenVINO.

Precision is always set explicitly: left to itself OpenVINO takes bf16 wherever the processor has
it, and findings would depend on the machine without anybody having asked. State rows are numpy
arrays; each graph has buffers that it reads and writes in place, so a row is copied once on its way
in (gather) and once on its way back (scatter).
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.backend import PROGRESS, BatchedBackend, columns, precision_of, usable_cores
from engines.contracts import EngineFault, Evidence, Progress, Rows
from engines.openvino_graphs import THREADS, Graph, Named, openvino_core

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from engines.backend import Precision
    from engines.bundle import GraphName, GraphsSpec
    from engines.quantised import Model

NAMES: tuple[GraphName, ...] = ("start", "step", "finish")
PRECISIONS = ("auto", "f32", "bf16", "int8")


class OpenVinoBackend(BatchedBackend):
    """Three compiled graphs over preallocated rows, ``capacity`` in all engines.

    ``precision``: one for all graphs, or one per graph. ``pins`` are the bundle's own wishes by
    graph ({"start": "f32"}); they are honoured where the caller did not ask for f32 or by graph.
    ``quantised``: int8 graphs by name; asked for int8, any other graph runs in f32.
    ``threads``: None leaves the number to OpenVINO. ``cache``: a folder for compiled graphs.
    ``engines``: so many may run at the same time, each with its share of the threads; ``beside``
    gives the others.
    """

    def __init__(
        self,
        folder: Path,
        spec: GraphsSpec,
        *,
        precision: Precision | Mapping[str, Precision] = "auto",
        pins: Mapping[str, Precision] | None = None,
        capacity: int = 32,
        threads: int | None = None,
        cache: Path | None = None,
        quantised: Mapping[GraphName, Model] | None = None,
        engines: int = 1,
    ) -> None:
        engines = min(engines, threads or usable_cores())
        capacity //= engines
        super().__init__(capacity)
        core = openvino_core()
        asked = _resolved(precision, core)
        held = _pinned(asked, pins or {}) if isinstance(precision, str) else asked
        self.precisions = _with_int8(held, quantised or {})
        self.key = f"openvino:{_summary(asked)}"
        self._spec = spec
        self._rows = _rows(spec, capacity)
        self._graphs: dict[GraphName, Graph] = {}
        for name, kind in self.precisions.items():
            # What is not int8 in a quantised graph stays f32: scores and choices are made there.
            hint = "f32" if kind == "int8" else kind
            model = quantised[name] if quantised and kind == "int8" else None
            self._graphs[name] = Graph(
                folder / f"{name}.onnx",
                spec.graphs[name],
                name,
                _settings(threads, cache) | {"INFERENCE_PRECISION_HINT": hint},
                quantised=model,
                capacity=capacity,
                engines=engines,
            )
        self._others: tuple[OpenVinoBackend, ...] = tuple(
            self._another() for _ in range(engines - 1)
        )

    @property
    def beside(self) -> Sequence[OpenVinoBackend]:
        """Those of the same graphs, each with rows of its own; closed with this one."""
        return self._others

    def rehearse(self, graph: GraphName, size: int) -> bool:
        """Run one bucket of a graph on what its buffers hold; state rows stay as they are."""
        self._guarded(graph, self._graphs[graph].run, size)
        return True

    def given(self, graph: GraphName, slot: int) -> Named:
        """What a graph would be given for the row of a slot, one row per tensor."""
        return {name: self._rows[name][[slot]] for name in self._graphs[graph].inputs}

    def close(self) -> None:
        """Release the compiled graphs and the rows."""
        for other in self._others:
            other.close()
        self._graphs, self._rows = {}, {}

    def _another(self) -> OpenVinoBackend:
        other = copy.copy(self)
        other._others = ()
        other._rows = _rows(self._spec, self.capacity)
        other._graphs = {name: graph.beside() for name, graph in self._graphs.items()}
        return other

    def _start(self, rows: Rows, slots: list[int]) -> Progress:
        return self._scatter(self._graphs["start"].run_on(columns(rows)), slots)

    def _step(self, slots: list[int]) -> Progress:
        return self._scatter(self._graphs["step"].run_from(self._rows, slots), slots)

    def _finish(self, slots: list[int]) -> Evidence:
        found = self._graphs["finish"].run_from(self._rows, slots)
        return Evidence(found["anomaly_map"].copy(), found["anomaly_score"].copy())

    def _scatter(self, found: Named, slots: list[int]) -> Progress:
        for name, values in found.items():
            self._rows[name][slots] = values
        return Progress(*(self._rows[name][slots] for name in PROGRESS))


def _rows(spec: GraphsSpec, capacity: int) -> Named:
    """Room for the state of so many rows."""
    return {t.name: np.zeros((capacity, *t.shape), np.dtype(t.dtype)) for t in spec.state}


def _settings(threads: int | None, cache: Path | None) -> dict[str, Any]:
    settings: dict[str, Any] = {
        # Pinned threads of two processes on one machine would wait for the same cores.
        "ENABLE_CPU_PINNING": False,
    }
    if threads is not None:
        settings[THREADS] = threads
    if cache is not None:
        settings["CACHE_DIR"] = str(cache)
    return settings


def _resolved(
    precision: Precision | Mapping[str, Precision],
    core: Any,  # noqa: ANN401 - openvino ships no types
) -> dict[GraphName, Precision]:
    """The precision of each graph; "auto" is bf16 where the processor has it, else f32."""
    asked = {name: precision_of(precision, name, PRECISIONS) for name in NAMES}
    native = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    if "bf16" in asked.values() and not native:
        raise EngineFault("this processor has no bf16; choose precision f32 or auto")
    best = "bf16" if native else "f32"
    return {name: best if wanted == "auto" else wanted for name, wanted in asked.items()}


def _pinned(
    asked: dict[GraphName, Precision], pins: Mapping[str, Precision]
) -> dict[GraphName, Precision]:
    """A bundle may hold a graph at f32 that would run in bf16; never the other way."""
    return {
        name: "f32" if pins.get(name) == "f32" and wanted == "bf16" else wanted
        for name, wanted in asked.items()
    }


def _with_int8(
    asked: dict[GraphName, Precision], quantised: Mapping[GraphName, Model]
) -> dict[GraphName, Precision]:
    """int8 where there is such a graph: its making decided which, by the parity gate; else f32."""
    return {
        name: "f32" if wanted == "int8" and name not in quantised else wanted
        for name, wanted in asked.items()
    }


def _summary(asked: dict[GraphName, Precision]) -> str:
    if len(set(asked.values())) == 1:
        return asked["step"]
    return ",".join(f"{name}={wanted}" for name, wanted in asked.items())
