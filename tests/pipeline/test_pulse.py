"""Signs of life: who beats, and what shows that a loop still turns."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from pipeline import pulse
from pipeline.pulse import Pulse, WatchedStop, beating, name_of_process
from tests.waiting import wait_for


def test_asking_whether_to_stop_is_a_sign_of_life() -> None:
    """Each question counts once, and the answer is the one of the event that is watched."""
    stop = threading.Event()
    watched = WatchedStop(stop)
    assert not watched.was_asked()
    assert not watched.is_set()
    assert watched.was_asked()
    assert not watched.was_asked()
    stop.set()
    assert watched.is_set()


def test_a_long_wait_asks_every_now_and_then(monkeypatch: pytest.MonkeyPatch) -> None:
    """Who waits for its next part is alive all the while, and learns of the stop at once."""
    monkeypatch.setattr(pulse, "BEAT_S", 0.02)
    stop = threading.Event()
    watched = WatchedStop(stop)
    waiting = threading.Thread(target=watched.wait, args=(30.0,))
    waiting.start()
    for _ in range(3):
        wait_for(watched.was_asked)
    stop.set()
    waiting.join(1.0)
    assert not waiting.is_alive()
    assert not WatchedStop(threading.Event()).wait(0.01)


def test_setting_it_stops_what_is_watched() -> None:
    """A source that ends the line by its event ends it for all."""
    stop = threading.Event()
    WatchedStop(stop).set()
    assert stop.is_set()


def test_a_loop_beats_while_it_asks_and_falls_silent_with_it(
    redis_url: str, namespace: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The key is there while somebody asks, and gone some time after the last question."""
    monkeypatch.setattr(pulse, "BEAT_S", 0.02)
    monkeypatch.setattr(pulse, "TTL_MS", 100)
    ears = Pulse(redis_url, namespace)
    with beating("ingest", redis_url, namespace, threading.Event()) as watched:
        assert not ears.living("ingest")
        wait_for(lambda: not watched.is_set() and ears.living("ingest"))
        assert ears.living("ingest") == [f"{socket.gethostname()}-{os.getpid()}"]
        wait_for(lambda: not ears.living("ingest"))
    ears.close()
    assert name_of_process().endswith(f"-{os.getpid()}")
