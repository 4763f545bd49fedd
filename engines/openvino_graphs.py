"""Graphs on OpenVINO: compiled, fed in place, and spread over the processor.

A call of several rows can use the processor in two ways: all threads share every operation, or each
thread takes rows of its own. The second leaves nobody waiting for the slowest at the end of every
operation, whatever else runs on the machine; the first is the only one for a single row. Which is
quicker for many is measured when a graph is opened.
"""

from __future__ import annotations

import functools
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from engines.backend import BUCKETS, bucket_of, last_line, output_name
from engines.contracts import AnyArray, BadBundle, EngineFault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from engines.bundle import GraphName, GraphSpec
    from engines.quantised import Model

Named = dict[str, AnyArray]
MOST = BUCKETS[-1]  # rows of a call
TRIED, TURNS = 8, 3  # rows of the calls that are timed, at most, and how often


def load_openvino() -> Any:  # noqa: ANN401 - openvino ships no types
    """Import OpenVINO without its telemetry, which otherwise reports every import to its maker."""
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type] # None = no such module
    import openvino

    return openvino


@functools.cache
def openvino_core() -> Any:  # noqa: ANN401 - openvino ships no types
    """The one core of this process, which lasts as long as it does.

    Each core of OpenVINO puts a stack of its own under signal handlers and, when it goes, the one
    it had found there. Of several that go in another order than they came, a stack remains that is
    no longer memory, and the next signal, such as SIGTERM, kills the process.
    """
    return load_openvino().Core()


@dataclass(frozen=True, slots=True)
class Share:
    """Rows of one call that one request takes, as views of the buffers: inputs and outputs."""

    request: Any
    given: tuple[Any, ...]
    found: tuple[Any, ...]

    def bind(self) -> None:
        """Have the request read and write these views."""
        for index, tensor in enumerate(self.given):
            self.request.set_input_tensor(index, tensor)
        for index, tensor in enumerate(self.found):
            self.request.set_output_tensor(index, tensor)


class Spread:
    """A model on the processor, and the buffers that it reads (``given``) and writes (``found``).

    Compiled by ``settings`` of the CPU plugin for calls of up to ``capacity`` rows. Raises
    RuntimeError where the model does not compile.
    """

    def __init__(self, model: Any, settings: Mapping[str, Any], capacity: int = MOST) -> None:  # noqa: ANN401 - openvino ships no types
        core = openvino_core()
        together = core.compile_model(model, "CPU", {"PERFORMANCE_HINT": "LATENCY", **settings})
        self.inputs, self.outputs = list(together.inputs), list(together.outputs)
        self.given = [_buffer(port) for port in self.inputs]
        self.found = [_buffer(port) for port in self.outputs]
        whole = [together.create_infer_request()]
        self._shares = {size: self._shared(size, whole) for size in BUCKETS}
        threads, most = int(together.get_property("INFERENCE_NUM_THREADS")), min(capacity, MOST)
        streams = min(bucket_of(most), _power_of_two(threads))  # as buckets are
        if streams > 1:
            own = {"NUM_STREAMS": streams, "INFERENCE_NUM_THREADS": threads, **settings}
            apart = core.compile_model(model, "CPU", own)
            requests = [apart.create_infer_request() for _ in range(streams)]
            self._part(requests, bucket_of(min(most, max(TRIED, streams))))

    def run(self, count: int) -> None:
        """Run the bucket that holds ``count`` rows on what lies in the buffers."""
        _run(self._shares[bucket_of(count)])

    def _part(self, requests: Sequence[Any], tried: int) -> None:
        """Let rows go apart from now on, if so many of them are quicker that way here."""
        apart = {s: self._shared(s, requests) for s in BUCKETS if s >= len(requests)}
        ways = (self._shares[tried], apart[tried])
        together_s, apart_s = (min(times) for times in zip(*_timed(ways), strict=True))
        if apart_s < together_s:
            self._shares |= apart

    def _shared(self, size: int, requests: Sequence[Any]) -> list[Share]:
        """A bucket of so many rows in equal parts, one to each request."""
        tensor, each = load_openvino().Tensor, size // len(requests)

        def views(buffers: Sequence[AnyArray], first: int) -> tuple[Any, ...]:
            rows = slice(first, first + each)
            return tuple(tensor(buffer[rows], shared_memory=True) for buffer in buffers)

        return [
            Share(request, views(self.given, first), views(self.found, first))
            for request, first in zip(requests, range(0, size, each), strict=True)
        ]


