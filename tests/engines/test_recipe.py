"""Good images to train on: what cannot serve is told before anything is read or trained."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from engines.contracts import BadConfig, BadData, ExitCode
from engines.images import encode_png
from engines.methods import build_method
from engines.recipe import (
    METHOD_OPTIONS,
    NOTE,
    TrainSettings,
    configuration_of,
    load_good,
    load_recipe,
)
from engines.tiles import Tiling

if TYPE_CHECKING:
    from pathlib import Path

SETTINGS = TrainSettings(image_size=(32, 32), holdout=0.5, max_false_reject=0.2, confidence=0.8)


def put(root: Path, category: str, count: int, side: int = 32, first: int = 0) -> None:
    """Good images of one size, each of its own shade."""
    folder = root / category / "train" / "good"
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(first, first + count):
        picture = np.full((side, 2 * side, 3), i, np.uint8)
        (folder / f"{i:04d}.png").write_bytes(encode_png(picture))


def told(root: Path, settings: TrainSettings) -> tuple[list[str], list[str]]:
    """(notes, stages) of loading all categories."""
    heard: list[tuple[str, str]] = []
    load_good(root, None, settings, lambda stage, _, facts: heard.append((stage, facts)))
    return [facts for stage, facts in heard if stage == NOTE], [stage for stage, _ in heard]


def test_three_good_images_are_too_few(tmp_path: Path) -> None:
    """Said in one sentence with the number to give, before an image of any category is read."""
    put(tmp_path, "bolt", 20)
    put(tmp_path, "nut", 3)
    (tmp_path / "bolt/train/good/0000.png").write_bytes(b"never read")
    with pytest.raises(BadData, match=r"'nut' has 3 good images.*give at least 16") as caught:
        load_good(tmp_path, None, SETTINGS)
    assert caught.value.exit_code == ExitCode.BAD_DATA


@pytest.mark.parametrize("holdout", [0.02, 0.25, 0.35, 0.5, 0.9])
def test_the_number_to_give_is_enough(tmp_path: Path, holdout: float) -> None:
    """With as many images as the refusal asks for there is none, and with one fewer there is."""
    settings = SETTINGS.model_copy(update={"holdout": holdout})
    put(tmp_path, "nut", 1)
    with pytest.raises(BadData) as caught:
        load_good(tmp_path, None, settings)
    least = int(str(caught.value).rsplit(" ", 1)[1].rstrip("."))
    put(tmp_path, "nut", least - 2, first=1)
    with pytest.raises(BadData):
        load_good(tmp_path, None, settings)
    put(tmp_path, "nut", 1, first=least)
    (part,) = load_good(tmp_path, None, settings)
    assert len(part.train) >= 8


def test_a_promise_that_cannot_be_kept_is_told_first(tmp_path: Path) -> None:
    """The note comes before reading, and each mend that it names mends."""
    put(tmp_path, "nut", 40)
    asked = SETTINGS.model_copy(update={"holdout": 0.25, "max_false_reject": 0.1})
    (note,), stages = told(tmp_path, asked)
    assert stages[0] == NOTE
    assert "'nut' holds out 10 of 40 good images" in note
    assert "needs 16" in note
    assert "64 in all" in note
    assert "raise holdout to 0.40" in note
    assert "max_false_reject 0.15" in note
    for mend in ({"holdout": 0.4}, {"max_false_reject": 0.15}):
        assert told(tmp_path, asked.model_copy(update=mend))[0] == []
    put(tmp_path, "nut", 24, first=40)
    assert told(tmp_path, asked)[0] == []


def test_images_of_mixed_sizes_are_resized(tmp_path: Path) -> None:
    """Each is stretched to the model's input, whatever its size and shape, and that is told."""
    put(tmp_path, "nut", 20)
    assert told(tmp_path, SETTINGS)[0] == []
    put(tmp_path, "nut", 10, side=47, first=10)
    (note,), _ = told(tmp_path, SETTINGS)
    assert note == "'nut' has images of 2 sizes, 64x32 to 94x47: each is stretched to 32x32."
    (part,) = load_good(tmp_path, None, SETTINGS)
    assert part.train.shape == (10, 32, 32, 3)
    shades = np.concatenate([part.train, part.held_out]).mean(axis=(1, 2, 3))
    assert sorted(shades) == list(range(20))


