"""What every page stands in: names of the line and of the pages, brightness, language, one h1."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from nicegui import ui
from nicegui.elements.mixins.text_element import TextElement

from pipeline.dashboard.words import Says

if TYPE_CHECKING:
    from nicegui.events import KeyEventArguments

    from pipeline.dashboard.address import Address

PAGES = (  # path, key of its name, icon
    ("/", "line", "dashboard"),
    ("/reject", "reject", "image_search"),
    ("/review", "review", "rule"),
    ("/threshold", "threshold", "tune"),
    ("/replay", "replay", "replay"),
    ("/health", "health", "favorite"),
)
TONES = "pass fail undecided accent faint"
STYLES = ("line.css", "pages.css")


def box(classes: str = "", tag: str = "div") -> ui.element:
    """A plain element of the page."""
    return ui.element(tag).classes(classes)


def words(text: str, classes: str = "", tag: str = "div") -> TextElement:
    """Words in an element of their own kind; they are shown as they are, never read as HTML."""
    return TextElement(tag=tag, text=text).classes(classes)


def icon(name: str) -> ui.icon:
    """A picture beside words, which say it all: whoever hears the page need not hear of it."""
    return ui.icon(name).props("aria-hidden=true")


def button(text: str, symbol: str, **props: str) -> ui.button:
    """A button with words."""
    made = ui.button(text, icon=symbol, color=None).props("no-caps unelevated").classes("press")
    for key, value in props.items():
        made.props[key.replace("_", "-")] = value
    return made


def say_in(element: ui.label | ui.icon, says: Says) -> None:
    """Set words (or the icon's name) and tone, only where they changed."""
    if isinstance(element, ui.label):
        element.set_text(says.value)
    else:
        element.set_name(says.value)
    element.classes(remove=TONES, add=says.tone)


def title(text: str, symbol: str) -> None:
    """The heading of one tile."""
    with box("title"):
        icon(symbol).classes("accent")
        words(text, tag="h2")


def on_keys(actions: dict[str, Callable[[], object]]) -> None:
    """Do what a key stands for, unless the visitor types."""

    def act(event: KeyEventArguments) -> None:
        modifiers = event.modifiers
        is_plain = not (modifiers.ctrl or modifiers.alt or modifiers.meta)
        if event.action.keydown and is_plain and event.key.name in actions:
            actions[event.key.name]()

    ui.keyboard(act, repeating=False)


@contextmanager
def page(address: Address, line: str, key: str, classes: str) -> Iterator[ui.element]:
    """The frame around a page; yields the row of its head, for what a page says there."""
    for style in STYLES:
        ui.add_css(Path(__file__).with_name(style))
    say = address.say
    ui.page_title(f"{say(key)} · {line} · Assayline")
    ui.query("html").props(f"lang={say.language}")
    with box(classes):
        ui.link(say("to_content"), "#content").classes("skip")
        with box("head", "header"):
            words(line, "name", tag="h1" if key == "line" else "div")
            with box("pages", "nav").props(f'aria-label="{say("pages")}"'):
                for path, name, symbol in PAGES:
                    with ui.link(target=address.to(path)).classes("page") as link:
                        icon(symbol)
                        ui.label(say(name))
                    if name == key:
                        link.props("aria-current=page").classes("here")
            row = box("state-row")
            _brightness(address)
            other = "en" if say.language == "de" else "de"
            with ui.link(target=address.here(lang=other)).classes("other"):
                icon("translate")
                words(say("language"), tag="span").props(f"lang={other}")
        if key != "line":
            words(say(key), "unseen", tag="h1")
        with box("content").props("id=content"):
            yield row


def _brightness(address: Address) -> None:
    """Charts are drawn in colours of the page, so another brightness is another page."""
    ui.dark_mode(value=address.is_dark)
    to = "theme', 'light" if address.is_dark else "theme', 'dark"
    turn = f"const a = new URL(location); a.searchParams.set('{to}'); location = a;"
    pressed = ui.button(icon="contrast", color=None, on_click=lambda: ui.run_javascript(turn))
    pressed.props("flat round").props["aria-label"] = address.say("contrast")
