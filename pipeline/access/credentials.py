"""From the folder that `doctor --setup` made to the address with which one role connects."""

from __future__ import annotations

from pathlib import Path
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

from engines.contracts import BadConfig
from pipeline.access.roles import user_of

USERS = "users.acl"
AUTHORITY = "ca.crt"
SECRET_MAX_BYTES = 4096


def secret_from(path: Path) -> str:
    """The one line of a file that holds a secret; BadConfig, which does not quote it."""
    try:
        with path.open("rb") as file:
            told = file.read(SECRET_MAX_BYTES + 1)
    except OSError as error:
        reason = error.strerror or error
        raise BadConfig(f"the secret {path} cannot be read ({reason}): check its rights") from None
    try:
        secret = told.decode("utf-8").strip()
    except UnicodeDecodeError:
        secret = ""
    if not secret or "\n" in secret or len(told) > SECRET_MAX_BYTES:
        raise BadConfig(f"{path} holds no secret: it is one line of text")
    return secret


def with_secret(url: str, secret: str, user: str = "") -> str:
    """The URL with a password, and with a user where one is named; never print it."""
    parts = urlsplit(url)
    told, _, host = parts.netloc.rpartition("@")
    name = quote(user, safe="") if user else told
    return urlunsplit(parts._replace(netloc=f"{name}:{quote(secret, safe='')}@{host}"))


def role_address(url: str, folder: Path, namespace: str, role: str) -> str:
    """The URL with a role's own user, password and, where TLS is spoken, certificate."""
    known = with_secret(url, secret_from(folder / f"{role}.password"), user_of(namespace, role))
    parts = urlsplit(known)
    if parts.scheme != "rediss":
        return known
    files = {
        "ssl_ca_certs": folder / AUTHORITY,
        "ssl_certfile": folder / f"{role}.crt",
        "ssl_keyfile": folder / f"{role}.key",
    }
    there = {name: str(path) for name, path in files.items() if path.exists()}
    query = "&".join(filter(None, (parts.query, urlencode(there, quote_via=quote))))
    return urlunsplit(parts._replace(query=query))
