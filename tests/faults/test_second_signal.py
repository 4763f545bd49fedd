"""A second signal while the line drains."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import psutil

from engines.contracts import Reason
from pipeline.config import load_line
from pipeline.stream import open_stream
from pipeline.supervisor import run_line
from tests.faults.conftest import StubLine
from tests.faults.invariants import acted_on
from tests.faults.servers import HurtServer
from tests.waiting import wait_for

LINE = """
import sys
from pathlib import Path
from pipeline.cli.terminal import stop_on_signals
from pipeline.config import load_line
from pipeline.supervisor import run_line
line = Path(sys.argv[1])
with stop_on_signals() as stop:
    run_line(load_line(line), stop, line, sys.argv[2], lambda: print("ready", flush=True))
"""


def test_what_the_second_signal_cut_short_the_next_start_answers(
    stub_line: StubLine, hurt: HurtServer, tmp_path: Path
) -> None:
    """No process is left, and with the next run of the line each part has its one verdict."""
    path = stub_line()
    line = subprocess.Popen(
        [sys.executable, "-c", LINE, str(path), hurt.url], stdout=subprocess.PIPE, text=True
    )
    assert line.stdout is not None
    assert line.stdout.readline() == "ready\n"
    children = psutil.Process(line.pid).children(recursive=True)
    with open_stream(hurt.url, "assayline") as stream:
        wait_for(lambda: stream.ledger("left").passed > 0)
        workers = [child for child in children if "inspect" in child.cmdline()]
        for worker in workers:
            worker.suspend()  # so that there is something to drain
        wait_for(lambda: stream.ledger("left").open > 0)
    for _ in range(2):
        os.kill(line.pid, signal.SIGTERM)
        time.sleep(0.3)
    line.communicate(timeout=30)
    assert line.returncode == -signal.SIGTERM
    psutil.wait_procs(children, timeout=10)
    assert not [child for child in children if child.is_running()]
    with open_stream(hurt.url, "assayline") as stream:
        open_before = stream.ledger("left").open
        assert open_before > 0
        stop = threading.Event()
        again = threading.Timer(4.0, stop.set)
        again.start()
        run_line(load_line(path), stop, path, hurt.url)
        ledger = stream.ledger("left")
    assert (ledger.residual, ledger.open) == (0, 0)
    verdicts = acted_on(tmp_path / "run")
    assert len({v.frame_id for v in verdicts}) == len(verdicts) == ledger.captured
    assert set(ledger.undecided) <= {Reason.TRANSPORT_RESTART, Reason.OVERRUN}
