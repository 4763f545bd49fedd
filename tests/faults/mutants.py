"""Each safeguard of the delivery broken once: the suite must fail every time.

``python -m tests.faults.mutants`` breaks it in a copy of the tree, runs the tests that should mind,
and prints which of them caught it. First they run on the tree as it is, where none may fail. A
mutant that survives is an error.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("engines", "pipeline", "tests", "configs", "pyproject.toml", "README.md")
MACHINE = "tests/pipeline/test_stream_machine.py"
SUITE = (
    MACHINE,
    "tests/pipeline/test_stream.py",
    "tests/pipeline/test_gate.py",
    "tests/pipeline/test_ingest.py",
    "tests/faults/test_racing_workers.py",
    "tests/faults/test_kill_worker.py",
    "tests/faults/test_frozen_workers.py",
    "tests/faults/test_poison.py",
)
TIMEOUT_S = 900


@dataclass(frozen=True, slots=True)
class Mutant:
    """One change to one file."""

    name: str
    path: str
    whole: str
    broken: str


MUTANTS = (
    Mutant(
        "no fencing by delivery count",
        "pipeline/lua/answer.lua",
        "or entry[2] ~= consumer or entry[4] ~= tonumber(deliveries) then",
        "then",
    ),
    Mutant(
        "no fencing at all",
        "pipeline/lua/answer.lua",
        "if consumer ~= '' then",
        "if false then",
    ),
    Mutant(
        "answer not atomic: a verdict whether or not the frame is open",
        "pipeline/lua/answer.lua",
        "if is_open then",
        "if true then",
    ),
    Mutant(
        "a decision stands that comes after its gate",
        "pipeline/lua/answer.lua",
        "if is_open and consumer ~= '' and (outcome",
        "if false and (outcome",
    ),
    Mutant(
        "answer not atomic: the entry stays",
        "pipeline/lua/answer.lua",
        "redis.call('XACK', frames, group, id)\nredis.call('XDEL', frames, id)",
        "",
    ),
    Mutant(
        "no reclaim",
        "pipeline/lua/reclaim.lua",
        "local taken, lost = {}, {}",
        "local taken, lost = {}, {}\nif true then return { taken, lost } end",
    ),
    Mutant(
        "reclaim without a new delivery count",
        "pipeline/lua/reclaim.lua",
        "local id, deliveries = entry[1], entry[4] + 1",
        "local id, deliveries = entry[1], entry[4]",
    ),
    Mutant(
        "no quarantine",
        "pipeline/reading.py",
        "if delivery.deliveries > self._settings.deliveries_max:",
        "if delivery.deliveries < 0:",
    ),
    Mutant(
        "a repeat is admitted again",
        "pipeline/lua/admit.lua",
        "counter > last_counter",
        "counter >= last_counter",
    ),
    Mutant(
        "a server that forgot takes new frames first",
        "pipeline/lua/admit.lua",
        "if ARGV[1] == '1' and",
        "if false and",
    ),
    Mutant(
        "a part is admitted however late it comes",
        "pipeline/intake.py",
        "return self._left_ms(head) < least_ms",
        "return False",
    ),
    Mutant(
        "the keeper rests as if all had heard how late it is",
        "pipeline/gate.py",
        "self._known_ms = self._told_ms = min(late_ms, self._told_ms)",
        "self._known_ms = self._told_ms = late_ms",
    ),
    Mutant(
        "renewal without fencing",
        "pipeline/lua/renew.lua",
        "if entry and entry[2] == consumer and entry[4] == deliveries then",
        "if entry then",
    ),
)


def main() -> int:
    """Break each once; 1 where any survives, or where a test minds that nothing is broken."""
    parser = argparse.ArgumentParser("mutants", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; none = all of them")
    asked: list[str] = parser.parse_args().names
    chosen = [one for one in MUTANTS if not asked or any(word in one.name for word in asked)]
    if not chosen:
        parser.error(f"none is called so; there are: {'; '.join(one.name for one in MUTANTS)}")
    if minding := caught_by(None):
        print(f"nothing is broken, and yet: {'; '.join(minding)}")
        return 1
    survivors = 0
    for mutant in chosen:
        catchers = caught_by(mutant)
        survivors += not catchers
        print(f"{mutant.name}: {'; '.join(catchers) or 'SURVIVED'}", flush=True)
    print(f"{len(chosen) - survivors} of {len(chosen)} mutants were caught")
    return 1 if survivors else 0


def caught_by(mutant: Mutant | None) -> list[str]:
    """Names of the tests that fail with this change, or with none; the first in each file."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as name:
        tree = Path(name)
        _copy(tree)
        if mutant is not None:
            _break(tree, mutant)
        found: list[str] = []
        for tests in SUITE:
            found += _failures(tree, tests)
            if found:  # the first file that minds is enough
                break
        return found


def _break(tree: Path, mutant: Mutant) -> None:
    path = tree / mutant.path
    text = path.read_text()
    assert text.count(mutant.whole) == 1, f"{mutant.name}: {mutant.path} has changed"
    path.write_text(text.replace(mutant.whole, mutant.broken))


def _copy(tree: Path) -> None:
    ignored = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in COPIED:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=ignored)
        else:
            shutil.copy2(source, tree / name)


def _failures(tree: Path, tests: str) -> list[str]:
    options = ["-q", "-n", "0", "-x", "--tb=no", "-rf", "--hypothesis-profile=no-shrink"]
    command = [sys.executable, "-m", "pytest", *options, tests]
    environment = {**os.environ, "PYTHONPATH": str(tree)}  # before the tree that is installed
    done = subprocess.run(
        command,
        cwd=tree,
        env=environment,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    if done.returncode not in (0, 1):
        raise RuntimeError(f"{tests} cannot run: {done.stdout[-2000:]}{done.stderr[-2000:]}")
    failed = re.findall(r"^FAILED (\S+)", done.stdout, re.MULTILINE)
    return failed or [f"{tests} (it hung)"] * (done.returncode == 1)


if __name__ == "__main__":
    sys.exit(main())
