"""Commands given what they cannot use: one sentence, the documented code, nothing lost."""

from __future__ import annotations

import io
import json
import shutil
import socket
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import typer
import yaml
from PIL import Image
from redis import Redis

from engines.contracts import ExitCode
from pipeline.cli import app, main
from pipeline.server import embedded_server
from tests.tiny_line import (
    CATEGORY,
    good_part,
    shared_bundle,
    write_line,
    write_parts,
)

COMMANDS = [command.callback.__name__ for command in app.registered_commands if command.callback]


@pytest.fixture(scope="module")
def grey_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that measures grey; not to be changed."""
    return shared_bundle(tmp_path_factory.getbasetemp())


@pytest.fixture
def bundle(grey_bundle: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(grey_bundle, tmp_path / "bundle"))


@pytest.fixture
def good(tmp_path: Path) -> Path:
    """A folder of 64 good parts, named as their category."""
    folder = tmp_path / CATEGORY
    folder.mkdir()
    for seed in range(64):
        Image.fromarray(good_part(seed, (24, 32))).save(folder / f"{seed:03d}.png")
    return folder


Command = Callable[..., tuple[int, str]]


@pytest.fixture
def assayline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run one command as the shell does; its exit code and what it said on stderr."""

    def run(*words: object) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["assayline", *map(str, words)])
        capsys.readouterr()
        try:
            main()
        except SystemExit as ending:
            return int(ending.code or 0), capsys.readouterr().err
        return 0, capsys.readouterr().err

    return run


def sentence(said: str) -> str:
    """The one sentence on stderr; nothing like a traceback comes with it."""
    assert "Traceback" not in said
    told = [line for line in said.splitlines() if line.startswith("assayline: ")]
    assert len(told) == 1
    assert said.rstrip().endswith(told[0])
    return told[0]


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def png(width: int, height: int, depth: int = 8, colour: int = 2, pixels: bytes = b"") -> bytes:
    """A PNG whose header claims what it likes."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        body = kind + data
        return struct.pack(">I", len(data)) + body + struct.pack(">I", zlib.crc32(body))

    head = struct.pack(">IIBBBBB", width, height, depth, colour, 0, 0, 0)
    pieces = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(pixels)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + pieces


def saved(image: Image.Image) -> bytes:
    """PNG bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()


BAD_IMAGES = {
    "truncated.png": saved(Image.fromarray(good_part(1, (64, 64))))[:-200],
    "sixteen.png": saved(Image.fromarray(np.full((32, 32), 40_000, np.uint16))),
    "tiny.png": saved(Image.new("RGB", (1, 1))),
    "giant.png": png(20_000, 10_000),
    "text.jpg": b"this is no picture\n",
    "empty.png": b"",
}


@pytest.mark.parametrize("name", BAD_IMAGES)
def test_a_bad_image_among_good_ones_is_named(
    assayline: Command, tmp_path: Path, bundle: Path, good: Path, name: str
) -> None:
    """calibrate and evaluate refuse the folder, name the file, and leave the bundle alone."""
    (good / name).write_bytes(BAD_IMAGES[name])
    before = contents(tmp_path)
    code, said = assayline("calibrate", bundle, good, "--precision", "f32")
    assert code == ExitCode.BAD_DATA
    assert name in sentence(said)
    assert contents(tmp_path) == before


@pytest.mark.parametrize("name", ["truncated.png", "giant.png"])
def test_training_names_a_bad_image(
    assayline: Command, tmp_path: Path, good: Path, name: str
) -> None:
    """train ends before it writes anything."""
    (good / name).write_bytes(BAD_IMAGES[name])
    before = contents(tmp_path)
    code, said = assayline("train", good, "--out", tmp_path / "out")
    assert code == ExitCode.BAD_DATA
    assert name in sentence(said)
    assert contents(tmp_path) == before
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("mode", ["L", "RGBA", "LA", "P"])
def test_grey_and_transparent_images_are_welcome(
    assayline: Command, bundle: Path, good: Path, mode: str
) -> None:
    """Eight bits of any usual colour mode calibrate a bundle."""
    for path in good.iterdir():
        Image.open(path).convert(mode).save(path)
    (bundle / "calibration.json").unlink()
    code, said = assayline("calibrate", bundle, good, "--precision", "f32")
    assert (code, "assayline:" in said) == (ExitCode.OK, False)
    assert (bundle / "calibration.json").is_file()


