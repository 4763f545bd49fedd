"""gpu-check: every part has an outcome, whatever a library does, and nothing is made up."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

from engines.contracts import BadConfig, BadData, EngineFault
from engines.gpu.device import Unavailable
from pipeline.bench.report import Result
from pipeline.gpucheck import (
    Asked,
    NotHere,
    Outcome,
    State,
    check,
    machine,
    run_gpu_check,
)
from pipeline.gpucheck.__main__ import run_part
from pipeline.gpucheck.isolation import run_command
from pipeline.gpucheck.machine import facts_of
from pipeline.gpucheck.outcome import Found
from pipeline.gpucheck.parts import GPU, PARTS, Part
from pipeline.gpucheck.report import as_markdown, write_report
from pipeline.gpucheck.trials import read_counts
from pipeline.gpucheck.wheels import install, optional_requirements

ROOT = Path(__file__).parents[2]
DRIVER = Path("/proc/driver/nvidia/version")
RESULT = Result("speed.demo.torch-cuda:bf16.b8", 5000.0, "frames/s", "batch 1", 4.0)


# -- the whole ---------------------------------------------------------------------------------


@pytest.mark.skipif(DRIVER.exists(), reason="this machine has a GPU, where a check takes long")
def test_a_machine_without_a_gpu_is_told_part_by_part(tmp_path: Path) -> None:
    """The command runs to its end; what needs a GPU is not here, with its reason."""
    out = tmp_path / "check"
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "gpu-check", "--out", str(out)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((out / "no-gpu.json").read_text("utf-8"))
    parts = {part["part"]: part for part in report["parts"]}
    assert list(parts) == list(PARTS)
    assert parts[GPU]["sentence"].startswith("no NVIDIA GPU: ")
    assert parts["libraries"]["state"] == "done"
    for name, part in PARTS.items():
        if part.needs_gpu:
            assert parts[name]["state"] == "not here"
            assert parts[name]["sentence"]
            assert parts[name]["results"] == []
    alike = f"| {', '.join(list(PARTS)[2:])} | not here | there is no GPU to try it on |"
    assert alike in (out / "no-gpu.md").read_text("utf-8")
    absent = len(PARTS) - 2
    assert done.stdout.count("there is no GPU to try it on") == 2
    assert f"{absent} parts: there is no GPU to try it on" in done.stdout


def test_parts_are_chosen_by_how_they_begin(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    """Others keep what an earlier run to the folder found, and one without an outcome has none."""
    run: list[str] = []

    def isolated(part: str, limit_s: float, asked: Asked) -> Outcome:
        run.append(part)
        outcome = Outcome(part, State.DONE, "ran", limit_s)
        asked.keep(outcome)
        return outcome

    monkeypatch.setattr(check, "run_isolated", isolated)
    asked.keep(Outcome("rates", State.DONE, "earlier", results=(RESULT,)))
    told: list[Outcome] = []
    outcomes = run_gpu_check(asked, ["speed:torch"], told.append)
    assert run == [GPU, "speed:torch-cuda:f32", "speed:torch-cuda:bf16"]
    assert [outcome.part for outcome in outcomes] == [GPU, "rates", *run[1:]]
    assert outcomes[1].results == (RESULT,)
    assert told == [outcome for outcome in outcomes if outcome.part in run]
    with pytest.raises(BadConfig, match="there is no part 'sped'; choose among gpu, libraries"):
        run_gpu_check(asked, ["sped"])


def test_specimens_are_made_only_where_no_bundle_is_given(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever brings trained bundles waits for no others."""
    run: list[str] = []

    def isolated(part: str, limit_s: float, _: Asked) -> Outcome:
        run.append(part)
        return Outcome(part, State.DONE, "ran", limit_s)

    monkeypatch.setattr(check, "run_isolated", isolated)
    run_gpu_check(Asked(tmp_path, (ROOT / "configs/bundles/demo",)), ["bundle"])
    run_gpu_check(Asked(tmp_path), ["bundle:GLAD"])
    assert run == [GPU, GPU, "bundle:GLAD"]


