"""kill -9 of a worker that has judged its frames and not yet sent what it found."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path

from pipeline.config import load_line
from pipeline.server import embedded_server
from pipeline.stream import open_stream
from pipeline.wire import FrameEntry
from pipeline.worker import run_worker
from tests.tiny_line import CATEGORY, good_part, write_line

FRAMES = 6
GATE_NS = 60_000_000_000
KILLED = """
import os, signal, sys, threading
from pathlib import Path
from pipeline.config import load_line
from pipeline.worker import run_worker
from pipeline.writing import VerdictWriter

def die(writer: VerdictWriter) -> None:
    print(len(writer._judged), flush=True)
    os.kill(os.getpid(), signal.SIGKILL)

VerdictWriter._send_judged = die
run_worker(load_line(Path(sys.argv[1])), threading.Event())
"""


def test_what_a_killed_worker_had_judged_another_answers(tmp_path: Path, grey_bundle: Path) -> None:
    """No verdict of the dead one is there, and each frame gets its one from whoever comes next."""
    with embedded_server(tmp_path / "server") as url, open_stream(url) as stream:
        worker = {"reclaim_idle_ms": 200, "renew_ms": 50}
        path = write_line(tmp_path, grey_bundle, redis={"url": url}, worker=worker)
        for number in range(1, FRAMES + 1):
            now_ns = stream.now_ns()
            image = good_part(number)
            entry = FrameEntry(
                f"left/1-{number}", "left", now_ns, now_ns + GATE_NS, image, category=CATEGORY
            )
            stream.admit(entry)
        killed = subprocess.run(
            [sys.executable, "-c", KILLED, str(path)],
            stdout=subprocess.PIPE,
            timeout=90,
            check=False,
        )
        assert killed.returncode == -signal.SIGKILL
        assert int(killed.stdout) >= 1
        assert stream.ledger("left").open == FRAMES
        stop = threading.Event()
        after = threading.Thread(target=run_worker, args=(load_line(path), stop))
        after.start()
        until = time.monotonic() + 60
        while stream.ledger("left").open and time.monotonic() < until:
            time.sleep(0.02)
        stop.set()
        after.join()
        counts = Counter(seen.verdict.frame_id for seen in stream.tail_verdicts("left", 100))
        ledger, backlog = stream.ledger("left"), stream.backlog("left")
    assert (len(counts), set(counts.values())) == (FRAMES, {1})
    assert (ledger.residual, ledger.open, backlog) == (0, 0, 0)
    assert ledger.passed + ledger.failed == FRAMES
