"""A line and its server in a network of their own, which is cut and slowed down by the kernel.

Run as a process below ``unshare --net``: ``python -m tests.faults.namespaced LINE FOLDER``.
"""

from __future__ import annotations

import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from tests.faults.invariants import require_sound
from tests.faults.servers import wait_until_answers
from tests.faults.standing import standing

PORT = 6399
BAD_S = 2.0
LO = ("ip", "link", "set", "lo")
QUEUE = ("tc", "qdisc", "dev", "lo", "root")
SLOW = ("tbf", "rate", "256kbit", "burst", "8k", "latency", "400ms")


@dataclass
class Remote:
    """A server at an address, as far as a standing line wants to know."""

    url: str


def main(line: Path, folder: Path) -> None:
    """Cut the network, then slow it down, and see that the line keeps its promise."""
    _run(*LO, "up")
    options = ["--port", str(PORT), "--save", "", "--dir", str(folder), "--maxmemory", "256mb"]
    command = ["redis-server", *options, "--maxmemory-policy", "noeviction"]
    server = subprocess.Popen(command, stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{PORT}"
    try:
        wait_until_answers(url)
        with standing(line, Remote(url)) as here:  # type: ignore[arg-type]
            for begin, end in (
                ((*LO, "down"), (*LO, "up")),
                ((*QUEUE[:2], "add", *QUEUE[2:], *SLOW), (*QUEUE[:2], "del", *QUEUE[2:])),
            ):
                here.wait_acted(20)
                _run(*begin)
                time.sleep(BAD_S)
                _run(*end)
                print(" ".join(begin), f"{here.recovery_s():.1f} s")
            here.finish()
            print(dict(require_sound(here).decisions))
    finally:
        server.terminate()
        server.wait()


def _run(*words: str) -> None:
    subprocess.run(words, check=True)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