# -- one part ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("program", "sentence"),
    [
        ("import os; os.abort()", "was ended by signal 6 (SIGABRT)"),
        ("import sys; print('no room'); sys.exit(3)", "ended with code 3 .* said last: no room"),
        ("import time; time.sleep(60)", "did not end within 1 s"),
    ],
)
def test_a_library_that_crashes_or_hangs_is_one_failed_part(
    asked: Asked, program: str, sentence: str
) -> None:
    """The check goes on, and says how the part ended."""
    outcome = run_command([sys.executable, "-c", program], "rates", 1.0, asked)
    assert outcome.state is State.FAILED
    assert outcome == asked.kept("rates")
    pattern = sentence.replace("(", r"\(").replace(")", r"\)")
    assert re.search(pattern, outcome.sentence)


def test_what_a_part_kept_before_it_crashed_is_its_outcome(asked: Asked) -> None:
    """A library that falls over while the process ends takes no figure with it."""
    kept = Outcome("rates", State.DONE, "measured", 1.0, (RESULT,))
    program = (
        "import os, pathlib\n"
        f"pathlib.Path({str(asked.place_of('rates'))!r}).write_text({json.dumps(kept.as_json())!r})\n"
        "os.abort()"
    )
    assert run_command([sys.executable, "-c", program], "rates", 30, asked) == kept


@pytest.mark.parametrize(
    ("error", "state", "sentence"),
    [
        (NotHere("no GPU"), State.NOT_HERE, "no GPU"),
        (BadConfig("no such precision"), State.NOT_HERE, "no such precision"),
        (ModuleNotFoundError("x", name="tensorrt"), State.NOT_HERE, "tensorrt is not installed"),
        (EngineFault("out of memory"), State.FAILED, "out of memory"),
        (ValueError("odd\nshape"), State.FAILED, "ValueError: odd shape"),
    ],
)
def test_what_a_part_raises_is_its_outcome(
    asked: Asked,
    monkeypatch: pytest.MonkeyPatch,
    error: Exception,
    state: State,
    sentence: str,
) -> None:
    """What the machine lacks is not here; what could run and did not is a failure."""

    def run(*_: object) -> Found:
        raise error

    monkeypatch.setattr(Part, "run", run)
    outcome = run_part("rates", asked)
    assert (outcome.state, outcome.sentence) == (state, sentence)


def test_what_is_asked_travels_to_another_process(asked: Asked) -> None:
    """The part reads what the check was told."""
    assert Asked.read(asked.out) == asked
    with pytest.raises(BadData, match="name another folder"):
        Asked(Path("/proc/nowhere")).write()


def test_a_gpu_tells_its_name_and_size() -> None:
    """The first GPU that nvidia-smi lists; nothing else counts as one."""
    answer = "NVIDIA H200, 580.159.03, 9.0, 143771\nNVIDIA H200, 580.159.03, 9.0, 143771\n"
    assert facts_of(answer) == {
        "gpu": "NVIDIA H200",
        "driver": "580.159.03",
        "compute_capability": "90",
        "memory_gib": 140.4,
    }
    with pytest.raises(NotHere, match="lists no GPU"):
        facts_of("No devices were found\n")


