"""How the page says a view: numbers, words, icons and tones, so colour never speaks alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.contracts import Decision
from pipeline.dashboard.view import LineState

if TYPE_CHECKING:
    from pipeline.dashboard.view import CameraRow, LineView, Reject

DECISION_ICONS = {
    Decision.PASS: "check_circle",
    Decision.FAIL: "cancel",
    Decision.UNDECIDED: "help",
}
STATES = {  # icon, tone
    LineState.RUNNING: ("play_circle", "pass"),
    LineState.WAITING: ("hourglass_empty", "faint"),
    LineState.LATE: ("timer_off", "undecided"),
    LineState.CAMERA_SILENT: ("videocam_off", "undecided"),
    LineState.NO_FRAMES: ("videocam_off", "fail"),
    LineState.UNACCOUNTED: ("report", "fail"),
    LineState.NO_SERVER: ("cloud_off", "fail"),
}


@dataclass(frozen=True, slots=True)
class Says:
    """What one tile says: the number, a line below it, and a CSS tone."""

    value: str
    note: str = ""
    tone: str = ""


def count(number: int) -> str:
    """A count as people read it: 1 234, and 1.23 M where digits no longer matter."""
    if number >= 1_000_000:
        return f"{number / 1e6:.2f} M"
    return f"{number:,}".replace(",", "\u202f")


def share(part: int, whole: int) -> str:
    """``part`` of ``whole`` in percent."""
    return f"{100 * part / whole:.1f} % of answered" if whole else "no answers yet"


def tiles(view: LineView) -> dict[str, Says]:
    """The six tiles by name."""
    undecided = sum(view.undecided.values())
    yields = view.yield_fraction
    return {
        "rate": Says(f"{view.parts_per_minute:.0f}", f"backlog {count(view.backlog)}"),
        "PASS": Says(count(view.passed), share(view.passed, view.answered)),
        "FAIL": Says(count(view.failed), share(view.failed, view.answered)),
        "UNDECIDED": Says(count(undecided), _reasons(view)),
        "yield": Says("–" if yields is None else f"{100 * yields:.1f} %", _answered(view)),
        "residual": _residual(view),
    }


def _answered(view: LineView) -> str:
    return f"of {count(view.answered)} answered"


def _reasons(view: LineView) -> str:
    if not view.undecided:
        return "none"
    return " · ".join(
        f"{reason.replace('_', ' ')} {count(number)}" for reason, number in view.undecided.items()
    )


def _residual(view: LineView) -> Says:
    if view.residual:
        return Says(f"{view.residual:+d}", "not answered: run assayline doctor", "fail")
    return Says("0", f"none lost · {count(view.open)} in flight")


def milliseconds(value: float | None) -> str:
    """Milliseconds with the digits that matter from three metres."""
    if value is None:
        return "–"
    return f"{value:.1f}" if value < 10 else f"{value:.0f}"


def gate_sentence(view: LineView) -> Says:
    """How the slowest hundredth stands against the gate."""
    if view.gate_ms is None or view.latency_p99_ms is None:
        return Says("", "no decided parts in the last minute", "faint")
    fraction = view.latency_p99_ms / view.gate_ms
    gate = f"gate {milliseconds(view.gate_ms)} ms"
    if fraction > 1:
        return Says("", f"{gate}: 1 part in 100 is too late", "fail")
    return Says("", f"{gate}: p99 uses {100 * fraction:.0f} % of it", "pass")


def age(seconds: float | None) -> str:
    """Time since something, short."""
    if seconds is None:
        return "none yet"
    if seconds < 1:
        return "now"
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"


def ago(seconds: float) -> str:
    """When something was, short; the page itself is up to a second behind."""
    return age(seconds) if seconds < 1 else f"{age(seconds)} ago"


def camera_state(row: CameraRow) -> tuple[str, str, str]:
    """Icon, tone and words for the last frame of a camera."""
    if row.frame_age_s is None:
        return "hourglass_empty", "faint", "no frame yet"
    if row.is_silent:
        return "videocam_off", "fail", f"silent for {age(row.frame_age_s)}"
    return "videocam", "pass", ago(row.frame_age_s)


def reject_words(reject: Reject) -> tuple[str, str, str]:
    """What is wrong, which part it is, and how far it lies beyond the threshold."""
    verdict = reject.verdict
    why = verdict.reason.replace("_", " ") if verdict.reason else verdict.category
    what = f"{verdict.decision} {why}".strip()
    number = ""
    if verdict.surprise is not None and verdict.threshold is not None:
        number = f"surprise {verdict.surprise:.1f}, threshold {verdict.threshold:.1f}"
    return what, verdict.part_id or verdict.frame_id, f"{verdict.camera} · {number}".strip(" ·")
