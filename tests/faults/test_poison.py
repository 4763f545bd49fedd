"""Parts and entries that break what touches them."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from engines.backend_stub import DEADLY, SCORELESS
from engines.contracts import Decision, Reason
from tests.faults.conftest import StubLine
from tests.faults.invariants import require_sound
from tests.faults.servers import HurtServer
from tests.faults.standing import standing
from tests.stub_line import CATEGORY, mixed

pytestmark = pytest.mark.slow


def test_a_part_without_a_score_is_undecided(stub_line: StubLine, hurt: HurtServer) -> None:
    """NaN out of the engine passes nothing and stops nothing."""
    with standing(stub_line([*mixed(20), SCORELESS]), hurt) as here:
        here.wait_captured(60)
        here.finish()
        left = require_sound(here)
    found = {v.reason for v in left.verdicts if v.part_id.endswith("-scoreless")}
    assert found == {Reason.NO_EVIDENCE}


def test_a_part_that_crashes_the_engine_is_set_aside(stub_line: StubLine, hurt: HurtServer) -> None:
    """It kills a worker with each delivery, more often than a line gives up, and is quarantined."""
    source = {"kind": "folder", "path": "parts", "rate_hz": 50}
    camera = {"name": "left", "source": source, "category": CATEGORY, "gate_ms": 60_000}
    numbers = [*mixed(30), DEADLY, *mixed(10), DEADLY, *mixed(30)]
    worker = {"deliveries_max": 2, "slots": 2}
    line = stub_line(numbers, cameras=[{**camera, "credits": 100}], worker=worker)
    with standing(line, hurt) as here:
        here.join()
        left = require_sound(here)
    reasons = Counter(v.part_id.rpartition("-")[2] for v in left.verdicts if v.reason)
    assert reasons["deadly"] == 2
    assert reasons["good"] + reasons["bad"] <= 4  # that shared a worker with it, each time
    assert {v.reason for v in left.verdicts if v.reason} == {Reason.BAD_FRAME}


def test_pictures_that_are_none_are_answered(
    stub_line: StubLine, hurt: HurtServer, tmp_path: Path
) -> None:
    """A damaged file and one that the crop does not fit in are UNDECIDED(bad_frame)."""
    source = {"kind": "folder", "path": "parts", "rate_hz": 50, "loop": True}
    camera = {"name": "left", "source": source, "category": CATEGORY, "gate_ms": 30_000}
    line = stub_line(cameras=[{**camera, "overrun": "reject", "crop": (0, 0, 16, 16)}])
    (tmp_path / "parts" / "00002-damaged.png").write_bytes(b"no picture")
    with standing(line, hurt) as here:
        here.wait_captured(60)
        here.finish()
        left = require_sound(here)
    assert left.decisions[Reason.BAD_FRAME] >= 1
    assert {v.decision for v in left.verdicts if v.part_id == "00002-damaged"} == {
        Decision.UNDECIDED
    }


def test_entries_that_nobody_admitted_are_set_aside(stub_line: StubLine, hurt: HurtServer) -> None:
    """What somebody else throws into the stream, under later ids than ours, blocks nothing."""
    with standing(stub_line(), hurt) as here:
        here.wait_captured(20)
        keys = f"{here.settings.redis.namespace}:{{left}}"
        for number in range(3):
            hurt.command("XADD", f"{keys}:frames", "*", "head", f"no head {number}")
        here.wait_for(lambda: hurt.command("XLEN", f"{keys}:quarantine") == 3)
        passed = here.stream.ledger("left").passed
        here.wait_for(lambda: here.stream.ledger("left").passed > passed + 20)
        here.finish()
        left = require_sound(here)
    lost = {Reason.TRANSPORT, Reason.TRANSPORT_RESTART, Reason.OVERRUN}
    assert set(left.decisions) <= {"PASS", "FAIL", *lost}
