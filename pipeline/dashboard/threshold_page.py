"""The page *Threshold*: move it, see which recorded parts flip, apply it with name and reason."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from nicegui import ui

from engines.contracts import BadConfig, InspectionError
from engines.retuning import expected_above, promise_at
from pipeline.applied import changes
from pipeline.dashboard.charts import flip_options, inked
from pipeline.dashboard.history import Judged, Stretch, WhatIf
from pipeline.dashboard.reject_page import stem_of
from pipeline.dashboard.shell import box, button, icon, page, title

if TYPE_CHECKING:
    from collections.abc import Sequence

    from engines.calibration import Calibration, Entry
    from pipeline.dashboard.address import Address
    from pipeline.dashboard.desk import Desk

SHOWN = 12  # flips of each kind
AUDITED = 20
LOOK_S = 1.0  # at a history that is still empty
FIGURES = (("fails_now", ""), ("fails_then", ""), ("to_fail", "fail"), ("to_pass", "pass"))
LEAST, MOST, STEP = 0.02, 8.0, 0.02  # of the slider, in surprise


def threshold_page(desk: Desk, address: Address) -> None:
    """Build the page for one visitor."""
    with page(address, desk.line, "threshold", "pane"):
        try:
            calibration = desk.thresholds.now()
        except InspectionError as error:
            ui.label(address.say("unreadable", why=error)).classes("none")
            return
        _Threshold(desk, address, calibration)


class _Threshold:
    """One visitor's question; what they ask is in the address."""

    def __init__(self, desk: Desk, address: Address, calibration: Calibration) -> None:
        self._desk, self._address, self._say = desk, address, address.say
        keys = [
            f"{backend} · {category}"
            for backend, entries in calibration.entries.items()
            for category in entries
        ]
        asked = address.get("entry")
        self._key = asked if asked in keys else self._used(keys)
        self._asked = _number(address.get("at"))
        self._judged = Stretch([])
        self._found: WhatIf | None = None
        with box("halves"):
            with box("stack"):
                with box("tile"):
                    self._ask(keys)
                with box("tile"):
                    self._form()
            with box("stack"), box("tile answer"):
                self._lay_out_answer()
        with box("tile"):
            self._audit = ui.refreshable(self._draw_audit)
            self._audit()
        self._choose(self._key)
        ui.timer(LOOK_S, self._look_again)

    def _used(self, keys: list[str]) -> str:
        """The entry that the newest verdicts were judged by, or the first."""
        bundle, counted = self._desk.thresholds.bundle(), Counter[str]()
        for (backend, category), count in self._desk.history.counts().items():
            counted[f"{backend} · {bundle.category_name(category)}"] += count
        return max(keys, key=lambda key: counted[key])

    def _ask(self, keys: list[str]) -> None:
        say = self._say
        title(say("what_if"), "tune")
        ui.select(
            keys, value=self._key, label=say("entry"), on_change=lambda e: self._choose(e.value)
        ).props("outlined")
        with box("figures"):
            with box():
                self._was = ui.label().classes("value")
                ui.label(say("now_is")).classes("note")
            with box():
                self._becomes = ui.label().classes("value")
                ui.label(say("new_threshold")).classes("note")
        self._slider = ui.slider(
            min=LEAST, max=MOST, step=STEP, on_change=lambda e: self._move(e.value)
        )
        self._slider.props["aria-label"] = say("new_threshold")
        self._number = ui.number(
            say("new_threshold"),
            min=0.01,
            step=0.1,
            format="%.2f",
            on_change=lambda e: self._move(e.value),
        ).props("outlined dense")
        self._promise = ui.label().classes("note")
        self._estimate = ui.label().classes("note")

    def _form(self) -> None:
        say = self._say
        title(say("apply"), "how_to_reg")
        with box("bar"):
            self._who = ui.input(say("who"), value=self._address.get("who")).props("outlined dense")
            self._why = ui.input(say("why")).props("outlined dense")
            button(say("apply"), "check").classes("main").on_click(self._apply)
        self._outcome = ui.label().classes("note").props("role=status")
        ui.label(say("exits_end")).classes("note")

    # -- what is asked ---------------------------------------------------------------------------

    def _choose(self, key: str) -> None:
        self._key = key
        self._judged = self._history(key)
        threshold = self._asked or self._entry().threshold
        self._asked = None
        self._was.set_text(self._say.number(self._entry().threshold, 2))
        self._move(threshold)

    def _move(self, value: float | None) -> None:
        if value is None or value <= 0:
            return
        self._at = round(float(value), 3)
        if self._slider.value != self._at:
            self._slider.set_value(self._at)
        if self._number.value != self._at:
            self._number.set_value(self._at)
        self._becomes.set_text(self._say.number(self._at, 2))
        self._tell_promise()
        self._answer()
        ui.navigate.history.replace(self._address.here(entry=self._key, at=f"{self._at:g}"))

    def _tell_promise(self) -> None:
        entry, say = self._entry(), self._say
        promised = promise_at(entry, self._at)
        values = {
            "share": say.number(100 * promised.max_false_reject),
            "confidence": say.number(100 * promised.confidence, 0),
        }
        self._promise.set_text(say("promise", **values))
        share = say.number(100 * expected_above(entry, self._at), 2)
        told = say("estimate", share=share, good=entry.evidence.good)
        if promised.max_false_reject > entry.evidence.max_false_reject:
            lost = say.number(100 * entry.evidence.max_false_reject)
            told += f" · {say('below_promise', share=lost)}"
        self._estimate.set_text(told)

    def _entry(self) -> Entry:
        backend, category = self._split()
        return self._desk.thresholds.now().entries[backend][category]

    def _split(self) -> tuple[str, str]:
        backend, _, category = self._key.partition(" · ")
        return backend, category

    def _history(self, key: str) -> Stretch:
        """Recorded verdicts that this entry judged: a category is what the bundle calls it."""
        backend, _, category = key.partition(" · ")
        bundle = self._desk.thresholds.bundle()
        named = {category for _, category in self._desk.history.counts()}
        return self._desk.history.of(
            backend, [one for one in named if bundle.category_name(one) == category]
        )

    def _look_again(self) -> None:
        """A page that is opened before the first verdict has its answer as soon as there is one."""
        if self._found is None:
            self._judged = self._history(self._key)
            self._answer()

    # -- what is answered ------------------------------------------------------------------------

    def _lay_out_answer(self) -> None:
        """What a move of the slider changes is changed in place, not drawn anew."""
        say = self._say
        title(say("flipped"), "compare_arrows")
        self._span = ui.label().classes("note")
        with box() as self._shown:
            with box("figures"):
                self._figures = {key: self._figure(key, tone) for key, tone in FIGURES}
            self._chart = ui.echart({}).classes("chart")
            self._chart.props(f'role=img aria-label="{say("surprise")}"')
        self._flipped = ui.refreshable(self._draw_flips)
        self._flipped()

    def _figure(self, key: str, tone: str) -> ui.label:
        with box().mark(key):
            number = ui.label().classes(f"value {tone} {key}")
            ui.label(self._say(key)).classes("note")
        return number

    def _answer(self) -> None:
        say, found = self._say, self._judged.what_if(self._at)
        self._found = found
        self._shown.set_visibility(found is not None)
        self._flipped.refresh()
        if found is None:
            self._span.set_text(say("no_history"))
            return
        begin, end = say.when(found.begin_ns), say.when(found.end_ns)
        self._span.set_text(say("history", count=found.count, begin=begin, end=end))
        numbers = (found.fails_then, found.fails, len(found.to_fail), len(found.to_pass))
        for label, number in zip(self._figures.values(), numbers, strict=True):
            label.set_text(str(number))
        options = flip_options(self._judged.surprises, self._entry().threshold, self._at, say)
        self._chart.options.update(inked(options, self._address.is_dark))
        self._chart.update()

    def _draw_flips(self) -> None:
        found = self._found
        if found is None:
            return
        if not found.to_fail and not found.to_pass:
            ui.label(self._say("none_flip")).classes("note")
            return
        self._flips("to_fail", "cancel", "fail", found.to_fail)
        self._flips("to_pass", "check_circle", "pass", found.to_pass)

    def _flips(self, key: str, symbol: str, tone: str, flips: Sequence[Judged]) -> None:
        if not flips:
            return
        say = self._say
        with box("list", "table"):
            for name in (key, "surprise", "decided"):
                with box("", "th").props("scope=col"):
                    ui.label(say(name))
            for one in flips[:SHOWN]:
                with box("", "tr"):
                    with box(tone, "td"):
                        icon(symbol)
                        name = one.part_id or one.frame_id
                        if self._desk.parts.place(stem_of(one.frame_id)) is None:
                            ui.label(name).style("display: inline")
                        else:
                            ui.link(name, self._address.to(f"/reject/{stem_of(one.frame_id)}"))
                    with box("", "td"):
                        ui.label(say.number(one.surprise, 2))
                    with box("", "td"):
                        ui.label(say.when(one.decided_ns))
        if len(flips) > SHOWN:
            ui.label(say("more_flip", count=len(flips) - SHOWN)).classes("note")

    # -- what is done ----------------------------------------------------------------------------

    def _apply(self) -> None:
        say, who, why = self._say, self._who.value.strip(), self._why.value.strip()
        if not who or not why:
            self._outcome.set_text(say("why_needed" if who else "who_needed"))
            return
        try:
            change = self._desk.thresholds.apply(*self._split(), self._at, who, why)
        except BadConfig as error:
            self._outcome.set_text(say("not_applied", why=error))
            return
        self._outcome.set_text(say("applied", id=change.calibration_id))
        self._why.set_value("")
        self._audit.refresh()
        self._choose(self._key)

    def _draw_audit(self) -> None:
        say = self._say
        title(say("audit"), "history_edu")
        found = changes(self._desk.settings.run_dir)[:AUDITED]
        if not found:
            ui.label(say("no_audit")).classes("note")
        for change in found:
            values = {
                "when": say.when(change.at_ns),
                "who": change.who,
                "old": say.number(change.old, 2),
                "new": say.number(change.new, 2),
                "entry": f"{change.backend} · {change.category}",
                "why": change.why,
            }
            ui.label(say("audit_row", **values)).classes("which")


def _number(text: str) -> float | None:
    try:
        value = float(text)
    except ValueError:
        return None
    return value if 0 < value < 1e6 else None
