"""Laws of bundles made ready to inspect: how many engines, on which threads they are tried."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from engines.backend import BatchedBackend
from engines.bundle import Bundle, GraphName, open_bundle
from engines.contracts import Evidence, Progress, Rows
from engines.tiles import Tiling
from pipeline import loading
from pipeline.config import WorkerSettings
from pipeline.loading import engines_of
from tests.tiny_line import write_tiny_bundle


class Owned(BatchedBackend):
    """Notes on which threads it was called, as engines that belong to one would mind."""

    key = "owned:f32"

    def __init__(self) -> None:
        super().__init__(4)
        self.threads: set[int] = set()

    def rehearse(self, graph: GraphName, size: int) -> bool:  # noqa: ARG002 - the contract's
        """One call."""
        self.threads.add(threading.get_ident())
        return True

    def _start(self, rows: Rows, slots: list[int]) -> Progress:
        raise NotImplementedError

    def _step(self, slots: list[int]) -> Progress:
        raise NotImplementedError

    def _finish(self, slots: list[int]) -> Evidence:
        raise NotImplementedError


@pytest.mark.parametrize("is_gentle", [False, True])
def test_the_first_engine_is_tried_by_the_thread_that_opened_it(*, is_gentle: bool) -> None:
    """Others meanwhile by theirs, or, beside a running line, one after the other."""
    first, other, rests = Owned(), Owned(), []
    found = loading._costs([first, other], 4, rests.append if is_gentle else None)
    assert [costs.call_ns("step", 4) > 0 for costs in found] == [True, True]
    assert first.threads == {threading.get_ident()}
    assert (other.threads == first.threads) == is_gentle
    assert bool(rests) == is_gentle


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A tiny one."""
    folder: Path = tmp_path_factory.mktemp("tiny") / "grey"
    write_tiny_bundle(folder)
    return open_bundle(folder)


@pytest.mark.parametrize(
    ("asked", "count"),
    [
        ({"threads": 1}, 1),
        ({"threads": 2}, 2),
        ({"threads": 3}, 2),
        ({"threads": 16}, 1),
        ({"threads": 16, "engines": 4}, 4),
        ({"threads": 2, "slots": 1}, 1),
    ],
)
def test_engines_are_as_many_as_fit(bundle: Bundle, asked: dict[str, int], count: int) -> None:
    """Two where there are two or three threads, unless it is said; each has a slot at least."""
    assert engines_of(WorkerSettings(**asked), bundle) == count


def test_every_engine_holds_a_frame_with_all_its_tiles(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Engines that share too few slots for that are fewer."""
    tiling = Tiling((64, 64), rows=2, columns=3)
    monkeypatch.setattr(Bundle, "tiling", property(lambda _: tiling))
    chosen = [WorkerSettings(engines=4, slots=slots) for slots in (5, 12, 20, 32)]
    assert [engines_of(one, bundle) for one in chosen] == [1, 2, 3, 4]
