"""One check of a machine with a GPU: what runs there, whether it agrees, and how fast it is.

Part by part, each in a process of its own with a time limit, so that a library which crashes or
hangs is one failed part. What cannot run says why, and the rest still runs. The parts need no
network, no line and no Redis.
"""

from __future__ import annotations

from pipeline.gpucheck.check import run_gpu_check
from pipeline.gpucheck.outcome import Asked, NotHere, Outcome, State
from pipeline.gpucheck.report import print_outcomes

__all__ = ["Asked", "NotHere", "Outcome", "State", "print_outcomes", "run_gpu_check"]
