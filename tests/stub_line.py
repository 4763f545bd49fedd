"""A whole line on the timed stub: real processes, a real server, an engine of known answers.

A part's number stands in its first pixels, and the stub's score is that number. So whoever reads a
verdict knows what the part was: good below ``BAD_FROM``, bad from there on, poison at the top.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from engines.backend_stub import DEADLY, SCORELESS, watermarked
from engines.bundle import Bundle
from engines.contracts import UInt8
from engines.images import encode_png
from pipeline.bench import stubbed
from pipeline.bench.stubbed import BAD_FROM

SIZE = (16, 16)
CATEGORY = "plate"
NAMES = {SCORELESS: "scoreless", DEADLY: "deadly"}
COSTS = {"start": (200_000, 20_000), "step": (400_000, 20_000), "finish": (100_000, 10_000)}


def write_stub_bundle(
    folder: Path,
    costs: Mapping[str, tuple[int, int]] | None = None,
    size: tuple[int, int] = SIZE,
) -> Bundle:
    """A bundle of the method "stub", calibrated on good numbers; ``costs`` in nanoseconds."""
    return stubbed.write_stub_bundle(folder, costs or COSTS, size, CATEGORY)


def shared_stub_bundle(base: Path) -> Path:
    """Folder of a stub bundle below ``base``, written once."""
    folder = base / "stub"
    if not folder.exists():
        write_stub_bundle(folder)
    return folder


def good_number(index: int) -> int:
    """A number whose part is good."""
    return 100 + index % 40


def part_name(index: int, number: int) -> str:
    """File name, and so part id: what the part is stands in it."""
    kind = NAMES.get(number, "bad" if number >= BAD_FROM else "good")
    return f"{index:05d}-{kind}"


def write_numbers(folder: Path, numbers: Sequence[int]) -> None:
    """One PNG for each part."""
    folder.mkdir(parents=True, exist_ok=True)
    for index, number in enumerate(numbers):
        path = folder / f"{part_name(index, number)}.png"
        path.write_bytes(encode_png(numbered(number)))


def numbered(number: int) -> UInt8:
    """The image [16, 16, 3] of a part."""
    return watermarked(number, SIZE)


def mixed(count: int, bad_every: int = 5) -> list[int]:
    """Numbers of good parts, and of a bad one now and then."""
    return [
        BAD_FROM + index if index % bad_every == 0 else good_number(index) for index in range(count)
    ]


def stub_camera(name: str = "left", *, rate_hz: float = 50, **changes: Any) -> dict[str, Any]:  # noqa: ANN401 - any setting
    """Settings of an endless camera over the parts in ``parts``; nothing is late by itself."""
    source = {"kind": "folder", "path": "parts", "rate_hz": rate_hz, "loop": True}
    defaults = {"overrun": "reject", "gate_ms": 30_000, "credits": 64}
    return {"name": name, "source": source, "category": CATEGORY, **defaults, **changes}


def write_stub_line(
    folder: Path,
    bundle: Path,
    cameras: Sequence[Mapping[str, Any]] | None = None,
    **changes: Any,  # noqa: ANN401 - any setting
) -> Path:
    """A line's YAML with every cheap sink, ready to lose a worker quickly."""
    worker = {"backend": "stub", "slots": 16, "renew_ms": 100, "reclaim_idle_ms": 500}
    content = {
        "line": "stub",
        "bundle": str(bundle),
        "run_dir": "run",
        "cameras": list(cameras or [stub_camera()]),
        "worker": {**worker, **changes.pop("worker", {})},
        "sinks": {"jsonl": {"fsync": "never"}, "reject": {}},
        "dashboard": {"enabled": False},
        **changes,
    }
    path = folder / "line.yaml"
    path.write_text(yaml.safe_dump(content))
    return path
