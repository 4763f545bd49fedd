"""Workers race for the same entries."""

from __future__ import annotations

import random
import threading
from collections import Counter
from pathlib import Path

import numpy as np

from engines.contracts import Decision, Reason
from pipeline.server import embedded_server
from pipeline.stream import open_stream
from pipeline.wire import FrameEntry, undecided

FRAMES = 150


def test_of_workers_that_race_one_answers(tmp_path: Path) -> None:
    """All take every entry from each other, over and over; each frame has one verdict."""
    accepted: Counter[str] = Counter()
    lock = threading.Lock()
    with embedded_server(tmp_path) as url, open_stream(url, "race") as stream:
        for number in range(1, FRAMES + 1):
            stream.admit(_entry(number))
        rivals = [
            threading.Thread(target=_race, args=(url, f"w{at}", accepted, lock)) for at in range(3)
        ]
        for rival in rivals:
            rival.start()
        for rival in rivals:
            rival.join()
        ledger = stream.ledger("cam")
        verdicts = [d.verdict.frame_id for d in stream.follow_verdicts("cam", "0", 10 * FRAMES)]
        backlog = stream.backlog("cam")
    assert set(accepted.values()) == {1}
    assert len(verdicts) == len(set(verdicts)) == len(accepted) == FRAMES
    assert (ledger.passed, ledger.residual, ledger.open, backlog) == (FRAMES, 0, 0, 0)


def _race(url: str, name: str, accepted: Counter[str], lock: threading.Lock) -> None:
    """Read or take over whatever there is, and answer half of it, old deliveries first."""
    rng = random.Random(name)
    with open_stream(url, "race") as stream:
        held = []
        while stream.ledger("cam").open:
            held += stream.read(["cam"], name, 4, 0)
            if rng.random() < 0.2:  # more often, and nobody would hold anything for long enough
                held += stream.reclaim(["cam"], name, 0, 4)
            for delivery in held[: rng.randrange(6)]:
                held.remove(delivery)
                verdict = undecided(_entry(delivery.entry_id), Reason.DEADLINE, 1)
                verdict = verdict.model_copy(update={"decision": Decision.PASS, "reason": None})
                if stream.answer(delivery, name, verdict):
                    with lock:
                        accepted[delivery.frame_id] += 1


def _entry(number: int | str) -> FrameEntry:
    entry_id = number if isinstance(number, str) else f"7-{number}"
    return FrameEntry(f"cam/{entry_id}", "cam", 0, 2**62, np.zeros((4, 4, 3), np.uint8))
