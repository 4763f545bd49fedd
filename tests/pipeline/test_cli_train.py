"""What a training cannot be made of: one sentence, the documented code, nothing written."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from PIL import Image
from transformers import ViTConfig, ViTModel

from engines.contracts import ExitCode
from tests.pipeline.commands import Command, command_in, contents, sentence
from tests.tiny_line import good_part


@pytest.fixture
def assayline(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run one command as the shell does; its exit code and what it said on stderr."""
    return command_in(monkeypatch, capsys)


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Twelve good parts of one category, in the MVTec layout."""
    folder = tmp_path / "data"
    (folder / "bolt" / "train" / "good").mkdir(parents=True)
    for seed in range(12):
        picture = Image.fromarray(good_part(seed, (64, 64)))
        picture.save(folder / "bolt" / "train" / "good" / f"{seed:03d}.png")
    return folder


def no_network(*_: Any, **__: Any) -> str:  # noqa: ANN401 - whatever the library takes
    """The hub of a machine without a network."""
    raise huggingface_hub.errors.LocalEntryNotFoundError("no route to host")


def refused(assayline: Command, data: Path, code: ExitCode, *options: object) -> str:
    """The sentence of a training that ends with a code and leaves everything as it was."""
    before = contents(data.parent)
    ended, said = assayline("train", data, "--out", data.parent / "out", *options)
    assert ended == code
    assert contents(data.parent) == before
    return sentence(said)


def test_three_good_images_are_too_few(assayline: Command, data: Path) -> None:
    """The least number is named before an image is read."""
    for path in sorted((data / "bolt" / "train" / "good").iterdir())[3:]:
        path.unlink()
    told = refused(assayline, data, ExitCode.BAD_DATA)
    assert "'bolt' has 3 good images" in told
    assert "at least 10" in told


def test_two_categories_with_one_name_are_refused(assayline: Command, data: Path) -> None:
    """Folders that differ only in case, or one name given twice."""
    assert "one category name" in refused(
        assayline, data, ExitCode.BAD_DATA, "--category", "bolt", "--category", "bolt"
    )
    shutil.copytree(data / "bolt", data / "Bolt")
    assert "one category name" in refused(assayline, data, ExitCode.BAD_DATA)


def test_images_of_mixed_sizes_are_told(assayline: Command, data: Path, tmp_path: Path) -> None:
    """They serve, stretched; the sentence stands before whatever comes after it."""
    Image.new("RGB", (80, 40)).save(data / "bolt" / "train" / "good" / "wide.png")
    (tmp_path / "train.yaml").write_text("features: {network: abacus}\n")
    _, said = assayline(
        "train", data, "--out", tmp_path / "out", "--config", tmp_path / "train.yaml"
    )
    plain = " ".join(said.split())
    assert "'bolt' has images of 2 sizes, 80x40 to 64x64: each is stretched to 256x256." in plain


def test_a_hub_id_without_network_is_refused(
    assayline: Command, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The id is named, and what to do where there is no hub."""
    monkeypatch.setattr(huggingface_hub, "snapshot_download", no_network)
    config = tmp_path / "hub.yaml"
    config.write_text("features: {network: path, path: nobody/has-this}\nstrides: [8]\n")
    told = refused(assayline, data, ExitCode.BAD_CONFIG, "--config", config)
    assert "nobody/has-this" in told
    assert "copy the folder" in told


def test_a_feature_network_that_does_not_fit_is_refused(
    assayline: Command, data: Path, tmp_path: Path
) -> None:
    """Patches that do not tile the image, and a stride that the network has not."""
    shape = {"num_hidden_layers": 1, "num_attention_heads": 2, "patch_size": 8, "image_size": 64}
    torch.manual_seed(0)
    network = ViTModel(ViTConfig(hidden_size=16, intermediate_size=16, **shape))
    network.save_pretrained(tmp_path / "vit")
    config = tmp_path / "fit.yaml"
    named = f"features: {{network: path, path: {tmp_path / 'vit'}}}\n"
    for wrong, word in (("image_size: [100, 100]\nstrides: [8]", "100 x 100"), ("", "stride 16")):
        config.write_text(f"{named}{wrong}\n")
        assert word in refused(assayline, data, ExitCode.BAD_CONFIG, "--config", config)