@pytest.mark.parametrize("command", ["train", "calibrate", "evaluate"])
@pytest.mark.parametrize("kind", ["empty", "absent", "file"])
def test_a_folder_without_images_is_refused(
    assayline: Command, tmp_path: Path, bundle: Path, command: str, kind: str
) -> None:
    """Empty, missing, or no folder at all."""
    data = tmp_path / "data"
    if kind == "empty":
        data.mkdir()
    elif kind == "file":
        data.write_text("no folder")
    before = contents(tmp_path)
    words = [data, "--out", tmp_path / "out"] if command == "train" else [bundle, data]
    code, said = assayline(command, *words)
    assert code == ExitCode.BAD_DATA
    assert "data" in sentence(said)
    assert contents(tmp_path) == before


def test_training_does_not_overwrite_its_data(
    assayline: Command, tmp_path: Path, good: Path
) -> None:
    """A folder that is no bundle is never replaced by one."""
    before = contents(tmp_path)
    code, said = assayline("train", good, "--out", good)
    assert code == ExitCode.BAD_DATA
    assert "is no bundle" in sentence(said)
    assert contents(tmp_path) == before


def flip(bundle: Path) -> None:
    """One bit of one graph."""
    content = bytearray((bundle / "step.onnx").read_bytes())
    content[len(content) // 2] ^= 1
    (bundle / "step.onnx").write_bytes(content)


def lose_a_graph(bundle: Path) -> None:
    """No finish."""
    (bundle / "finish.onnx").unlink()


def age(bundle: Path) -> None:
    """A manifest of another release."""
    manifest = json.loads((bundle / "manifest.json").read_text())
    (bundle / "manifest.json").write_text(json.dumps(manifest | {"schema_version": 9}))


def lose_everything(bundle: Path) -> None:
    """No bundle at all."""
    shutil.rmtree(bundle)


@pytest.mark.parametrize("damage", [flip, lose_a_graph, age, lose_everything])
@pytest.mark.parametrize("command", ["calibrate", "evaluate", "build", "inspect"])
def test_a_damaged_bundle_is_refused(
    assayline: Command,
    tmp_path: Path,
    bundle: Path,
    damage: Callable[[Path], None],
    command: str,
) -> None:
    """Whatever opens a bundle says what is wrong with it, with one exit code."""
    damage(bundle)
    line = write_line(tmp_path, bundle)
    words = {"build": [bundle], "inspect": [line]}.get(command, [bundle, tmp_path])
    before = contents(tmp_path)
    code, said = assayline(command, *words)
    assert code == ExitCode.BAD_BUNDLE
    assert "bundle" in sentence(said)
    assert contents(tmp_path) == before


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


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("minuets: 5", "did you mean minutes"),
        ("minutes: -5", "minutes"),
        ("minutes: [", "YAML"),
        ("- minutes", "settings"),
        ("just words", "settings"),
        ("image_size: [100, 100]\ncodec: features", "multiples of 32"),
        ("\x00", "YAML"),
    ],
)
def test_wrong_training_settings_are_refused(
    assayline: Command, tmp_path: Path, good: Path, text: str, word: str
) -> None:
    """Unknown keys get a suggestion, and nothing is written."""
    config = tmp_path / "train.yaml"
    config.write_text(text)
    before = contents(tmp_path)
    code, said = assayline("train", good, "--config", config, "--out", tmp_path / "out")
    assert code == ExitCode.BAD_CONFIG
    assert word in sentence(said)
    assert contents(tmp_path) == before


@pytest.mark.parametrize(
    ("option", "value", "code"),
    [
        ("--max-false-reject", "1.5", ExitCode.BAD_DATA),
        ("--max-false-reject", "0.001", ExitCode.BAD_DATA),
        ("--backend", "abacus", ExitCode.BAD_CONFIG),
        ("--precision", "f8", ExitCode.BAD_CONFIG),
        ("--category", "sprocket", ExitCode.BAD_DATA),
    ],
)
def test_options_that_cannot_be_are_refused(  # noqa: PLR0917 - fixtures
    assayline: Command, bundle: Path, good: Path, option: str, value: str, code: ExitCode
) -> None:
    """The old calibration stays."""
    before = contents(bundle)
    ended, said = assayline("calibrate", bundle, good, option, value)
    assert ended == code
    sentence(said)
    assert contents(bundle) == before


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
