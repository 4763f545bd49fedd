"""Any bytes give a value or the promised refusal: a short look; ``make fuzz`` looks long."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.fuzz.campaign import (
    CORPUS,
    HANG_S,
    Tally,
    case_of,
    keep_case,
    kept_cases,
    peak_kb,
    raise_hang,
    run_case,
    seeds_of,
)
from tests.fuzz.mutate import Case, mutated
from tests.fuzz.targets import TARGETS, Room, Target, rooms
from tests.tiny_line import shared_bundle

EXAMPLES = 150
SLOW = {"line", "training", "bundle"}
NAMES = [target.name for target in TARGETS]


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[str], Room]]:
    """Rooms for the files of targets."""
    before = signal.signal(signal.SIGVTALRM, raise_hang)
    try:
        with rooms(shared_bundle(tmp_path_factory.getbasetemp())) as found:
            yield found
    finally:
        signal.signal(signal.SIGVTALRM, before)


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_what_is_valid_is_taken(target: Target, room: Callable[[str], Room]) -> None:
    """Most of what a decoder is hurt from decodes: else only its first check would be tried."""
    seeds, tally = seeds_of(target, room(target.name)), Tally()
    wrong = [run_case(target, room(target.name), seed, tally, 0) for seed in seeds]
    assert not any(wrong)
    assert tally.refused <= (len(seeds) - 1 if target.name == "bundle" else len(seeds) // 2)


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_any_bytes_give_a_value_or_the_refusal(target: Target, room: Callable[[str], Room]) -> None:
    """Valid inputs with a few things wrong, and noise: no other error, no hang, no jump."""
    place = room(target.name)
    seeds = seeds_of(target, place)
    noise = st.tuples(*(st.binary(max_size=300) for _ in seeds[0]))
    hurt = st.integers(0, 2**64).map(lambda seed: mutated(random.Random(seed), seeds))

    @settings(
        max_examples=EXAMPLES // 5 if target.name in SLOW else EXAMPLES,
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(case=st.one_of(hurt, hurt, hurt, noise))
    def look(case: Case) -> None:
        assert run_case(target, place, case, Tally(), 0) == ""

    look()


@pytest.mark.parametrize("target", TARGETS, ids=NAMES)
def test_what_went_wrong_once_is_right(target: Target, room: Callable[[str], Room]) -> None:
    """Every kept case is a value or a refusal now."""
    for name, case in kept_cases(target):
        assert run_case(target, room(target.name), case, Tally(), 0) == "", name


def test_the_corpus_is_of_targets_that_exist() -> None:
    """A decoder that is renamed takes its cases along."""
    assert {path.name for path in CORPUS.glob("*")} <= set(NAMES)


def test_a_case_is_known_by_its_number(room: Callable[[str], Room]) -> None:
    """Seed and number give the same bytes again, in this process and in any other."""
    target = TARGETS[0]
    seeds = seeds_of(target, room(target.name))
    assert case_of(target, seeds, 7, 99) == case_of(target, seeds, 7, 99)
    assert len({case_of(target, seeds, seed, 99) for seed in range(50)}) > 40


def explodes(_: Room, data: bytes) -> None:
    """A decoder that breaks its promise in every way."""
    if data == b"error":
        raise KeyError("x")
    while data == b"hang":
        pass
    if data == b"memory":
        much = 1024 * peak_kb() - psutil.Process().memory_info().rss + 100_000_000
        bytearray(much)[::4096] = b"x" * len(range(0, much, 4096))


@pytest.mark.parametrize(
    ("data", "wrong"), [(b"error", "KeyError"), (b"hang", "does not end"), (b"memory", "MB")]
)
def test_whatever_goes_wrong_is_seen_and_kept(
    data: bytes,
    wrong: str,
    room: Callable[[str], Room],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """An error that is not promised, a case without end and one that takes memory are found."""
    monkeypatch.setattr("tests.fuzz.campaign.GIVE_UP_S", HANG_S)
    monkeypatch.setattr("tests.fuzz.campaign.JUMP_KB", 50_000)
    if data == b"memory":  # more than all tests before have held, which may take its time
        monkeypatch.setattr("tests.fuzz.campaign.HANG_S", 60.0)
        monkeypatch.setattr("tests.fuzz.campaign.GIVE_UP_S", 60.0)
    target = Target("explodes", lambda _: [(b"",)], explodes, (ValueError,), 1)
    told = run_case(target, room("explodes"), (data,), Tally(), 0)
    assert wrong in told
    keep_case(tmp_path / "explodes", (data, b"\x00\xff"), told)
    assert [case for _, case in kept_cases(target, tmp_path)] == [(data, b"\x00\xff")]
