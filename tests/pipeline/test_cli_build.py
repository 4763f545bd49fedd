"""``assayline build --backend tensorrt`` on a machine without a GPU."""

from __future__ import annotations

import ctypes
import importlib.util
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest

from engines.bundle import GRAPHS, open_bundle
from engines.contracts import ExitCode
from engines.gpu import gate
from engines.gpu.target import Target, find_target
from tests.pipeline.commands import Command, command_in, sentence

DEMO = Path(__file__).parents[2] / "configs" / "bundles" / "demo"


def has_driver() -> bool:
    """Whether there may be a GPU here."""
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


pytestmark = [
    pytest.mark.skipif(
        importlib.util.find_spec("tensorrt_rtx") is None, reason="tensorrt_rtx is not installed"
    ),
    pytest.mark.skipif(has_driver(), reason="here is an NVIDIA driver"),
]


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs a command line in this process."""
    return command_in(monkeypatch, capsys)


def test_engines_are_built_and_the_gate_says_why_it_did_not_run(
    command: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Exit code 0, the engines beside the bundle, and the reason in the report."""

    def narrow(compute: Sequence[str]) -> Target:
        return find_target(compute, (1,))

    monkeypatch.setattr(gate, "find_target", narrow)
    folder, report = Path(shutil.copytree(DEMO, tmp_path / "demo")), tmp_path / "report.json"
    words = ["--backend", "tensorrt", "--precision", "fp16", "--compute", "SM86"]
    code, _ = command("build", folder, *words, "--compute", "SM89", "--json", report)
    assert code == ExitCode.OK
    told = json.loads(report.read_text())
    assert told["backend"] == "tensorrt:fp16"
    assert told["compute"] == ["SM86", "SM89"]
    assert told["parity"] is None
    assert "there is no GPU" in told["ungated"]
    place = tmp_path / ".demo-engines" / open_bundle(folder).bundle_id / "tensorrt-fp16"
    names = {f"{graph}.{kind}" for graph in GRAPHS for kind in ("engine", "json")}
    assert {path.name for path in place.iterdir()} == names
    keys = [json.loads((place / f"{graph}.json").read_text()) for graph in GRAPHS]
    assert [key["precision"] for key in keys] == ["f32", "fp16", "fp16"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--backend", "tensorrt", "--compute", "SM90"], "builds nothing for SM90; choose among"),
        (["--backend", "tensorrt", "--precision", "fp8"], "fp8 needs GPUs from SM89 on"),
        (["--backend", "tensorrt", "--precision", "fp4"], "no precision 'fp4' for tensorrt"),
        (["--backend", "openvino", "--compute", "SM86"], "--compute names GPUs; openvino builds"),
    ],
)
def test_what_cannot_be_built_is_a_bad_configuration(
    command: Command, words: list[str], said: str
) -> None:
    """One sentence, and the exit code of a bad configuration."""
    code, told = command("build", DEMO, *words)
    assert code == ExitCode.BAD_CONFIG
    assert said in sentence(told)
