"""The door of the page: a bearer token, or a cookie that a small form gives for the token.

It stands before everything that the page serves, web sockets too. The cookie holds a hash that
serves here alone, is out of reach of scripts, and is not sent along from other sites. Without a
token only this machine is served, and only by its own names and to its own pages, so that no site
of elsewhere can read the page, or press its buttons, through a browser that runs here.
"""

from __future__ import annotations

import hashlib
from http.cookies import CookieError, SimpleCookie
from typing import TYPE_CHECKING
from urllib.parse import parse_qs

from starlette.responses import HTMLResponse, PlainTextResponse, RedirectResponse, Response

from pipeline.access.door import HEALTH, admits, bearer, is_loopback
from pipeline.dashboard.texts import Speech, language_of

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

COOKIE = "assayline"
LOGIN = "/login"
BODY_MAX = 4096  # bytes of a form
REFUSED = 4401  # code of a closed web socket
FORM = """<!doctype html><html lang="{language}"><meta charset="utf-8"><title>Assayline</title>
<meta name="viewport" content="width=device-width, initial-scale=1">
<style>:root {{ color-scheme: dark light; font: 1.2rem/1.5 sans-serif }}
main {{ max-width: 26rem; margin: 15vh auto 0; padding: 1rem }}
label, input, button {{ display: block; font: inherit; width: 100%; box-sizing: border-box }}
input, button {{ padding: .5rem .8rem; margin: .3rem 0 1rem; min-height: 2.75rem }}</style>
<main><h1>Assayline</h1>{notice}<form method="post" action="/login"><label>{asked}
<input type="password" name="token" required autofocus autocomplete="current-password"></label>
<button>{go}</button></form></main>"""
GUARDED = {"Cache-Control": "no-store", "Content-Security-Policy": "default-src 'none'; "
           "style-src 'unsafe-inline'; form-action 'self'; frame-ancestors 'none'"}  # fmt: skip


class Doorkeeper:
    """Passes on to the page who may see it."""

    def __init__(self, app: ASGIApp, token: str) -> None:
        self._app = app
        self._token = token
        self._pass = hashlib.sha256(f"{COOKIE}:{token}".encode()).hexdigest()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, one web socket, or the start and the end of the server."""
        if scope["type"] == "lifespan" or scope["path"] == HEALTH or self._may_enter(scope):
            await self._app(scope, receive, send)
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": REFUSED})
        elif scope["path"] == LOGIN and scope["method"] == "POST" and self._token:
            await (await self._login(scope, receive))(scope, receive, send)
        else:
            await self._ask(scope)(scope, receive, send)

    def _may_enter(self, scope: Scope) -> bool:
        if not self._token:
            asked_by = _header(scope, b"origin").partition("://")[2]  # a page; "" for none
            named = [_host(_header(scope, b"host")), *([_host(asked_by)] if asked_by else [])]
            return all(is_loopback(name) for name in named)
        if admits(self._token, bearer(_header(scope, b"authorization"))):
            return True
        return admits(self._pass, _cookie(_header(scope, b"cookie")))

    def _ask(self, scope: Scope) -> Response:
        if not self._token:
            text = "this page is served to this machine alone; give it a token to serve others"
            return PlainTextResponse(text, status_code=421)
        if "text/html" in _header(scope, b"accept"):
            return _form(scope)
        return PlainTextResponse("", status_code=401, headers={"WWW-Authenticate": "Bearer"})

    async def _login(self, scope: Scope, receive: Receive) -> Response:
        shown = parse_qs(await _body(receive)).get("token", [""])[0]
        if not admits(self._token, shown):
            return _form(scope, is_wrong=True)
        response = RedirectResponse("/", status_code=303)
        response.set_cookie(COOKIE, self._pass, httponly=True, samesite="strict")
        return response


def _form(scope: Scope, *, is_wrong: bool = False) -> Response:
    say = Speech(language_of("", _header(scope, b"accept-language")))
    content = FORM.format(
        language=say.language,
        notice=f'<p role="alert">{say("token_wrong")}</p>' if is_wrong else "",
        asked=say("token_asked"),
        go=say("open"),
    )
    return HTMLResponse(content, status_code=401, headers=GUARDED)


def _header(scope: Scope, name: bytes) -> str:
    found: bytes = next((value for key, value in scope["headers"] if key == name), b"")
    return found.decode("latin-1")


def _host(header: str) -> str:
    """The name in a Host header, without its port."""
    return header.partition("]")[0] if header.startswith("[") else header.partition(":")[0]


def _cookie(header: str) -> str:
    try:
        found = SimpleCookie(header).get(COOKIE)
    except CookieError:
        return ""
    return found.value if found else ""


async def _body(receive: Receive) -> str:
    """What a form sends, cut where it is no form of ours."""
    told, more = b"", True
    while more and len(told) <= BODY_MAX:
        message = await receive()
        told += message.get("body", b"")
        more = message.get("more_body", False)
    return told[:BODY_MAX].decode("latin-1")
