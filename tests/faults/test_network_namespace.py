"""The kernel cuts and slows the network between a line and its server."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.conftest import StubLine

ROOT = Path(__file__).parents[2]
PROBE = "ip link set lo up && tc qdisc add dev lo root tbf rate 1mbit burst 8k latency 50ms"


@pytest.fixture
def namespace_command() -> list[str]:
    """What runs a command in a network of its own; skips where the kernel has none for us."""
    lacking = [name for name in ("unshare", "ip", "tc", "redis-server") if not shutil.which(name)]
    if lacking:
        pytest.skip(f"{', '.join(lacking)} missing")
    tried = subprocess.run(
        ["unshare", "--net", "sh", "-c", PROBE], capture_output=True, text=True, check=False
    )
    if tried.returncode:
        pytest.skip(f"no network namespace with traffic control here: {tried.stderr.strip()}")
    return ["unshare", "--net"]


def test_a_network_that_the_kernel_cuts_and_slows_costs_no_part_its_verdict(
    stub_line: StubLine, namespace_command: list[str], tmp_path: Path
) -> None:
    """Interface down, then a link of 256 kbit/s: every part is answered once."""
    line = stub_line()
    done = subprocess.run(
        [*namespace_command, sys.executable, "-m", "tests.faults.namespaced", line, tmp_path],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "PASS" in done.stdout
