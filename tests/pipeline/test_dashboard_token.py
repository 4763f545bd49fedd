"""The page's door: token, cookie, form, web sockets, and who may come without."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocket, WebSocketDisconnect

from pipeline.dashboard.token import COOKIE, Doorkeeper

TOKEN = "a token that is long enough"  # noqa: S105 - of these tests
SECRET = "what the line sees"  # noqa: S105 - not for everybody


async def page(_: Request) -> Response:
    """What only some may see."""
    return PlainTextResponse(SECRET)


async def talk(socket: WebSocket) -> None:
    """A web socket that says it, too."""
    await socket.accept()
    await socket.send_text(SECRET)
    await socket.close()


def browser(token: str, address: str = "http://127.0.0.1:8080") -> TestClient:
    """A browser before a page with this token."""
    routes = [Route("/{path:path}", page), WebSocketRoute("/ws", talk)]
    return TestClient(Doorkeeper(Starlette(routes=routes), token), address, follow_redirects=False)


@pytest.mark.parametrize("path", ["/", "/rejects/a.png", "/_nicegui/x.js", "//", "/login/x"])
def test_nothing_is_shown_without_the_token(path: str) -> None:
    """Page, pictures and scripts alike; a browser gets the form, others a plain refusal."""
    here = browser(TOKEN)
    for headers in ({}, {"Authorization": "Bearer x"}, {"Cookie": f"{COOKIE}={TOKEN}"}):
        refused = here.get(path, headers=headers)
        assert refused.status_code == 401
        assert SECRET not in refused.text
    form = here.get(path, headers={"Accept": "text/html"})
    assert form.status_code == 401
    assert 'type="password"' in form.text
    assert form.headers["cache-control"] == "no-store"


def test_a_bearer_is_served() -> None:
    """Machines show the token in a header."""
    assert browser(TOKEN).get("/", headers={"Authorization": f"Bearer {TOKEN}"}).text == SECRET


def test_a_person_logs_in_once() -> None:
    """The form gives a cookie: not the token, and out of reach of scripts and other sites."""
    here = browser(TOKEN)
    assert here.post("/login", data={"token": "wrong"}).status_code == 401
    assert here.post("/login", content=b"token=" + b"x" * 100_000).status_code == 401
    done = here.post("/login", data={"token": TOKEN})
    assert (done.status_code, done.headers["location"]) == (303, "/")
    told = done.headers["set-cookie"].lower()
    assert "httponly" in told
    assert "samesite=strict" in told
    assert TOKEN not in told
    assert here.get("/").text == SECRET
    with here.websocket_connect("ws://127.0.0.1:8080/ws") as socket:
        assert socket.receive_text() == SECRET


def test_web_sockets_have_the_same_door() -> None:
    """A socket without the cookie is closed before it says anything."""
    with pytest.raises(WebSocketDisconnect), browser(TOKEN).websocket_connect("/ws"):
        pass


def test_health_is_open() -> None:
    """Who watches over processes needs no token."""
    assert browser(TOKEN).get("/healthz").status_code == 200


@pytest.mark.parametrize("host", ["127.0.0.1:8080", "localhost", "[::1]:8080"])
def test_this_machine_needs_no_token(host: str) -> None:
    """Without a token the machine's own names are served."""
    assert browser("").get("/", headers={"Host": host}).text == SECRET


@pytest.mark.parametrize("host", ["evil.example:8080", "127.0.0.1.evil.example", "", "10.0.0.1"])
def test_other_names_do_not_lead_here(host: str) -> None:
    """A site of elsewhere whose name was bent to this machine is refused."""
    here = browser("")
    refused = here.get("/", headers={"Host": host})
    assert refused.status_code == 421
    assert here.post("/login", data={"token": ""}, headers={"Host": host}).status_code in {421, 405}


@pytest.mark.parametrize(
    ("origin", "may"),
    [("http://127.0.0.1:8080", True), ("http://localhost", True), ("https://evil.example", False)],
)
def test_no_page_of_elsewhere_talks_to_this_machine(origin: str, may: bool) -> None:
    """Browsers let any site open a socket to this machine; without a token its origin decides."""
    here = browser("")
    address = "ws://127.0.0.1:8080/ws"
    if may:
        with here.websocket_connect(address, headers={"Origin": origin}) as socket:
            assert socket.receive_text() == SECRET
        return
    with (
        pytest.raises(WebSocketDisconnect),
        here.websocket_connect(address, headers={"Origin": origin}),
    ):
        pass


@pytest.mark.parametrize(
    "cookie", ["=", ";;", f"{COOKIE}", f'{COOKIE}="', "\xff=\xfe", "a=b; " * 500]
)
def test_any_cookie_is_read(cookie: str) -> None:
    """What is no cookie of ours opens nothing and breaks nothing."""
    sent = {"Cookie": cookie.encode("latin-1")}
    assert browser(TOKEN).get("/", headers=sent).status_code == 401
