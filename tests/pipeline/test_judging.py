"""What a line needs thresholds for."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.bundle import Bundle, GraphsSpec, Manifest
from pipeline.judging import categories_needed


@pytest.fixture
def bundle(tmp_path: Path) -> Bundle:
    """A bundle of two categories, without files."""
    manifest = Manifest(
        method="DeCo-Diff",
        categories=("cookie", "screw"),
        image_size=(64, 64),
        plans=(),
        steps_min=1,
        steps_unit=1,
        spec=GraphsSpec(state=(), graphs={}, map_size=(16, 16)),
        configuration={},
        files={},
    )
    return Bundle(tmp_path, manifest, "tiny")


@pytest.mark.parametrize(
    ("cameras", "needed"),
    [
        (["screw", "screw"], ["screw"]),
        (["screw", "nut"], ["screw", "unknown"]),
        (["screw", ""], ["cookie", "screw"]),
    ],
    ids=["named", "foreign", "unnamed"],
)
def test_only_what_cameras_see_must_be_calibrated(
    bundle: Bundle, cameras: list[str], needed: list[str]
) -> None:
    """A category with too few good images holds up no line that never sees it."""
    assert categories_needed(bundle, cameras) == needed
