"""The page *Reject*: one part, why it was rejected, and everything that is known of it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from nicegui import ui

from engines.contracts import Decision, Verdict
from pipeline.dashboard import words
from pipeline.dashboard.charts import inked, score_options
from pipeline.dashboard.good import entry_of, good_parts
from pipeline.dashboard.part_picture import picture_of
from pipeline.dashboard.shell import box, button, icon, on_keys, page, title
from pipeline.dashboard.texts import CATALOGUE
from pipeline.outputs.archive import stem_of_frame

if TYPE_CHECKING:
    from pipeline.dashboard.address import Address
    from pipeline.dashboard.desk import Desk
    from pipeline.dashboard.parts import Part
    from pipeline.dashboard.texts import Speech


def reject_page(desk: Desk, address: Address, stem: str) -> None:
    """Build the page for one visitor, about one part; "" = the newest."""
    desk.parts.look()
    stem = stem or next(iter(desk.parts.stems), "")
    part = desk.parts.find(stem) if stem else None
    with page(address, desk.line, "reject", "pane"):
        if part is None:
            key = "gone" if stem else "no_parts" if desk.parts.keeps else "no_archive"
            ui.label(address.say(key)).classes("none")
            return
        steps = _Steps(desk, address, part)
        with box("columns"):
            with box("tile"):
                picture_of(desk, part, address, steps.keep)
            with box("stack"):
                _judged(desk, part, address.say)
                score_tile(desk, part, address.say, is_dark=address.is_dark)
            _facts(part, address.say)


class _Steps:
    """Newer and older parts, by button and by key, looked at as this one is."""

    def __init__(self, desk: Desk, address: Address, part: Part) -> None:
        self._stems, self._place = desk.parts.stems, desk.parts.place(part.stem)
        self._address, self._view = address, address.get("view")
        say = address.say
        with box("bar"):
            button(say("newer"), "arrow_back").on_click(lambda: self._go(-1))
            if self._place is not None:
                ui.label(say("place", place=self._place + 1, count=len(self._stems)))
            button(say("older"), "arrow_forward").on_click(lambda: self._go(1))
            ui.link(say("review"), address.to("/review", part=part.stem)).classes("go")
            ui.label(say("reject_keys")).classes("keys")
        on_keys({"ArrowLeft": lambda: self._go(-1), "ArrowRight": lambda: self._go(1)})

    def keep(self, view: str) -> None:
        """Look at the next part in this way too."""
        self._view = view

    def _go(self, by: int) -> None:
        to = (self._place if self._place is not None else -1) + by
        if 0 <= to < len(self._stems):
            there = self._address.to(f"/reject/{self._stems[to]}", view=self._view)
            ui.navigate.to(there)


def _judged(desk: Desk, part: Part, say: Speech) -> None:
    """The decision in large words, and what people said of it."""
    verdict = part.verdict
    with box("tile"):
        with box(f"verdict {verdict.decision.lower()}"):
            icon(words.DECISION_ICONS[verdict.decision])
            ui.label(words.headline(verdict))
        ui.label(verdict.part_id or verdict.frame_id).classes("which")
        ui.label(f"{verdict.camera} · {say.when(verdict.captured_ns)}").classes("which")
        surprise = verdict.surprise
        if surprise is not None and verdict.decision is not Decision.UNDECIDED:
            values = (say.number(surprise, 2), say.number(verdict.threshold, 2))
            ui.label(say("surprise_of", surprise=values[0], threshold=values[1])).classes("which")
        label = desk.labels.of(verdict.frame_id)
        if label is not None:
            told = {"answer": say(label.answer), "who": label.who, "when": say.when(label.at_ns)}
            ui.label(say("taken_back", **told)).classes("which")


def score_tile(desk: Desk, part: Part, say: Speech, *, is_dark: bool) -> None:
    """The part's score against the threshold and against good parts at its plan."""
    found = good_parts(part.verdict, entry_of(desk.calibration(), part.verdict))
    with box("tile"):
        title(say("score"), "bar_chart")
        if found is None:
            key = "no_score" if part.verdict.anomaly_score is None else "no_good"
            ui.label(say(key)).classes("note")
            return
        ui.echart(inked(score_options(found, say), is_dark)).classes("chart").props(
            f'role=img aria-label="{say("score")}"'
        )
        key = "score_beyond" if found.is_beyond else "score_note"
        values = (say.number(found.score, 3), say.number(found.limit, 3))
        ui.label(say(key, score=values[0], limit=values[1], good=found.good)).classes("note")


def _facts(part: Part, say: Speech) -> None:
    """Everything else, as names and values."""
    with box("tile facts"):
        for heading, symbol, rows in (
            ("facts", "list", _known(part.verdict, say)),
            ("stages", "timer", _stages(part.verdict, say)),
            ("versions", "inventory_2", _versions(part.verdict, say)),
        ):
            title(say(heading), symbol)
            with box("pairs", "dl"):
                for name, value in rows:
                    with box("", "dt"):
                        ui.label(name)
                    with box("", "dd"):
                        ui.label(value)


def _known(verdict: Verdict, say: Speech) -> Iterator[tuple[str, str]]:
    texts = {
        "part": verdict.part_id,
        "lot": verdict.lot,
        "recipe": verdict.recipe,
        "category": verdict.category,
        "reason": verdict.reason.replace("_", " ") if verdict.reason else "",
    }
    yield from ((say(key), text) for key, text in texts.items() if text)
    yield say("frame"), verdict.frame_id
    yield say("exposed"), say.when(verdict.captured_ns)
    yield say("decided"), say.when(verdict.decided_ns)
    yield say("raw_score"), say.number(verdict.anomaly_score, 4)
    yield say("surprise"), say.number(verdict.surprise, 2)
    yield say("threshold"), say.number(verdict.threshold, 2)
    yield say("level"), "–" if verdict.level is None else str(verdict.level)
    yield say("plan"), "–" if verdict.plan is None else str(verdict.plan)
    yield say("steps"), say("steps_of", steps=verdict.steps, planned=verdict.steps_planned)
    for region in verdict.regions[:5]:
        values = region.model_dump() | {"peak": say.number(region.peak, 2)}
        yield say("regions"), say("region", **values)


def _stages(verdict: Verdict, say: Speech) -> Iterator[tuple[str, str]]:
    for stage, taken_ms in verdict.latency_ms.items():
        key = f"stage_{stage}"
        yield say(key) if key in CATALOGUE else stage, f"{say.number(taken_ms)} ms"


def _versions(verdict: Verdict, say: Speech) -> Iterator[tuple[str, str]]:
    yield say("bundle"), verdict.bundle_id or "–"
    yield say("backend"), verdict.backend or "–"
    yield say("calibration"), verdict.calibration_id or "–"
    if verdict.replayed:
        yield say("replayed"), verdict.source_frame_id


def stem_of(frame_id: str) -> str:
    """The name of a frame's part in addresses; "" for a foreign id."""
    try:
        return stem_of_frame(frame_id)
    except ValueError:
        return ""
