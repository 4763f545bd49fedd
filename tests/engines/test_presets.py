"""Presets are settings files like any other, and what people say beside them wins."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING

import pytest
import torch
from typer.models import OptionInfo

from engines.contracts import BadConfig, ExitCode
from engines.methods import build_method
from engines.presets import PRESETS, preset_path
from engines.recipe import TrainSettings, configuration_of, load_recipe
from pipeline.cli import bundles

if TYPE_CHECKING:
    from pathlib import Path


@pytest.mark.parametrize("name", PRESETS)
def test_a_preset_is_settings_that_build(name: str) -> None:
    """Every preset makes a method, leaves early, and is written down with the settings."""
    settings = load_recipe(None, {"preset": name})
    with torch.device("meta"):
        build_method(configuration_of(settings, 2))
    assert settings.early_exit > 0
    assert settings.model_dump(mode="json")["preset"] == name


def test_presets_order_resolution_and_bank() -> None:
    """From fast to accurate nothing becomes smaller."""
    chosen = [load_recipe(None, {"preset": name}) for name in PRESETS]
    for of in (_pixels, _rows, _scales):
        assert [of(s) for s in chosen] == sorted(of(s) for s in chosen)


def test_explicit_values_win(tmp_path: Path) -> None:
    """A file wins over its preset, an option over both; the rest stays the preset's."""
    path = tmp_path / "mine.yaml"
    path.write_text("preset: fast\nbank_rows: 77\nbatch: 5\n")
    settings = load_recipe(path, {"batch": 3})
    assert (settings.preset, settings.bank_rows, settings.batch) == ("fast", 77, 3)
    assert settings.image_size == load_recipe(preset_path("fast"), {}).image_size
    assert load_recipe(path, {"preset": "accurate"}).image_size == (384, 384)


@pytest.mark.parametrize("name", ["quick", "../train.tiny"])
def test_an_unknown_preset_is_refused(name: str) -> None:
    """One sentence names those that exist."""
    with pytest.raises(BadConfig, match="choose one of fast, balanced, accurate") as caught:
        load_recipe(None, {"preset": name})
    assert caught.value.exit_code == ExitCode.BAD_CONFIG
    assert "\n" not in str(caught.value)


def test_the_help_tells_what_the_files_hold() -> None:
    """Name, resolution, denoiser and bank rows of every preset stand in ``train --help``."""
    (option,) = (
        told
        for told in inspect.get_annotations(bundles.train, eval_str=True)["preset"].__metadata__
        if isinstance(told, OptionInfo)
    )
    for name in PRESETS:
        settings = load_recipe(None, {"preset": name})
        for fact in (name, f"{settings.image_size[0]} px", settings.size, str(settings.bank_rows)):
            assert fact in str(option.help)


def _pixels(settings: TrainSettings) -> int:
    return settings.image_size[0] * settings.image_size[1]


def _rows(settings: TrainSettings) -> int:
    return settings.bank_rows


def _scales(settings: TrainSettings) -> int:
    return len(settings.strides)
