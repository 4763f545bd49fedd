"""What must hold after every fault, read from what the line has left behind.

The truth comes from outside: what a part was stands in its name (see ``tests.stub_line``), how many
frames a camera took in its own gapless count, what the sink did in its file.
"""

from __future__ import annotations

import tempfile
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from engines.contracts import Decision, Verdict
from pipeline.shared import shared_paths
from tests.faults.standing import Standing

EXPECTED = {Decision.PASS: "good", Decision.FAIL: "bad"}


@dataclass(frozen=True, slots=True)
class Left:
    """What a line has left behind, and what is wrong with that."""

    verdicts: tuple[Verdict, ...]  # as the sink acted on them
    residual: int
    duplicates: int
    wrongs: tuple[str, ...]

    @property
    def decisions(self) -> Counter[str]:
        """Frames by decision, the undecided by reason."""
        return Counter(str(v.reason) if v.reason else str(v.decision) for v in self.verdicts)


def left_by(here: Standing, *, is_named: bool = True) -> Left:
    """Check a line that has ended; ``is_named``: what its parts are stands in their names."""
    verdicts = acted_on(here.settings.run_dir)
    twice = [name for name, n in Counter(v.frame_id for v in verdicts).items() if n > 1]
    wrongs = [
        *_uncounted(here, verdicts),
        *(f"{len(twice)} frames were acted on twice, {twice[0]} first" for _ in twice[:1]),
        *_missing(verdicts),
        *_silent_passes(verdicts, is_named=is_named),
        *_signals(here, verdicts),
        *leftovers(here.settings.run_dir),
    ]
    residual = sum(abs(ledger.residual) for ledger in here.ledgers.values())
    return Left(tuple(verdicts), residual, len(twice), tuple(wrongs))


def require_sound(here: Standing, *, is_named: bool = True) -> Left:
    """``left_by``, with nothing wrong."""
    left = left_by(here, is_named=is_named)
    assert not left.wrongs, "; ".join(left.wrongs)
    return left


def acted_on(run_dir: Path) -> list[Verdict]:
    """Every verdict in the sink's file."""
    record = run_dir / "verdicts.jsonl"
    lines = record.read_bytes().splitlines() if record.exists() else []
    return [Verdict.model_validate_json(line) for line in lines]


def late(verdicts: Sequence[Verdict], gate_ms: float) -> list[str]:
    """Frames whose verdict was written after their gate."""
    over = ((v.frame_id, (v.decided_ns - v.captured_ns) / 1e6 - gate_ms) for v in verdicts)
    return [f"{name} by {ms:.0f} ms" for name, ms in over if ms > 0]


def _uncounted(here: Standing, verdicts: Sequence[Verdict]) -> list[str]:
    """captured = PASS + FAIL + UNDECIDED(reason), and that is what was acted on."""
    wrongs = []
    for name, ledger in here.ledgers.items():
        acted = Counter(
            v.reason or v.decision for v in verdicts if v.frame_id.startswith(f"{name}/")
        )
        told = Counter(
            {Decision.PASS: ledger.passed, Decision.FAIL: ledger.failed, **ledger.undecided}
        )
        backlog = here.stream.backlog(name)
        if ledger.residual or ledger.open or backlog:
            wrongs.append(
                f"{name}: residual {ledger.residual}, open {ledger.open}, backlog {backlog}"
            )
        if +told != +acted or ledger.captured != acted.total():
            wrongs.append(f"{name}: the ledger counts {+told}, the sink acted on {+acted}")
    return wrongs


def _missing(verdicts: Sequence[Verdict]) -> list[str]:
    """A camera counts its frames without a gap, epoch by epoch."""
    counters: dict[str, set[int]] = defaultdict(set)
    for verdict in verdicts:
        epoch, _, counter = verdict.frame_id.rpartition("-")
        counters[epoch].add(int(counter))
    gaps = {epoch: max(seen) - len(seen) for epoch, seen in counters.items()}
    return [f"{count} frames of {epoch} have no verdict" for epoch, count in gaps.items() if count]


def _silent_passes(verdicts: Sequence[Verdict], *, is_named: bool) -> list[str]:
    """A PASS has its evidence, an UNDECIDED its reason, and both fit the part."""
    wrongs = []
    for verdict in verdicts:
        kind = verdict.part_id.rpartition("-")[2] if is_named else None
        has_evidence = verdict.surprise is not None and verdict.bundle_id
        if (verdict.reason is None) == (verdict.decision is Decision.UNDECIDED):
            wrongs.append(f"{verdict.frame_id}: {verdict.decision} for {verdict.reason}")
        elif verdict.decision is Decision.PASS and not has_evidence:
            wrongs.append(f"{verdict.frame_id} passed without evidence")
        elif kind and EXPECTED.get(verdict.decision, kind) != kind:
            wrongs.append(f"{verdict.frame_id} is {kind} and had {verdict.decision}")
    return wrongs[:5]


def _signals(here: Standing, verdicts: Sequence[Verdict]) -> list[str]:
    """The gate was told of each part once."""
    import json

    path = here.settings.run_dir / "reject.json"
    if here.settings.sinks.reject is None or not path.exists():
        return []
    sequence, acted = json.loads(path.read_text())["sequence"], len({v.frame_id for v in verdicts})
    return [f"{sequence} signals for {acted} parts"] if sequence != acted else []


def leftovers(run_dir: Path) -> list[str]:
    """Processes, shared memory, sockets and temporary files that a line has not taken with it."""
    mine = str(run_dir.parent)
    orphans = []
    for process in psutil.process_iter(["cmdline", "name"]):
        words = process.info["cmdline"] or []
        if "pipeline" in words and any(word.startswith(mine) for word in words):
            orphans.append(f"process {process.pid} is left")
    shared = [f"{path} is left" for path in shared_paths(run_dir)]
    stray = [path for suffix in ("*.sock", "*.new") for path in run_dir.rglob(suffix)]
    name = f"assayline-{psutil.Process().pid}-"
    scratch = Path(tempfile.gettempdir()).glob(f"{name}*")
    mine_too = [path for path in scratch if not _is_of_server(path)]
    return [*orphans, *shared, *(f"{path} is left" for path in [*stray, *mine_too])]


def _is_of_server(folder: Path) -> bool:
    """Whether it is the short way to the socket of a server that still runs."""
    return (folder / "redis.sock").exists()
