"""`doctor --setup`: everything a Redis server and the roles need to know one another, in a folder.

Secrets are drawn here, written once to files that only their owner may read, and never printed. The
folder is made whole or not at all, and an existing one is never touched: new secrets mean a new
folder, so that a line that runs is not locked out by a slip.
"""

from __future__ import annotations

import os
import re
import secrets
import tempfile
from dataclasses import dataclass
from pathlib import Path

from engines.contracts import BadConfig
from pipeline.access.certificates import forget_tools, make_authority, make_certificate
from pipeline.access.credentials import USERS
from pipeline.access.roles import ROLES, user_of, users_acl

SECRET_BYTES = 32
PORT = 6379
HOST = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.:-]{0,251}[A-Za-z0-9])?")
REDIS_CONF = """\
# Include this in redis.conf, with the paths of this folder's files on the server.
bind * -::*
protected-mode yes
{listen}
aclfile {folder}/users.acl
enable-debug-command no
enable-module-command no
# Frames are bounded by credits and must never be evicted; a restart is answered, not restored.
maxmemory 512mb
maxmemory-policy noeviction
save ""
appendonly no
hz 100
"""
TLS = """\
port 0
tls-port {port}
tls-cert-file {folder}/server.crt
tls-key-file {folder}/server.key
tls-ca-cert-file {folder}/ca.crt
tls-auth-clients yes
tls-protocols "TLSv1.2 TLSv1.3\""""
PLAIN = "port {port}"
LINE_YAML = """\
# Put this into the line's YAML; each role reads its own files of this folder and no other's.
redis:
  url: {scheme}://{host}:{port}
  namespace: {namespace}
  access: {folder}
"""


@dataclass(frozen=True, slots=True)
class Handout:
    """Which files go where."""

    place: str
    files: tuple[str, ...]


def set_up(
    folder: Path, namespace: str, hosts: tuple[str, ...] = ("localhost",), *, tls: bool = True
) -> list[Handout]:
    """Make the folder; what of it belongs to whom. BadConfig where it exists or cannot be made.

    ``hosts`` are the names and addresses by which roles reach the server.
    """
    _check(folder, hosts)
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".access-") as scratch:
            fresh = Path(scratch) / "access"
            fresh.mkdir(mode=0o700)
            _write_users(fresh, namespace)
            if tls:
                _write_certificates(fresh, namespace, hosts)
            _write_settings(fresh, folder.absolute(), namespace, hosts[0], tls=tls)
            fresh.rename(folder)
    except OSError as error:
        reason = error.strerror or error
        raise BadConfig(f"{folder} cannot be made ({reason}): check its parent's rights") from None
    return _handouts(tls)


def exposed(folder: Path) -> list[str]:
    """Names of secret files in the folder that others than their owner may read."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if path.suffix in {".password", ".key"} and path.stat().st_mode & 0o077
    )


def _check(folder: Path, hosts: tuple[str, ...]) -> None:
    if folder.exists() or folder.is_symlink():
        raise BadConfig(f"{folder} exists already: name another folder, or move it away")
    for host in hosts:
        if not HOST.fullmatch(host):
            raise BadConfig(f"{host!r} is no host: name the server as roles will reach it")


def _write_users(folder: Path, namespace: str) -> None:
    passwords = {role: secrets.token_urlsafe(SECRET_BYTES) for role in ROLES}
    _write(folder / USERS, users_acl(namespace, passwords))
    for role, password in passwords.items():
        _write(folder / f"{role}.password", f"{password}\n")


def _write_certificates(folder: Path, namespace: str, hosts: tuple[str, ...]) -> None:
    make_authority(folder, namespace)
    make_certificate(folder, "server", hosts[0], hosts)
    for role in ROLES:
        make_certificate(folder, role, user_of(namespace, role))
    forget_tools(folder)


def _write_settings(folder: Path, final: Path, namespace: str, host: str, *, tls: bool) -> None:
    listen = (TLS if tls else PLAIN).format(port=PORT, folder=final)
    _write(folder / "redis.conf", REDIS_CONF.format(listen=listen, folder=final))
    _write(
        folder / "line.redis.yaml",
        LINE_YAML.format(
            scheme="rediss" if tls else "redis",
            host=f"[{host}]" if ":" in host else host,
            port=PORT,
            namespace=namespace,
            folder=final,
        ),
    )


def _write(path: Path, text: str) -> None:
    """A new file that only its owner may read, from its first byte on."""
    with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        file.write(text)


def _handouts(tls: bool) -> list[Handout]:
    server = ("users.acl", "redis.conf", *(("ca.crt", "server.crt", "server.key") if tls else ()))
    told = [Handout("the server", server)]
    for role in ROLES:
        files = (f"{role}.password", *((f"{role}.crt", f"{role}.key", "ca.crt") if tls else ()))
        told.append(Handout(role, files))
    if tls:
        told.append(Handout("a safe place, away from the line", ("ca.key",)))
    return told
