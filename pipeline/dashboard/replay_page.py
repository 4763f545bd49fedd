"""The page *Replay*: a recording part by part, and where another run decided otherwise."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nicegui import run, ui

from engines.contracts import InspectionError, Verdict
from pipeline.dashboard import words
from pipeline.dashboard.shell import box, button, icon, on_keys, page, title
from pipeline.dashboard.tape import Tape, next_difference

if TYPE_CHECKING:
    from pipeline.comparison import Difference
    from pipeline.dashboard.address import Address
    from pipeline.dashboard.desk import Desk

TICK_S = 0.2
GAP_MAX_NS = 2_000_000_000  # of a pause in the recording no more is waited for


def replay_page(desk: Desk, address: Address) -> None:
    """Build the page for one visitor."""
    with page(address, desk.line, "replay", "pane"):
        names = desk.tapes.names()
        if not names:
            ui.label(address.say("no_recordings", folder=desk.tapes.folder)).classes("none")
            return
        _Replay(desk, address, names)


class _Replay:
    """One visitor's place in a recording; recording, comparison and part are in the address."""

    def __init__(self, desk: Desk, address: Address, names: list[str]) -> None:
        self._desk, self._address, self._say = desk, address, address.say
        self._tape: Tape | None = None
        self._index, self._clock_ns, self._plays = 0, 0, False
        self._differences: dict[str, Difference] = {}
        self._others: dict[str, Verdict] = {}
        say, asked, against = self._say, address.get("recording"), address.get("against")
        self._name = asked if asked in names else names[0]
        logs = desk.tapes.logs()
        self._against = against if against in logs else ""
        with box("bar"):
            ui.select(names, value=self._name, label=say("recording")).props(
                "outlined"
            ).on_value_change(lambda e: ui.navigate.to(self._there(recording=e.value, part="")))
            ui.select(
                {"": say("nothing")} | {log: log for log in logs},
                value=self._against,
                label=say("against"),
            ).props("outlined").on_value_change(
                lambda e: ui.navigate.to(self._there(against=e.value))
            )
            ui.label(say("replay_keys")).classes("keys")
        self._body = box("stack")
        with self._body:
            ui.label(say("opening")).classes("none")
        ui.timer(0.05, self._load, once=True)

    def _there(self, **changes: str) -> str:
        here = {"recording": self._name, "against": self._against, "part": str(self._index + 1)}
        return self._address.here(**(here | changes))

    async def _load(self) -> None:
        problem = ""
        try:
            self._tape = await run.io_bound(self._desk.tapes.open, self._name)
            if self._tape and self._against:
                found = await run.io_bound(self._desk.tapes.compared, self._tape, self._against)
                self._differences, self._others = found or ({}, {})
        except InspectionError as error:
            problem = str(error)
        self._body.clear()
        with self._body:
            if problem:
                self._notice("error", self._say("unreadable", why=problem))
            if self._tape is not None and self._tape.verdicts:
                self._lay_out(self._tape)
            elif not problem:
                ui.label(self._say("no_parts")).classes("none")

    def _notice(self, symbol: str, text: str) -> None:
        with box("notice").props("role=alert"):
            icon(symbol)
            ui.label(text)

    def _lay_out(self, tape: Tape) -> None:
        say, count = self._say, len(tape.verdicts)
        if tape.is_cut:
            self._notice("content_cut", say("cut_short"))
        if tape.is_long:
            self._notice("more_horiz", say("too_long", count=count))
        with box("bar"):
            self._toggle = button(say("play"), "play_arrow").classes("main").on_click(self._turn)
            button(say("previous"), "skip_previous").on_click(lambda: self._step(-1))
            button(say("next"), "skip_next").on_click(lambda: self._step(1))
            if self._against:
                button(say("next_difference"), "compare_arrows").on_click(self._seek_difference)
                key = "differences" if self._differences else "no_difference"
                ui.label(say(key, count=len(self._differences), parts=count)).props("role=status")
        self._slider = ui.slider(min=1, max=max(count, 2), step=1, value=1)
        self._slider.on_value_change(lambda e: self._seek(int(e.value) - 1))
        self._slider.props["aria-label"] = say("recording")
        with box("halves"):
            with box("tile"):
                self._place = ui.label().classes("note")
                with box("stage"):
                    self._image = box("big", "img")
            with box("tile"):
                self._told = ui.refreshable(self._tell)
                self._told()
        on_keys(
            {
                " ": self._turn,
                "ArrowLeft": lambda: self._step(-1),
                "ArrowRight": lambda: self._step(1),
                "n": self._seek_difference,
            }
        )
        asked = self._address.get("part")
        self._show(int(asked) - 1 if asked.isdecimal() and len(asked) < 9 else 0)
        ui.timer(TICK_S, self._tick)

    # -- moving ----------------------------------------------------------------------------------

    def _turn(self) -> None:
        self._plays = not self._plays
        key, symbol = ("pause", "pause") if self._plays else ("play", "play_arrow")
        self._toggle.set_text(self._say(key))
        self._toggle.props(f"icon={symbol}")

    def _tick(self) -> None:
        """Let recorded time pass."""
        if not self._plays or self._tape is None:
            return
        verdicts, ahead = self._tape.verdicts, self._index
        self._clock_ns += int(TICK_S * 1e9)
        while ahead + 1 < len(verdicts):
            gap_ns = verdicts[ahead + 1].captured_ns - verdicts[ahead].captured_ns
            wait_ns = min(max(gap_ns, 0), GAP_MAX_NS)
            if wait_ns > self._clock_ns:
                break
            self._clock_ns -= wait_ns
            ahead += 1
        if ahead != self._index:
            self._show(ahead)
        elif ahead + 1 == len(verdicts):
            self._turn()

    def _step(self, by: int) -> None:
        self._seek(self._index + by)

    def _seek(self, index: int) -> None:
        if index != self._index:
            self._clock_ns = 0
            self._show(index)

    def _seek_difference(self) -> None:
        if self._tape is not None and self._differences:
            self._seek(next_difference(self._tape.verdicts, self._differences, self._index))

    def _show(self, index: int) -> None:
        if self._tape is None:
            return
        self._index = min(max(index, 0), len(self._tape.verdicts) - 1)
        verdict, count = self._tape.verdicts[self._index], len(self._tape.verdicts)
        self._image.props["src"] = f"/tapes/{self._tape.key}/{self._index}.png"
        self._image.props["alt"] = f"{self._say('frame')} {words.headline(verdict)}"
        self._image.update()
        place = self._say("seek", place=self._index + 1, count=count)
        self._place.set_text(f"{place} · {self._say.when(verdict.captured_ns)}")
        self._slider.set_value(self._index + 1)
        self._told.refresh()
        if not self._plays:  # an address is for what one looks at
            ui.navigate.history.replace(self._there())

    # -- words -----------------------------------------------------------------------------------

    def _tell(self) -> None:
        if self._tape is None:
            return
        verdict = self._tape.verdicts[self._index]
        title(self._say("then"), "history")
        self._verdict(verdict)
        if not self._against:
            return
        title(self._say("again"), "compare_arrows")
        other = self._others.get(verdict.frame_id)
        if other is None:
            ui.label(self._say("is_missing")).classes("which")
            return
        self._verdict(other)
        difference = self._differences.get(verdict.frame_id)
        if difference is not None:
            self._notice("not_equal", str(difference))

    def _verdict(self, verdict: Verdict) -> None:
        say = self._say
        with box(f"verdict {verdict.decision.lower()}"):
            icon(words.DECISION_ICONS[verdict.decision])
            ui.label(words.headline(verdict))
        ui.label(verdict.part_id or verdict.frame_id).classes("which")
        if verdict.surprise is not None:
            values = (say.number(verdict.surprise, 2), say.number(verdict.threshold, 2))
            told = say("surprise_of", surprise=values[0], threshold=values[1])
            steps = say("steps_of", steps=verdict.steps, planned=verdict.steps_planned)
            ui.label(f"{verdict.camera} · {told} · {say('steps')} {steps}").classes("which")
