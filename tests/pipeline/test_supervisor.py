"""A whole line in its own processes: it starts, ends, stops, and says why it cannot."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import pytest

from engines.contracts import ExitCode
from engines.images import read_image
from pipeline import crew
from pipeline.config import load_line
from pipeline.shared import FRAMES, FrameRing, FrameRings, shared_path, shared_paths
from pipeline.supervisor import Server, _environment, run_line
from tests.tiny_line import shared_bundle, write_line, write_parts
from tests.waiting import wait_for

RUN = """
import sys, threading
from pathlib import Path
from pipeline.cli.terminal import stop_on_signals
from pipeline import crew
from pipeline.config import load_line
from pipeline.supervisor import run_line
line = Path(sys.argv[1])
with stop_on_signals() as stop:
    ledgers = run_line(load_line(line), stop, line, on_ready=lambda: print("ready", flush=True))
print(ledgers["left"].captured, ledgers["left"].residual, ledgers["left"].open, flush=True)
"""


@pytest.fixture
def grey_bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle that measures grey."""
    return shared_bundle(tmp_path_factory.getbasetemp())


def test_a_finite_line_ends_by_itself_with_its_ledger(tmp_path: Path, grey_bundle: Path) -> None:
    """Every part of the folder is judged and recorded; defects fail, good parts mostly pass."""
    write_parts(tmp_path / "parts", 30)
    path = write_line(tmp_path, grey_bundle, sinks={"jsonl": {}})
    ledger = run_line(load_line(path), threading.Event(), path)["left"]
    assert (ledger.captured, ledger.open, ledger.residual) == (30, 0, 0)
    assert not ledger.undecided
    assert ledger.failed >= 6
    assert len((tmp_path / "run" / "verdicts.jsonl").read_text().splitlines()) == 30


def test_a_line_in_shared_memory_leaves_none_behind(tmp_path: Path, grey_bundle: Path) -> None:
    """Parts are judged as ever, rejects are archived in full size, and the memory is free again."""
    write_parts(tmp_path / "parts", 30)
    camera = {"transport": "shared", "originals_bytes": 1_000_000, "credits": 8}
    path = write_line(tmp_path, grey_bundle, camera=camera, sinks={"archive": {}})
    ledger = run_line(load_line(path), threading.Event(), path)["left"]
    assert (ledger.captured, ledger.open, ledger.residual) == (30, 0, 0)
    assert not ledger.undecided
    originals = list((tmp_path / "run" / "archive").rglob("*.original.png"))
    assert len(originals) == ledger.failed >= 6
    for original in originals:
        number = int(original.name.split(".")[0].split("-")[1]) - 1
        part = tmp_path / "parts" / f"{number:04d}.png"
        assert (read_image(original) == read_image(part)).all()
    assert not shared_paths(tmp_path / "run")


def test_only_a_server_of_its_own_says_that_all_roles_are_here(
    tmp_path: Path, grey_bundle: Path
) -> None:
    """Of one that is given, cameras do not know who else reads them there."""
    line = load_line(write_line(tmp_path, grey_bundle))
    assert "ASSAYLINE_REDIS__OWNED" in _environment(line, Server("", tmp_path))
    assert "ASSAYLINE_REDIS__OWNED" not in _environment(line, Server("redis://plant:6379"))


def test_a_line_that_ends_leaves_the_memory_of_a_living_camera(
    tmp_path: Path, grey_bundle: Path
) -> None:
    """A ring that another process holds is there after ``run``, and its image too."""
    write_parts(tmp_path / "parts", 3)
    path = write_line(tmp_path, grey_bundle)
    line = load_line(path)
    with FrameRing(shared_path(line.run_dir, "left", FRAMES), 2, 12) as ring:
        ring.release_all_but([])
        place = ring.put("left/1-1", np.full((2, 2, 3), 7, np.uint8))
        assert place is not None
        assert run_line(line, threading.Event(), path)["left"].residual == 0
        image = FrameRings(line.run_dir, ["left"]).fetch("left/1-1", place, (2, 2))
        assert (image == 7).all()
    assert not shared_paths(line.run_dir)


