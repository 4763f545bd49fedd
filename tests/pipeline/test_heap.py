"""Large blocks of a process come from the system and go back to it."""

from __future__ import annotations

import subprocess
import sys

import pytest

from pipeline.heap import LARGE_BYTES, return_large_blocks

# A large block that was freed has glibc take the next ones from the heap; small ones above such a
# block then keep it there. Every byte is written: what was never touched is not resident.
HELD = """
import psutil
from pipeline.heap import return_large_blocks
assert return_large_blocks()
held = psutil.Process().memory_info
large = bytearray(b"x") * 16_000_000
del large
large = bytearray(b"x") * 8_000_000
small = [bytearray(b"x") * 60_000 for _ in range(20)]
before = held().rss
del large
print(before - held().rss)
"""


@pytest.mark.skipif(not return_large_blocks(), reason="this C library has no such setting")
def test_what_is_large_goes_back_though_small_blocks_came_after_it() -> None:
    """Whatever was freed before, a block above the threshold leaves with its owner."""
    done = subprocess.run([sys.executable, "-c", HELD], capture_output=True, text=True, check=True)
    assert int(done.stdout) > 8_000_000 - LARGE_BYTES
