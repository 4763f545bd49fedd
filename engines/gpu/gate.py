"""Build a bundle's engines and, where there is a GPU to run them on, let them pass the gate."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict

from engines.backend import engine_cache, open_backend
from engines.contracts import EngineFault
from engines.gpu.building import build_engines, eight_bits_for
from engines.gpu.device import open_device
from engines.gpu.engine_file import engine_folder
from engines.gpu.precision import EightBits, precisions_of
from engines.gpu.target import Target, capability_name, find_target
from engines.parity import ParityReport, compare, open_reference

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from engines.bundle import Bundle
    from engines.contracts import UInt8


class BuildReport(BaseModel):
    """What was built, and what the gate found or why it could not look."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    backend: str
    library: str
    compute: tuple[str, ...]
    parity: ParityReport | None
    ungated: str | None  # why nothing was compared
    eight_bits: EightBits | None = None  # of an engine in int8 or fp8

    def sentence(self) -> str:
        """The outcome for people."""
        what = f"{self.eight_bits.sentence()}; " if self.eight_bits else ""
        if self.parity is not None:
            return what + self.parity.sentence()
        where = f" for {', '.join(self.compute)}" if self.compute else ""
        return (
            f"{what}{self.backend} is built{where} by {self.library}, but the parity gate could "
            f"not run here: {self.ungated}"
        )


def build_and_gate(
    bundle: Bundle,
    precision: str = "auto",
    compute: Sequence[str] = (),
    progress: Callable[[float, str], None] = lambda *_: None,
    images: Mapping[str, Sequence[UInt8]] | None = None,
) -> BuildReport:
    """Build into the bundle's cache; raises ParityError, and keeps nothing, where engines disagree.

    Without a GPU that the engines were built for they are kept, and the report says that nothing
    was compared. ``images``: good model inputs by category, to calibrate int8 or fp8 on.
    """
    target, kinds = find_target(compute), precisions_of(bundle, precision)

    def within(first: float, last: float) -> Callable[[float, str], None]:
        return lambda share, told: progress(first + (last - first) * share, told)

    eight = eight_bits_for(bundle, kinds, target, images, within(0, 0.5))
    key = build_engines(
        bundle, precision, target=target, eight=eight, progress=within(0.5 if eight else 0, 0.8)
    )
    reason = _cannot_run(target)
    parity = None if reason else _compared(bundle, key.partition(":")[2], progress)
    progress(1.0, "")
    return BuildReport(
        backend=key,
        library=str(target.library),
        compute=target.compute,
        parity=parity,
        ungated=reason,
        eight_bits=eight.told if eight else None,
    )


def _cannot_run(target: Target) -> str | None:
    """Why engines for a target do not run on this machine, or None where they may."""
    try:
        device = open_device()
    except EngineFault as error:
        return str(error)
    here = capability_name(device.compute_capability)
    device.close()
    if target.compute and here not in target.compute:
        return f"this GPU is {here}"
    return None


def _compared(
    bundle: Bundle, precision: str, progress: Callable[[float, str], None]
) -> ParityReport:
    from engines.parity_set import load_frames

    frames = load_frames(bundle)
    progress(0.8, "parity")
    with (
        open_backend(bundle, "tensorrt", precision) as compiled,
        open_reference(bundle) as reference,
    ):
        report = compare(bundle, compiled, reference, frames.images, frames.categories)
    if not report.passed:
        shutil.rmtree(engine_folder(engine_cache(bundle), precision), ignore_errors=True)
    return report.require()
