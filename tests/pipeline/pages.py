"""A real line with its pages, and a browser before them."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pipeline.lanes import Lane
from pipeline.pulse import Pulse
from tests.tiny_line import shared_bundle, write_line, write_parts
from tests.waiting import PATIENCE_S, wait_for

if TYPE_CHECKING:
    from playwright.sync_api import Page

CHROMIUM = Path("/usr/bin/chromium")
NEEDS_BROWSER = pytest.mark.skipif(not CHROMIUM.exists(), reason="chromium is not installed")
PAGES = {  # what is there once a page is whole
    "/": "a.reject",
    "/reject": ".stage img",
    "/review": ".stage img",
    "/threshold": ".figures .to_fail",
    "/replay": ".stage img",
    "/health": ".list tr",
}


@dataclass(frozen=True, slots=True)
class Running:
    """A line that runs: its YAML, its run folder, and where its pages are."""

    yaml: Path
    run_dir: Path
    address: str


@contextmanager
def running_line(folder: Path, **changes: Any) -> Iterator[Running]:  # noqa: ANN401 - any setting
    """All processes of a tiny line that inspects parts for ever, every fifth of them bad."""
    write_parts(folder / "parts", 40)
    port = free_port()
    source = {"kind": "folder", "path": "parts", "rate_hz": 4, "loop": True}
    settings: dict[str, Any] = {
        "camera": {"source": source, "gate_ms": 5000},
        "sinks": {"jsonl": {}, "archive": {}},
        "dashboard": {"port": port},
    }
    yaml = write_line(folder, shared_bundle(folder), **(settings | changes))
    with ended(subprocess.Popen([sys.executable, "-m", "pipeline", "run", str(yaml)])):
        address = f"http://127.0.0.1:{port}"
        until(lambda: answers(f"{address}/healthz"))
        yield Running(yaml, folder / "run", address)


@contextmanager
def served(yaml: Path, port: int) -> Iterator[str]:
    """Only the pages of a line."""
    environment = {**os.environ, "ASSAYLINE_DASHBOARD__PORT": str(port)}
    command = [sys.executable, "-m", "pipeline", "dashboard", str(yaml)]
    with ended(subprocess.Popen(command, env=environment)):
        address = f"http://127.0.0.1:{port}"
        until(lambda: answers(f"{address}/healthz"))
        yield address


@contextmanager
def cameras_alive(url: str, namespace: str, *cameras: str) -> Iterator[None]:
    """Signs of life of these cameras, where a test plays their part."""

    def beat(closing: threading.Event) -> None:
        while not closing.wait(0.2):
            for camera in cameras:
                pulse.beat("ingest", camera, f"running {camera}")

    with closing(Pulse(url, namespace)) as pulse, Lane("cameras", beat):
        yield


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Stop a process in order, or kill it."""
    try:
        yield
    finally:
        process.send_signal(signal.SIGTERM)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@contextmanager
def visiting(width: int = 1280, height: int = 720) -> Iterator[Page]:
    """A page of headless Chromium; its context opens others beside it."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=str(CHROMIUM), args=["--no-sandbox"])
        context = browser.new_context(viewport={"width": width, "height": height}, locale="en-GB")
        context.set_default_timeout(PATIENCE_S * 1000)
        yield context.new_page()
        browser.close()


def answers(url: str) -> bool:
    """Whether a server is there, whatever it says."""
    try:
        with urllib.request.urlopen(url, timeout=2):  # noqa: S310 - our own address
            return True
    except urllib.error.HTTPError:
        return True
    except OSError:
        return False


def free_port() -> int:
    """A port that nobody listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def until(holds: Callable[[], bool]) -> None:
    """Look until it holds, or fail, at a pace that leaves a browser its processor."""
    wait_for(holds, look_s=0.05)
