"""The layout of the page *Line* and what fills it once a second."""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from nicegui import ui

from pipeline.dashboard import words
from pipeline.dashboard.charts import depth_options, rate_options

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.dashboard.view import CameraRow, LineView, Reject

REFRESH_S = 1.0
TILES = (  # name, title, icon, tone
    ("rate", "Parts per minute", "speed", "accent"),
    ("PASS", "PASS", "check_circle", "pass"),
    ("FAIL", "FAIL", "cancel", "fail"),
    ("UNDECIDED", "UNDECIDED", "help", "undecided"),
    ("yield", "Yield", "percent", "accent"),
    ("residual", "Ledger residual", "balance", "pass"),
)
TONES = "pass fail undecided accent faint"


def _box(classes: str, tag: str = "div") -> ui.element:
    return ui.element(tag).classes(classes)


def _say(element: ui.label | ui.icon, text: str, tone: str) -> None:
    """Set words (or the icon's name) and tone, only where they changed."""
    if isinstance(element, ui.label):
        element.set_text(text)
    else:
        element.set_name(text)
    element.classes(remove=TONES, add=tone)


class Head:
    """Name of the line, its state in one word, the time."""

    def __init__(self, line: str) -> None:
        dark = ui.dark_mode(value=True)
        with _box("head"):
            ui.label(line).classes("name")
            ui.label("Assayline").classes("product")
            with _box("state") as self._frame:
                self._icon, self._word = ui.icon("hourglass_empty"), ui.label("WAITING")
            self._clock = ui.label().classes("clock")
            ui.button(icon="contrast", on_click=dark.toggle).props(
                'flat round aria-label="dark or light"'
            )

    def show(self, view: LineView) -> None:
        """Bring the head up to ``view``."""
        icon, tone = words.STATES[view.state]
        _say(self._icon, icon, tone)
        _say(self._word, view.state.value, tone)
        self._frame.classes(remove=TONES, add=tone)
        self._clock.set_text(datetime.now().strftime("%H:%M:%S"))


class Tile:
    """A title with an icon, a number readable from three metres, and a note."""

    def __init__(self, title: str, icon: str, tone: str) -> None:
        self._tone = tone
        with _box("tile"):
            with _box("title"):
                self._icon = ui.icon(icon).classes(tone)
                ui.label(title)
            self._value = ui.label("–").classes("value")
            self._note = ui.label().classes("note")

    def show(self, says: words.Says) -> None:
        """Bring the tile up to what it says now."""
        _say(self._value, says.value, says.tone)
        _say(self._note, says.note, "")
        self._icon.classes(remove=TONES, add=says.tone or self._tone)


class Latency:
    """p50 and p99 from exposure to verdict, against the gate."""

    def __init__(self) -> None:
        with _box("tile"):
            with _box("title"):
                ui.icon("timer").classes("accent")
                ui.label("Exposure to verdict")
            with _box("pair"):
                self._p50, self._p99 = self._number("p50 ms"), self._number("p99 ms")
            with _box("gate") as self._gate:
                self._bar99, self._bar50 = _box("p99"), _box("p50")
            with _box("title"):
                self._icon, self._note = ui.icon("check"), ui.label()

    @staticmethod
    def _number(unit: str) -> ui.label:
        with _box(""):
            value = ui.label("–").classes("value")
            ui.label(unit).classes("note")
        return value

    def show(self, view: LineView) -> None:
        """Bring numbers, bar and sentence up to ``view``."""
        self._p50.set_text(words.milliseconds(view.latency_p50_ms))
        self._p99.set_text(words.milliseconds(view.latency_p99_ms))
        says = words.gate_sentence(view)
        self._gate.classes(remove=TONES, add=says.tone)
        for bar, value in ((self._bar50, view.latency_p50_ms), (self._bar99, view.latency_p99_ms)):
            part = min(1.0, (value or 0.0) / view.gate_ms) if view.gate_ms else 0.0
            bar.style(f"width: {100 * part:.1f}%")
        icon = {"pass": "check_circle", "fail": "timer_off"}.get(says.tone, "hourglass_empty")
        _say(self._icon, icon, says.tone)
        _say(self._note, says.note, "")


