"""One of a bundle's graphs as TensorRT runs it: an engine, and an execution context per bucket."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from engines.contracts import BadBundle, EngineFault
from engines.gpu.executable import Port
from engines.gpu.ports import Ports, check_ports

if TYPE_CHECKING:
    from engines.bundle import GraphName
    from engines.gpu.engine_file import EngineKey
    from engines.gpu.libraries import Library


class TensorRtExecutable:
    """An engine on the current CUDA context; see ``Executable`` for who owns what.

    Each context holds the memory of its own bucket alone. Its profile is chosen in the first call
    of a bucket, on the stream of that call, which is why that one must not be captured.
    """

    def __init__(self, library: Library, graph: GraphName, data: bytes, key: EngineKey) -> None:
        self._library, self._graph, self._buckets = library, graph, key.buckets
        self._runtime = library.runtime()
        library.words.forget()
        self._engine = self._runtime.deserialize_cuda_engine(data)
        if self._engine is None:
            raise EngineFault(
                f"{library} could not load the engine of {graph}: {library.words.last}"
            )
        self.inputs, self.outputs = self._ports()
        check_ports(graph, (self.inputs, self.outputs), (key.inputs, key.outputs))
        self._check_profiles()
        self._addresses: dict[str, int] = {}
        self._contexts = {size: self._context(size) for size in self._buckets}
        self._ready: set[int] = set()

    def bind(self, name: str, address: int) -> None:
        """Use device memory at ``address`` for a port, for every bucket."""
        if name not in {port.name for port in (*self.inputs, *self.outputs)}:
            raise EngineFault(f"{self._graph} has no port {name!r}")
        self._addresses[name] = address
        for size in self._ready:
            self._set_address(size, name)

    def enqueue(self, size: int, stream: int) -> None:
        """Queue one bucket on a stream; raises EngineFault where TensorRT refuses."""
        if size not in self._contexts:
            raise EngineFault(f"{self._graph} was built for batches of {self._told()}, not {size}")
        self._library.words.forget()
        if size not in self._ready:
            self._prepare(size, stream)
        self._require(self._contexts[size].execute_async_v3(stream), "run")

    def close(self) -> None:
        """Release the contexts, then the engine, then what loaded it."""
        self._contexts, self._ready = {}, set()
        self._engine = None
        self._runtime = None

    def _prepare(self, size: int, stream: int) -> None:
        """Choose the bucket's profile and tell the context its shapes and addresses."""
        context = self._contexts[size]
        place = self._buckets.index(size)
        self._require(context.set_optimization_profile_async(place, stream), "choose a profile of")
        for port in self.inputs:
            self._require(context.set_input_shape(port.name, (size, *port.shape)), "size")
        for name in self._addresses:
            self._set_address(size, name)
        self._ready.add(size)

    def _set_address(self, size: int, name: str) -> None:
        set_address = self._contexts[size].set_tensor_address
        self._require(set_address(name, self._addresses[name]), "bind")

    def _context(self, size: int) -> Any:  # noqa: ANN401 - TensorRT ships no types
        # Anything else would give every context the memory that the largest bucket needs.
        kinds = self._library.api.ExecutionContextAllocationStrategy
        self._library.words.forget()
        context = self._engine.create_execution_context(kinds.ON_PROFILE_CHANGE)
        if context is None:
            raise EngineFault(
                f"{self._library} has no room for batches of {size} of {self._graph}: "
                f"{self._library.words.last}"
            )
        return context

    def _ports(self) -> Ports:
        engine, modes = self._engine, self._library.api.TensorIOMode
        names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        ports = {name: self._port(name) for name in names}
        inputs = [name for name in names if engine.get_tensor_mode(name) == modes.INPUT]
        outputs = [name for name in names if engine.get_tensor_mode(name) == modes.OUTPUT]
        return tuple(map(ports.__getitem__, inputs)), tuple(map(ports.__getitem__, outputs))

    def _port(self, name: str) -> Port:
        dtype = self._library.dtype_of(self._engine.get_tensor_dtype(name))
        return Port(name, dtype, tuple(self._engine.get_tensor_shape(name))[1:])

    def _check_profiles(self) -> None:
        """Each bucket is a profile of exactly that batch size, in their order."""
        first = self.inputs[0].name
        found = tuple(
            tuple(shape[0] for shape in self._engine.get_tensor_profile_shape(first, place))
            for place in range(self._engine.num_optimization_profiles)
        )
        if found != tuple((size, size, size) for size in self._buckets):
            raise BadBundle(
                f"the engine of {self._graph} has other profiles than its key names "
                f"({self._told()}); build it again"
            )

    def _require(self, is_done: bool, verb: str) -> None:
        if not is_done:
            raise EngineFault(
                f"{self._library} could not {verb} {self._graph}: {self._library.words.last}"
            )

    def _told(self) -> str:
        return ", ".join(map(str, self._buckets))
