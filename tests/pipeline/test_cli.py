"""Commands, and lines that cannot run: one sentence and the documented code."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml
from redis import Redis

from engines.contracts import ExitCode
from pipeline.cli import app
from pipeline.server import embedded_server
from tests.pipeline.commands import Command, command_in, contents, sentence
from tests.tiny_line import (
    shared_bundle,
    write_line,
    write_parts,
)

COMMANDS = sorted(typer.main.get_command(app).commands)  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def grey_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that measures grey; not to be changed."""
    return shared_bundle(tmp_path_factory.getbasetemp())


@pytest.fixture
def assayline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run one command as the shell does; its exit code and what it said on stderr."""
    return command_in(monkeypatch, capsys)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"bundel": "b"}, "bundel"),
        ({"worker": {"presicion": "f32"}}, "precision"),
        ({"camera": {"gate": 5}}, "gate_ms"),
        ({"camera": {"source": {"kind": "floder", "path": "x"}}}, "floder"),
        ({"camera": {"gate_ms": -1}}, "gate_ms"),
    ],
)
def test_a_line_with_a_wrong_key_is_refused(
    assayline: Command, tmp_path: Path, grey_bundle: Path, changes: dict[str, Any], word: str
) -> None:
    """The sentence names the key, or the one that was meant."""
    line = write_line(tmp_path, grey_bundle, **changes)
    code, said = assayline("run", line)
    assert code == ExitCode.BAD_CONFIG
    assert word in sentence(said)
    assert list(tmp_path.iterdir()) == [line]


def test_a_wrong_password_is_said(
    assayline: Command, tmp_path: Path, grey_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A server that wants another password ends every role with a sentence without either."""
    write_parts(tmp_path / "parts", 3)
    with embedded_server(tmp_path / "server") as url:
        with Redis.from_url(url) as client:
            client.config_set("requirepass", "right-one")
        monkeypatch.setenv("ASSAYLINE_REDIS__PASSWORD", "wrong-one")
        line = write_line(tmp_path, grey_bundle, redis={"url": url})
        for words in (["run", line], ["ingest", line, "--camera", "left"], ["sink", line]):
            code, said = assayline(*words)
            assert code == ExitCode.BAD_CONFIG
            told = sentence(said)
            assert "password" in told
            assert "right-one" not in said
            assert "wrong-one" not in said


def test_no_server_is_said(assayline: Command, tmp_path: Path, grey_bundle: Path) -> None:
    """A Redis that is not there has an exit code of its own."""
    write_parts(tmp_path / "parts", 3)
    line = write_line(tmp_path, grey_bundle, redis={"url": f"unix://{tmp_path}/no.sock"})
    code, said = assayline("run", line)
    assert code == ExitCode.NO_SERVER
    sentence(said)


