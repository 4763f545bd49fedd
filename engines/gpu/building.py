"""From a bundle's ONNX files to engines, ahead of time and on any machine that the library allows.

Each batch size is an optimisation profile of its own whose shapes are fixed: a profile over a range
would be slower at every size of it, and RTX would compile again at the line.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

from engines.backend import engine_cache
from engines.bundle import GRAPHS
from engines.contracts import BadBundle, BadConfig, EngineFault
from engines.gpu.engine_file import EngineKey, engine_folder, write_engine
from engines.gpu.executable import Port
from engines.gpu.ports import Ports, check_ports, ports_of
from engines.gpu.precision import EIGHT_BITS, precisions_of, summary_of
from engines.gpu.target import Target, Timings, find_target

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from pathlib import Path

    from engines.bundle import Bundle, GraphName
    from engines.contracts import UInt8
    from engines.gpu.eight import EightBitGraphs
    from engines.gpu.libraries import Library


def build_engines(
    bundle: Bundle,
    precision: str | Mapping[str, str] = "auto",
    folder: Path | None = None,
    *,
    target: Target | None = None,
    progress: Callable[[float, str], None] = lambda *_: None,
    eight: EightBitGraphs | None = None,
) -> str:
    """Build the engines of all three graphs below ``folder`` and return the backend's key.

    ``target``: absent, whatever the library that is here builds for by itself. ``eight``: graphs in
    int8 or fp8 where they are made already. ``progress`` is told the share done and what is built.
    Raises BadConfig for a library or precision that is not there, BadBundle for graphs that cannot
    be read, ParityError where eight bits are too few, EngineFault where a build fails.
    """
    target = target or find_target()
    summary, cache = summary_of(precision), folder or engine_cache(bundle)
    kinds = precisions_of(bundle, precision)
    eight = eight or eight_bits_for(bundle, kinds, target)
    files = {graph: typed_graph(bundle, graph, kind) for graph, kind in kinds.items()}
    files |= eight.files if eight else {}
    for done, (graph, kind) in enumerate(kinds.items()):
        progress(done / len(GRAPHS), f"{graph} in {kind} by {target.library}")
        data = files[graph]
        engine, ports = build_graph(bundle, graph, data, target, cache)
        key = EngineKey(
            bundle_id=bundle.bundle_id,
            graph=graph,
            library=target.library.name,
            library_version=target.library.version,
            compute=target.compute,
            precision=kind,
            buckets=target.buckets,
            inputs=ports[0],
            outputs=ports[1],
            sha256=hashlib.sha256(engine).hexdigest(),
        )
        write_engine(engine_folder(cache, summary), graph, engine, key)
    progress(1.0, "")
    return f"tensorrt:{summary}"


def eight_bits_for(
    bundle: Bundle,
    kinds: Mapping[GraphName, str],
    target: Target,
    images: Mapping[str, Sequence[UInt8]] | None = None,
    progress: Callable[[float, str], None] = lambda *_: None,
) -> EightBitGraphs | None:
    """What of a bundle takes eight bits; None where none is asked for.

    ``images``: good model inputs by category to calibrate on. Raises BadConfig for GPUs without fp8
    and ParityError where no choice of layers agrees with f32, both before anything is built.
    """
    if not set(EIGHT_BITS) & set(kinds.values()):
        return None
    if "fp8" in kinds.values():
        target.require_fp8()
    try:
        from engines.gpu.eight import eight_bit_graphs
    except ModuleNotFoundError as error:
        raise BadConfig("building engines needs onnx; pip install onnx") from error
    return eight_bit_graphs(bundle, kinds, images, progress)


def typed_graph(bundle: Bundle, graph: GraphName, kind: str) -> bytes:
    """The ONNX file of a graph in the types that it is to be computed in.

    What takes no eight bits of a graph in int8 or fp8 is fp16.
    """
    try:
        from engines.gpu.half import halved, read_graph
    except ModuleNotFoundError as error:
        raise BadConfig("building engines needs onnx; pip install onnx") from error
    data = bundle.path(f"{graph}.onnx").read_bytes()
    try:
        if kind == "f32":
            read_graph(data)
            return data
        return halved(data, "bf16" if kind == "bf16" else "fp16")
    except BadBundle as error:
        raise BadBundle(f"{graph}.onnx: {error}") from error


def build_graph(
    bundle: Bundle, graph: GraphName, data: bytes, target: Target, cache: Path
) -> tuple[memoryview, Ports]:
    """The engine of one graph, if its ports are those of the manifest; timings go to ``cache``."""
    library = target.library
    builder = library.builder()
    library.words.forget()
    network = library.network(builder, data, f"{graph}.onnx")
    ports = _ports(library, network)
    check_ports(graph, ports, ports_of(bundle.manifest, graph))
    config = target.config(builder, network)
    timings = Timings(library, config, cache)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise EngineFault(f"{library} could not build {graph}: {library.words.last}")
    timings.keep()
    return memoryview(engine), ports


def _ports(library: Library, network: Any) -> Ports:  # noqa: ANN401 - TensorRT ships no types
    def port(tensor: Any) -> Port:  # noqa: ANN401 - TensorRT ships no types
        return Port(tensor.name, library.dtype_of(tensor.dtype), tuple(tensor.shape)[1:])

    inputs = tuple(port(network.get_input(i)) for i in range(network.num_inputs))
    return inputs, tuple(port(network.get_output(i)) for i in range(network.num_outputs))
