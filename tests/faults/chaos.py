"""Chaos in rounds: ``make chaos``, or ``python -m tests.faults.chaos --minutes 30 --seed 7``.

Each round is a fresh line on its own server; its faults follow from the seed and its number, so any
of them can be run again. What is done is kept after every round: ``--resume`` goes on from there.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from tests.faults.gates import Gates
from tests.faults.isolation import measure_isolation
from tests.faults.looks import Look
from tests.faults.report import totals, write_report
from tests.faults.rounds import Hurt, Round, run_round

ROUND_S = 90.0
LONG_MINUTES, ISOLATED = 30, 5000


def main() -> int:
    """Run until the minutes are over; 0 where every invariant held."""
    asked = _asked()
    folder: Path = asked.out
    record = folder / "rounds.jsonl"
    rounds = _known(record, asked.seed) if asked.resume else []
    if not asked.resume:
        shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True, exist_ok=True)
    others = _isolation(folder, asked)
    left_s = 60 * asked.minutes - sum(one.seconds for one in rounds)
    number = asked.round if asked.round is not None else len(rounds)
    while left_s > 0:
        one = _round(number, asked, min(asked.round_seconds, left_s), folder)
        rounds.append(one)
        with record.open("a") as file:
            file.write(json.dumps(one.as_json()) + "\n")
        number, left_s = number + 1, 0 if asked.round is not None else left_s - one.seconds
    path = write_report(folder, rounds, others, asked.seed)
    told = totals(rounds)
    print(
        f"{path}: {told['faults']} faults, {told['captured']} frames, residual "
        f"{told['residual']}, duplicates {told['duplicates']}, "
        f"{len(told['wrongs'])} broken invariants, {told['gates_checked']} gates watched"
    )
    crossed = [one for one in others.values() if one["ratio"] > one["ratio_max"]]
    return 1 if told["wrongs"] or told["residual"] or told["duplicates"] or crossed else 0


def _round(number: int, asked: argparse.Namespace, seconds: float, folder: Path) -> Round:
    """One round; what stops it is what is wrong with it."""
    place, began = folder.resolve() / f"round-{number:03d}", time.monotonic()
    shutil.rmtree(place, ignore_errors=True)
    try:
        one = run_round(number, asked.seed, seconds, place, asked.bundle)
    except Exception as error:  # the report names it, and the folder of the round stays
        one = Round(number, asked.seed, "stopped", time.monotonic() - began)
        one.wrongs.append(f"{type(error).__name__}: {error}")
    print(
        f"round {number} ({one.conditions}): {len(one.hurts)} faults, {one.captured} frames, "
        f"{one.seconds:.0f} s{''.join(f'; WRONG: {wrong}' for wrong in one.wrongs)}",
        flush=True,
    )
    return one


def _asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=7)
    parser.add_argument(
        "--resume", action="store_true", help="go on after the rounds that are done"
    )
    parser.add_argument("--round", type=int, help="run this round of the seed only")
    parser.add_argument("--round-seconds", type=float, default=ROUND_S)
    parser.add_argument("--bundle", type=Path, help="a real bundle over simulated parts")
    parser.add_argument(
        "--isolation",
        type=int,
        metavar="FRAMES",
        help=f"first measure what faults of one camera cost another, over so many; {ISOLATED} "
        f"where the run takes {LONG_MINUTES} minutes or more, 0 = not at all",
    )
    parser.add_argument("--out", type=Path, default=Path("runs/chaos"))
    return parser.parse_args()


def _isolation(folder: Path, asked: argparse.Namespace) -> dict[str, Any]:
    """What is known of it already, or is measured now."""
    known = _read(folder / "isolation.json")
    is_long = asked.minutes >= LONG_MINUTES and asked.round is None and asked.bundle is None
    frames = (ISOLATED if is_long else 0) if asked.isolation is None else asked.isolation
    return known or (_measured_isolation(folder, asked.seed, frames) if frames else {})


def _measured_isolation(folder: Path, seed: int, frames: int) -> dict[str, Any]:
    place = folder.resolve() / "isolation"
    shutil.rmtree(place, ignore_errors=True)
    place.mkdir(parents=True)
    told = {"isolation": measure_isolation(place, frames, seed)}
    (folder / "isolation.json").write_text(json.dumps(told) + "\n")
    print(told, flush=True)
    return told


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text())) if path.exists() else {}


def _known(record: Path, seed: int) -> list[Round]:
    """Rounds of an earlier run with this seed."""
    lines = record.read_text().splitlines() if record.exists() else []
    known = [json.loads(line) for line in lines]
    return [
        Round(
            **{
                **one,
                "hurts": [Hurt(**hurt) for hurt in one["hurts"]],
                "looks": [Look(**look) for look in one["looks"]],
                "gates": Gates(**one["gates"]),
            }
        )
        for one in known
        if one["seed"] == seed
    ]


if __name__ == "__main__":
    sys.exit(main())
