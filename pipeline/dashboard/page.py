"""The layout of the page *Line* and what fills it once a second."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

from nicegui import ui

from pipeline.dashboard import words
from pipeline.dashboard.charts import depth_drawn, depth_options, rate_options, rates_drawn
from pipeline.dashboard.shell import TONES, box, icon, page, say_in, title
from pipeline.dashboard.window import REJECTS_SHOWN
from pipeline.dashboard.words import Says

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from nicegui import Event

    from pipeline.dashboard.address import Address
    from pipeline.dashboard.texts import Speech
    from pipeline.dashboard.view import LineView, Reject

TILES = (  # name, icon, tone
    ("rate", "speed", "accent"),
    ("PASS", "check_circle", "pass"),
    ("FAIL", "cancel", "fail"),
    ("UNDECIDED", "help", "undecided"),
    ("yield", "percent", "accent"),
    ("residual", "balance", "pass"),
)
COLUMNS = ("camera", "state", "last_frame", "captured", "PASS", "FAIL", "UNDECIDED", "backlog")
FEW = 4  # cameras that leave room for taller rows


class Head:
    """The line's state in one word, and the time."""

    def __init__(self, say: Speech) -> None:
        self._say = say
        with box("state").props("role=status") as self._frame:
            self._icon, self._word = icon("hourglass_empty"), ui.label()
        self._clock = ui.label().classes("clock")

    def show(self, view: LineView) -> None:
        """Bring the head up to ``view``."""
        symbol, tone = words.STATES[view.state]
        say_in(self._icon, Says(symbol, tone=tone))
        say_in(self._word, Says(self._say(view.state.value), tone=tone))
        self._frame.classes(remove=TONES, add=tone)
        self._clock.set_text(self._say.when(time.time_ns()))


class Tile:
    """A title with an icon, a number readable from three metres, and a note."""

    def __init__(self, text: str, symbol: str, tone: str) -> None:
        self._tone = tone
        with box("tile"):
            with box("title"):
                self._icon = icon(symbol).classes(tone)
                ui.label(text)
            self._value = ui.label("–").classes("value")
            self._note = ui.label().classes("note")

    def show(self, says: words.Says) -> None:
        """Bring the tile up to what it says now."""
        say_in(self._value, says)
        say_in(self._note, Says(says.note))
        self._icon.classes(remove=TONES, add=says.tone or self._tone)


class Latency:
    """p50 and p99 from exposure to verdict, against the gate."""

    def __init__(self, say: Speech) -> None:
        self._say = say
        with box("tile"):
            title(say("latency"), "timer")
            with box("pair"):
                self._p50, self._p99 = self._number("p50 ms"), self._number("p99 ms")
            with box("gate") as self._gate:
                self._bar99, self._bar50 = box("p99"), box("p50")
            with box("title"):
                self._icon, self._note = icon("check"), ui.label()

    @staticmethod
    def _number(unit: str) -> ui.label:
        with box(""):
            value = ui.label("–").classes("value")
            ui.label(unit).classes("note")
        return value

    def show(self, view: LineView) -> None:
        """Bring numbers, bar and sentence up to ``view``."""
        self._p50.set_text(words.milliseconds(view.latency_p50_ms, self._say))
        self._p99.set_text(words.milliseconds(view.latency_p99_ms, self._say))
        says = words.gate_sentence(view, self._say)
        self._gate.classes(remove=TONES, add=says.tone)
        for bar, value in ((self._bar50, view.latency_p50_ms), (self._bar99, view.latency_p99_ms)):
            part = min(1.0, (value or 0.0) / view.gate_ms) if view.gate_ms else 0.0
            bar.style(f"width: {100 * part:.1f}%")
        symbol = {"pass": "check_circle", "fail": "timer_off"}.get(says.tone, "hourglass_empty")
        say_in(self._icon, Says(symbol, tone=says.tone))
        say_in(self._note, Says(says.note))


class Charts:
    """Denoise steps per part, and parts per minute over time."""

    def __init__(self, address: Address) -> None:
        say = self._say = address.say
        self._is_dark = address.is_dark
        self._depth = self._chart(say("depth"), "layers", depth_options((), say))
        self._rates = self._chart(say("rates"), "timeline", rate_options(()))

    @staticmethod
    def _chart(text: str, symbol: str, options: dict[str, object]) -> ui.echart:
        with box("tile"):
            title(text, symbol)
            return ui.echart(options).classes("chart").props(f'role=img aria-label="{text}"')

    def show(self, view: LineView) -> None:
        """Redraw both charts."""
        self._depth.props["options"] = depth_drawn(view, self._say, self._is_dark)
        self._rates.props["options"] = rates_drawn(view, self._is_dark)


