"""Whether a worker's inspection loop turns: what a container's health check asks.

The age of the loop's own heartbeat decides, read from the worker's /metrics. A process that answers
while its GPU hangs is not healthy, and one that waits for a lost server is.
"""

from __future__ import annotations

import time
import urllib.error
import urllib.request
from typing import TYPE_CHECKING

from pipeline.doctor.check import Check, required
from pipeline.metrics import PREFIX
from pipeline.pulse import TTL_MS

if TYPE_CHECKING:
    from pipeline.config import LineSettings

NAME, BEAT = "inspection loop", f"{PREFIX}worker_beat_timestamp_seconds"
ASKING_S = 2.0
EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - read, not bound
MEND = "Start the worker again; if its GPU hangs, reset that."


def worker_check(settings: LineSettings) -> Check:
    """Whether the inspection loop of this line's worker on this host has beaten of late."""
    metrics = settings.metrics
    port = metrics.port_of("inspect", settings.worker.index)
    if not port:
        return required(NAME, False, "metrics are off", "Set metrics.port, which carries its beat.")
    host = EVERYWHERE.get(metrics.host, metrics.host)
    request = urllib.request.Request(f"http://{host}:{port}/metrics")
    if token := metrics.secret("metrics"):
        request.add_header("Authorization", f"Bearer {token}")
    try:
        with urllib.request.urlopen(request, timeout=ASKING_S) as answer:  # noqa: S310 - as above
            text = answer.read().decode("utf-8")
    except (urllib.error.URLError, OSError) as error:
        return required(NAME, False, f"{host}:{port} does not answer: {error}", MEND)
    return _judged(beat_of(text), time.time())


def beat_of(text: str) -> float:
    """When the loop beat last, epoch seconds, by what /metrics says; 0 for never."""
    values = (line.split()[-1] for line in text.splitlines() if line.startswith(f"{BEAT} "))
    return float(next(values, "0"))


def _judged(beat_s: float, now_s: float) -> Check:
    if not beat_s:
        return required(NAME, False, "has not turned yet", "Wait until its engines are loaded.")
    age_s = now_s - beat_s
    return required(NAME, age_s <= TTL_MS / 1e3, f"beat {age_s:.1f} s ago", MEND)
