"""A training run is resumed with what it was started with, and with nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from engines.contracts import BadData, ExitCode
from engines.recipe import GoodParts, TrainSettings
from engines.run_record import RECORD, open_run

SETTINGS = TrainSettings(batch=4)


def parts(category: str = "disc", seed: int = 0) -> list[GoodParts]:
    """Six images of one category, two of them held out."""
    drawn = np.random.default_rng(seed).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    return [GoodParts(category, drawn[:4], drawn[4:])]


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a run that was started, with a file of its own."""
    folder = tmp_path / "out" / "bundle.training"
    open_run(folder, SETTINGS, parts(), "", resume=False)
    (folder / "checkpoint").write_text("kept")
    return folder


def test_the_same_run_goes_on(run: Path) -> None:
    """Equal settings and images, in whatever order they are read, leave everything in place."""
    (same,) = parts()
    turned = [GoodParts(same.category, same.train[::-1], same.held_out)]
    open_run(run, SETTINGS.model_copy(), turned, "", resume=True)
    assert (run / "checkpoint").read_text() == "kept"


@pytest.mark.parametrize(
    ("settings", "images", "based_on", "told"),
    [
        (
            SETTINGS.model_copy(update={"batch": 5, "steps": 7}),
            parts(),
            "",
            "steps 100000, batch 4;",
        ),
        (SETTINGS.model_copy(update={"seed": 1}), parts(seed=1), "", "seed 0;"),
        (SETTINGS, parts(seed=1), "", "other images;"),
        (SETTINGS, parts("board"), "", "other images;"),
        (SETTINGS, parts(), "0123456789ab", "no --from;"),
    ],
)
def test_another_run_is_refused(
    run: Path, settings: TrainSettings, images: list[GoodParts], based_on: str, told: str
) -> None:
    """One sentence says what it was started with; its folder stays as it is."""
    before = (run / RECORD).read_bytes()
    with pytest.raises(BadData, match=f"started with {told}.*train without --resume") as caught:
        open_run(run, settings, images, based_on, resume=True)
    assert caught.value.exit_code == ExitCode.BAD_DATA
    assert (run / RECORD).read_bytes() == before


def test_a_run_of_an_older_version_is_refused(run: Path) -> None:
    """It cannot have meant what it did not know."""
    record = json.loads((run / RECORD).read_bytes())
    del record["settings"]["whitened"]
    (run / RECORD).write_text(json.dumps(record))
    with pytest.raises(BadData, match="older version, which had no whitened"):
        open_run(run, SETTINGS, parts(), "", resume=True)


def test_a_held_out_image_may_not_become_a_training_image(run: Path) -> None:
    """The split is part of a run: its thresholds are about parts it has not seen."""
    (same,) = parts()
    swapped = [GoodParts(same.category, same.held_out, same.train)]
    with pytest.raises(BadData, match="other images"):
        open_run(run, SETTINGS, swapped, "", resume=True)


def test_the_bundle_it_builds_on_is_named(run: Path) -> None:
    """A run --from a bundle is not resumed without it."""
    open_run(run, SETTINGS, parts(), "0123456789ab", resume=False)
    with pytest.raises(BadData, match="started with --from bundle 0123456789ab"):
        open_run(run, SETTINGS, parts(), "", resume=True)


def test_a_damaged_record_is_refused(run: Path) -> None:
    """What a run was started with cannot be guessed."""
    for damage in (b"{", b"[]", b'{"settings": {}}', b"\xff"):
        (run / RECORD).write_bytes(damage)
        with pytest.raises(BadData, match="damaged; train without --resume"):
            open_run(run, SETTINGS, parts(), "", resume=True)


def test_without_resume_a_run_starts_empty(run: Path) -> None:
    """Nothing of an earlier run is left, and the new one is recorded."""
    other = SETTINGS.model_copy(update={"batch": 5})
    open_run(run, other, parts(), "", resume=False)
    assert [path.name for path in run.iterdir()] == [RECORD]
    open_run(run, other, parts(), "", resume=True)


def test_a_run_that_never_began_is_begun(tmp_path: Path) -> None:
    """--resume may be given from the first time on, as scripts do."""
    open_run(tmp_path / "run", SETTINGS, parts(), "", resume=True)
    assert (tmp_path / "run" / RECORD).is_file()
