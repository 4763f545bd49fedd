"""Laws of the doctor: it finds what is wrong, says how to mend it, and refuses where it must."""

from __future__ import annotations

import json
import socket
from pathlib import Path

import pytest
import redis
from rich.console import Console

from engines.contracts import ExitCode
from pipeline.config import LineSettings
from pipeline.doctor import Check, Weight, doctor, exit_code_of, print_checks
from pipeline.doctor import machine as machine_room
from pipeline.doctor.line import line_checks, measured_p99_ms
from pipeline.doctor.server import server_checks
from pipeline.server import embedded_server

FRAME_BYTES, FRAMES_OPEN = 196_608, 32


def named(checks: list[Check], name: str) -> Check:
    """The one check of that name."""
    (found,) = (check for check in checks if check.name == name)
    return found


def line_settings(folder: Path, url: str = "embedded", **more: object) -> LineSettings:
    """A line of one simulated camera whose bundle does not exist."""
    camera = {"name": "top", "source": {"kind": "simulator"}} | more
    return LineSettings.model_validate(
        {
            "line": "demo",
            "bundle": str(folder / "no-bundle"),
            "run_dir": str(folder / "run"),
            "redis": {"url": url},
            "cameras": [camera],
            "dashboard": {"port": 0},
        }
    )


# -- the machine ------------------------------------------------------------------------------


def test_this_machine_is_fit_and_every_check_is_said_whole() -> None:
    """Each check has a name and a finding, and a mend exactly where it is not ok."""
    checks = doctor(None)
    assert {"python", "memory", "openvino", "torch", "gpu libraries"} <= {c.name for c in checks}
    for check in checks:
        assert check.found
        assert bool(check.mend) == (not check.ok)
    assert exit_code_of(checks) is ExitCode.OK


def test_facts_are_never_wrong() -> None:
    """What is optional (torch, a GPU) cannot keep a line from starting."""
    facts = [check for check in doctor(None) if check.weight is Weight.FACT]
    assert {"torch", "gpu libraries"} <= {check.name for check in facts}
    assert all(check.ok and not check.required for check in facts)


def test_a_full_disk_is_refused(tmp_path: Path) -> None:
    """The space asked for is named, and so is the place, even where the folder is not there yet."""
    folder = tmp_path / "not" / "yet"
    assert machine_room.disk("disk", folder, 1.0).ok
    full = machine_room.disk("disk", folder, 1e18)
    assert full.refuses
    assert str(tmp_path) in full.mend


