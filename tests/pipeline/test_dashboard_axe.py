"""Axe-core over every page: no serious violation, on the dark and on the light page.

Exempt are rules that a component of the library itself breaks; each names the component.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Page

from tests.pipeline.pages import (
    NEEDS_BROWSER,
    PAGES,
    Running,
    free_port,
    running_line,
    served,
    until,
    visiting,
)
from tests.pipeline.test_dashboard_tape import record
from tests.tiny_line import write_line

GRAVE = {"serious", "critical"}
# Quasar's own list of options: between it and its options stands a scroller that takes the focus.
OF_QUASAR = re.compile(r'aria-required-children \(critical\): <div role="listbox" class="q-menu ')
TOKEN = "open sesame, 32 letters at least"  # noqa: S105 - of this test


@pytest.fixture(scope="module")
def line(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    """A line with rejects, a verdict log and a recording to look at."""
    pytest.importorskip("nicegui", reason="the extra 'dashboard' is not installed")
    with running_line(tmp_path_factory.mktemp("line")) as running:
        log = running.run_dir / "verdicts.jsonl"
        until(lambda: log.exists() and log.read_bytes().count(b"\n") > 30)
        record(running.run_dir / "shift.mcap")
        yield running


@pytest.fixture(scope="module")
def page() -> Iterator[Page]:
    """One browser for all of these."""
    with visiting() as visited:
        yield visited


def found(page: Page, *, least: int = 20) -> list[str]:
    """What axe-core finds grave on the page as it stands, a line for each place."""
    from axe_playwright_python.sync_playwright import Axe

    told: dict[str, Any] = Axe().run(page).response
    looked_at = sum(len(rule["nodes"]) for rule in told["passes"])
    assert looked_at >= least, "axe-core saw an empty page"
    return [
        f"{rule['id']} ({rule['impact']}): {node['html'][:200]}"
        for rule in told["violations"]
        for node in rule["nodes"]
        if rule["impact"] in GRAVE
    ]


@NEEDS_BROWSER
@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("theme", ["dark", "light"])
@pytest.mark.parametrize("size", [(1280, 720), (390, 844)])
def test_no_page_shuts_anybody_out(
    line: Running, page: Page, theme: str, size: tuple[int, int]
) -> None:
    """Contrast, names, roles, order: nothing serious on any page, in any state that it is in."""
    page.set_viewport_size({"width": size[0], "height": size[1]})
    faults = {}
    for path, settled in PAGES.items():
        page.goto(f"{line.address}{path}?theme={theme}", wait_until="commit")
        page.locator(settled).first.wait_for()
        page.wait_for_timeout(300)  # colours of Quasar fade in
        faults[path] = found(page)
    assert {path: told for path, told in faults.items() if told} == {}


@NEEDS_BROWSER
@pytest.mark.parametrize("theme", ["dark", "light"])
def test_an_opened_list_shuts_nobody_out(line: Running, page: Page, theme: str) -> None:
    """What a page shows only after a click is held to the same."""
    page.set_viewport_size({"width": 1280, "height": 720})
    page.goto(f"{line.address}/replay?theme={theme}", wait_until="commit")
    page.locator(".stage img").wait_for()
    page.get_by_role("combobox").first.click()
    page.get_by_role("option").first.wait_for()
    page.wait_for_timeout(500)
    assert [one for one in found(page) if not OF_QUASAR.match(one)] == []


@NEEDS_BROWSER
def test_the_door_shuts_nobody_out_by_its_looks(
    tmp_path: Path, page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The form that asks for the token, and the page for an address that there is not."""
    pytest.importorskip("nicegui", reason="the extra 'dashboard' is not installed")
    monkeypatch.setenv("ASSAYLINE_DASHBOARD__TOKEN", TOKEN)
    redis = {"url": f"unix://{tmp_path}/none.sock"}
    yaml = write_line(tmp_path, tmp_path / "none", redis=redis)
    with served(yaml, free_port()) as address:
        page.goto(address, wait_until="commit")
        assert found(page, least=5) == []
        page.get_by_label("Token").fill("wrong")
        page.get_by_role("button").click()
        page.get_by_role("alert").wait_for()
        assert found(page, least=5) == []
        page.get_by_label("Token").fill(TOKEN)
        page.get_by_role("button").click()
        page.locator(".cameras").wait_for()
        page.goto(f"{address}/nowhere", wait_until="commit")
        page.locator(".none").wait_for()
        assert found(page) == []
