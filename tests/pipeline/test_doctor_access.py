"""The doctor says who could come in who should not."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from pipeline.access import certificates
from pipeline.access.setup import set_up
from pipeline.config import LineSettings, load_line
from pipeline.doctor.line import access, doors
from tests.tiny_line import write_line


def line(folder: Path, **changes: object) -> LineSettings:
    """A line of one camera with these settings."""
    (folder / "parts").mkdir(exist_ok=True)
    return load_line(write_line(folder, folder / "bundle", **changes))


def test_open_doors_are_required_to_be_closed(tmp_path: Path) -> None:
    """Bound wider without a token nothing may start; with one, or on loopback, it may."""
    wide = {"host": "0.0.0.0"}  # noqa: S104
    for key, more in (("dashboard", {"enabled": True}), ("metrics", {"port": 9500})):
        (check,) = doors(line(tmp_path, **{"dashboard": {"enabled": False}, key: {**wide, **more}}))
        assert check.refuses
        assert f"{key}.token_file" in check.mend
        token = {"token": "a token that is long enough"}
        settings = {"dashboard": {"enabled": False}, key: {**wide, **more, **token}}
        (check,) = doors(line(tmp_path, **settings))
        assert (check.ok, check.found) == (True, "asks for a token")
    assert doors(line(tmp_path)) == []


def test_secrets_that_others_may_read_are_named(tmp_path: Path) -> None:
    """Wrong rights are advice with their mending; a folder that is not there refuses."""
    assert access(None) == []
    (missing,) = access(tmp_path / "absent")
    assert missing.refuses
    set_up(tmp_path / "access", "line", tls=False)
    assert all(check.ok for check in access(tmp_path / "access"))
    (tmp_path / "access" / "sink.password").chmod(0o644)
    secrets, _ = access(tmp_path / "access")
    assert not secrets.ok
    assert secrets.found == "sink.password"
    assert "chmod 600" in secrets.mend


def test_certificates_that_end_soon_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixty days before a certificate ends, the doctor says so."""
    if shutil.which("openssl") is None:
        pytest.skip("no openssl on this machine")
    monkeypatch.setattr(certificates, "DAYS", 30)
    set_up(tmp_path / "access", "line")
    _, ending = access(tmp_path / "access")
    assert not ending.ok
    assert "server.crt" in ending.found