def supervised(path: Path) -> subprocess.Popen[str]:
    """A supervisor of its own, ready."""
    process = subprocess.Popen(
        [sys.executable, "-c", RUN, str(path)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_the_first_signal_drains(tmp_path: Path, grey_bundle: Path) -> None:
    """An endless line stops in order: nothing open, residual 0, no process left."""
    write_parts(tmp_path / "parts", 10)
    source = {"kind": "folder", "path": "parts", "rate_hz": 20, "loop": True}
    path = write_line(tmp_path, grey_bundle, camera={"source": source}, sinks={"jsonl": {}})
    process = supervised(path)
    children = psutil.Process(process.pid).children(recursive=True)
    wait_for(lambda: _recorded(tmp_path) >= 10)
    process.send_signal(signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    captured, residual, still_open = (int(number) for number in said.split())
    assert process.returncode == 0
    assert (residual, still_open) == (0, 0)
    assert _recorded(tmp_path) == captured
    assert not [child for child in children if child.is_running()]


def test_a_killed_supervisor_leaves_no_process(tmp_path: Path, grey_bundle: Path) -> None:
    """SIGKILL of the parent ends server, sink, worker and camera with it."""
    write_parts(tmp_path / "parts", 10)
    source = {"kind": "folder", "path": "parts", "rate_hz": 20, "loop": True}
    path = write_line(tmp_path, grey_bundle, camera={"source": source})
    process = supervised(path)
    children = psutil.Process(process.pid).children(recursive=True)
    assert len(children) >= 3
    os.kill(process.pid, signal.SIGKILL)
    process.communicate()
    psutil.wait_procs(children, timeout=10)
    assert not [child for child in children if child.is_running()]


def _recorded(folder: Path) -> int:
    path = folder / "run" / "verdicts.jsonl"
    return len(path.read_bytes().splitlines()) if path.exists() else 0


def _spoil_bundle(folder: Path) -> None:
    (folder / "bundle" / "step.onnx").write_bytes(b"damaged")


def _lose_parts(folder: Path) -> None:
    (folder / "parts").rename(folder / "moved")


@pytest.mark.parametrize(
    ("spoil", "code", "sentence"),
    [
        (_spoil_bundle, ExitCode.BAD_BUNDLE, "inspect 0 ended with code 4: .*step.onnx"),
        (
            _lose_parts,
            ExitCode.NO_SOURCE,
            "ingest left ended with code 7 2 times in a row: .*parts",
        ),
    ],
)
def test_what_cannot_be_kept_alive_is_given_up_with_its_sentence(  # noqa: PLR0917 - fixtures
    tmp_path: Path,
    grey_bundle: Path,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], None],
    code: ExitCode,
    sentence: str,
) -> None:
    """What a new start cannot mend ends at once, the rest after some; its own words and code."""
    monkeypatch.setattr(crew, "QUICK_MAX", 2)
    shutil.copytree(grey_bundle, tmp_path / "bundle")
    write_parts(tmp_path / "parts", 3)
    path = write_line(tmp_path, tmp_path / "bundle")
    spoil(tmp_path)
    with pytest.raises(crew.GivenUp, match=sentence) as caught:
        run_line(load_line(path), threading.Event(), path)
    assert caught.value.exit_code == code


def test_inspection_goes_on_without_its_page(
    tmp_path: Path, grey_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A page whose port is taken is given up; the line ends with every part answered."""
    monkeypatch.setattr(crew, "QUICK_MAX", 1)
    write_parts(tmp_path / "parts", 30)
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        page = {"enabled": True, "port": taken.getsockname()[1]}
        source = {"kind": "folder", "path": "parts", "rate_hz": 10}
        path = write_line(tmp_path, grey_bundle, camera={"source": source}, dashboard=page)
        ledger = run_line(load_line(path), threading.Event(), path)["left"]
    assert (ledger.captured, ledger.open, ledger.residual) == (30, 0, 0)
