"""A bundle opens whole or not at all, and says in one sentence why not."""

from __future__ import annotations

import json
import shutil
import threading
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from engines.bundle import GRAPHS, MANIFEST, open_bundle
from engines.contracts import BadBundle, ExitCode
from tests.tiny_line import CATEGORY, shared_bundle

FILES = [*(f"{graph}.onnx" for graph in GRAPHS), MANIFEST, "calibration.json"]


@pytest.fixture(scope="session")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that measures grey; not to be changed."""
    return shared_bundle(tmp_path_factory.getbasetemp())


@pytest.fixture
def folder(original: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return Path(shutil.copytree(original, tmp_path / "bundle"))


def zipped(folder: Path) -> Path:
    """The folder's files at the top of a zip beside it."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
    return path


def refusal(path: Path) -> str:
    """The one sentence with which a bundle is refused."""
    with pytest.raises(BadBundle) as caught:
        open_bundle(path).calibration()
    assert int(caught.value.exit_code) == int(ExitCode.BAD_BUNDLE) == 4
    sentence = str(caught.value)
    assert "\n" not in sentence
    assert str(path.with_suffix("").name) in sentence
    return sentence


def rewrite(folder: Path, **changes: Any) -> None:  # noqa: ANN401 - any JSON
    """Change single keys of the manifest."""
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | changes))


def flip(path: Path, place: float = 0.5) -> None:
    """Turn one bit of a file."""
    content = bytearray(path.read_bytes())
    content[int(place * (len(content) - 1))] ^= 0x10
    path.write_bytes(content)


def test_a_bundle_opens_with_its_calibration(original: Path) -> None:
    """The id is the manifest's hash, so two openings agree."""
    bundle = open_bundle(original)
    assert bundle.bundle_id == open_bundle(str(original)).bundle_id
    assert bundle.manifest.method == "grey"
    calibration = bundle.calibration()
    assert calibration is not None
    assert calibration.bundle_id == bundle.bundle_id


def test_a_bundle_may_have_no_calibration_yet(folder: Path) -> None:
    """Thresholds come and go without touching the bundle's id."""
    before = open_bundle(folder).bundle_id
    (folder / "calibration.json").unlink()
    assert open_bundle(folder).calibration() is None
    assert open_bundle(folder).bundle_id == before


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_flipped_bit_in_a_graph_is_refused(folder: Path, graph: str) -> None:
    """The sentence names the file and says to copy the bundle again."""
    flip(folder / f"{graph}.onnx")
    assert f"{graph}.onnx does not have the bytes its manifest names" in refusal(folder)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1), bit=st.integers(0, 7))
def test_a_flipped_bit_in_the_manifest_is_seen(folder: Path, place: float, bit: int) -> None:
    """It is refused, or the bundle has another id; it is never taken for the same bundle."""
    path = folder / MANIFEST
    original_bytes = path.read_bytes()
    content = bytearray(original_bytes)
    content[int(place * (len(content) - 1))] ^= 1 << bit
    path.write_bytes(content)
    try:
        assert open_bundle(folder).bundle_id != ""
        path.write_bytes(original_bytes)
        assert open_bundle(folder).manifest.files
    except BadBundle as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
    finally:
        path.write_bytes(original_bytes)


def test_a_damaged_calibration_is_refused(folder: Path) -> None:
    """It lies outside the manifest, yet never judges a part."""
    (folder / "calibration.json").write_text('{"bundle_id": "x", "entries": {"a": 1}}')
    assert "assayline calibrate" in refusal(folder)


@pytest.mark.parametrize("graph", GRAPHS)
def test_a_missing_graph_is_named(folder: Path, graph: str) -> None:
    """Whether the manifest still lists it or not."""
    (folder / f"{graph}.onnx").unlink()
    assert f"lacks {graph}.onnx" in refusal(folder)
    files = json.loads((folder / MANIFEST).read_text())["files"]
    del files[f"{graph}.onnx"]
    rewrite(folder, files=files)
    assert f"lacks {graph}.onnx" in refusal(folder)


