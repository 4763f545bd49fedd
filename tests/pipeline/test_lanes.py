"""Laws of threads that are watched, and of calls that outlast a lost server."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

import pytest

from engines.contracts import BadFrame, StreamLost
from pipeline.lanes import Lane, outlasting_loss
from pipeline.telemetry import facts


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a thread's name")
def test_the_system_knows_a_thread_by_the_name_of_its_lane() -> None:
    """Cut to what the system keeps; threads that it starts bear it too, as an engine's do."""
    names: list[str] = []

    def tell() -> None:
        names.append(Path("/proc/thread-self/comm").read_text().strip())

    def work(_: threading.Event) -> None:
        tell()
        helper = threading.Thread(target=tell)
        helper.start()
        helper.join()

    with Lane("inspect and something more", work):
        pass
    assert names == ["inspect and som"] * 2


def test_what_ends_a_thread_is_raised_where_its_block_ends() -> None:
    """Nobody takes a dead thread for one that has nothing to do."""

    def fail(_: threading.Event) -> None:
        raise ValueError("no disk")

    with pytest.raises(ValueError, match="no disk"), Lane("output", fail):
        pass


class Flaky:
    """A call that fails so many times first."""

    def __init__(self, failures: int, error: Exception) -> None:
        self.calls = 0
        self._failures = failures
        self._error = error

    def __call__(self, number: int) -> int:
        """Twice the number, or the error."""
        self.calls += 1
        if self.calls <= self._failures:
            raise self._error
        return 2 * number


def losses() -> float:
    """How often a sink has lost its server, as far as it said."""
    return facts.last("stream_lost_total", role="sink") or 0.0


@pytest.mark.parametrize("failures", [0, 1, 3])
def test_a_call_is_made_until_it_succeeds(failures: int) -> None:
    """One more than it fails, and each failure counts once."""
    before, call = losses(), Flaky(failures, StreamLost("away"))
    assert outlasting_loss("sink", threading.Event())(call, 21) == 42
    assert call.calls == failures + 1
    assert losses() == before + failures


def test_who_is_told_to_give_up_tries_once() -> None:
    """The loss comes out, and nothing waits."""
    stop, call = threading.Event(), Flaky(9, StreamLost("away"))
    stop.set()
    with pytest.raises(StreamLost, match="away"):
        outlasting_loss("sink", stop)(call, 1)
    assert call.calls == 1


@pytest.mark.parametrize("failures", [1, 2])
def test_what_is_no_loss_comes_out_at_once(failures: int) -> None:
    """Neither retried nor counted."""
    before, call = losses(), Flaky(failures, BadFrame("bad"))
    with pytest.raises(BadFrame, match="bad"):
        outlasting_loss("sink", threading.Event())(call, 1)
    assert (call.calls, losses()) == (1, before)
