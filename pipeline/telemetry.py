"""Facts in, numbers and events out: Prometheus at /metrics, JSON lines on stderr.

Rooms state plain facts (``facts.count("frames_captured_total", camera=...)``); this file alone
knows who phrases them. Every name is declared below with its labels, so labels stay bounded by
construction: a frame id can be an event's field, never a label.
"""

from __future__ import annotations

import contextlib
import logging
import os
import sys
from collections.abc import Iterator
from typing import Any

import structlog
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, start_http_server

from engines.contracts import BadConfig

LATENCY_MS = (5, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 750, 1000)
STEPS = (0, 1, 2, 3, 4, 6, 8, 10, 15, 20, 30, 50)
LEVELS = (0, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 150, 250, 350, 500, 750)

# name -> (what it says, its labels)
COUNTERS: dict[str, tuple[str, tuple[str, ...]]] = {
    "frames_captured_total": ("Frames admitted to the stream.", ("camera",)),
    "frames_refused_total": ("Frames answered by ingest itself, by reason.", ("camera", "reason")),
    "frames_quarantined_total": ("Entries set aside after failing again and again.", ("camera",)),
    "images_lost_total": ("Images no longer where their camera had left them.", ("camera",)),
    "entries_reclaimed_total": ("Entries taken over from a silent worker.", ("camera",)),
    "verdicts_total": ("Verdicts written by this process, by decision.", ("camera", "decision")),
    "verdicts_stale_total": ("Answers refused: the frame was answered already.", ("camera",)),
    "verdicts_late_total": ("Frames the gate keeper had to answer.", ("camera",)),
    "verdicts_acted_total": ("Verdicts an output has acted on.", ("output",)),
    "outputs_overrun_total": ("Verdicts an output was too slow to take.", ("output",)),
    "outputs_failed_total": ("Verdicts an output could not act on.", ("output",)),
    "originals_missed_total": (
        "Full exposures not kept, or gone before they were archived.",
        ("camera", "reason"),
    ),
    "stream_lost_total": ("Times the server went away.", ("role",)),
    "roles_restarted_total": ("Processes the supervisor started again.", ("role",)),
}
GAUGES: dict[str, tuple[str, tuple[str, ...]]] = {
    "frames_open": ("Frames admitted and not yet answered.", ("camera",)),
    "frames_in_flight": ("Rows in the inspector.", ()),
    "archive_bytes": ("Size of the archive folder.", ()),
    "gate_lateness_ms": ("How late the gate keeper was of late, and is early now.", ()),
    "clock_uncertainty_ms": ("How well the server's clock is known.", ()),
}
HISTOGRAMS: dict[str, tuple[str, tuple[str, ...], tuple[int, ...]]] = {
    "latency_ms": (
        "Time a frame spent in a stage; total = camera to verdict.",
        ("stage",),
        LATENCY_MS,
    ),
    "tick_ms": ("Time of one turn of the inspection loop.", (), LATENCY_MS),
    "steps": ("Denoiser calls made for one frame.", (), STEPS),
    "level": ("Noise level of one frame, unless it left before any.", (), LEVELS),
}


class Facts:
    """What a process reports; one per process, safe from every thread."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._counters = {
            name: Counter(f"assayline_{name}", text, labels, registry=self.registry)
            for name, (text, labels) in COUNTERS.items()
        }
        self._gauges = {
            name: Gauge(f"assayline_{name}", text, labels, registry=self.registry)
            for name, (text, labels) in GAUGES.items()
        }
        self._histograms = {
            name: Histogram(
                f"assayline_{name}", text, labels, buckets=edges, registry=self.registry
            )
            for name, (text, labels, edges) in HISTOGRAMS.items()
        }
        self.speak_as("assayline", "warning")

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

    def count(self, name: str, amount: float = 1, **labels: str) -> None:
        """Add to a counter of COUNTERS; an undeclared name or label is a KeyError or ValueError."""
        counter = self._counters[name]
        (counter.labels(**labels) if labels else counter).inc(amount)

    def gauge(self, name: str, value: float, **labels: str) -> None:
        """Set a gauge of GAUGES."""
        gauge = self._gauges[name]
        (gauge.labels(**labels) if labels else gauge).set(value)

    def observe(self, name: str, value: float, **labels: str) -> None:
        """Put one value into a histogram of HISTOGRAMS, in the unit its name ends with."""
        histogram = self._histograms[name]
        (histogram.labels(**labels) if labels else histogram).observe(value)

    def event(self, name: str, level: str = "info", **fields: Any) -> None:  # noqa: ANN401 - fields
        """Write one JSON line to stderr, where the level is at least the configured one."""
        self._log.log(_number(level), name, **fields)


def _number(level: str) -> int:
    return logging.getLevelNamesMapping()[level.upper()]


def _to_stderr(_: object, __: str, event: structlog.types.EventDict) -> structlog.types.EventDict:
    sys.stderr.write(f"{event}\n")  # one write: lines of several threads do not mix
    sys.stderr.flush()
    raise structlog.DropEvent


facts = Facts()


@contextlib.contextmanager
def serve_metrics(host: str, port: int) -> Iterator[int]:
    """Serve /metrics of this process while inside; port 0 serves nothing. Yields the port.

    BadConfig where nobody can listen there.
    """
    if port == 0:
        yield 0
        return
    try:
        server, thread = start_http_server(port, addr=host, registry=facts.registry)
    except OSError as error:
        reason = error.strerror or error
        raise BadConfig(
            f"/metrics cannot be served at {host}:{port} ({reason}): set metrics.port so that it "
            "and the ports after it are free, or to 0"
        ) from error
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


@contextlib.contextmanager
def reporting(role: str, level: str, host: str, port: int) -> Iterator[None]:
    """Report as ``role`` while inside: events from ``level`` on, and /metrics."""
    facts.speak_as(role, level)
    with serve_metrics(host, port):
        facts.event("started", pid=os.getpid())
        yield
        facts.event("ended")
