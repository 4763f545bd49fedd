"""One face for ``tensorrt`` (10.12 to 11) and ``tensorrt_rtx``, which share nearly all their API.

Only what both have is used, and nothing that version 11 removed: networks are strongly typed, so
there are no precision flags, and rows are enqueued by ``execute_async_v3``. Where they differ:

* RTX builds for compute capabilities that are named, on a machine without a GPU; TensorRT builds
  for the GPU that is there;
* TensorRT has plugins, which must be announced, and a timing cache that does something;
* both answer ``None`` instead of raising where something is missing, and tell their logger why.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from typing import TYPE_CHECKING, Any, Literal

import structlog

from engines.contracts import BadBundle, BadConfig, EngineFault

if TYPE_CHECKING:
    from collections.abc import Callable

LibraryName = Literal["tensorrt", "tensorrt_rtx"]
EXTRAS: dict[LibraryName, str] = {"tensorrt": "gpu", "tensorrt_rtx": "gpu-rtx"}
OLDEST, NEWEST = (10, 12), 11  # of tensorrt; RTX counts for itself
HARMLESS = ("Int64 binding", "scales to fp32")  # warnings about what is meant
DTYPES = {"FLOAT": "float32", "INT32": "int32", "INT64": "int64", "UINT8": "uint8"}
WARNING = 30


@dataclass(frozen=True, slots=True)
class Library:
    """A loaded library. What it refused last stands in ``words.last``."""

    name: LibraryName
    api: Any
    version: str
    words: Words

    @property
    def names_capabilities(self) -> bool:
        """Whether engines are built for GPUs that need not be here."""
        return self.name == "tensorrt_rtx"

    def builder(self) -> Any:  # noqa: ANN401 - TensorRT ships no types
        """What builds engines; raises EngineFault where the library cannot work."""
        return self._made("Builder")

    def runtime(self) -> Any:  # noqa: ANN401 - TensorRT ships no types
        """What loads engines; raises EngineFault where the library cannot work."""
        return self._made("Runtime")

    def network(self, builder: Any, data: bytes, name: str) -> Any:  # noqa: ANN401 - no types
        """The network of an ONNX file, typed as the file says; raises BadBundle if refused."""
        typed = 1 << int(self.api.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
        network = builder.create_network(typed)
        parser = self.api.OnnxParser(network, self.words.logger)
        if parser.parse(data):
            return network
        raise BadBundle(
            f"{self} cannot read {name}: {self._reason(parser)}; export the bundle again"
        )

    def dtype_of(self, dtype: Any) -> str:  # noqa: ANN401 - TensorRT ships no types
        """Numpy's name of a type of a port; another library's name where numpy has none."""
        name = str(dtype.name)
        return DTYPES.get(name, name)

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    def _reason(self, parser: Any) -> str:  # noqa: ANN401 - TensorRT ships no types
        """The first error of a parser, in one line."""
        if not parser.num_errors:
            return self.words.last
        error = parser.get_error(0)
        said = " ".join(error.desc().split())[:200]
        return f"{error.node_operator()} {error.node_name()}: {said}"

    def _made(self, what: str) -> Any:  # noqa: ANN401 - TensorRT ships no types
        try:
            return getattr(self.api, what)(self.words.logger)
        except TypeError as error:  # how its bindings say "nothing"
            raise EngineFault(f"{self} does not work here: {self.words.last}") from error


class Words:
    """What a library tells: errors and warnings become log events, the last of them is kept."""

    def __init__(self, api: Any) -> None:  # noqa: ANN401 - TensorRT ships no types
        self.last = "it gave no reason"
        self.logger = _logger_class(api)(self._told)
        self._log = structlog.wrap_logger(
            structlog.PrintLogger(sys.stderr),
            processors=[structlog.processors.add_log_level, structlog.processors.LogfmtRenderer()],
            wrapper_class=structlog.make_filtering_bound_logger(WARNING),
        )

    def forget(self) -> None:
        """What is told from now on is about something else."""
        self.last = "it gave no reason"

    def _told(self, severity: str, message: str) -> None:
        if severity == "WARNING" and not any(harmless in message for harmless in HARMLESS):
            self._log.warning("tensorrt", said=message)
        elif severity in ("ERROR", "INTERNAL_ERROR"):
            self._log.error("tensorrt", said=message)
            self.last = message


def _logger_class(api: Any) -> Callable[[Callable[[str, str], None]], Any]:  # noqa: ANN401 - no types
    """A logger of the library's own kind that hands every message on."""

    class Logger(api.ILogger):  # type: ignore[misc] # an untyped base
        def __init__(self, tell: Callable[[str, str], None]) -> None:
            api.ILogger.__init__(self)  # super() is refused by its bindings
            self._tell = tell

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401 - TensorRT ships no types
            self._tell(severity.name, message)

    return Logger


def load_library(name: LibraryName | None = None) -> Library:
    """The library asked for, or whichever is there, ``tensorrt`` first.

    Raises BadConfig, in one sentence, where it is not installed or cannot be loaded.
    """
    if name is not None:
        return _loaded(name)
    for other in EXTRAS:
        try:
            return _loaded(other)
        except NotInstalled:
            continue
    raise NotInstalled(
        "neither tensorrt nor tensorrt_rtx is installed; "
        "pip install 'assayline[gpu]' or 'assayline[gpu-rtx]'"
    )


class NotInstalled(BadConfig):
    """There is no such package; another library may do."""


@cache
def _loaded(name: LibraryName) -> Library:
    try:
        api = _imported(name)
    except ModuleNotFoundError as error:
        raise NotInstalled(
            f"{name} is not installed; pip install 'assayline[{EXTRAS[name]}]'"
        ) from error
    except (ImportError, OSError) as error:
        raise BadConfig(
            f"{name} is installed but cannot be loaded ({error}); install its libraries, "
            f"of the same version, from the same place"
        ) from error
    library = Library(name, api, str(api.__version__), Words(api))
    _check_version(library)
    if name == "tensorrt":
        api.init_libnvinfer_plugins(library.words.logger, "")
    return library


def _imported(name: LibraryName) -> Any:  # noqa: ANN401 - TensorRT ships no types
    if name == "tensorrt":
        import tensorrt

        return tensorrt
    import tensorrt_rtx

    return tensorrt_rtx


def _check_version(library: Library) -> None:
    """Versions of tensorrt that this release was written for."""
    major, minor = (int(part) for part in library.version.split(".")[:2])
    if library.name == "tensorrt" and not ((major, minor) >= OLDEST and major <= NEWEST):
        raise BadConfig(
            f"{library} is not supported; install tensorrt>={'.'.join(map(str, OLDEST))},"
            f"<{NEWEST + 1}"
        )
