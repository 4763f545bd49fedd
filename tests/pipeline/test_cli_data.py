"""Data and bundles that cannot serve: one sentence, the documented code, nothing lost."""

from __future__ import annotations

import io
import json
import shutil
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from engines.contracts import ExitCode
from tests.pipeline.commands import Command, command_in, contents, sentence
from tests.tiny_line import CATEGORY, good_part, shared_bundle, write_line


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


@pytest.fixture
def assayline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run one command as the shell does; its exit code and what it said on stderr."""
    return command_in(monkeypatch, capsys)


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
