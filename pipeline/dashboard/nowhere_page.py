"""What stands at an address without a page: the frame of all pages, and the way back."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nicegui import ui

from pipeline.dashboard.shell import page

if TYPE_CHECKING:
    from pipeline.dashboard.address import Address
    from pipeline.dashboard.desk import Desk


def nowhere_page(desk: Desk, address: Address) -> None:
    """Build the page for one visitor."""
    with page(address, desk.line, "nowhere", "pane"):
        ui.label(address.say("nowhere")).classes("none")
        ui.link(address.say("line"), address.to("/")).classes("go")
