"""The page *Review*: rejects nobody has judged yet, one after the other, answered by key."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from nicegui import ui

from engines.contracts import BadConfig
from pipeline.dashboard import words
from pipeline.dashboard.part_picture import picture_of
from pipeline.dashboard.reject_page import score_tile, stem_of
from pipeline.dashboard.shell import box, button, icon, on_keys, page, title
from pipeline.review import Answer
from pipeline.telemetry import facts

if TYPE_CHECKING:
    from pipeline.dashboard.address import Address
    from pipeline.dashboard.desk import Desk
    from pipeline.dashboard.parts import Part

ICONS = {"agree": "thumb_up", "false_reject": "undo", "unsure": "help"}
KEYS = {"a": "agree", "f": "false_reject", "u": "unsure"}
LOOK_S = 1.0


def review_page(desk: Desk, address: Address) -> None:
    """Build the page for one visitor."""
    with page(address, desk.line, "review", "pane"):
        if not desk.parts.keeps:
            ui.label(address.say("no_archive")).classes("none")
            return
        desk.parts.look()
        _Review(desk, address)


class _Review:
    """One visitor's way through the queue; their name and the part are in the address."""

    def __init__(self, desk: Desk, address: Address) -> None:
        self._desk, self._address, self._say = desk, address, address.say
        self._behind: list[str] = []  # what this visitor has been at, to go back
        say = self._say
        with box("bar"):
            self._who = ui.input(say("who"), value=address.get("who")).props("outlined dense")
            self._who.on("blur", self._note)
            self._counts = ui.label().props("role=status")
            ui.label(say("review_keys")).classes("keys")
        with box("bar"):
            for answer in get_args(Answer):
                button(say(answer), ICONS[answer]).classes("main").on_click(
                    lambda answer=answer: self._answer(answer)
                )
            button(say("skip"), "skip_next").on_click(lambda: self._go(self._next()))
            button(say("previous"), "arrow_back").on_click(self._back)
        on_keys(
            {key: lambda answer=answer: self._answer(answer) for key, answer in KEYS.items()}
            | {"ArrowRight": lambda: self._go(self._next()), "ArrowLeft": self._back}
        )
        self._stem = address.get("part") or self._next()
        self._show = ui.refreshable(self._draw)
        self._show()
        self._count()
        ui.timer(LOOK_S, self._look)

    def _queue(self) -> list[str]:
        """Parts that nobody has judged, oldest first: the newest keep coming."""
        done = {stem_of(frame_id) for frame_id in self._desk.labels.newest()}
        return [stem for stem in reversed(self._desk.parts.stems) if stem not in done]

    def _next(self) -> str:
        """The first after this one that is open, or else the first of all."""
        queue, stems = self._queue(), self._desk.parts.stems
        here = self._desk.parts.place(getattr(self, "_stem", ""))
        if here is not None:
            newer = set(stems[:here])
            queue = [one for one in queue if one in newer] or queue
        return queue[0] if queue else ""

    def _answer(self, answer: Answer) -> None:
        part = self._desk.parts.find(self._stem) if self._stem else None
        if part is None:
            return
        if not self._who.value.strip():
            ui.notify(self._say("who_needed"), type="warning")
            self._who.run_method("focus")
            return
        try:
            self._desk.labels.add(part.verdict, answer, self._who.value.strip())
        except BadConfig as error:
            ui.notify(self._say("not_saved", why=error), type="negative")
            return
        facts.count("reviews_total", camera=part.verdict.camera, answer=answer)
        self._go(self._next())

    def _go(self, stem: str) -> None:
        if self._stem and stem != self._stem:
            self._behind.append(self._stem)
        self._at(stem)

    def _back(self) -> None:
        if self._behind:
            self._at(self._behind.pop())

    def _at(self, stem: str) -> None:
        self._stem = stem
        self._note()
        self._show.refresh()
        self._count()

    def _note(self) -> None:
        there = self._address.here(part=self._stem, who=self._who.value.strip())
        ui.navigate.history.replace(there)

    def _here(self) -> Address:
        """Where this visitor is now: the part may be another than the one first asked for."""
        told = {"part": self._stem, "who": self._who.value.strip()}
        return replace(self._address, query={**self._address.query, **told})

    def _keep(self, view: str) -> None:
        """Look at the next part in this way too."""
        self._address = replace(self._address, query={**self._address.query, "view": view})

    def _look(self) -> None:
        self._count()
        if not self._stem and (stem := self._next()):
            self._at(stem)

    def _count(self) -> None:
        waiting, done = len(self._queue()), len(self._desk.labels.newest())
        say = self._say
        self._counts.set_text(f"{say('to_review', count=waiting)} · {say('reviewed', count=done)}")

    def _draw(self) -> None:
        part = self._desk.parts.find(self._stem) if self._stem else None
        if part is None:
            ui.label(self._say("gone" if self._stem else "all_reviewed")).classes("none")
            return
        with box("halves"):
            with box("tile"):
                picture_of(self._desk, part, self._here(), self._keep)
            with box("stack"):
                with box("tile"):
                    self._tell(part)
                score_tile(self._desk, part, self._say, is_dark=self._address.is_dark)

    def _tell(self, part: Part) -> None:
        verdict, say = part.verdict, self._say
        title(say("part"), "inventory_2")
        with box(f"verdict {verdict.decision.lower()}"):
            icon(words.DECISION_ICONS[verdict.decision])
            ui.label(words.headline(verdict))
        ui.label(verdict.part_id or verdict.frame_id).classes("which")
        ui.label(f"{verdict.camera} · {say.when(verdict.captured_ns)}").classes("which")
        if verdict.surprise is not None:
            values = (say.number(verdict.surprise, 2), say.number(verdict.threshold, 2))
            ui.label(say("surprise_of", surprise=values[0], threshold=values[1])).classes("which")
        ui.link(say("facts"), self._address.to(f"/reject/{part.stem}")).classes("go")
        label = self._desk.labels.of(verdict.frame_id)
        if label is not None:
            told = {"answer": say(label.answer), "who": label.who, "when": say.when(label.at_ns)}
            ui.label(say("taken_back", **told)).classes("which")
