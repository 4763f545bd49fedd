"""What listens on a port: to this machine alone, or to whoever shows a token.

Tokens are compared in constant time, as hashes, so that neither their length nor how much of them
was right shows in the time of an answer.
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from engines.contracts import BadConfig

TOKEN_LEAST = 16  # characters; fewer could be tried out
HEALTH = "/healthz"  # says that the process answers, and nothing of the line; needs no token
SILENCE_S = 5.0  # a peer that says nothing for so long is hung up on
Reply = Callable[..., Any]
App = Callable[[dict[str, Any], Reply], Iterable[bytes]]


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches what listens there."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def checked(host: str, token: str, key: str) -> str:
    """The token that ``key`` (such as ``dashboard``) asks for, "" for none.

    BadConfig where others could come in without one, or with one that can be guessed.
    """
    if not token and not is_loopback(host):
        raise BadConfig(
            f"{key}.host is {host}, which others can reach: set {key}.token_file (or "
            f"ASSAYLINE_{key.upper()}__TOKEN), or {key}.host: 127.0.0.1"
        )
    if token and len(token) < TOKEN_LEAST:
        raise BadConfig(f"the token of {key} is too short: give {TOKEN_LEAST} characters or more")
    return token


def admits(token: str, shown: str) -> bool:
    """Whether what was shown is the token, in constant time; without a token everybody is."""
    return not token or hmac.compare_digest(_hash(token), _hash(shown))


def bearer(header: str) -> str:
    """The token in an Authorization header; "" where it holds none."""
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


@contextmanager
def serving(app: App, host: str, port: int, token: str) -> Iterator[int]:
    """Serve a WSGI application to bearers of the token while inside; yields the port.

    Raises OSError where nobody can listen there.
    """
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    kind: type[WSGIServer] = type("Server", (_Server,), {"address_family": family})
    with make_server(host, port, _guarded(app, token), kind, _Quiet) as server:
        thread = threading.Thread(target=server.serve_forever, name="metrics", daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def _guarded(app: App, token: str) -> App:
    def ask(environment: dict[str, Any], reply: Reply) -> Iterable[bytes]:
        if environment.get("PATH_INFO") == HEALTH:
            reply("200 OK", [("Content-Type", "text/plain")])
            return [b"ok"]
        if not admits(token, bearer(environment.get("HTTP_AUTHORIZATION", ""))):
            reply("401 Unauthorized", [("WWW-Authenticate", "Bearer")])
            return [b""]
        return app(environment, reply)

    return ask


def _hash(text: str) -> bytes:
    return hashlib.sha256(text.encode("utf-8", "surrogateescape")).digest()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True


class _Quiet(WSGIRequestHandler):
    timeout = SILENCE_S

    def log_message(self, format: str, *args: object) -> None:
        """Requests are no events."""
