"""The page *Health*: processes and their signs of life, ledger, Redis, engine, machine, events."""

from __future__ import annotations

from datetime import datetime
from typing import TYPE_CHECKING

from nicegui import ui

from pipeline.dashboard import words
from pipeline.dashboard.shell import box, icon, page, say_in, title
from pipeline.dashboard.view import LineState
from pipeline.dashboard.vitals import ROLES

if TYPE_CHECKING:
    from pipeline.dashboard.address import Address
    from pipeline.dashboard.desk import Desk
    from pipeline.dashboard.texts import Speech
    from pipeline.dashboard.vitals import Event, Vital

REFRESH_S = 2.0
LEVELS = {"warning": ("warning", "undecided"), "error": ("error", "fail")}


def health_page(desk: Desk, address: Address) -> None:
    """Build the page for one visitor."""
    with page(address, desk.line, "health", "pane"):
        drawn = ui.refreshable(_draw)
        drawn(desk, address.say)
    last: list[Vital] = []

    def refresh() -> None:
        if last[-1:] != [desk.vitals.now]:
            last[:] = [desk.vitals.now]
            drawn.refresh()

    ui.timer(REFRESH_S, refresh)


def _draw(desk: Desk, say: Speech) -> None:
    vital = desk.vitals.now
    with box("thirds"):
        with box("tile"):
            title(say("processes"), "memory")
            _processes(vital, say)
        with box("stack"):
            with box("tile"):
                title(say("ledger"), "balance")
                _ledger(desk, say)
            with box("tile"):
                title(say("server"), "storage")
                if desk.feed.server_lost:
                    _line("cloud_off", "fail", say(LineState.NO_SERVER.value))
                else:
                    _line("check_circle", "pass", say("answers"))
                ui.label(_memory(vital, say)).classes("which")
        with box("stack"):
            with box("tile"):
                title(say("engine"), "developer_board")
                _engine(desk, say)
            with box("tile"):
                title(say("machine"), "computer")
                _machine(vital, say)
    with box("tile"):
        title(say("events"), "event_note")
        _events(vital.events, say)


def _line(symbol: str, tone: str, text: str) -> None:
    with box(f"says-line {tone}"):
        icon(symbol)
        ui.label(text)


def _processes(vital: Vital, say: Speech) -> None:
    with box("list", "table"):
        for role in ROLES:
            names = vital.living.get(role, ())
            for name in names or ("",):
                with box("", "tr"):
                    with box("", "td"):
                        ui.label(role)
                    with box("", "td"):
                        camera = vital.cameras.get(name, "") if role == "ingest" else ""
                        ui.label(f"{camera} · {name}" if camera else name)
                    with box("pass" if name else "fail", "td"):
                        icon("favorite" if name else "heart_broken")
                        ui.label(say("beats" if name else "no_process")).style("display: inline")


def _ledger(desk: Desk, say: Speech) -> None:
    view = desk.feed.view
    says = words.residual(view, say)
    value = ui.label().classes("value")
    say_in(value, says)
    ui.label(says.note).classes("which")
    if not view.residual:
        _line("check_circle", "pass", say("balanced"))


def _memory(vital: Vital, say: Speech) -> str:
    if vital.memory_used is None:
        return say("unknown")
    used = say.size(vital.memory_used)
    if not vital.memory_limit:
        return say("memory", used=used)
    return say("memory_of", used=used, limit=say.size(vital.memory_limit))


def _engine(desk: Desk, say: Speech) -> None:
    verdict = desk.feed.last
    if verdict is None:
        ui.label(say("no_verdict")).classes("which")
        return
    for key, value in (
        ("backend", verdict.backend),
        ("bundle", verdict.bundle_id),
        ("calibration", verdict.calibration_id),
    ):
        ui.label(f"{say(key)} {value or '–'}").classes("which")


def _machine(vital: Vital, say: Speech) -> None:
    ram = say("ram", used=say.size(vital.ram_used), limit=say.size(vital.ram_total))
    free = say("unknown") if vital.disk_free is None else say.size(vital.disk_free)
    own = {"cpu": say.number(vital.own_cpu_percent, 0), "memory": say.size(vital.own_bytes)}
    for text in (
        say("cpu", share=say.number(vital.cpu_percent, 0)),
        ram,
        say("disk", free=free),
        say("own_cost", **own),
        *(f"{say('gpu')}: {gpu}" for gpu in vital.gpus or (say("no_gpu"),)),
    ):
        ui.label(text).classes("which")


def _events(events: tuple[Event, ...], say: Speech) -> None:
    if not events:
        ui.label(say("no_events")).classes("note")
        return
    region = box("scroll").props("tabindex=0 role=region")
    region.props["aria-label"] = say("events")
    with region, box("list", "table"):
        for event in events:
            symbol, tone = LEVELS.get(event.level, ("info", "faint"))
            with box("", "tr"):
                with box(tone, "td"):
                    icon(symbol)
                    ui.label(event.level).style("display: inline")
                for text in (_when(event.at, say), event.process, event.text):
                    with box("", "td"):
                        ui.label(text)


def _when(at: str, say: Speech) -> str:
    """A log's stamp in local time."""
    try:
        return say.when(int(datetime.fromisoformat(at).timestamp() * 1e9))
    except (ValueError, OverflowError, OSError):
        return at[:40]
