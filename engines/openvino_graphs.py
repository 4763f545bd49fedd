"""Graphs on OpenVINO: compiled, fed in place, and spread over the processor.

A call of several rows can use the processor in two ways: all threads share every operation, or each
stream of threads takes rows of its own. The second leaves nobody waiting for the slowest at the end
of every operation, whatever else runs on the machine; the first is the only one for a single row.
And a stream may take its rows all together or a few at a time: what many rows hold between two
operations is more than a cache does. Which is quickest is measured when a graph is opened.

Where several engines share the processor, each has a stream of one compiled model, and they never
wait for one another. With one thread each they have compiled models of their own, which run in the
calling thread: to hand every call to a thread of OpenVINO's and to be woken by it cost a line near
its gate half of what its engines had to wait for a core.
"""

from __future__ import annotations

import copy
import functools
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from engines.backend import BUCKETS, bucket_of, last_line, output_name, usable_cores
from engines.contracts import AnyArray, BadBundle, EngineFault

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence
    from pathlib import Path

    from engines.bundle import GraphName, GraphSpec
    from engines.quantised import Model

Named = dict[str, AnyArray]
MOST = BUCKETS[-1]  # rows of a call
THREADS = "INFERENCE_NUM_THREADS"
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


class Way(NamedTuple):
    """How the rows of a call go through a compiled model."""

    compiled: Any
    each: int  # rows that go together
    streams: int = 1  # on which others go meanwhile; of one, they go in turn
    by_caller: bool = False  # in the calling thread: there is no other


@dataclass(frozen=True, slots=True)
class Call:
    """A batch of one size, laid out: requests that each read and write some of its rows."""

    requests: tuple[Any, ...]
    at_once: bool
    by_caller: bool = False

    def run(self) -> None:
        """Run all requests; every one of them has ended when this does, even by raising."""
        if self.by_caller:
            for request in self.requests:
                request.infer(share_outputs=True)  # else it would copy them for its return value
            return
        with ExitStack() as ending:
            for request in self.requests:
                # Not infer(): the calling thread has no stream of its own among several.
                request.start_async()
                if self.at_once:
                    ending.callback(request.wait)
                else:
                    request.wait()


