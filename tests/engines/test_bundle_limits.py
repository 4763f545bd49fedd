"""A bundle cannot leave its folder, fill a disk, or ask for more than a machine has."""

from __future__ import annotations

import json
import os
import shutil
import stat
import zipfile
from pathlib import Path
from typing import Any

import pytest

from engines import bundle as bundles
from engines.bundle import MANIFEST, MAX_MEMBERS, open_bundle
from engines.contracts import BadBundle
from tests.tiny_line import shared_bundle


@pytest.fixture
def folder(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A valid bundle that may be damaged."""
    original = shared_bundle(tmp_path_factory.getbasetemp())
    return Path(shutil.copytree(original, tmp_path / "in" / "bundle"))


def zipped(folder: Path, **more: bytes) -> Path:
    """The bundle as a zip, with members of other names."""
    path = folder.with_suffix(".zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.iterdir()):
            archive.write(file, file.name)
        for name, data in more.items():
            archive.writestr(name, data)
    return path


def everything(folder: Path) -> set[str]:
    """All that lies below a folder."""
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


@pytest.mark.parametrize(
    "name", ["../outside", "../../outside", "/outside", "a/../../../outside", "..\\outside", "//x"]
)
def test_no_member_leaves_the_folder(folder: Path, tmp_path: Path, name: str) -> None:
    """Names that lead upwards or to the root end inside the bundle's own folder."""
    path = zipped(folder, **{name: b"x"})
    before = everything(tmp_path)
    opened = open_bundle(path)
    new = everything(tmp_path) - before
    assert all(one.startswith(f"in/{opened.folder.name}") for one in new)
    assert not Path("/outside").exists()


def test_links_in_a_zip_are_plain_files(folder: Path) -> None:
    """A link that points outside is unpacked as the text it is, so nothing follows it."""
    path = folder.with_suffix(".zip")
    zipped(folder)
    with zipfile.ZipFile(path, "a") as archive:
        link = zipfile.ZipInfo("link")
        link.external_attr = (stat.S_IFLNK | 0o777) << 16
        archive.writestr(link, "/etc")
        archive.writestr("link2/passwd", b"x")
    opened = open_bundle(path)
    assert not any(one.is_symlink() for one in opened.folder.rglob("*"))


def test_a_link_in_a_folder_leads_nowhere(folder: Path, tmp_path: Path) -> None:
    """A file of a bundle that is a link out of it is refused; a loop of links, too."""
    outside = tmp_path / "outside.onnx"
    shutil.move(folder / "start.onnx", outside)
    (folder / "start.onnx").symlink_to(outside)
    with pytest.raises(BadBundle, match="outside itself"):
        open_bundle(folder)
    (folder / "start.onnx").unlink()
    (folder / "start.onnx").symlink_to(folder / "start.onnx")
    with pytest.raises(BadBundle):
        open_bundle(folder)


def test_a_small_zip_does_not_fill_the_disk(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What unpacks to hundreds of times its size is refused before anything is unpacked."""
    monkeypatch.setattr(bundles, "SMALL_BYTES", 1 << 20)
    path = zipped(folder, zeros=bytes(50 << 20))
    before = everything(folder.parent)
    with pytest.raises(BadBundle, match="too much for its size"):
        open_bundle(path)
    assert everything(folder.parent) == before


def test_a_zip_of_very_many_files_is_refused(folder: Path) -> None:
    """More files than any bundle has."""
    path = zipped(folder, **{f"f{number}": b"" for number in range(MAX_MEMBERS)})
    with pytest.raises(BadBundle, match="more than any bundle"):
        open_bundle(path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"image_size": [10**9, 10**9]}, "image_size"),
        ({"image_size": [0, 4]}, "image_size"),
        ({"image_size": [-1, 4]}, "image_size"),
        ({"steps_min": -1}, "steps_min"),
        ({"steps_unit": 10**12}, "steps_unit"),
        ({"plans": [{"start_level": 1, "levels": [0] * 20_000}]}, "levels"),
        ({"files": {"x" * 5000: "0"}}, "cannot be read"),
        ({"files": {f"{n}": "" for n in range(MAX_MEMBERS + 1)}}, "files"),
    ],
)
def test_sizes_in_a_manifest_have_limits(folder: Path, change: dict[str, Any], said: str) -> None:
    """Sides, steps, plans and files beyond any are refused by the record alone."""
    manifest = json.loads((folder / MANIFEST).read_text())
    (folder / MANIFEST).write_text(json.dumps(manifest | change))
    with pytest.raises(BadBundle, match=said):
        open_bundle(folder)


def test_a_state_larger_than_a_machine_is_refused(folder: Path) -> None:
    """The product of a tensor's sides counts, not each side."""
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["spec"]["state"][0]["shape"] = [100_000, 100_000]
    (folder / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BadBundle, match="elements"):
        open_bundle(folder)


@pytest.mark.parametrize("name", [MANIFEST, "calibration.json"])
def test_a_record_that_never_ends_is_not_waited_for(
    folder: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A pipe, a folder or a file without end in the place of a record is refused at once."""
    (folder / name).unlink()
    os.mkfifo(folder / name)
    with pytest.raises(BadBundle):
        open_bundle(folder).calibration()
    (folder / name).unlink()
    monkeypatch.setattr(bundles, "MAX_RECORD_BYTES", 100_000)
    (folder / name).write_bytes(b" " * 200_000)
    with pytest.raises(BadBundle, match="longer than"):
        open_bundle(folder).calibration()
