"""A certificate authority of the line's own, and certificates signed by it.

Made by the command ``openssl``, which writes keys straight to files that only their owner may read:
no key passes through this process or stands in a list of processes. The authority's own key is
needed for nothing but more certificates, and may be taken off the machine.
"""

from __future__ import annotations

import ipaddress
import os
import shutil
import subprocess
from pathlib import Path

from engines.contracts import BadConfig

YEARS = 10  # a line outlives most certificates; `doctor` says when one ends
DAYS = 365 * YEARS
NEW_KEY = ("-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes")
AUTHORITY = "ca"
TIMEOUT_S = 30
CONFIGURATION = "openssl.cnf"  # ours, so that what the machine is set to changes nothing
EXTENSIONS = """\
[req]
distinguished_name = name
[name]
[authority]
basicConstraints = critical, CA:TRUE, pathlen:0
keyUsage = critical, keyCertSign, cRLSign
subjectKeyIdentifier = hash
[leaf]
basicConstraints = critical, CA:FALSE
keyUsage = critical, digitalSignature
extendedKeyUsage = {usage}
subjectKeyIdentifier = hash
authorityKeyIdentifier = keyid
{names}
"""


def make_authority(folder: Path, name: str) -> None:
    """``ca.crt`` and ``ca.key`` in ``folder``; BadConfig where there is no openssl."""
    _configure(folder, "serverAuth", ())
    subject = f"/CN={name} authority"
    where = ("-keyout", f"{AUTHORITY}.key", "-out", f"{AUTHORITY}.crt", "-subj", subject)
    _openssl(folder, "req", "-x509", *NEW_KEY, *where, *_validity(), "-extensions", "authority")


def make_certificate(folder: Path, stem: str, name: str, hosts: tuple[str, ...] = ()) -> None:
    """``<stem>.crt`` and ``<stem>.key``, of a server at ``hosts`` or, without any, of a client."""
    _configure(folder, "serverAuth" if hosts else "clientAuth", hosts)
    request = folder / f"{stem}.csr"
    where = ("-keyout", f"{stem}.key", "-out", request.name, "-subj", f"/CN={name}")
    _openssl(folder, "req", "-new", *NEW_KEY, *where)
    signer = ("-CA", f"{AUTHORITY}.crt", "-CAkey", f"{AUTHORITY}.key", "-CAcreateserial")
    how = (*_validity(request=False), "-extfile", CONFIGURATION, "-extensions", "leaf")
    _openssl(folder, "x509", "-req", "-in", request.name, "-out", f"{stem}.crt", *signer, *how)
    request.unlink()


def forget_tools(folder: Path) -> None:
    """Remove what only the making needed."""
    for name in (CONFIGURATION, f"{AUTHORITY}.srl"):
        (folder / name).unlink(missing_ok=True)


def outlasts(certificate: Path, days: int) -> bool | None:
    """Whether a certificate is valid for so many days more; None where nobody can tell."""
    if shutil.which("openssl") is None or not certificate.is_file():
        return None
    seconds = str(days * 86_400)
    words = ("x509", "-in", str(certificate), "-noout", "-checkend", seconds)
    done = subprocess.run(["openssl", *words], capture_output=True, timeout=TIMEOUT_S, check=False)  # noqa: S607 - found above
    return done.returncode == 0


def _configure(folder: Path, usage: str, hosts: tuple[str, ...]) -> None:
    names = ",".join(f"{'IP' if _is_address(host) else 'DNS'}:{host}" for host in hosts)
    text = EXTENSIONS.format(usage=usage, names=f"subjectAltName = {names}" if names else "")
    (folder / CONFIGURATION).write_text(text)


def _validity(request: bool = True) -> tuple[str, ...]:
    return ("-sha256", "-days", str(DAYS), *(("-config", CONFIGURATION) if request else ()))


def _is_address(host: str) -> bool:
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def _openssl(folder: Path, *words: str) -> None:
    program = shutil.which("openssl")
    if program is None:
        raise BadConfig("there is no openssl to make certificates: install it, or add --no-tls")
    environment = {**os.environ, "OPENSSL_CONF": str(folder / CONFIGURATION)}
    done = subprocess.run(
        [program, *words],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        umask=0o077,
        check=False,
    )
    if done.returncode:
        last = (done.stderr.strip().splitlines() or ["it said nothing"])[-1]
        raise BadConfig(f"openssl could not make a certificate: {last}")