def test_a_category_without_good_parts_is_named(tmp_path: Path) -> None:
    """A folder with tests only cannot be trained on."""
    put(tmp_path, "bolt", 20)
    (tmp_path / "nut" / "test" / "good").mkdir(parents=True)
    with pytest.raises(BadData, match="nut has no folder train/good") as caught:
        load_good(tmp_path, None, SETTINGS)
    assert caught.value.exit_code == ExitCode.BAD_DATA


@pytest.mark.parametrize("twin", ["nut", "Nut"])
def test_two_categories_with_one_name_are_refused(tmp_path: Path, twin: str) -> None:
    """Asked for twice, also with other capitals: one category would be trained as two."""
    put(tmp_path, "nut", 20)
    put(tmp_path, twin, 20)
    with pytest.raises(BadData, match="one category name") as caught:
        load_good(tmp_path, ["nut", twin], SETTINGS)
    assert caught.value.exit_code == ExitCode.BAD_DATA


def test_a_pretrained_denoiser_is_read_as_it_was_trained() -> None:
    """Its noise would be taken for something else without any error."""
    with pytest.raises(BadConfig, match="preconditioned: path:x was trained without it"):
        load_recipe(None, {"size": "path:x", "preconditioned": True})


@pytest.mark.parametrize(
    ("method", "options", "told"),
    [
        ("D3AD", {"tmax": 80}, "options: D3AD has no tmax; choose t_max"),
        ("DeCo-Diff", {"denoiser": "full"}, "DeCo-Diff has no denoiser; choose none"),
        ("D3AD", {"eta": "strong"}, "eta is 'strong'; give a number"),
        ("GLAD", {"t_max": 80}, "GLAD has no t_max; choose"),
    ],
)
def test_options_that_a_method_does_not_have_are_refused(
    method: str, options: dict[str, float | str], told: str
) -> None:
    """A slip of the pen must not train something else than was asked for."""
    with pytest.raises(BadConfig, match=told) as caught:
        load_recipe(None, {"method": method, "options": options})
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("method", "options"),
    [
        (
            "GLAD",
            {"start_level": 300, "steps": 6, "floor_level": 90, "reach": 2, "test": "decoded"},
        ),
        ("D3AD", {"eta": 3.5, "t_max": 200}),
        ("DRDC-style", {"fusion": "sum", "refinement": 0.25, "low_pass": 3.0}),
    ],
)
def test_options_reach_their_method(method: str, options: dict[str, float | str]) -> None:
    """Every option that may be written is read."""
    assert set(options) == METHOD_OPTIONS[method]
    settings = load_recipe(None, {"method": method, "options": options, "size": "nano"})
    with torch.device("meta"):
        built = build_method(configuration_of(settings, 1))
    assert {name: getattr(built, name) for name in options} == options


@pytest.mark.parametrize(
    ("asked", "told"),
    [
        ({"tiles": "2"}, "tiles: '2' is no grid of tiles: give ROWSxCOLUMNS"),
        ({"tiles": "0x2"}, "tiles: 0 x 2 tiles cannot overlap"),
        ({"tiles": "99x99"}, "tiles: 99 x 99 tiles make a frame of"),
        ({"tiles": "2x2", "overlap": 0.6}, "overlap: "),
    ],
)
def test_what_cannot_be_cut_is_refused(asked: dict[str, object], told: str) -> None:
    """In one sentence, before an image is read."""
    with pytest.raises(BadConfig, match=told) as caught:
        load_recipe(None, asked)
    assert "\n" not in str(caught.value)


def test_images_are_read_at_the_size_of_all_tiles(tmp_path: Path) -> None:
    """They are split as wholes and cut afterwards; a manifest says how, or nothing where not."""
    put(tmp_path, "nut", 20)
    settings = SETTINGS.model_copy(update={"tiles": "2x3", "overlap": 0.25})
    (part,) = load_good(tmp_path, None, settings)
    high, wide = settings.image_size
    assert part.train.shape[1:] == (*settings.tiling.frame_size, 3)
    rows = part.cut(settings.tiling)
    assert rows.train.shape == (6 * len(part.train), high, wide, 3)
    assert rows.held_out.shape == (6 * len(part.held_out), high, wide, 3)
    np.testing.assert_array_equal(rows.train[6], part.train[1, :high, :wide])
    written = configuration_of(settings, 1)
    assert Tiling.of(written, settings.image_size) == settings.tiling
    assert "tiles" not in configuration_of(SETTINGS, 1)