@pytest.mark.parametrize("version", [0, 2, "1", None, [1]])
def test_a_foreign_schema_version_is_refused(folder: Path, version: object) -> None:
    """A newer or older bundle is not guessed at."""
    rewrite(folder, schema_version=version)
    assert "schema version" in refusal(folder)


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b"null", b"\xff\xfe", b"[" * 200_000, b'{"schema_version": 1}'],
    ids=["empty", "cut", "list", "null", "bytes", "deep", "bare"],
)
def test_a_manifest_that_is_none_is_refused(folder: Path, content: bytes) -> None:
    """Not JSON, not an object, or without its fields."""
    (folder / MANIFEST).write_bytes(content)
    assert MANIFEST in refusal(folder)


@pytest.mark.parametrize("name", ["../secret", "/etc/hostname", "a/../../secret", "link", "", "\0"])
def test_a_manifest_names_nothing_outside(folder: Path, name: str) -> None:
    """No path, absolute, relative or by a link, leads a bundle out of its folder."""
    (folder.parent / "secret").write_text("secret")
    (folder / "link").symlink_to("../secret")
    files = json.loads((folder / MANIFEST).read_text())["files"]
    rewrite(folder, files=files | {name: "0" * 64})
    refusal(folder)


def test_what_is_no_bundle_is_said(tmp_path: Path) -> None:
    """An empty folder, a file, nothing at all."""
    assert "manifest.json" in refusal(tmp_path)
    (tmp_path / "file").write_text("text")
    assert "manifest.json" in refusal(tmp_path / "file")
    assert "manifest.json" in refusal(tmp_path / "nowhere")
    assert "there is no bundle" in refusal(tmp_path / "nowhere.zip")


def test_a_zip_is_the_same_bundle(folder: Path) -> None:
    """Unpacked once beside itself, with the same id, categories and calibration."""
    bundle = open_bundle(zipped(folder))
    assert bundle.bundle_id == open_bundle(folder).bundle_id
    assert bundle.calibration() is not None
    assert open_bundle(folder.with_suffix(".zip")).folder == bundle.folder


def test_processes_may_unpack_a_zip_at_once(folder: Path) -> None:
    """All roles of a line open the same zip at the same moment; one folder comes of it."""
    path = zipped(folder)
    opened: list[Path] = []
    starts = threading.Barrier(6)

    def open_it() -> None:
        starts.wait()
        opened.append(open_bundle(path).folder)

    threads = [threading.Thread(target=open_it) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(opened) == 6
    assert len(set(opened)) == 1
    assert sorted(file.name for file in opened[0].iterdir()) == sorted(FILES)
    assert sorted(p.name for p in folder.parent.iterdir()) == sorted(
        ["bundle", "bundle.zip", opened[0].name]
    )


def test_members_of_a_zip_cannot_leave_their_folder(folder: Path) -> None:
    """A member called ../evil is written inside or not at all."""
    path = zipped(folder)
    with zipfile.ZipFile(path, "a") as archive:
        archive.writestr("../evil", "out")
        archive.writestr("/../../evil", "out")
    bundle = open_bundle(path)
    assert not (folder.parent / "evil").exists()
    assert not (folder.parent.parent / "evil").exists()
    assert bundle.folder.parent == folder.parent


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(place=st.floats(0, 1), bit=st.integers(0, 7), cut=st.booleans())
def test_a_damaged_zip_gives_a_bundle_or_a_sentence(
    folder: Path, place: float, bit: int, cut: bool
) -> None:
    """One flipped bit or a lost tail anywhere never ends in another error, nor leaves scraps."""
    whole = zipped(folder).read_bytes()
    path = folder.with_name("hurt.zip")
    at = int(place * (len(whole) - 1))
    flipped = bytes([whole[at] ^ 1 << bit]) + whole[at + 1 :]
    path.write_bytes(whole[:at] + (b"" if cut else flipped))
    try:
        assert open_bundle(path).manifest.method == "grey"
    except BadBundle as error:
        assert "\n" not in str(error)  # noqa: PT017 - either outcome is right
    assert not [p for p in folder.parent.iterdir() if p.name.startswith("tmp")]


def test_an_unknown_category_shares_the_row_unknown(original: Path) -> None:
    """Names the bundle does not know have one row and one name."""
    bundle = open_bundle(original)
    assert (bundle.category_id(CATEGORY), bundle.category_name(CATEGORY)) == (0, CATEGORY)
    for name in ("", "sprocket", "unknown"):
        assert (bundle.category_id(name), bundle.category_name(name)) == (1, "unknown")