def test_a_driver_tells_what_nvidia_smi_would(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In an image without nvidia-smi; what the driver refuses is a reason, not a failure."""
    answers = {
        "cuDeviceGet": 0,
        "cuDeviceGetName": b"NVIDIA H200\0\0",
        "cuDriverGetVersion": 12080,
        "cuDeviceTotalMem": 141 << 30,
    }

    def silent() -> None:
        raise NotHere("it is not installed")

    for name in ("_by_smi", "_by_torch"):
        monkeypatch.setattr(machine, name, silent)
    monkeypatch.setattr(machine, "load_driver", lambda: lambda name, *_: answers[name])
    monkeypatch.setattr(machine, "compute_capability", lambda *_: (9, 0))
    assert machine.gpu(asked).sentence == "NVIDIA H200, 141.0 GiB, sm_90, driver of CUDA 12.8"

    def refuse() -> None:
        raise Unavailable("cuda-bindings finds no GPU: start nvidia-fabricmanager")

    monkeypatch.setattr(machine, "load_driver", refuse)
    with pytest.raises(NotHere, match=r"no NVIDIA GPU: .*start nvidia-fabricmanager"):
        machine.gpu(asked)


def test_tests_that_were_skipped_say_why(tmp_path: Path) -> None:
    """Counts and reasons come from pytest's own report."""
    path = tmp_path / "tests.xml"
    path.write_text(
        '<testsuites><testsuite><testcase name="a"/><testcase name="b"><failure/></testcase>'
        '<testcase name="c"><skipped message="no CUDA device"/></testcase></testsuite></testsuites>'
    )
    assert read_counts(path) == (1, 1, 1, ("no CUDA device",))


def test_every_part_leads_to_a_function() -> None:
    """The table names what exists, and every part may take only so long."""
    from importlib import import_module

    for part in PARTS.values():
        module, _, name = part.where.rpartition(".")
        assert callable(getattr(import_module(f"pipeline.gpucheck.{module}"), name))
        assert 0 < part.limit_s <= 1800


# -- report -----------------------------------------------------------------------------------


def test_a_report_is_named_by_its_gpu(asked: Asked) -> None:
    """Figures stand with the GPU that they were measured on; parts without figures have none."""
    outcomes = [
        Outcome(GPU, State.DONE, "there", facts={"gpu": "NVIDIA H200 (SXM)"}),
        Outcome("speed:torch-cuda:bf16", State.DONE, "fast", 1.0, (RESULT,)),
        Outcome("speed:tensorrt:bf16", State.NOT_HERE, "tensorrt | is not installed"),
    ]
    write_report(asked.out, outcomes)
    content = json.loads((asked.out / "nvidia-h200-sxm.json").read_text("utf-8"))
    assert content["gpu"] == "NVIDIA H200 (SXM)"
    text = as_markdown("NVIDIA H200 (SXM)", outcomes, {"date": "2026-11-22", "cores": 16})
    assert text.startswith("# GPU check: NVIDIA H200 (SXM)\n\ndate 2026-11-22 · cores 16\n")
    assert "| speed.demo.torch-cuda:bf16.b8 | 5,000 | frames/s | batch 1 | 4 |" in text
    assert r"tensorrt \| is not installed" in text
    assert text.count("\n## ") == 2


# -- wheels ------------------------------------------------------------------------------------


def test_wheels_are_those_of_the_extras(tmp_path: Path) -> None:
    """What the project declares for GPUs is what is looked for; an empty folder is refused."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    extras = project["optional-dependencies"]
    declared = {_name(text) for extra in ("gpu", "gpu-rtx") for text in extras[extra]}
    # An editable install knows the extras of the day it was made.
    found = set(map(_name, optional_requirements()))
    assert {"tensorrt", "pycuda", "tensorrt-rtx-cu13", "cuda-bindings"} <= found <= declared
    with pytest.raises(BadData, match="holds no wheel"):
        list(install(tmp_path))


@pytest.mark.skipif(shutil.which("make") is None, reason="this machine has no make")
def test_make_needs_no_network_where_there_are_wheels() -> None:
    """With a folder of wheels every installation looks there alone, then the check runs."""
    done = subprocess.run(
        ["make", "-n", "gpu-check", "WHEELS=some folder"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    *before, last = [line for line in done.stdout.splitlines() if "make[" not in line]
    assert last.endswith("assayline gpu-check --wheels 'some folder'")
    installs = [line for line in before if "pip install" in line]
    assert installs
    assert all("--no-index --find-links 'some folder'" in line for line in installs)


def _name(requirement: str) -> str:
    return re.split(r"[<>=!~ ]", requirement, maxsplit=1)[0]
