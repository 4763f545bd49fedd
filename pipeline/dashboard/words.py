"""How the page says a view: numbers, words, icons and tones, so colour never speaks alone."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from engines.contracts import Decision
from pipeline.dashboard.texts import ENGLISH, Speech
from pipeline.dashboard.view import LineState
from pipeline.sight import CameraState

if TYPE_CHECKING:
    from engines.contracts import Verdict
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
    LineState.CAMERA_DOWN: ("videocam_off", "fail"),
    LineState.CAMERA_FROZEN: ("ac_unit", "fail"),
    LineState.CAMERA_STARVING: ("hourglass_empty", "undecided"),
    LineState.NO_FRAMES: ("videocam_off", "fail"),
    LineState.UNACCOUNTED: ("report", "fail"),
    LineState.NO_SERVER: ("cloud_off", "fail"),
}
CAMERAS = {  # icon, tone
    CameraState.RUNNING: ("videocam", "pass"),
    CameraState.STARVING: ("hourglass_empty", "undecided"),
    CameraState.FROZEN: ("ac_unit", "fail"),
    CameraState.DOWN: ("videocam_off", "fail"),
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


def share(part: int, whole: int, say: Speech = ENGLISH) -> str:
    """``part`` of ``whole`` in percent."""
    return say("share", share=say.number(100 * part / whole)) if whole else say("no_answers")


def tiles(view: LineView, say: Speech = ENGLISH) -> dict[str, Says]:
    """The six tiles by name."""
    undecided = sum(view.undecided.values())
    yields = view.yield_fraction
    rate = f"{view.parts_per_minute:.0f}"
    return {
        "rate": Says(rate, say("backlog_of", count=count(view.backlog))),
        "PASS": Says(count(view.passed), share(view.passed, view.answered, say)),
        "FAIL": Says(count(view.failed), share(view.failed, view.answered, say)),
        "UNDECIDED": Says(count(undecided), _reasons(view, say)),
        "yield": Says(
            "–" if yields is None else f"{say.number(100 * yields)} %",
            say("answered", count=count(view.answered)),
        ),
        "residual": residual(view, say),
    }


def _reasons(view: LineView, say: Speech) -> str:
    if not view.undecided:
        return say("none")
    return " · ".join(
        f"{reason.replace('_', ' ')} {count(number)}" for reason, number in view.undecided.items()
    )


def residual(view: LineView, say: Speech = ENGLISH) -> Says:
    """Whether every part has its answer."""
    if view.residual:
        return Says(f"{view.residual:+d}", say("lost"), "fail")
    return Says("0", say("none_lost", open=count(view.open)))


def milliseconds(value: float | None, say: Speech = ENGLISH) -> str:
    """Milliseconds with the digits that matter from three metres."""
    return say.number(value, 1 if value is not None and value < 10 else 0)


def gate_sentence(view: LineView, say: Speech = ENGLISH) -> Says:
    """How the slowest hundredth stands against the gate."""
    if view.gate_ms is None or view.latency_p99_ms is None:
        return Says("", say("none_decided"), "faint")
    fraction = view.latency_p99_ms / view.gate_ms
    gate = say("gate", gate=milliseconds(view.gate_ms, say))
    if fraction > 1:
        return Says("", say("gate_late", gate=gate), "fail")
    return Says("", say("gate_met", gate=gate, share=f"{100 * fraction:.0f}"), "pass")


def age(seconds: float | None, say: Speech = ENGLISH) -> str:
    """Time since something, short."""
    if seconds is None:
        return say("none_yet")
    if seconds < 1:
        return say("now")
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.0f} h"


def ago(seconds: float, say: Speech = ENGLISH) -> str:
    """When something was, short; the page itself is up to a second behind."""
    return age(seconds, say) if seconds < 1 else say("ago", age=age(seconds, say))


def camera_says(row: CameraRow, say: Speech = ENGLISH) -> tuple[str, str, str]:
    """Icon, tone and word for how a camera is."""
    return *CAMERAS[row.state], say(f"is_{row.state}")


def last_frame(row: CameraRow, say: Speech = ENGLISH) -> str:
    """When a camera's last frame was."""
    return say("none_yet") if row.frame_age_s is None else ago(row.frame_age_s, say)


def headline(verdict: Verdict) -> str:
    """The decision with its reason, or with the part's category."""
    why = verdict.reason.replace("_", " ") if verdict.reason else verdict.category
    return f"{verdict.decision} {why}".strip()


def reject_words(reject: Reject, say: Speech = ENGLISH) -> tuple[str, str, str]:
    """What is wrong, which part it is, and how far it lies beyond the threshold."""
    verdict = reject.verdict
    number = ""
    if verdict.surprise is not None and verdict.threshold is not None:
        surprise, limit = say.number(verdict.surprise), say.number(verdict.threshold)
        number = say("surprise_of", surprise=surprise, threshold=limit)
    which = verdict.part_id or verdict.frame_id
    return headline(verdict), which, f"{verdict.camera} · {number}".strip(" ·")