class Graph:
    """One graph of a bundle, whose rows are copied into its buffers.

    ``path`` is compiled, or ``quantised`` is, its int8 form. Raises BadBundle for a graph that does
    not compile or has other inputs and outputs than its manifest names.
    """

    def __init__(
        self,
        path: Path,
        spec: GraphSpec,
        name: GraphName,
        settings: Mapping[str, Any],
        *,
        quantised: Model | None = None,
        capacity: int = MOST,
    ) -> None:
        self.name, self.inputs = name, spec.inputs
        self._spread = _spread(path, settings, quantised, capacity)
        wanted = [output_name(name, output) for output in spec.outputs]
        ours = self._spread
        if not (_named(ours.inputs, spec.inputs) and _named(ours.outputs, wanted)):
            raise BadBundle(f"{name}.onnx has other inputs or outputs than its manifest names")
        self._given: Named = dict(zip(spec.inputs, ours.given, strict=True))
        self._found: Named = dict(zip(spec.outputs, ours.found, strict=True))

    def run_on(self, columns: Named) -> Named:
        """Outputs for as many rows as the columns have; they live until the next run."""
        count = len(columns["plan"])
        for name, buffer in self._given.items():
            if columns[name].shape[1:] != buffer.shape[1:] or columns[name].dtype != buffer.dtype:
                raise EngineFault(
                    f"the {name} of a frame must be {buffer.dtype} {list(buffer.shape[1:])}, "
                    f"not {columns[name].dtype} {list(columns[name].shape[1:])}"
                )
            buffer[:count] = columns[name]
            buffer[count : bucket_of(count)] = columns[name][-1]
        return self.run(count)

    def run_from(self, rows: Named, slots: list[int]) -> Named:
        """Outputs for the rows named; they live until the next run."""
        size = bucket_of(len(slots))
        filled = [*slots, *[slots[-1]] * (size - len(slots))]
        for name, buffer in self._given.items():
            np.take(rows[name], filled, axis=0, out=buffer[:size], mode="clip")
        return self.run(len(slots))

    def run(self, count: int) -> Named:
        """Run the bucket that holds ``count`` rows on what lies in the buffers."""
        self._spread.run(count)
        return {name: buffer[:count] for name, buffer in self._found.items()}


def _run(shares: Sequence[Share]) -> None:
    """One call: all shares at once; every one of them has ended when this does, even by raising."""
    for share in shares:
        share.bind()
    if len(shares) == 1:
        shares[0].request.infer()
        return
    with ExitStack() as ending:
        for share in shares:
            share.request.start_async()
            ending.callback(share.request.wait)


def _timed(ways: Sequence[Sequence[Share]]) -> Iterator[list[float]]:
    """Seconds of one call each way, so many times in turn; what comes first also warms."""
    for _ in range(TURNS):
        took = []
        for way in ways:
            began_s = time.perf_counter()
            _run(way)
            took.append(time.perf_counter() - began_s)
        yield took


def _spread(
    path: Path, settings: Mapping[str, Any], quantised: Model | None, capacity: int
) -> Spread:
    """A graph from its file, or from the bytes of its int8 form; BadBundle where it fails."""
    try:
        core = openvino_core()
        model = core.read_model(*quantised) if quantised else core.read_model(str(path))
        return Spread(model, settings, capacity)
    except RuntimeError as error:
        reason = last_line(error)
        raise BadBundle(f"{path} does not compile: {reason}; export it again") from error


def _power_of_two(most: int) -> int:
    """The largest power of two that is no more."""
    return 1 << (most.bit_length() - 1)


def _named(ports: list[Any], names: Sequence[str]) -> bool:
    """Whether the ports carry these names in this order; equal tensors share all their names."""
    return len(ports) == len(names) and all(
        name in port.get_names() for port, name in zip(ports, names, strict=True)
    )


def _buffer(port: Any) -> AnyArray:  # noqa: ANN401 - openvino ships no types
    """Rows enough for the largest bucket of one tensor, whose batch dimension alone is dynamic."""
    row = [dimension.get_length() for dimension in list(port.partial_shape)[1:]]
    return np.zeros((MOST, *row), port.element_type.to_dtype())