def test_a_taken_port_is_refused_with_its_key() -> None:
    """The mend names the address and the setting to change."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        check = machine_room.port_free("dashboard port", "127.0.0.1", port, "dashboard.port")
    assert check.refuses
    assert str(port) in check.mend
    assert "dashboard.port" in check.mend


# -- the server -------------------------------------------------------------------------------


def test_the_embedded_server_has_nothing_to_mend(redis_url: str) -> None:
    """What we start ourselves passes every check we make of others."""
    checks = server_checks(redis_url, FRAME_BYTES, FRAMES_OPEN)
    assert [check.name for check in checks if not check.ok] == []
    assert {"redis version", "redis maxmemory", "redis eviction", "redis hz", "redis clock"} <= {
        check.name for check in checks
    }


@pytest.mark.parametrize(
    ("setting", "value", "check", "refuses"),
    [
        ("maxmemory-policy", "allkeys-lru", "redis eviction", True),
        ("maxmemory", "0", "redis maxmemory", True),
        ("maxmemory", "1mb", "redis maxmemory", True),
        ("client-output-buffer-limit", "normal 1mb 1mb 60", "redis reply buffer", True),
        ("hz", "10", "redis hz", False),
        ("save", "60 1", "redis persistence", False),
    ],
)
def test_each_bad_setting_is_found_and_its_mend_names_it(
    tmp_path: Path, setting: str, value: str, check: str, refuses: bool
) -> None:
    """A server that would lose frames is refused; one that is only slow is advised."""
    with embedded_server(tmp_path) as url:
        with redis.Redis.from_url(url) as client:
            client.config_set(setting, value)
        checks = server_checks(url, FRAME_BYTES, FRAMES_OPEN)
    wrong = [one for one in checks if not one.ok]
    assert [one.name for one in wrong] == [check]
    assert wrong[0].refuses is refuses
    assert setting in wrong[0].mend


def test_wrong_password_and_no_server_are_one_required_sentence(tmp_path: Path) -> None:
    """An unreachable server is one failed check, never a traceback, and tells no password."""
    (gone,) = server_checks(f"unix://{tmp_path}/none.sock", FRAME_BYTES, FRAMES_OPEN)
    assert gone.refuses
    with embedded_server(tmp_path) as url:
        with redis.Redis.from_url(url) as client:
            client.config_set("requirepass", "right-horse")
        (refused,) = server_checks(f"{url}?password=wrong-horse", FRAME_BYTES, FRAMES_OPEN)
    assert refused.refuses
    assert "redis.password" in refused.mend
    assert "horse" not in refused.found + refused.mend


# -- the line ---------------------------------------------------------------------------------


def test_a_line_without_bundle_is_refused_and_all_else_is_still_checked(tmp_path: Path) -> None:
    """One missing thing hides no other."""
    checks = line_checks(line_settings(tmp_path))
    assert named(checks, "bundle").refuses
    assert named(checks, "redis eviction").ok
    assert named(checks, "camera top gate").ok
    assert exit_code_of(checks) is ExitCode.BAD_CONFIG


def test_a_gate_is_weighed_against_what_was_measured(tmp_path: Path) -> None:
    """Too short for any network is refused; shorter than the measured p99 is advised against."""
    server = "unix:///nowhere.sock"
    assert named(
        line_checks(line_settings(tmp_path, server, gate_ms=10)), "camera top gate"
    ).refuses
    (tmp_path / "run").mkdir()
    report = tmp_path / "run" / "report.json"
    report.write_text(json.dumps({"latency_ms": {"p99": 180.0}}))
    assert measured_p99_ms(tmp_path / "run") == 180.0
    short = named(line_checks(line_settings(tmp_path, server, gate_ms=150)), "camera top gate")
    assert not short.ok
    assert not short.refuses
    assert named(line_checks(line_settings(tmp_path, server, gate_ms=200)), "camera top gate").ok
    report.write_text("not json")
    assert measured_p99_ms(tmp_path / "run") is None


def test_a_source_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """A folder source names its folder."""
    folder = {"kind": "folder", "path": str(tmp_path / "gone")}
    checks = line_checks(line_settings(tmp_path, "unix:///nowhere.sock", source=folder))
    assert named(checks, "camera top source").refuses


# -- what is printed --------------------------------------------------------------------------


def test_memory_that_cameras_ask_for_is_weighed(tmp_path: Path) -> None:
    """Without room for its ring a camera cannot start; with too little for originals it can."""
    wanted = line_settings(tmp_path, transport="shared", originals_bytes=10**15)
    checks = line_checks(wanted)
    assert named(checks, "memory for rings").ok
    assert not named(checks, "memory for originals").ok
    assert not named(checks, "memory for originals").required
    wanted = line_settings(tmp_path, transport="shared", credits=10**10)
    assert named(line_checks(wanted), "memory for rings").refuses
    by_itself = line_checks(line_settings(tmp_path, credits=10**10))
    assert not named(by_itself, "memory for rings").ok
    assert not named(by_itself, "memory for rings").required
    assert named(by_itself, "redis maxmemory").refuses  # where they would go instead
    assert named(line_checks(line_settings(tmp_path, credits=100)), "redis maxmemory").ok
    checks = line_checks(line_settings(tmp_path, transport="inline"))
    assert not any(check.name.startswith("memory for") for check in checks)


def test_table_and_json_say_the_same() -> None:
    """Every finding is in both, and the last line says whether a line may start."""
    checks = [
        Check("first", True, "as it should be"),
        Check("second", False, "broken", "Mend it so."),
        Check("third", False, "pip install 'assayline[train]'", "Do better.", Weight.ADVICE),
    ]
    console = Console(width=120)
    with console.capture() as caught:
        print_checks(checks, console)
    text = caught.get()
    for check in checks:
        assert check.found in text
        assert json.loads(json.dumps(check.as_json()))["found"] == check.found
    assert "Not ready: mend second." in text
    assert exit_code_of(checks[:1] + checks[2:]) is ExitCode.OK
