"""Every number at /metrics, in one table: name, kind, unit, labels, who serves it, what it says.

Names carry the prefix ``assayline_`` and end in their base unit (seconds, bytes, a ratio of one);
counters end in ``_total``. docker/METRICS.md shows the same table to people, and a test compares
both with what a running line serves. Label values are bounded: see
``pipeline.labels``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pipeline.labels import ROLES

PREFIX = "assayline_"
# Buckets. Times reach from a graph's call to what no gate waits for; a gate is 50 to 500 ms away.
LATENCY_S = (0.005, 0.01, 0.02, 0.03, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 0.75, 1, 2, 5)
TURN_S = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
GATE_SHARE = (0.05, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1, 1.1, 1.5, 2)
STEPS = (0, 1, 2, 3, 4, 6, 8, 10, 15, 20, 30, 50)
LEVELS = (0, 2, 4, 6, 8, 10, 20, 40, 60, 80, 100, 150, 250, 350, 500, 750)
SURPRISE = (0.1, 0.3, 0.5, 1, 1.5, 2, 2.5, 3, 4, 6, 10)  # 1 = one good part in ten has more

Kind = Literal["counter", "gauge", "histogram"]
Label = tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Metric:
    """One row of the table; ``name`` without the prefix."""

    name: str
    kind: Kind
    unit: str  # what its value counts or measures
    labels: Label
    roles: Label  # of the processes that serve it
    meaning: str
    buckets: tuple[float, ...] = ()


# A row is read as a row.
# fmt: off
TABLE = (
    # -- cameras -----------------------------------------------------------------------------------
    Metric("frames_admitted_total", "counter", "frames", ("camera", "recipe"),
           ("ingest",), "Frames that a camera's process put on the stream."),
    Metric("frames_refused_total", "counter", "frames", ("camera", "recipe", "reason"),
           ("ingest",), "Frames that a camera's process answered UNDECIDED itself."),
    Metric("originals_missed_total", "counter", "frames", ("camera", "reason"),
           ("ingest", "sink"), "Full exposures not kept, or gone before they were archived."),
    Metric("camera_connected", "gauge", "0 or 1", ("camera",),
           ("ingest",),
           "Whether the camera's source is open and delivers; 0 from an outage until it is back."),
    Metric("camera_frozen", "gauge", "0 or 1", ("camera",),
           ("ingest",), "Whether the camera delivers one exposure again and again."),
    Metric("camera_frame_timestamp_seconds", "gauge", "seconds", ("camera",),
           ("ingest",), "When the newest exposure was captured, since the epoch."),
    # -- workers -----------------------------------------------------------------------------------
    Metric("verdicts_written_total", "counter", "frames", ("camera", "recipe", "decision"),
           ("inspect",), "Verdicts this worker wrote."),
    Metric("verdicts_stale_total", "counter", "frames", ("camera",),
           ("inspect",),
           "Verdicts of this worker that were refused: the frame was answered already."),
    Metric("frames_quarantined_total", "counter", "frames", ("camera",),
           ("inspect",), "Entries set aside: unreadable, or given up by worker after worker."),
    Metric("images_lost_total", "counter", "frames", ("camera",),
           ("inspect",), "Images no longer in the shared memory where their camera had left them."),
    Metric("entries_reclaimed_total", "counter", "frames", ("camera",),
           ("inspect",), "Entries taken over from a worker that fell silent."),
    Metric("frames_in_flight", "gauge", "frames", (),
           ("inspect",), "Frames this worker holds: read and not yet answered."),
    Metric("worker_beat_timestamp_seconds", "gauge", "seconds", (),
           ("inspect",), "When the inspection loop last said that it lives, since the epoch."),
    Metric("loop_turn_seconds", "histogram", "seconds", (),
           ("inspect",), "Time of one turn of the inspection loop.", TURN_S),
    Metric("stage_seconds", "histogram", "seconds", ("camera", "stage"),
           ("inspect",),
           "Time a frame spent in a stage: queue (from exposure on), inspect, write.", LATENCY_S),
    Metric("depth_steps", "histogram", "denoiser calls", ("camera", "recipe"),
           ("inspect",), "Denoiser calls made for one frame.", STEPS),
    Metric("noise_level", "histogram", "timesteps", ("camera", "recipe"),
           ("inspect",),
           "Noise level that a frame was placed on, unless it left before any.", LEVELS),
    Metric("false_reject_promise_ratio", "gauge", "ratio", ("category",),
           ("inspect",),
           "Share of good parts that the calibration in use promises to reject at most."),
    # -- the sink: the line as a whole -------------------------------------------------------------
    Metric("verdicts_total", "counter", "frames", ("camera", "recipe", "decision", "reason"),
           ("sink",), "Verdicts of the line, whoever gave them; each frame once."),
    Metric("verdict_seconds", "histogram", "seconds", ("camera", "recipe"),
           ("sink",), "Time from exposure to verdict.", LATENCY_S),
    Metric("verdict_gate_ratio", "histogram", "ratio", ("camera", "recipe"),
           ("sink",),
           "The same as a share of the time to the gate: more than 1 is too late.", GATE_SHARE),
    Metric("surprise", "histogram", "-log10 of a probability", ("camera", "decision"),
           ("sink",), "How unusual a part was: one good part in ten has more than 1.", SURPRISE),
    Metric("verdicts_acted_total", "counter", "frames", ("output",),
           ("sink",), "Verdicts an output has acted on."),
    Metric("outputs_overrun_total", "counter", "frames", ("output",),
           ("sink",), "Verdicts an output was too slow to take."),
    Metric("outputs_failed_total", "counter", "frames", ("output",),
           ("sink",), "Verdicts an output could not act on."),
    Metric("ledger_frames", "gauge", "frames", ("camera", "outcome"),
           ("sink",),
           "The ledger: frames captured and answered since the line began, over restarts."),
    Metric("ledger_residual_frames", "gauge", "frames", ("camera",),
           ("sink",),
           "Frames captured that are neither answered nor open: anything but 0 is a lost part."),
    Metric("frames_open", "gauge", "frames", ("camera",),
           ("sink",), "Frames admitted and not yet answered."),
    Metric("frames_backlog", "gauge", "frames", ("camera",),
           ("sink",), "Frames on the stream that wait for a worker or are with one."),
    Metric("gate_seconds", "gauge", "seconds", ("camera",),
           ("sink",), "Time from exposure to the reject gate, as configured."),
    Metric("gate_lateness_seconds", "gauge", "seconds", (),
           ("sink",), "How late the gate keeper was of late, and is early now."),
    Metric("workers_alive", "gauge", "processes", (),
           ("sink",), "Workers whose inspection loop beat within the last three seconds."),
    Metric("workers_expected", "gauge", "processes", (),
           ("sink",), "Workers that the line's settings ask for on one machine."),
    Metric("server_up", "gauge", "0 or 1", (),
           ("sink",), "Whether Redis answers."),
    Metric("server_memory_used_bytes", "gauge", "bytes", (),
           ("sink",), "Memory that Redis uses."),
    Metric("server_memory_limit_bytes", "gauge", "bytes", (),
           ("sink",), "Memory that Redis may use; 0 without a limit."),
    Metric("clock_uncertainty_seconds", "gauge", "seconds", (),
           ("sink",), "How well the server's clock is known: half a round trip."),
    Metric("archive_bytes", "gauge", "bytes", (),
           ("sink",), "Size of the archive folder."),
    Metric("disk_free_bytes", "gauge", "bytes", (),
           ("sink",), "Space left on the disk of the run folder."),
    Metric("disk_size_bytes", "gauge", "bytes", (),
           ("sink",), "Size of the disk of the run folder."),
    # -- people and processes ----------------------------------------------------------------------
    Metric("reviews_total", "counter", "parts", ("camera", "answer"),
           ("dashboard",), "Rejects that a person has reviewed, by answer."),
    Metric("roles_restarted_total", "counter", "processes", ("role",),
           ("run",), "Processes the supervisor started again."),
    Metric("stream_lost_total", "counter", "losses", ("role",),
           ("ingest", "inspect", "sink", "dashboard"), "Times Redis went away."),
    # -- every process, by the client library; Linux only ------------------------------------------
    Metric("process_cpu_seconds_total", "counter", "seconds", (),
           ROLES, "Processor time this process has used."),
    Metric("process_resident_memory_bytes", "gauge", "bytes", (),
           ROLES, "Memory this process holds."),
    Metric("process_virtual_memory_bytes", "gauge", "bytes", (),
           ROLES, "Addresses this process has mapped."),
    Metric("process_start_time_seconds", "gauge", "seconds", (),
           ROLES, "When this process started, since the epoch."),
    Metric("process_open_fds", "gauge", "files", (),
           ROLES, "Files this process has open."),
    Metric("process_max_fds", "gauge", "files", (),
           ROLES, "Files this process may have open."),
)
# fmt: on
METRICS = {metric.name: metric for metric in TABLE}


def as_markdown() -> str:
    """The table for people, a row per metric."""
    rows = ["| metric | kind | unit | labels | served by | meaning |", "|---|---|---|---|---|---|"]
    for one in TABLE:
        served = "every role" if one.roles == ROLES else ", ".join(one.roles)
        labels = ", ".join(one.labels) or "–"
        name = f"`{PREFIX}{one.name}`"
        rows.append(f"| {name} | {one.kind} | {one.unit} | {labels} | {served} | {one.meaning} |")
    return "\n".join(rows) + "\n"
