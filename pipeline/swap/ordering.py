"""What a line can be ordered: another bundle, the one before it again, or to keep none.

All that can be refused is refused before a worker hears of it: the bundle is verified, compiled
into the cache that the workers read, and checked against the line.
"""

from __future__ import annotations

import threading
import time
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING

from engines.bundle import open_bundle
from engines.contracts import BadConfig
from pipeline.alone import alone
from pipeline.loading import calibrated, loaded
from pipeline.swap.following import Swapped, ordered
from pipeline.swap.opening import require_fit
from pipeline.swap.wanted import FOLDER, Choice, Wanted, last_number, open_choice, wanted_of

if TYPE_CHECKING:
    from pipeline.config import LineSettings


def swap(settings: LineSettings, bundle: Path, timeout_s: float, stop: threading.Event) -> Swapped:
    """Have a line run another bundle, or its own with another calibration.

    Raises BadBundle or BadConfig for one that this line cannot run, SwapRefused where a worker
    does not follow; the line then runs what it ran.
    """
    with _alone(settings):
        now = _in_force(settings)
        chosen = examined(settings, bundle, now.chosen)
        order = now.model_copy(
            update={"number": now.number + 1, "chosen": chosen, "before": now.chosen, "keeps": True}
        )
        return ordered(settings, order, now, timeout_s, stop)


def roll_back(settings: LineSettings, timeout_s: float, stop: threading.Event) -> Swapped:
    """Have a line run again what it ran before the last swap; raises as ``swap``."""
    with _alone(settings):
        now = _swapped(settings)
        if now.before is None:
            raise BadConfig(f"line {settings.line} has nothing to roll back to")
        open_choice(now.before)
        order = now.model_copy(
            update={
                "number": now.number + 1,
                "chosen": now.before,
                "before": now.chosen,
                "keeps": True,
            }
        )
        return ordered(settings, order, now, timeout_s, stop)


def forget(settings: LineSettings, timeout_s: float, stop: threading.Event) -> Swapped:
    """Have the workers close the bundle that they keep for a rollback: its memory is free."""
    with _alone(settings):
        now = _swapped(settings)
        order = now.model_copy(update={"number": now.number + 1, "keeps": False})
        return ordered(settings, order, now, timeout_s, stop)


def examined(settings: LineSettings, path: Path, running: Choice) -> Choice:
    """A bundle that this line can run instead; compiled into the line's cache on the way."""
    bundle = open_bundle(path)
    require_fit(bundle, open_choice(running))
    with loaded(settings, bundle, time.monotonic_ns):
        return Choice.of(path, bundle, calibrated(bundle))


def _swapped(settings: LineSettings) -> Wanted:
    wanted = wanted_of(settings)
    if wanted is None:
        raise BadConfig(f"line {settings.line} was not swapped: it runs {settings.bundle}")
    return wanted


def _in_force(settings: LineSettings) -> Wanted:
    """What the line runs, or will when it starts, as if it had been ordered."""
    if (wanted := wanted_of(settings)) is not None:
        return wanted
    bundle = open_bundle(settings.bundle)
    return Wanted(
        number=last_number(settings),
        configured=settings.bundle.absolute(),
        chosen=Choice.of(settings.bundle, bundle, calibrated(bundle)),
    )


def _alone(settings: LineSettings) -> AbstractContextManager[None]:
    """One order at a time; BadConfig where another command is giving one."""
    sentence = f"another swap of line {settings.line} is under way"
    return alone(settings.run_dir / FOLDER / "lock", sentence)
