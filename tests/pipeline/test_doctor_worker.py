"""A worker is healthy while its loop turns, whatever else of it answers."""

from __future__ import annotations

import re
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from pipeline.cli import app
from pipeline.config import LineSettings
from pipeline.doctor.worker import beat_of, worker_check
from pipeline.telemetry import facts, serve_metrics
from tests.pipeline.test_doctor import line_settings

TOKEN = "a-token-of-some-length"  # noqa: S105 - of nothing but this test


def with_metrics(folder: Path, port: int, token: str | None = None) -> LineSettings:
    """A line whose worker serves metrics one port above ``port``."""
    metrics = {"host": "127.0.0.1", "port": port, "token": token}
    line = line_settings(folder).model_dump(mode="json")
    return LineSettings.model_validate(line | {"metrics": metrics})


@pytest.mark.parametrize(
    ("age_s", "ok", "found"),
    [
        (0.2, True, r"beat [0-2]\.\d s ago"),
        (30.0, False, r"beat 3\d\.\d s ago"),
        (None, False, "not turned"),
    ],
)
def test_only_a_loop_that_turns_is_healthy(
    tmp_path: Path, age_s: float | None, ok: bool, found: str
) -> None:
    """The port answers in all three cases; the age of the loop's own beat decides."""
    facts.gauge("worker_beat_timestamp_seconds", 0 if age_s is None else time.time() - age_s)
    with serve_metrics("inspect", "127.0.0.1", _free_port(), TOKEN) as port:
        check = worker_check(with_metrics(tmp_path, port - 1, TOKEN))
    assert check.ok is ok
    assert re.search(found, check.found)


def test_a_worker_that_is_gone_is_not_healthy(tmp_path: Path) -> None:
    """Nobody at the port, and nobody to ask where metrics are off, are each one sentence."""
    gone = worker_check(with_metrics(tmp_path, _free_port()))
    assert not gone.ok
    assert "does not answer" in gone.found
    off = worker_check(with_metrics(tmp_path, 0))
    assert (off.ok, off.mend) == (False, "Set metrics.port, which carries its beat.")


def test_a_beat_is_read_among_other_numbers() -> None:
    """Comments and longer names are no beat."""
    text = (
        "# TYPE assayline_worker_beat_timestamp_seconds gauge\n"
        "assayline_worker_beat_timestamp_seconds_other 1.0\n"
        "assayline_worker_beat_timestamp_seconds 1.7e+09\n"
    )
    assert beat_of(text) == 1.7e9
    assert beat_of("") == 0


def test_a_probe_names_its_line() -> None:
    """Without a line there is no worker to ask for; that is wrong usage."""
    assert CliRunner().invoke(app, ["doctor", "--worker"]).exit_code == 2


def _free_port() -> int:
    import socket

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port
