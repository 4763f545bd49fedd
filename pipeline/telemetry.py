"""Facts in, numbers and events out: Prometheus at /metrics, JSON lines on stderr.

Rooms state plain facts (``facts.count("frames_admitted_total", camera=...)``); this file alone
knows who phrases them. Every name is a row of ``pipeline.metrics``, which also bounds its labels: a
frame id can be an event's field, never a label. A process serves the rows of its role.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import structlog
from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    disable_created_metrics,
    make_wsgi_app,
)

from engines.contracts import BadConfig
from pipeline.access.door import serving
from pipeline.labels import Labels
from pipeline.metrics import PREFIX, TABLE, Metric

if TYPE_CHECKING:
    from pipeline.config import LineSettings

_Kind = TypeVar("_Kind", Counter, Gauge, Histogram)
PROCESS = "process_"  # rows that the client library fills by itself
disable_created_metrics()  # type: ignore[no-untyped-call]  # they double the series for nobody


class Facts:
    """What a process reports; one per process, safe from every thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._labels = Labels()
        self._made = {
            row.name: _made(row, self.registry) for row in TABLE if not row.name.startswith(PROCESS)
        }
        self._series: dict[tuple[object, ...], Counter | Gauge | Histogram] = {}  # as last found
        self.speak_as("assayline", "warning")

    def of_role(self, role: str) -> CollectorRegistry:
        """What a process of this role serves: its own rows, so that no other's stand there at 0."""
        served = CollectorRegistry()
        for row in TABLE:
            if role in row.roles and row.name in self._made:
                served.register(self._made[row.name])
        ProcessCollector(PREFIX.rstrip("_"), registry=served)
        return served

    def expect(self, **values: Iterable[str]) -> None:
        """Keep places for the label values that a line's settings name."""
        for label, names in values.items():
            self._labels.expect(label, names)

    def speak_as(self, role: str, level: str = "info") -> None:
        """Name this process in its events and set the least level that is written."""
        self._log = structlog.wrap_logger(
            None,
            processors=[
                structlog.processors.add_log_level,
                structlog.processors.TimeStamper(fmt="iso", utc=True),
                structlog.processors.format_exc_info,
                structlog.processors.JSONRenderer(default=str),
                _to_stderr,
            ],
            wrapper_class=structlog.make_filtering_bound_logger(_number(level)),
        ).bind(role=role)

    def count(self, name: str, amount: float = 1, /, **labels: str | None) -> None:
        """Add to a counter; an undeclared name or label is a KeyError or ValueError."""
        self._of(name, Counter, labels).inc(amount)

    def gauge(self, name: str, value: float, /, **labels: str | None) -> None:
        """Set a gauge."""
        self._of(name, Gauge, labels).set(value)

    def last(self, name: str, /, **labels: str | None) -> float | None:
        """What was said of a gauge or counter last; None where nothing was."""
        bounded = {label: self._labels.bounded(label, value) for label, value in labels.items()}
        return self.registry.get_sample_value(f"{PREFIX}{name}", bounded)

    def observe(self, name: str, value: float, /, **labels: str | None) -> None:
        """Put one value into a histogram, in the unit that the table says."""
        self._of(name, Histogram, labels).observe(value)

    def event(self, name: str, level: str = "info", **fields: Any) -> None:  # noqa: ANN401 - fields
        """Write one JSON line to stderr, where the level is at least the configured one."""
        self._log.log(_number(level), name, **fields)

    def _of(self, name: str, kind: type[_Kind], labels: Mapping[str, str | None]) -> _Kind:
        """The series of a metric with these labels, their values bounded."""
        asked = (name, *labels.items())
        known = self._series.get(asked)
        if isinstance(known, kind):
            return known
        metric = self._made[name]
        if not isinstance(metric, kind):
            raise KeyError(f"{name} is no {kind.__name__.lower()}")
        bounded = {label: self._labels.bounded(label, value) for label, value in labels.items()}
        series = metric.labels(**bounded) if bounded else metric
        if all(not value or value == bounded[label] for label, value in labels.items()):
            self._series[asked] = series  # never for what counts as OTHER: that has no end
        return series


def _made(row: Metric, registry: CollectorRegistry) -> Counter | Gauge | Histogram:
    name, text = f"{PREFIX}{row.name}", row.meaning
    match row.kind:
        case "counter":
            return Counter(name, text, row.labels, registry=registry)
        case "gauge":
            return Gauge(name, text, row.labels, registry=registry)
        case "histogram":
            return Histogram(name, text, row.labels, registry=registry, buckets=row.buckets)


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def _to_stderr(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    sys.stderr.write(f"{event}\n")  # one write: lines of several threads do not mix
    sys.stderr.flush()
    raise structlog.DropEvent


facts = Facts()


@contextlib.contextmanager
def serve_metrics(role: str, host: str, port: int, token: str = "") -> Iterator[int]:
    """Serve /metrics of this process while inside; port 0 serves nothing. Yields the port.

    Where there is a ``token``, its bearers alone are answered. BadConfig where nobody can listen
    there.
    """
    if port == 0:
        yield 0
        return
    app = make_wsgi_app(facts.of_role(role))
    with contextlib.ExitStack() as stack:
        try:
            served = stack.enter_context(serving(app, host, port, token))
        except OSError as error:
            reason = error.strerror or error
            raise BadConfig(
                f"/metrics cannot be served at {host}:{port} ({reason}): set metrics.port so that "
                "it and the ports after it are free, or to 0"
            ) from error
        yield served


@contextlib.contextmanager
def reporting(role: str, settings: LineSettings, index: int = 0) -> Iterator[None]:
    """Report as the ``index``-th process of ``role`` while inside: events, and /metrics."""
    facts.speak_as(role, settings.log_level)
    facts.expect(camera=settings.camera_names, recipe=(one.recipe for one in settings.cameras))
    metrics = settings.metrics
    token = metrics.secret("metrics") if metrics.port else ""
    with serve_metrics(role, metrics.host, metrics.port_of(role, index), token):
        facts.event("started", pid=os.getpid())
        yield
        facts.event("ended")
