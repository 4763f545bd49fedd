"""How a worker opens a bundle: the first one before all else, another beside it without being felt.

The command that ordered a swap has compiled the engine already, at the lowest priority, into the
cache that is read here. What is left is rehearsed call by call, with long rests, at moments when
no part is held.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import NamedTuple

from engines.bundle import Bundle, open_bundle
from engines.contracts import BadBundle, InspectionError
from pipeline.config import LineSettings
from pipeline.loading import Loaded, loaded
from pipeline.reading import FrameReader
from pipeline.swap.wanted import Choice, open_choice, wanted_of

PACE = 50  # a rehearsed call is followed by a rest so many times as long
REST_MAX_S = 1.0
IDLE_WAIT_S = 0.5  # how long a rehearsal waits for a moment without parts
LOOK_S = 0.001


class Abandoned(InspectionError):
    """This bundle is wanted no more; the line goes on as it was."""


class First(NamedTuple):
    """What a worker begins with."""

    bundle: Bundle
    number: int  # of the order that it follows; 0 = none


def first_of(settings: LineSettings) -> First:
    """The bundle that was swapped in, or the line's own; BadBundle where it is damaged."""
    if wanted := wanted_of(settings):
        return First(open_choice(wanted.chosen), wanted.number)
    return First(open_bundle(settings.bundle), 0)


@contextmanager
def opened_beside(
    settings: LineSettings,
    chosen: Choice,
    running: Bundle,
    clock: Callable[[], int],
    rest: Callable[[int], None],
) -> Iterator[Loaded]:
    """Another bundle while one inspects; BadBundle where it is not what was chosen, or not fit."""
    bundle = open_choice(chosen)
    require_fit(bundle, running)
    with loaded(settings, bundle, clock, rest) as beside:
        found = beside.seat.judge.calibration_id
        if found != chosen.calibration_id:
            raise BadBundle(
                f"{chosen.bundle} has calibration {found} by now, but {chosen.calibration_id} was "
                "chosen; run assayline swap again"
            )
        yield beside


def require_fit(bundle: Bundle, running: Bundle) -> None:
    """Refuse, with BadBundle, what ingest would have to be restarted for."""
    if bundle.frame_size != running.frame_size:
        raise BadBundle(
            f"bundle {bundle.bundle_id} takes frames of {_size(bundle)}, but the cameras of this "
            f"line send {_size(running)} for bundle {running.bundle_id}: name it in the line's "
            "configuration and restart the line"
        )
    if bundle.tiling != running.tiling:
        raise BadBundle(
            f"bundle {bundle.bundle_id} cuts frames into {bundle.tiling.count} tiles, bundle "
            f"{running.bundle_id} into {running.tiling.count}, and not alike: name it in the "
            "line's configuration and restart the line"
        )


def resting(frames: FrameReader, closing: threading.Event) -> Callable[[int], None]:
    """Leaves the machine to the line after a call, then waits for a moment without parts."""
    return partial(_rest, frames, closing)


def _rest(frames: FrameReader, closing: threading.Event, took_ns: int) -> None:
    if closing.wait(min(REST_MAX_S, PACE * took_ns / 1e9)):
        raise Abandoned("another bundle is wanted by now")
    until = time.monotonic() + IDLE_WAIT_S
    while not frames.is_idle and time.monotonic() < until:
        time.sleep(LOOK_S)


def _size(bundle: Bundle) -> str:
    height, width = bundle.frame_size
    return f"{width} x {height} pixels"
