"""A rejected part as a picture: its mask, its map, as it is, and as the model would have it."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from nicegui import background_tasks, run, ui

from pipeline.dashboard import words
from pipeline.dashboard.shell import box, button, on_keys, title

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.dashboard.address import Address
    from pipeline.dashboard.desk import Desk
    from pipeline.dashboard.parts import Part

RECONSTRUCTION = "reconstruction"
VIEWS = ("mask", "map", "frame", RECONSTRUCTION)  # the first unless asked otherwise
SYMBOLS = ("gesture", "gradient", "image", "auto_fix_high")


def picture_of(desk: Desk, part: Part, address: Address, chosen: Callable[[str], object]) -> None:
    """The picture with its mask or its map, and buttons to choose; ``chosen`` is told which."""
    title(address.say("frame"), "image")
    if not part.picture_png:
        with box("blank"):
            ui.label(address.say("no_picture"))
        return
    _Views(desk, part, address, chosen)


class _Views:
    """One picture, drawn in one of four ways; which one is in the address."""

    def __init__(
        self, desk: Desk, part: Part, address: Address, told: Callable[[str], object]
    ) -> None:
        self._desk, self._part, self._address, self._told = desk, part, address, told
        say = address.say
        with box("stage"):
            self._image = box("big", "img")
            self._image.props["alt"] = " ".join(
                (say("frame"), words.headline(part.verdict), part.verdict.part_id)
            )
        with box("bar views"):
            self._buttons = {
                name: button(say(name), symbol).on_click(lambda name=name: self._choose(name))
                for name, symbol in zip(VIEWS, SYMBOLS, strict=True)
            }
            if part.has_original:
                ui.link(say("original"), f"/parts/{part.stem}/original.png", new_tab=True)
        self._note = ui.label().classes("note").props("role=status")
        for key, is_missing in (("no_mask", not part.mask_png), ("no_map", not part.map_png)):
            if is_missing:
                ui.label(say(key)).classes("note")
        on_keys({key: partial(self._choose, name) for key, name in zip("mkor", VIEWS, strict=True)})
        self._chosen = ""
        asked = address.get("view")
        self._show(asked if asked in VIEWS else VIEWS[0])

    def _choose(self, view: str) -> None:
        if view == self._chosen:
            return
        self._show(view)
        named = "" if view == VIEWS[0] else view
        self._told(named)
        ui.navigate.history.replace(self._address.here(view=named))

    def _show(self, view: str) -> None:
        self._chosen = view
        for name, pressed in self._buttons.items():
            pressed.props(f"aria-pressed={'true' if name == view else 'false'}")
            pressed.classes(remove="chosen", add="chosen" if name == view else "")
        if view == RECONSTRUCTION:  # the frame stays until it is drawn
            self._note.set_text(self._address.say("drawing"))
            self._source("frame")
            background_tasks.create(self._draw(), name="reconstruction")
        else:
            self._note.set_text("")
            self._source(view)

    async def _draw(self) -> None:
        drawing = await run.io_bound(self._desk.reconstructions.of, self._part)
        if drawing is None or self._chosen != RECONSTRUCTION or self._image.is_deleted:
            return  # the page server stops, or the visitor looks at something else by now
        say = self._address.say
        if drawing.refusal:
            self._note.set_text(say(drawing.refusal, why=drawing.why))
            return
        self._note.set_text(say("drawn", steps=drawing.steps))
        self._source(RECONSTRUCTION)

    def _source(self, view: str) -> None:
        self._image.props["src"] = f"/parts/{self._part.stem}/{view}.png"
        self._image.update()
