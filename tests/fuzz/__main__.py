"""``make fuzz``: a million cases over all decoders, from where it was left off.

One core unless ``--jobs`` says otherwise. What was done is noted in ``runs/fuzz``; what went wrong
is kept in ``tests/fuzz/corpus``, where it is a test from then on.
"""

from __future__ import annotations

import argparse
import json
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from tests.fuzz.campaign import CORPUS, Tally, campaign, raise_hang
from tests.fuzz.targets import TARGETS, Room, Target, rooms

SLICE = 500
BUNDLE = Path("runs/fuzz/bundle")


def main() -> int:
    """Run, or start the jobs that do; 1 where something went wrong."""
    asked = _arguments()
    signal.signal(signal.SIGVTALRM, raise_hang)
    asked.state.mkdir(parents=True, exist_ok=True)
    if asked.jobs > 1:
        return _start_jobs(asked)
    if not BUNDLE.exists():
        from tests.tiny_line import write_tiny_bundle

        write_tiny_bundle(BUNDLE)
    chosen = [one for one in TARGETS if not asked.targets or one.name in asked.targets]
    with rooms(BUNDLE.absolute()) as room:
        tallies = _run(chosen, room, asked)
    return _report(tallies)


def _run(
    chosen: list[Target], room: Callable[[str], Room], asked: argparse.Namespace
) -> dict[str, Tally]:
    state = asked.state / f"seed-{asked.seed}.json"
    known = json.loads(state.read_text()) if state.exists() and not asked.anew else {}
    shares = sum(target.share for target in chosen)
    tallies = {one.name: Tally(**known.get(one.name, {})) for one in chosen}
    goals = {one.name: -(-asked.cases * one.share // shares) for one in chosen}
    began_s, last_s = time.monotonic(), 0.0
    while True:
        left = [one for one in chosen if tallies[one.name].cases < goals[one.name]]
        if not left or (asked.minutes and time.monotonic() - began_s > 60 * asked.minutes):
            return tallies
        for target in left:
            tally = tallies[target.name]
            many = max(1, SLICE * target.share // max(one.share for one in left))
            stop = min(goals[target.name], tally.cases + many)
            campaign(
                target, room(target.name), asked.seed, range(tally.cases, stop), tally, keep=CORPUS
            )
        state.write_text(json.dumps({name: asdict(tally) for name, tally in tallies.items()}))
        if time.monotonic() - last_s > 20:
            last_s = time.monotonic()
            done = sum(tally.cases for tally in tallies.values())
            found = sum(len(tally.found) for tally in tallies.values())
            print(f"{done} cases, {found} found, {_peak_mb()} MB at most", flush=True)


def _report(tallies: dict[str, Tally]) -> int:
    print(f"{'decoder':12} {'cases':>9} {'refused':>9} {'found':>6} {'slowest':>10} {'grew by':>9}")
    for name, tally in tallies.items():
        print(
            f"{name:12} {tally.cases:9} {tally.refused:9} {len(tally.found):6} "
            f"{tally.slowest_ms:7.1f} ms {tally.grown_kb / 1000:6.1f} MB"
        )
    found = [line for tally in tallies.values() for line in tally.found]
    total = sum(tally.cases for tally in tallies.values())
    print(f"{total} cases, {len(found)} went wrong, {_peak_mb()} MB at most")
    for line in found[:50]:
        print(f"  {line}")
    return 1 if found else 0


def _start_jobs(asked: argparse.Namespace) -> int:
    """Each job has a seed, and so a note, of its own."""
    words = [sys.executable, "-m", "tests.fuzz", "--cases", str(asked.cases // asked.jobs)]
    words += ["--minutes", str(asked.minutes), "--state", str(asked.state)]
    jobs = [
        subprocess.Popen([*words, "--seed", str(asked.seed + job), *asked.targets])
        for job in range(asked.jobs)
    ]
    return max(job.wait() for job in jobs)


def _peak_mb() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1000


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser("python -m tests.fuzz", description=__doc__)
    parser.add_argument("targets", nargs="*", help="all of them where none is named")
    parser.add_argument("--cases", type=int, default=1_000_000)
    parser.add_argument("--minutes", type=float, default=0.0, help="stop after so long")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--anew", action="store_true", help="begin this seed again")
    parser.add_argument("--state", type=Path, default=Path("runs/fuzz"))
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