class Charts:
    """Denoise steps per part, and parts per minute over time."""

    def __init__(self) -> None:
        self._depth = self._chart("Denoise steps, last minute", "layers", depth_options(()))
        self._rates = self._chart("Parts per minute, last 3 minutes", "timeline", rate_options(()))

    @staticmethod
    def _chart(title: str, icon: str, options: dict[str, object]) -> ui.echart:
        with _box("tile"):
            with _box("title"):
                ui.icon(icon).classes("accent")
                ui.label(title)
            return ui.echart(options).classes("chart")

    def show(self, view: LineView) -> None:
        """Redraw both charts."""
        for chart, options in (
            (self._depth, depth_options(view.depth)),
            (self._rates, rate_options(view.rates)),
        ):
            chart.options.update(options)
            chart.update()


def camera_table(rows: tuple[CameraRow, ...]) -> None:
    """One row per camera."""
    with _box("cameras", "table"):
        with _box("", "tr"):
            for title in (
                "Camera",
                "Last frame",
                "Captured",
                "PASS",
                "FAIL",
                "UNDECIDED",
                "Backlog",
            ):
                with _box("", "th"):
                    ui.label(title)
        for row in rows:
            _camera_row(row)


def _camera_row(row: CameraRow) -> None:
    icon, tone, text = words.camera_state(row)
    numbers = (row.captured, row.passed, row.failed, row.undecided, row.backlog)
    with _box("", "tr"):
        with _box("", "td"):
            ui.label(row.camera)
        with _box(tone, "td"):
            ui.icon(icon)
            ui.label(text).style("display: inline")
        for number in numbers:
            with _box("", "td"):
                ui.label(words.count(number))


def reject_cards(rejects: tuple[Reject, ...], now_ns: int) -> None:
    """The last rejects, newest first, each with picture and words."""
    if not rejects:
        ui.label("No rejects yet.").classes("none")
        return
    with _box("rejects"):
        for reject in rejects:
            _reject_card(reject, now_ns)


def _reject_card(reject: Reject, now_ns: int) -> None:
    what, which, number = words.reject_words(reject)
    decision = reject.verdict.decision
    with _box("reject"):
        if reject.picture_png:
            source = f"/rejects/{reject.key}.png"
            _box("shot", "img").props(f'src="{source}" alt="reject with its mask"')
        else:
            with _box("blank"):
                ui.label("no picture")
        with _box("says"):
            with _box(f"what {decision.lower()}"):
                ui.icon(words.DECISION_ICONS[decision])
                ui.label(what)
                ui.label(words.age((now_ns - reject.verdict.decided_ns) / 1e9)).classes("age")
            ui.label(which).classes("which")
            ui.label(number).classes("which number")


def line_page(view_now: Callable[[], LineView]) -> None:
    """Build the page for one visitor and keep it up to date."""
    ui.add_css(Path(__file__).with_name("line.css"))
    first = view_now()
    with _box("line"):
        head = Head(first.line)
        with _box("tiles"):
            tiles = {name: Tile(title, icon, tone) for name, title, icon, tone in TILES}
        with _box("charts"):
            latency, charts = Latency(), Charts()
        with _box("lower"):
            with _box("tile"):
                _title("Cameras", "videocam")
                cameras = ui.refreshable(camera_table)
                cameras(first.cameras)
            with _box("tile"):
                _title("Last rejects", "photo_library")
                rejects = ui.refreshable(reject_cards)
                rejects(first.rejects, first.at_ns)

    def refresh() -> None:
        view = view_now()
        for name, says in words.tiles(view).items():
            tiles[name].show(says)
        for part in (head, latency, charts):
            part.show(view)
        cameras.refresh(view.cameras)
        rejects.refresh(view.rejects, view.at_ns)

    refresh()
    ui.timer(REFRESH_S, refresh)


def _title(text: str, icon: str) -> None:
    with _box("title"):
        ui.icon(icon).classes("accent")
        ui.label(text)
