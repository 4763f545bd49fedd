"""The web side of the page *Line*: its routes, and a server that stops when it is told to."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI, Response
from nicegui import ui

from engines.contracts import BadConfig, BadFrame
from pipeline.dashboard.page import line_page
from pipeline.dashboard.picture import Crop, outlined

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from starlette.types import ASGIApp

    from pipeline.dashboard.feed import Feed

IMMUTABLE = {"Cache-Control": "private, max-age=3600, immutable"}
POLL_S = 0.1


def build_app(feed: Feed, line: str, crops: Mapping[str, Crop | None]) -> FastAPI:
    """The page, the pictures of its rejects, and a small answer for health checks."""
    app = FastAPI(title="Assayline", docs_url=None, redoc_url=None, openapi_url=None)

    @lru_cache(maxsize=32)
    def picture(key: str) -> bytes:
        reject = feed.reject(key)
        if reject is None or not reject.picture_png:
            raise KeyError(key)
        return outlined(reject.picture_png, reject.mask_png, crops.get(reject.verdict.camera))

    @app.get("/rejects/{key}.png")
    def reject_picture(key: str) -> Response:
        try:
            return Response(picture(key), media_type="image/png", headers=IMMUTABLE)
        except KeyError:
            return Response("no longer kept", status_code=404, media_type="text/plain")
        except BadFrame as error:
            return Response(str(error), status_code=422, media_type="text/plain")

    @app.get("/healthz")
    def health() -> Response:
        return Response(feed.view.state.value, status_code=503 if feed.server_lost else 200)

    ui.run_with(
        app,
        root=lambda: line_page(lambda: feed.view),
        title=f"{line} · Assayline",
        dark=True,
        tailwind=False,
        show_welcome_message=False,
    )
    return app


def serve(
    app: ASGIApp,
    host: str,
    port: int,
    stop: threading.Event,
    on_ready: Callable[[str], None] | None = None,
) -> None:
    """Serve until ``stop``; BadConfig where nobody can listen at ``host:port``.

    The server runs on a thread of its own, so that signals stay with whoever called.
    """
    config = uvicorn.Config(
        app, host, port, log_level="error", access_log=False, timeout_graceful_shutdown=1
    )
    server = uvicorn.Server(config)
    web = threading.Thread(target=_run, args=(server,), name="web", daemon=True)
    web.start()
    _wait(lambda: server.started or not web.is_alive(), stop)
    if server.started and on_ready is not None:
        bound = server.servers[0].sockets[0].getsockname()[1]
        on_ready(f"http://{host}:{bound}/")
    _wait(lambda: not web.is_alive(), stop)
    was_refused = not server.started and not stop.is_set()
    server.should_exit = True
    web.join(timeout=5)
    if was_refused:
        raise BadConfig(
            f"the page cannot listen at {host}:{port}; set dashboard.port to a free one"
        )


def _run(server: uvicorn.Server) -> None:
    try:
        server.run()
    except SystemExit:  # uvicorn's way to say that it could not start; the caller says why
        server.should_exit = True


def _wait(done: Callable[[], bool], stop: threading.Event) -> None:
    while not done() and not stop.wait(POLL_S):
        pass
