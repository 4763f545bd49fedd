"""Simulated datasets on disk."""

from __future__ import annotations

import csv
from pathlib import Path

import cv2
import numpy as np
import pytest

from engines.contracts import BadData
from pipeline.simulator import defects, write_dataset


def _make(folder: Path) -> Path:
    return write_dataset(folder, ("disc", "fabric"), 3, 2, test_defect=9, seed=4, size=(64, 64))


def test_layout_is_that_of_mvtec(tmp_path: Path) -> None:
    """Good parts to train and test on, defects by kind, and a mask for each of them."""
    root = _make(tmp_path / "data")
    for part in ("disc", "fabric"):
        assert len(list((root / part / "train" / "good").iterdir())) == 3
        assert len(list((root / part / "test" / "good").iterdir())) == 2
        assert {p.name for p in (root / part / "test").iterdir()} == {"good", *defects(part)}
        masks = sorted((root / part / "ground_truth").rglob("*.png"))
        assert len(masks) == 9
        for path in masks:
            mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
            assert mask is not None
            assert mask.shape == (64, 64)
            assert set(np.unique(mask)) <= {0, 255}
            assert mask.any()


def test_truth_table_names_every_file(tmp_path: Path) -> None:
    """truth.csv lists each image once: severity 0 for good, spread over 0.05..1 for the rest."""
    root = _make(tmp_path / "data")
    with (root / "truth.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["file", "category", "defect", "severity"]
    images = {
        str(p.relative_to(root)) for p in root.rglob("*.png") if "ground_truth" not in p.parts
    }
    assert {row["file"] for row in rows} == images
    assert len(rows) == len(images)
    faulty = sorted(float(r["severity"]) for r in rows if r["defect"] != "good")
    assert all(0.05 <= s <= 1 for s in faulty)
    assert faulty[0] < 0.15
    assert faulty[-1] > 0.9
    assert {r["severity"] for r in rows if r["defect"] == "good"} == {"0.0000"}


def test_same_seed_same_files_and_progress_is_told(tmp_path: Path) -> None:
    """A dataset can be made again byte by byte, and whoever waits is told how far it is."""
    told: list[tuple[int, int]] = []
    for name in ("a", "b"):
        write_dataset(
            tmp_path / name,
            ("board",),
            1,
            1,
            test_defect=2,
            seed=9,
            size=(64, 64),
            progress=lambda done, of: told.append((done, of)),
        )
    files = sorted(p.relative_to(tmp_path / "a") for p in (tmp_path / "a").rglob("*.*"))
    assert all(
        (tmp_path / "a" / f).read_bytes() == (tmp_path / "b" / f).read_bytes() for f in files
    )
    assert told == [(1, 4), (2, 4), (3, 4), (4, 4)] * 2


def test_an_older_dataset_is_not_overwritten(tmp_path: Path) -> None:
    """Mixing two datasets would corrupt both; the second is refused."""
    root = _make(tmp_path / "data")
    with pytest.raises(BadData, match="already holds"):
        _make(root)
