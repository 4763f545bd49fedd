"""What the processes of a line hold while faults are done to it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import psutil

WARM_S = 10.0  # before a process is compared with itself
MB_MAX, DESCRIPTORS_MAX = 20.0, 8  # that it may hold more at its end


@dataclass
class Look:
    """A glance at one process."""

    at_s: float
    role: str
    pid: int
    rss_mb: float
    descriptors: int


def looks_at(role: str, pids: Iterable[int], at_s: float) -> Iterator[Look]:
    """What each process of a role holds now."""
    for pid in pids:
        try:
            process = psutil.Process(pid)
            rss_mb = process.memory_info().rss / 1e6
            yield Look(at_s, role, pid, rss_mb, process.num_fds())
        except psutil.Error:  # it has just ended
            continue


def grown(looks: Iterable[Look], since_s: float = 0.0, warm_s: float = WARM_S) -> list[str]:
    """Processes that hold much more at their end than ``warm_s`` after their beginning.

    Or after ``since_s``, where that is later: a swap has workers hold two bundles.
    """
    wrongs = []
    by_pid: defaultdict[int, list[Look]] = defaultdict(list)
    for look in looks:
        by_pid[look.pid].append(look)
    for of_one in by_pid.values():
        from_s = max(since_s, of_one[0].at_s) + warm_s
        warm = [look for look in of_one if look.at_s >= from_s]
        if len(warm) < 2:
            continue
        first, last = warm[0], warm[-1]
        if last.rss_mb - first.rss_mb > MB_MAX:
            wrongs.append(f"{first.role} grew from {first.rss_mb:.0f} to {last.rss_mb:.0f} MB")
        if last.descriptors - first.descriptors > DESCRIPTORS_MAX:
            wrongs.append(f"{first.role}: {first.descriptors} -> {last.descriptors} descriptors")
    return wrongs
