"""Folders of simulated images in the MVTec AD layout, for training and evaluation."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from engines.contracts import BadData
from pipeline.simulator.line import LEAST_SEVERITY
from pipeline.simulator.render import DEFAULT_SIZE, PARTS, Rendered, defects, render
from pipeline.simulator.surface import generator

Progress = Callable[[int, int], None]  # images done, images in all
_GOOD_TEST, _FAULTY_TEST = 1_000_000, 2_000_000  # part numbers: no test part was ever in training


@dataclass(frozen=True, slots=True)
class _Wanted:
    category: str
    split: str
    defect: str  # "good" for good
    number: int
    index: int
    severity: float

    @property
    def file(self) -> str:
        return f"{self.category}/{self.split}/{self.defect}/{self.number:04d}.png"


def write_dataset(
    folder: Path,
    parts: Sequence[str] = PARTS,
    train_good: int = 120,
    test_good: int = 50,
    *,
    test_defect: int = 50,
    seed: int = 0,
    size: tuple[int, int] = DEFAULT_SIZE,
    progress: Progress | None = None,
) -> Path:
    """Write CATEGORY/train/good, CATEGORY/test/..., CATEGORY/ground_truth/... and truth.csv.

    The counts are per part; defect kinds take turns, severities spread evenly over 0.05..1
    (truth.csv: file, category, defect, severity). A folder that holds a dataset is refused.
    """
    folder = Path(folder)
    if (folder / "truth.csv").exists():
        raise BadData(f"{folder} already holds a simulated dataset; give an empty folder")
    wanted = [w for part in parts for w in _wanted(part, train_good, test_good, test_defect, seed)]
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "truth.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "category", "defect", "severity"])
        for done, item in enumerate(wanted, 1):
            _write(folder, item, seed, size)
            table.writerow([item.file, item.category, item.defect, f"{item.severity:.4f}"])
            if progress is not None:
                progress(done, len(wanted))
    return folder


def _wanted(
    part: str, train_good: int, test_good: int, test_defect: int, seed: int
) -> Iterator[_Wanted]:
    for i in range(train_good):
        yield _Wanted(part, "train", "good", i, i, 0.0)
    for i in range(test_good):
        yield _Wanted(part, "test", "good", i, _GOOD_TEST + i, 0.0)
    kinds = defects(part)
    # Evenly spread, then shuffled: every kind meets every severity, and no quartile is empty.
    even = LEAST_SEVERITY + (1 - LEAST_SEVERITY) * (np.arange(test_defect) + 0.5) / max(
        1, test_defect
    )
    severities = generator(seed, f"{part}/severities").permutation(even)
    for i, severity in enumerate(severities):
        kind = kinds[i % len(kinds)]
        yield _Wanted(part, "test", kind, i // len(kinds), _FAULTY_TEST + i, float(severity))


def _write(folder: Path, item: _Wanted, seed: int, size: tuple[int, int]) -> None:
    defect = None if item.defect == "good" else item.defect
    seen: Rendered = render(
        item.category, seed, item.index, size, defect=defect, severity=item.severity
    )
    _save(folder / item.file, seen.image[..., ::-1])
    if defect is not None:
        truth = f"{item.category}/ground_truth/{item.defect}/{item.number:04d}_mask.png"
        _save(folder / truth, seen.truth_mask.astype(np.uint8) * 255)


def _save(path: Path, image: NDArray[np.uint8]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    done, data = cv2.imencode(".png", image)
    if not done:
        raise BadData(f"{path} could not be encoded as PNG")
    path.write_bytes(data.tobytes())
