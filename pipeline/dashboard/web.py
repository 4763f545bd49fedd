"""The web side of the pages: their routes, and a server that stops when it is told to."""

from __future__ import annotations

import threading
from functools import lru_cache
from typing import TYPE_CHECKING

import uvicorn
from fastapi import FastAPI, Response
from nicegui import Client, Event, ui
from nicegui import app as library
from starlette.requests import Request

from engines.contracts import BadConfig, BadFrame
from pipeline.dashboard.address import Address
from pipeline.dashboard.health_page import health_page
from pipeline.dashboard.nowhere_page import nowhere_page
from pipeline.dashboard.page import line_page
from pipeline.dashboard.picture import heated, outlined
from pipeline.dashboard.reject_page import reject_page
from pipeline.dashboard.replay_page import replay_page
from pipeline.dashboard.review_page import review_page
from pipeline.dashboard.threshold_page import threshold_page

if TYPE_CHECKING:
    from collections.abc import Callable

    from starlette.types import ASGIApp

    from pipeline.dashboard.desk import Desk
    from pipeline.dashboard.feed import Feed
    from pipeline.dashboard.parts import Part

IMMUTABLE = {"Cache-Control": "private, max-age=3600, immutable"}
POLL_S = 0.1
LOOK_S = 0.1  # between looks for another view of the line


def build_app(desk: Desk) -> FastAPI:
    """The pages, the pictures on them, and a small answer for health checks."""
    app = FastAPI(title="Assayline", docs_url=None, redoc_url=None, openapi_url=None)
    _serve_pictures(app, desk)

    @app.get("/healthz")
    def health() -> Response:
        lost = desk.feed.server_lost
        return Response(desk.feed.view.state.value, status_code=503 if lost else 200)

    _serve_pages(desk)
    _serve_nowhere(desk)
    ui.run_with(
        app,
        title=f"{desk.line} · Assayline",
        dark=True,
        tailwind=False,
        show_welcome_message=False,
    )
    return app


def _serve_pages(desk: Desk) -> None:
    has_changed = _changes_of(desk.feed)

    @ui.page("/")
    def line(request: Request) -> None:
        line_page(lambda: desk.feed.view, has_changed, Address.of(request))

    @ui.page("/reject")
    def newest(request: Request) -> None:
        reject_page(desk, Address.of(request), "")

    @ui.page("/reject/{camera}/{part}")
    def reject(request: Request, camera: str, part: str) -> None:
        reject_page(desk, Address.of(request), f"{camera}/{part}")

    @ui.page("/review")
    def review(request: Request) -> None:
        review_page(desk, Address.of(request))

    @ui.page("/health")
    def health(request: Request) -> None:
        health_page(desk, Address.of(request))

    @ui.page("/replay")
    def replay(request: Request) -> None:
        replay_page(desk, Address.of(request))

    @ui.page("/threshold")
    def threshold(request: Request) -> None:
        threshold_page(desk, Address.of(request))


def _changes_of(feed: Feed) -> Event[[]]:
    """What tells every visitor of another view: one look for all of them, not one for each."""
    has_changed, known = Event[[]](), feed.view

    def look() -> None:
        nonlocal known
        if feed.view is not known:
            known = feed.view
            has_changed.emit()

    library.timer(LOOK_S, look)
    return has_changed


def _serve_nowhere(desk: Desk) -> None:
    @library.exception_handler(404)
    def nowhere(request: Request, error: Exception) -> Response:
        del error
        if "text/html" not in request.headers.get("accept", ""):
            return Response("there is no such thing", status_code=404, media_type="text/plain")
        with Client(ui.page(""), request=request) as client:
            nowhere_page(desk, Address.of(request))
        return client.build_response(request, 404)


def _serve_pictures(app: FastAPI, desk: Desk) -> None:
    """Pictures are made when a browser asks for them, on threads of the web server."""

    @lru_cache(maxsize=32)
    def outlined_reject(key: str) -> bytes:
        reject = desk.feed.reject(key)
        if reject is None or not reject.picture_png:
            raise KeyError(key)
        crop = desk.crops.get(reject.verdict.camera)
        return outlined(reject.picture_png, reject.mask_png, crop)

    @lru_cache(maxsize=64)
    def drawn(stem: str, view: str) -> bytes:
        part = desk.parts.find(stem)
        content = _drawn(desk, part, view) if part else b""
        if not content:
            raise KeyError(stem)
        return content

    @app.get("/rejects/{key}.png")
    def reject_picture(key: str) -> Response:
        return _picture(lambda: outlined_reject(key))

    @app.get("/parts/{camera}/{name}/{view}.png")
    def part_picture(camera: str, name: str, view: str) -> Response:
        return _picture(lambda: drawn(f"{camera}/{name}", view))

    @app.get("/tapes/{key}/{index}.png")
    def tape_picture(key: str, index: int) -> Response:
        return _picture(lambda: _found(desk.tapes.picture(key, index)))


def _found(content: bytes) -> bytes:
    if not content:
        raise KeyError(content)
    return content


def _drawn(desk: Desk, part: Part, view: str) -> bytes:
    match view:
        case "mask":
            return outlined(part.picture_png, part.mask_png, desk.crops.get(part.verdict.camera))
        case "map":
            return heated(part.picture_png, part.map_png)
        case "frame":
            return part.picture_png
        case "reconstruction":  # drawn when a page asked for it, so an address alone costs nothing
            return desk.reconstructions.made(part.stem)
        case "original":
            return desk.parts.original(part.stem)
        case _:
            return b""


def _picture(make: Callable[[], bytes]) -> Response:
    try:
        return Response(make(), media_type="image/png", headers=IMMUTABLE)
    except KeyError:
        return Response("no longer kept", status_code=404, media_type="text/plain")
    except BadFrame as error:
        return Response(str(error), status_code=422, media_type="text/plain")


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
        app,
        host,
        port,
        log_level="error",
        access_log=False,
        timeout_graceful_shutdown=1,
        ws_per_message_deflate=False,  # the network has room; the processor is the line's
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