class Spread:
    """A model on the processor, and the buffers that it reads (``given``) and writes (``found``).

    Compiled by ``settings`` of the CPU plugin for calls of up to ``capacity`` rows. With several
    ``engines`` it is one of so many that may run at the same time; ``beside`` gives the others.
    Raises RuntimeError where the model does not compile.
    """

    def __init__(
        self,
        model: Any,  # noqa: ANN401 - openvino ships no types
        settings: Mapping[str, Any],
        capacity: int = MOST,
        engines: int = 1,
    ) -> None:
        most = min(capacity, MOST)
        ways = _ways(model, settings, bucket_of(most), engines)
        # Compiled models for those beside this one, where each has its own.
        others = engines - 1 if ways[0].by_caller else 0
        self._others = [_in_caller(model, settings) for _ in range(others)]
        self.inputs, self.outputs = list(ways[0].compiled.inputs), list(ways[0].compiled.outputs)
        self._hold_buffers()
        tried = bucket_of(min(most, max(TRIED, *(way.streams for way in ways))))
        quickest = self._quickest(ways, tried)
        self._ways = {size: quickest if size >= quickest.streams else ways[0] for size in BUCKETS}
        self._calls = self._laid_out()

    def beside(self) -> Spread:
        """The same with buffers of its own: another engine."""
        other = copy.copy(self)
        if self._ways[1].by_caller:
            own = self._others.pop()  # there are no more than were asked for
            other._ways = {size: way._replace(compiled=own) for size, way in self._ways.items()}
        other._hold_buffers()
        other._calls = other._laid_out()
        return other

    def run(self, count: int) -> None:
        """Run the bucket that holds ``count`` rows on what lies in the buffers."""
        self._calls[bucket_of(count)].run()

    def _hold_buffers(self) -> None:
        self.given = [_buffer(port) for port in self.inputs]
        self.found = [_buffer(port) for port in self.outputs]

    def _quickest(self, ways: Sequence[Way], tried: int) -> Way:
        """The way that so many rows go quickest; a single one need not be tried."""
        if len(ways) == 1:
            return ways[0]
        calls = [self._call(tried, way) for way in ways]
        took_s = [min(times) for times in zip(*_timed(calls), strict=True)]
        return ways[took_s.index(min(took_s))]

    def _laid_out(self) -> dict[int, Call]:
        """The calls of every size over the buffers."""
        return {size: self._call(size, way) for size, way in self._ways.items()}

    def _call(self, size: int, way: Way) -> Call:
        """A bucket of so many rows; what does not go together has a request of its own."""
        tensor = load_openvino().Tensor
        each = min(way.each, max(1, size // way.streams))

        def request(first: int) -> Any:  # noqa: ANN401 - openvino ships no types
            """One that reads and writes views of the buffers, from this row on."""
            rows, made = slice(first, first + each), way.compiled.create_infer_request()
            for index, buffer in enumerate(self.given):
                made.set_input_tensor(index, tensor(buffer[rows], shared_memory=True))
            for index, buffer in enumerate(self.found):
                made.set_output_tensor(index, tensor(buffer[rows], shared_memory=True))
            return made

        requests = tuple(request(first) for first in range(0, size, each))
        return Call(requests, way.streams > 1, way.by_caller)


def _ways(
    model: Any,  # noqa: ANN401 - openvino ships no types
    settings: Mapping[str, Any],
    most: int,
    engines: int,
) -> list[Way]:
    """How calls of up to ``most`` rows could go, the one for any number first."""
    compiled = functools.partial(openvino_core().compile_model, model, "CPU")
    few = [each for each in BUCKETS if each < min(most, TRIED)]
    if int(settings.get(THREADS) or usable_cores()) // engines <= 1:
        own = _in_caller(model, settings)
        return [Way(own, each, by_caller=True) for each in (most, *few)]
    if engines > 1:  # each of them has a stream, and takes what it is given in turn
        own = compiled({"NUM_STREAMS": engines, **settings})
        return [Way(own, each) for each in (most, *few)]
    whole = compiled({"PERFORMANCE_HINT": "LATENCY", **settings})
    together = Way(whole, most)
    threads = int(whole.get_property(THREADS))
    streams = min(most, _power_of_two(threads))  # as buckets are
    if streams == 1:
        return [together, *(Way(whole, each) for each in few)]
    own = compiled({"NUM_STREAMS": streams, THREADS: threads, **settings})
    return [together, *(Way(own, each, streams) for each in few if each * streams <= most)]


def _in_caller(
    model: Any,  # noqa: ANN401 - openvino ships no types
    settings: Mapping[str, Any],
) -> Any:  # noqa: ANN401 - as above
    """A model that the calling thread computes alone."""
    alone = {**settings, "NUM_STREAMS": 1, THREADS: 1}
    return openvino_core().compile_model(model, "CPU", alone)


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
        engines: int = 1,
    ) -> None:
        self.name, self.inputs, self._outputs = name, spec.inputs, spec.outputs
        self._spread = _spread(path, settings, quantised, capacity, engines)
        wanted = [output_name(name, output) for output in spec.outputs]
        ours = self._spread
        if not (_named(ours.inputs, spec.inputs) and _named(ours.outputs, wanted)):
            raise BadBundle(f"{name}.onnx has other inputs or outputs than its manifest names")
        self._name_buffers()

    def beside(self) -> Graph:
        """The same graph for another engine."""
        other = copy.copy(self)
        other._spread = self._spread.beside()
        other._name_buffers()
        return other

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

    def _name_buffers(self) -> None:
        self._given: Named = dict(zip(self.inputs, self._spread.given, strict=True))
        self._found: Named = dict(zip(self._outputs, self._spread.found, strict=True))


def _timed(calls: Sequence[Call]) -> Iterator[list[float]]:
    """Seconds of each call, so many times in turn; what comes first also warms."""
    for _ in range(TURNS):
        took = []
        for call in calls:
            began_s = time.perf_counter()
            call.run()
            took.append(time.perf_counter() - began_s)
        yield took


def _spread(
    path: Path,
    settings: Mapping[str, Any],
    quantised: Model | None,
    capacity: int,
    engines: int,
) -> Spread:
    """A graph from its file, or from the bytes of its int8 form; BadBundle where it fails."""
    try:
        core = openvino_core()
        model = core.read_model(*quantised) if quantised else core.read_model(str(path))
        return Spread(model, settings, capacity, engines)
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
