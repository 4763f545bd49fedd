"""A camera over a belt that never ends: parts in turn, some of them faulty, at a steady pace.

Truth never travels with a frame: whoever wants it asks by part id, and it is made again from the
seed.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from engines.contracts import BadConfig, Frame, UInt8
from engines.images import to_model_input
from pipeline.simulator.faults import Fault, exposed
from pipeline.simulator.render import DEFAULT_SIZE, PARTS, Rendered, defects, render
from pipeline.simulator.surface import generator

LEAST_SEVERITY = 0.05


@dataclass(frozen=True, slots=True, eq=False)
class Truth:
    """What the simulator knows about one part."""

    part: str
    defect: str | None
    severity: float  # 0 for a good part
    mask: NDArray[np.bool_]  # [H, W], frame geometry


@dataclass(frozen=True, slots=True)
class _Plan:
    part: str
    defect: str | None
    severity: float
    lateness: float  # share of a period


class SimulatedLine:
    """A Source: frames of ``parts`` in random order, one each 1 / ``rate_hz`` seconds.

    ``rate_hz=None`` runs flat out; ``frames=None`` never ends. ``jitter`` in 0..1 is the spread of
    the exposure within a belt period. Camera faults apply by frame number and leave truth alone.
    With ``rendered`` so many parts are drawn beforehand and pass again and again, each stamped with
    the moment it was due, as a camera would: whoever takes it late has made it wait. With ``shown``
    (h, w) exposures have that size, as those of a camera that scales them itself.
    """

    def __init__(
        self,
        camera: str,
        parts: Sequence[str] = PARTS,
        seed: int = 0,
        *,
        rate_hz: float | None = 5.0,
        frames: int | None = None,
        defect_rate: float = 0.1,
        jitter: float = 0.1,
        rendered: int | None = None,
        faults: Sequence[Fault] = (),
        size: tuple[int, int] = DEFAULT_SIZE,
        shown: tuple[int, int] | None = None,
    ) -> None:
        _check(parts, rate_hz, defect_rate, jitter)
        self.camera, self.seed, self.size = camera, seed, size
        self._parts, self._faults = tuple(parts), tuple(faults)
        self._rate_hz, self._count = rate_hz, frames
        self._defect_rate, self._jitter = defect_rate, jitter
        self._rendered, self._shown = rendered, shown
        self._plans: dict[int, _Plan] = {}  # of parts that pass again

    def frames(self, stop: threading.Event) -> Iterator[Frame]:
        """Frames in belt order until ``stop``, in real time; ``captured_ns`` strictly rises."""
        drawn = [self._exposure(index) for index in range(self._rendered or 0)]
        begun, begun_ns, last_ns = time.monotonic(), time.time_ns(), 0
        for index in itertools.count() if self._count is None else range(self._count):
            image = exposed(index, self._faults, partial(self._image, drawn))
            due_s = self._due_s(index)
            if stop.wait(max(0.0, begun + due_s - time.monotonic())):
                return
            due_ns = begun_ns + int(due_s * 1e9)
            last_ns = max(due_ns if drawn and self._rate_hz else time.time_ns(), last_ns + 1)
            yield Frame(
                frame_id="",
                camera=self.camera,
                captured_ns=last_ns,
                image=image,
                category=self._plan(index).part,
                part_id=f"{self.camera}-{index:06d}",
            )

    def truth(self, part_id: str) -> Truth:
        """What part ``part_id`` of this line really was, made again from the seed."""
        camera, _, number = part_id.rpartition("-")
        if camera != self.camera or not number.isdecimal():
            raise BadConfig(f"part {part_id!r} is not of the simulated camera {self.camera!r}")
        seen = self._render(int(number))
        return Truth(seen.part, seen.defect, seen.severity, seen.truth_mask)

    def _due_s(self, index: int) -> float:
        """Seconds on the belt's clock at which a part lies below the camera; 0 flat out."""
        if self._rate_hz is None:
            return 0.0
        return (index + self._jitter * self._plan(index).lateness) / self._rate_hz

    def _image(self, drawn: Sequence[UInt8], index: int) -> UInt8:
        return drawn[index % len(drawn)] if drawn else self._exposure(index)

    def _exposure(self, index: int) -> UInt8:
        """A part as the camera shows it, as it is drawn or scaled; truth is told as it is drawn."""
        image = self._render(index).image
        return image if self._shown is None else to_model_input(image, self._shown)

    def _render(self, index: int) -> Rendered:
        plan, number = self._plan(index), self._number(index)
        seed, defect = self._seed(), plan.defect
        return render(plan.part, seed, number, self.size, defect=defect, severity=plan.severity)

    def _number(self, index: int) -> int:
        """Which part passes as the ``index``-th; parts drawn beforehand come again."""
        return index % self._rendered if self._rendered else index

    def _plan(self, index: int) -> _Plan:
        number = self._number(index)
        if (known := self._plans.get(number)) is not None:
            return known
        rng = generator(self._seed(), "line", number)
        part = self._parts[int(rng.integers(len(self._parts)))]
        is_faulty, lateness = rng.random() < self._defect_rate, rng.random()
        kinds = defects(part)
        kind = kinds[int(rng.integers(len(kinds)))] if is_faulty else None
        severity = float(rng.uniform(LEAST_SEVERITY, 1.0)) if is_faulty else 0.0
        plan = _Plan(part, kind, severity, lateness)
        if self._rendered:
            self._plans[number] = plan
        return plan

    def _seed(self) -> int:
        """Two cameras of one seed see different parts."""
        return int(generator(self.seed, self.camera).integers(1 << 31))


def _check(parts: Sequence[str], rate_hz: float | None, defect_rate: float, jitter: float) -> None:
    if not parts or not set(parts) <= set(PARTS):
        raise BadConfig(
            f"a simulated line needs parts out of {', '.join(PARTS)}, not {list(parts)}"
        )
    if rate_hz is not None and not rate_hz > 0:
        raise BadConfig(f"rate_hz must be above 0, or nothing for flat out, not {rate_hz}")
    if not 0 <= defect_rate <= 1 or not 0 <= jitter <= 1:
        raise BadConfig("defect_rate and jitter are shares between 0 and 1")
