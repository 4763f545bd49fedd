"""What listens serves this machine alone, or the bearers of a token."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from engines.contracts import BadConfig
from pipeline.access.door import TOKEN_LEAST, admits, bearer, checked, is_loopback
from pipeline.config import DashboardSettings, MetricsSettings, load_line
from pipeline.supervisor import run_line
from pipeline.telemetry import serve_metrics
from tests.tiny_line import shared_bundle, write_line

TOKEN = "a token that is long enough"  # noqa: S105 - of these tests
WIDE = ("0.0.0.0", "::", "192.168.7.2", "line.plant", "")  # noqa: S104 - that is what is refused


def free_port() -> int:
    """A port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def metrics(token: str) -> Iterator[str]:
    """Address of a process that serves metrics."""
    with serve_metrics("sink", "127.0.0.1", free_port(), token) as port:
        yield f"http://127.0.0.1:{port}"


@pytest.mark.parametrize("host", WIDE)
def test_wide_doors_need_a_token(host: str) -> None:
    """Bound to anything but loopback without a token is refused, with the way out."""
    for settings, key in ((DashboardSettings, "dashboard"), (MetricsSettings, "metrics")):
        with pytest.raises(BadConfig, match=rf"{key}\.token_file"):
            settings(host=host).secret(key)
        assert settings(host=host, token=SecretStr(TOKEN)).secret(key) == TOKEN


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    """On this machine alone a page may do without."""
    assert is_loopback(host)
    assert checked(host, "", "dashboard") == ""


def test_a_token_that_can_be_guessed_is_refused(tmp_path: Path) -> None:
    """Short and empty tokens are refused, from settings and from a file, without being quoted."""
    short = "x" * (TOKEN_LEAST - 1)
    with pytest.raises(BadConfig, match="too short") as error:
        checked("127.0.0.1", short, "metrics")
    assert short not in str(error.value)
    file = tmp_path / "token"
    for said in (b"", b"\n", b"two\nlines", b"\xff", b"x" * 10_000):
        file.write_bytes(said)
        with pytest.raises(BadConfig):
            MetricsSettings(host="0.0.0.0", token_file=file).secret("metrics")  # noqa: S104
    file.write_text(f"{TOKEN}\n")
    assert MetricsSettings(token_file=file).secret("metrics") == TOKEN


def test_a_line_with_an_open_door_does_not_start(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Page or metrics bound wider without a token: the line ends before anything runs."""
    bundle = shared_bundle(tmp_path_factory.getbasetemp())
    (tmp_path / "parts").mkdir()
    for changes in (
        {"dashboard": {"host": "0.0.0.0"}},  # noqa: S104
        {"metrics": {"host": "0.0.0.0", "port": free_port()}},  # noqa: S104
    ):
        line = write_line(tmp_path, bundle, **changes)
        with pytest.raises(BadConfig, match="others can reach"):
            run_line(load_line(line), threading.Event(), line)


@given(st.text(min_size=1), st.text())
def test_only_the_token_is_the_token(token: str, shown: str) -> None:
    """Nothing else is taken for it, whatever its letters."""
    assert admits(token, shown) == (token == shown)
    assert admits("", shown)


@given(st.text())
def test_any_header_is_read(header: str) -> None:
    """Whatever stands in a header, it is a token or none."""
    assert isinstance(bearer(header), str)
    assert bearer(f"Bearer {TOKEN}") == bearer(f"bearer   {TOKEN} ") == TOKEN


def test_metrics_are_for_bearers() -> None:
    """Without the token nothing is told but that the process lives."""
    with metrics(TOKEN) as address:
        for headers in ({}, {"Authorization": TOKEN}, {"Authorization": f"Bearer {TOKEN}x"}):
            refused = httpx.get(f"{address}/metrics", headers=headers)
            assert (refused.status_code, refused.content) == (401, b"")
        told = httpx.get(f"{address}/metrics", headers={"Authorization": f"Bearer {TOKEN}"})
        assert told.status_code == 200
        assert "assayline_" in told.text
        health = httpx.get(f"{address}/healthz")
        assert (health.status_code, health.text) == (200, "ok")
    with metrics("") as address:
        assert httpx.get(f"{address}/metrics").status_code == 200


def test_a_silent_peer_keeps_nobody_out() -> None:
    """Connections that say nothing neither block others nor outlive the server."""
    with metrics("") as address:
        host, port = address.removeprefix("http://").split(":")
        silent = [socket.create_connection((host, int(port))) for _ in range(20)]
        assert httpx.get(f"{address}/metrics", timeout=5).status_code == 200
    for one in silent:
        one.close()
