"""A part in a process of its own: its end, its crash and its silence are all outcomes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from pipeline.gpucheck.outcome import Outcome, State

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pipeline.gpucheck.outcome import Asked

TAIL = 300  # characters of what a dead process said last


def run_isolated(part: str, limit_s: float, asked: Asked) -> Outcome:
    """Run a part by its name and return what became of it; nothing it does ends this process."""
    command = [sys.executable, "-m", "pipeline.gpucheck", part, str(asked.out)]
    return run_command(command, part, limit_s, asked)


def run_command(command: Sequence[str], part: str, limit_s: float, asked: Asked) -> Outcome:
    """The same of any command that keeps its outcome by itself before it ends."""
    asked.place_of(part).unlink(missing_ok=True)
    began_s = time.monotonic()
    log = asked.place_of(part).with_suffix(".log")
    with log.open("w", encoding="utf-8") as said:
        # A group of its own, so that what the part has started ends with it.
        process = subprocess.Popen(command, stdout=said, stderr=said, start_new_session=True)
        try:
            code = process.wait(limit_s)
            failure = _failure(code)
        except subprocess.TimeoutExpired:
            failure = f"did not end within {limit_s:.0f} s"
        finally:
            _end(process)
    outcome = asked.kept(part)
    if outcome is None:
        last = log.read_text("utf-8", errors="replace").strip()[-TAIL:].strip()
        told = f"{failure}; it said last: {' '.join(last.split())}" if last else failure
        outcome = Outcome(part, State.FAILED, told, time.monotonic() - began_s)
        asked.keep(outcome)
    return outcome


def _failure(code: int) -> str:
    if code < 0:
        return f"was ended by signal {-code} ({signal.Signals(-code).name})"
    return f"ended with code {code} and without an outcome"


def _end(process: subprocess.Popen[bytes]) -> None:
    """End a process and all it has started, whatever they do."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return
    finally:
        process.wait()