class Cameras:
    """One row per camera; words change in place, so nothing jumps under a finger."""

    def __init__(self, cameras: Iterable[str], say: Speech) -> None:
        self._say = say
        region = box("wide").props("tabindex=0 role=region")  # a narrow screen scrolls it
        region.props["aria-label"] = say("cameras")
        names = tuple(cameras)
        with region, box("cameras few" if len(names) <= FEW else "cameras", "table"):
            with box("", "tr"):
                for name in COLUMNS:
                    with box("", "th").props("scope=col"):
                        ui.label(self._head(name))
            self._rows = {name: self._row(name) for name in names}

    def _row(self, camera: str) -> _Row:
        with box("", "tr"):
            first, state, *others = (self._cell(name) for name in COLUMNS)
            with first:
                ui.label(camera)
            with state:
                symbol, text = icon("hourglass_empty"), ui.label().style("display: inline")
            numbers = []
            for cell in others:
                with cell:
                    numbers.append(ui.label())
        return _Row(state, symbol, text, numbers)

    def _cell(self, name: str) -> ui.element:
        """A cell that knows its column: a phone has no room for the row of names."""
        cell = box("", "td")
        cell.props["data-name"] = self._head(name)
        return cell

    def _head(self, name: str) -> str:
        return name if name.isupper() else self._say(name)

    def show(self, view: LineView) -> None:
        """Bring every row up to ``view``."""
        for row in view.cameras:
            drawn, (symbol, tone, text) = self._rows[row.camera], words.camera_says(row, self._say)
            drawn.cell.classes(remove=TONES, add=tone)
            drawn.symbol.set_name(symbol)
            drawn.text.set_text(text)
            numbers = (row.captured, row.passed, row.failed, row.undecided, row.backlog)
            told = (words.last_frame(row, self._say), *map(words.count, numbers))
            for label, number in zip(drawn.numbers, told, strict=True):
                label.set_text(number)


class _Row(NamedTuple):
    cell: ui.element
    symbol: ui.icon
    text: ui.label
    numbers: list[ui.label]


class Rejects:
    """The last rejects, newest first, each with picture and words; a card keeps its part."""

    def __init__(self, address: Address) -> None:
        self._none = ui.label(address.say("no_rejects")).classes("none")
        with box("rejects"):
            self._cards = [_Card(address) for _ in range(REJECTS_SHOWN)]

    def show(self, view: LineView) -> None:
        """Give the oldest cards to what is new, and say of all how long ago it was."""
        self._none.set_visibility(not view.rejects)
        shown = {card.key for card in self._cards}
        for reject in reversed(view.rejects):
            if reject.key not in shown:
                self._cards.insert(0, self._cards.pop())
                self._cards[0].begin(reject)
        for card, reject in zip(self._cards, view.rejects, strict=False):
            card.grow_older(view.at_ns - reject.verdict.decided_ns)


class _Card:
    def __init__(self, address: Address) -> None:
        self._address, self.key = address, ""
        say = address.say
        with ui.link().classes("reject") as self._link:
            self._picture = box("shot", "img").props(f'alt="{say("picture_of")}"')
            with box("blank") as self._blank:
                ui.label(say("no_picture"))
            with box("says"):
                with box("what") as self._what:
                    self._icon, self._decision = icon("cancel"), ui.label()
                    self._age = ui.label().classes("age")
                self._which = ui.label().classes("which")
                self._number = ui.label().classes("which number")
        self._link.set_visibility(False)

    def begin(self, reject: Reject) -> None:
        """Show this part from now on, before all others."""
        self.key = reject.key
        what, which, number = words.reject_words(reject, self._address.say)
        decision = reject.verdict.decision
        self._link.move(target_index=0)
        self._link.set_visibility(True)
        self._link.props["href"] = self._address.to(f"/reject/{reject.stem}")
        self._picture.props["src"] = f"/rejects/{reject.key}.png"
        # Another element, else the picture of the part before would stand by these words until
        # this one has arrived.
        self._picture.props["key"] = reject.key
        self._picture.set_visibility(bool(reject.picture_png))
        self._blank.set_visibility(not reject.picture_png)
        self._what.classes(remove=TONES, add=decision.lower())
        self._icon.set_name(words.DECISION_ICONS[decision])
        self._decision.set_text(what)
        self._which.set_text(which)
        self._number.set_text(number)

    def grow_older(self, age_ns: int) -> None:
        """Say how long ago it was decided."""
        self._age.set_text(words.age(age_ns / 1e9, self._address.say))


def line_page(view_now: Callable[[], LineView], has_changed: Event[[]], address: Address) -> None:
    """Build the page for one visitor and draw it anew whenever the view is another."""
    first, say = view_now(), address.say
    with page(address, first.line, "line", "line") as row:
        with row:
            head = Head(say)
        with box("tiles"):
            tiles = {
                name: Tile(name if name.isupper() else say(name), symbol, tone)
                for name, symbol, tone in TILES
            }
        with box("charts"):
            latency, charts = Latency(say), Charts(address)
        with box("lower"):
            with box("tile"):
                title(say("cameras"), "videocam")
                cameras = Cameras([row.camera for row in first.cameras], say)
            with box("tile"):
                title(say("last_rejects"), "photo_library")
                rejects = Rejects(address)

    def draw() -> None:
        view = view_now()
        for name, says in words.tiles(view, say).items():
            tiles[name].show(says)
        for part in (head, latency, charts, cameras, rejects):
            part.show(view)

    draw()
    has_changed.subscribe(draw)
