"""Serve the pages: a web server in its own process, beside the threads that feed it.

The process is niced and reads without a consumer group, so it can neither delay a verdict nor keep
one from being trimmed. Everything the page needs is in the wheel: no request leaves the machine.
"""

from __future__ import annotations

import importlib.util
import os
import threading
from typing import TYPE_CHECKING

from engines.contracts import BadConfig
from pipeline.dashboard.desk import Desk
from pipeline.dashboard.feed import ROLE
from pipeline.telemetry import reporting

if TYPE_CHECKING:
    from collections.abc import Callable

    from pipeline.config import LineSettings

NICENESS = 10  # inspection comes first


def run_dashboard(
    settings: LineSettings, stop: threading.Event, on_ready: Callable[[str], None] | None = None
) -> None:
    """Serve until ``stop``; ``on_ready`` is told the page's address once it answers.

    BadConfig where the extra is not installed, the port is taken, or others could come in without
    a token.
    """
    if importlib.util.find_spec("nicegui") is None:
        raise BadConfig(
            "the page needs NiceGUI: run pip install 'assayline[dashboard]', "
            "or set dashboard.enabled: false"
        )
    from pipeline.dashboard.token import Doorkeeper
    from pipeline.dashboard.web import build_app, serve

    token = settings.dashboard.secret("dashboard")
    os.nice(NICENESS)
    desk, done = Desk(settings), threading.Event()
    app = Doorkeeper(build_app(desk), token)
    reader = threading.Thread(target=desk.run, args=(done,), name="feed", daemon=True)
    with reporting(ROLE, settings):
        reader.start()
        try:
            serve(app, settings.dashboard.host, settings.dashboard.port, stop, on_ready)
        finally:
            done.set()
            reader.join(timeout=5)