@pytest.fixture
def silent_port() -> Iterator[int]:
    """A port that accepts and never says a word."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield listener.getsockname()[1]


def test_a_camera_that_never_answers_is_given_up(
    tmp_path: Path, grey_bundle: Path, redis_url: str, namespace: str, silent_port: int
) -> None:
    """Ingest ends within its own time-outs, with a sentence that names the URL."""
    source = {
        "kind": "camera",
        "url": f"http://127.0.0.1:{silent_port}/stream",
        "open_timeout_s": 0.3,
        "read_timeout_s": 0.3,
        "give_up_s": 0.5,
    }
    line = write_line(
        tmp_path,
        grey_bundle,
        camera={"source": source},
        redis={"url": redis_url, "namespace": namespace},
    )
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "ingest", str(line), "--camera", "left"],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == ExitCode.NO_SOURCE
    assert f"http://127.0.0.1:{silent_port}" in sentence(done.stderr)


def test_a_broken_picture_on_a_running_line_is_undecided(
    assayline: Command, tmp_path: Path, grey_bundle: Path
) -> None:
    """One truncated PNG among twelve parts is UNDECIDED(bad_frame); every other one is judged."""
    write_parts(tmp_path / "parts", 12)
    broken = (tmp_path / "parts" / "0004.png").read_bytes()
    (tmp_path / "parts" / "0004.png").write_bytes(broken[: len(broken) // 2])
    line = write_line(tmp_path, grey_bundle, sinks={"jsonl": {}})
    code, _ = assayline("run", line, "--json", tmp_path / "report.json")
    report = json.loads((tmp_path / "report.json").read_text())
    assert code == ExitCode.OK
    assert (report["captured"], report["residual"]) == (12, 0)
    assert report["undecided"] == {"bad_frame": 1}
    assert report["pass"] + report["fail"] == 11
    records = (tmp_path / "run" / "verdicts.jsonl").read_text().splitlines()
    undecided = [v for v in map(json.loads, records) if v["decision"] == "UNDECIDED"]
    assert len(records) == 12
    assert [v["reason"] for v in undecided] == ["bad_frame"]


def test_replay_refuses_what_is_no_recording(
    assayline: Command, tmp_path: Path, grey_bundle: Path
) -> None:
    """A text file, a missing file and a speed that is none."""
    line = write_line(tmp_path, grey_bundle)
    (tmp_path / "notes.mcap").write_text("no recording")
    for name in ("notes.mcap", "missing.mcap"):
        code, said = assayline("replay", tmp_path / name, "--line", line)
        assert code == ExitCode.BAD_DATA
        assert name in sentence(said)
    code, said = assayline("replay", tmp_path / "notes.mcap", "--line", line, "--speed", "fast")
    assert code == ExitCode.BAD_CONFIG
    assert "fast" in sentence(said)


def test_simulate_refuses_a_folder_in_use(assayline: Command, tmp_path: Path) -> None:
    """A data set that is there stays as it is; a part that is not simulated is named."""
    counts = ["--train-good", 1, "--test-good", 0, "--test-defect", 0]
    assert assayline("simulate", tmp_path / "parts", "--part", "disc", *counts)[0] == 0
    before = contents(tmp_path)
    code, said = assayline("simulate", tmp_path / "parts", "--part", "disc", *counts)
    assert code == ExitCode.BAD_DATA
    assert "already holds" in sentence(said)
    code, said = assayline("simulate", tmp_path / "other", "--part", "sprocket", *counts)
    assert code == ExitCode.BAD_CONFIG
    assert "sprocket" in sentence(said)
    assert contents(tmp_path) == before


def help_of(*words: str, capsys: pytest.CaptureFixture[str]) -> str:
    """What a command says of itself, on one line."""
    capsys.readouterr()
    with pytest.raises(SystemExit):
        app([*words, "--help"])
    return " ".join(capsys.readouterr().out.replace("│", " ").split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_shows_an_example(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The example names the command, and all its options exist."""
    told = help_of(command, capsys=capsys)
    example = told.partition("Example: ")[2].partition("╭")[0]
    assert example.startswith(f"assayline {command}")
    parsed = typer.main.get_command(app).commands[command]  # type: ignore[attr-defined]
    options = {name for parameter in parsed.params for name in parameter.opts}
    assert {word for word in example.split() if word.startswith("--")} <= options


def test_every_exit_code_is_in_the_help(capsys: pytest.CaptureFixture[str]) -> None:
    """Codes and commands are listed where people look first."""
    told = help_of(capsys=capsys).partition("Exit codes: ")[2]
    documented = [int(word) for word in told.split() if word.isdigit()]
    assert documented == sorted(int(code) for code in ExitCode)


def test_usage_errors_have_their_code(assayline: Command) -> None:
    """An unknown command or option, or a missing argument, is code 2 and no traceback."""
    for words in (["inspekt"], ["run"], ["bench", "--fast"], ["demo", "--frames", "many"]):
        code, said = assayline(*words)
        assert code == ExitCode.USAGE
        assert "Traceback" not in said


def test_the_example_lines_are_what_they_say() -> None:
    """Every YAML of a line in configs loads under its own name."""
    from pipeline.config import load_line

    folder = Path(__file__).parents[2] / "configs"
    for path in folder.glob("line.*.yaml"):
        assert load_line(path).line == yaml.safe_load(path.read_text())["line"]
