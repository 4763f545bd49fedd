"""Cases by the thousand: each known by target, seed and number, so that any can be seen again.

A case is a crash where its decoder raises what it does not promise, a hang where it takes more than
a second of processor time, and a memory jump where it alone lets the process grow by more than what
the largest admissible image needs.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import json
import random
import resource
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.fuzz.mutate import Case, mutated
from tests.fuzz.targets import Room, Target

CORPUS = Path(__file__).parent / "corpus"
HANG_S = 1.0  # of processor time: the machine may be busy with something else
GIVE_UP_S = 10.0
JUMP_KB = 800_000  # an image of MAX_PIXELS, decoded and converted once
FOUND_MAX = 20  # of one target, that are kept


class Hang(BaseException):
    """A case that does not end by itself; no decoder catches this."""


@dataclass
class Tally:
    """What happened to the cases of one target."""

    cases: int = 0
    refused: int = 0
    found: list[str] = field(default_factory=list)  # what went wrong, with the case's number
    slowest_ms: float = 0.0
    slowest: int = -1
    grown_kb: int = 0


@functools.cache
def seeds_of(target: Target, room: Room) -> Sequence[Case]:
    """Valid inputs of a target, made once."""
    return target.seeds(room)


def case_of(target: Target, seeds: Sequence[Case], seed: int, number: int) -> Case:
    """The case of that number; every twentieth is noise alone."""
    rng = random.Random(f"{seed}:{target.name}:{number}")
    if number % 20 == 0:
        return tuple(rng.randbytes(rng.randrange(300)) for _ in seeds[0])
    return mutated(rng, seeds)


def run_case(target: Target, room: Room, case: Case, tally: Tally, number: int) -> str:
    """What went wrong with one case, "" where nothing did."""
    before_kb, began_s = peak_kb(), time.process_time()
    wrong = ""
    try:
        with _patience():
            target.decode(room, *case)
    except target.refuses:
        tally.refused += 1
    except Hang:
        wrong = "does not end"
    except Exception as error:  # this is what is looked for
        wrong = f"{type(error).__name__}: {error}"[:300]
    taken_s, grown_kb = time.process_time() - began_s, peak_kb() - before_kb
    tally.cases += 1
    tally.grown_kb = max(tally.grown_kb, grown_kb)
    if taken_s * 1e3 > tally.slowest_ms:
        tally.slowest_ms, tally.slowest = taken_s * 1e3, number
    if not wrong and taken_s > HANG_S:
        wrong = f"takes {taken_s:.1f} s"
    if not wrong and grown_kb > JUMP_KB:
        wrong = f"takes {grown_kb // 1000} MB"
    return wrong


def campaign(
    target: Target, room: Room, seed: int, numbers: range, tally: Tally, *, keep: Path | None
) -> None:
    """Run the cases of these numbers; what goes wrong is noted, and kept in a folder."""
    seeds = seeds_of(target, room)
    for number in numbers:
        case = case_of(target, seeds, seed, number)
        wrong = run_case(target, room, case, tally, number)
        if wrong:
            tally.found.append(f"{target.name} {seed}:{number} {wrong}")
            if keep is not None and len(tally.found) <= FOUND_MAX:
                keep_case(keep / target.name, case, wrong)


def keep_case(folder: Path, case: Case, wrong: str) -> None:
    """A case as a file, named after its bytes."""
    folder.mkdir(parents=True, exist_ok=True)
    pieces = [base64.b64encode(piece).decode() for piece in case]
    name = hashlib.sha256("|".join(pieces).encode()).hexdigest()[:12]
    told = {"wrong": wrong, "pieces": pieces}
    (folder / f"{name}.json").write_text(json.dumps(told, indent=1) + "\n")


def kept_cases(target: Target, folder: Path = CORPUS) -> Iterator[tuple[str, Case]]:
    """Names and pieces of what went wrong once."""
    for path in sorted((folder / target.name).glob("*.json")):
        told = json.loads(path.read_text())
        yield path.stem, tuple(base64.b64decode(piece) for piece in told["pieces"])


@contextmanager
def _patience() -> Iterator[None]:
    signal.setitimer(signal.ITIMER_VIRTUAL, GIVE_UP_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)


def raise_hang(*_: object) -> None:
    """What the timer's signal does."""
    raise Hang


def peak_kb() -> int:
    """The most memory that this process has ever held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
