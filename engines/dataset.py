"""Folders of images: the MVTec layout, one category of it, or a plain folder of good parts.

``CATEGORY/train/good/*``, ``CATEGORY/test/good/*``, ``CATEGORY/test/DEFECT/NNNN.EXT`` and, where
there are truth masks, ``CATEGORY/ground_truth/DEFECT/NNNN_mask.png``. The root may be the folder of
categories, one category, or a folder that simply holds images of good parts. Orders are by file
name, so two machines agree.
"""

from __future__ import annotations

import hashlib
import math
import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from engines.contracts import BadData, BadFrame, UInt8
from engines.images import (
    IMAGE_SUFFIXES,
    Mask,
    image_size,
    read_image,
    read_mask,
    to_model_input,
)

GOOD = "good"
LAYOUT = "expected CATEGORY/train/good/*.png, or a folder of images of good parts"


@dataclass(frozen=True, slots=True)
class Item:
    """One image file and what is known of its part."""

    path: Path
    category: str
    defect: str  # GOOD for a good part
    mask_path: Path | None = None  # None where nobody has drawn a truth mask

    @property
    def is_good(self) -> bool:
        """Whether the part is known to be good."""
        return self.defect == GOOD


def categories(root: str | Path) -> list[str]:
    """Names of the categories under ``root``, sorted; raises BadData where there are none."""
    root = _folder(root)
    if _is_category(root) or _images(root):
        return [root.resolve().name]
    found = sorted(entry.name for entry in root.iterdir() if entry.is_dir() and _is_category(entry))
    if not found:
        raise BadData(f"{root} holds no images: {LAYOUT}.")
    return found


def named_categories(root: str | Path, names: Sequence[str] | None = None) -> list[str]:
    """The categories asked for, or all under ``root``; raises BadData where two share a name.

    Names that differ only in case count as one: on some disks and screens they are.
    """
    chosen = list(names or categories(root))
    known: dict[str, str] = {}
    for name in chosen:
        plain = unicodedata.normalize("NFC", name).casefold()
        if plain in known:
            raise BadData(
                f"{name!r} and {known[plain]!r} are one category name: "
                "name each category once, and rename folders that differ only in case."
            )
        known[plain] = name
    return chosen


def good_items(root: str | Path, category: str) -> list[Item]:
    """Good parts to learn from; raises BadData where there are none."""
    place = _place(root, category)
    folder = place / "train" / GOOD
    if not folder.is_dir():
        if (place / "train").is_dir() or (place / "test").is_dir():
            raise BadData(f"{place} has no folder train/good: put images of good parts there.")
        folder = place  # a plain folder of good parts
    items = [Item(path, category, GOOD) for path in _images(folder)]
    if not items:
        raise BadData(f"{folder} holds no images: put {', '.join(IMAGE_SUFFIXES)} files there.")
    return items


def test_items(root: str | Path, category: str) -> list[Item]:
    """Parts to test on, good and defective, with their masks.

    Raises BadData without any, and where masks and images do not pair.
    """
    place = _place(root, category)
    test = place / "test"
    defects = sorted(entry for entry in test.iterdir() if entry.is_dir()) if test.is_dir() else []
    items = [
        Item(path, category, defect.name, _mask_path(place, defect.name, path))
        for defect in defects
        for path in _images(defect)
    ]
    if not items:
        raise BadData(f"{test} holds no test images: put them into test/good and test/DEFECT.")
    _refuse_lone_masks(place)
    return items


def load_model_input(item: Item, size: tuple[int, int]) -> UInt8:
    """Model input [h, w, 3] of an item; raises BadData that names an unreadable file."""
    try:
        return to_model_input(read_image(item.path), size)
    except BadFrame as error:
        raise BadData(str(error)) from None


def mixed_sizes(items: Sequence[Item], size_hw: tuple[int, int]) -> str:
    """What is done to images whose sizes differ, in one sentence; empty where they agree.

    Reads headers only; raises BadData that names an unreadable file.
    """
    try:
        sizes = sorted({image_size(item.path) for item in items}, key=math.prod)
    except BadFrame as error:
        raise BadData(str(error)) from None
    if len(sizes) < 2:
        return ""
    (least_h, least_w), (most_h, most_w) = sizes[0], sizes[-1]
    return (
        f"{items[0].category!r} has images of {len(sizes)} sizes, {least_w}x{least_h} to "
        f"{most_w}x{most_h}: each is stretched to {size_hw[1]}x{size_hw[0]}."
    )


def load_truth(item: Item, size_hw: tuple[int, int]) -> Mask | None:
    """Truth mask [H, W]: empty for a good part, None for a defect that nobody outlined.

    Raises BadData where the mask file cannot be read or has another size than its image.
    """
    if item.is_good:
        return np.zeros(size_hw, dtype=np.bool_)
    if item.mask_path is None:
        return None
    try:
        of_mask, of_image = image_size(item.mask_path), image_size(item.path)
        if of_mask != of_image:
            raise BadData(
                f"{item.mask_path} is {of_mask[1]}x{of_mask[0]}, but its image {item.path.name} is "
                f"{of_image[1]}x{of_image[0]}: draw the mask at the size of the image."
            )
        return read_mask(item.mask_path, size_hw)
    except BadFrame as error:
        raise BadData(str(error)) from None


def evenly(length: int, most: int) -> slice:
    """At most so many of a sequence of that length, evenly over its order."""
    return slice(None, None, -(-length // most) or 1)


def split_holdout(
    items: Sequence[Item], fraction: float, seed: int
) -> tuple[list[Item], list[Item]]:
    """(train, held out): ``fraction`` of each category held out, by a hash of the file names.

    The choice depends on names and seed alone, so it survives a move to another folder or machine.
    Both sides keep at least one item of every category; raises BadData where a category has fewer
    than two.
    """
    if not 0 < fraction < 1:
        raise BadData(f"The held-out fraction is {fraction}: give a number between 0 and 1.")
    held: set[Path] = set()
    for name, members in _by_category(items).items():
        if len(members) < 2:
            raise BadData(f"{name} has {len(members)} image: two are the least to hold one out.")
        count = held_count(len(members), fraction)
        ranked = sorted(members, key=lambda item: _rank(item, seed))
        held.update(item.path for item in ranked[:count])
    train = [item for item in items if item.path not in held]
    return train, [item for item in items if item.path in held]


def held_count(items: int, fraction: float) -> int:
    """How many of two or more items are held out."""
    return min(max(round(fraction * items), 1), items - 1)


def image_files(folder: Path) -> list[Path]:
    """Image files in a folder and the folders below it, sorted by their relative names."""
    found = (path for path in folder.rglob("*") if _is_image(path))
    return sorted(found, key=lambda path: path.relative_to(folder).as_posix())


def _folder(root: str | Path) -> Path:
    root = Path(root)
    if not root.is_dir():
        state = "is not a folder" if root.exists() else "does not exist"
        raise BadData(f"{root} {state}: {LAYOUT}.")
    return root


def _place(root: str | Path, category: str) -> Path:
    """Folder of one category, which the root itself may be."""
    root = _folder(root)
    known = categories(root)
    if category not in known:
        raise BadData(f"{root} has no category {category!r}: it has {', '.join(known)}.")
    return root if _is_category(root) or _images(root) else root / category


def _is_category(folder: Path) -> bool:
    return (folder / "train").is_dir() or (folder / "test").is_dir()


def _images(folder: Path) -> list[Path]:
    return sorted(
        (path for path in folder.iterdir() if _is_image(path)), key=lambda path: path.name
    )


def _is_image(path: Path) -> bool:
    hidden = path.name.startswith(".")  # "._0001.png" is a Mac's side file, not an image
    return not hidden and path.suffix.lower() in IMAGE_SUFFIXES and path.is_file()


def _mask_path(place: Path, defect: str, image: Path) -> Path | None:
    """Truth mask beside a defect; one missing among others is an error, not a good part."""
    folder = place / "ground_truth" / defect
    if defect == GOOD or not folder.is_dir():
        return None
    for name in (f"{image.stem}_mask.png", f"{image.stem}.png"):
        if (folder / name).is_file():
            return folder / name
    raise BadData(
        f"{image} has no truth mask {folder / image.stem}_mask.png: add it, or remove both."
    )


def _refuse_lone_masks(place: Path) -> None:
    """A mask without its image means that a defect was lost, and the numbers would not show it."""
    truth = place / "ground_truth"
    kinds = sorted(entry for entry in truth.iterdir() if entry.is_dir()) if truth.is_dir() else []
    for kind in (kind for kind in kinds if kind.name != GOOD):
        folder = place / "test" / kind.name
        images = {image.stem for image in _images(folder)} if folder.is_dir() else set()
        for mask in _images(kind):
            if not images & {mask.stem, mask.stem.removesuffix("_mask")}:
                raise BadData(
                    f"{mask} is a truth mask without an image in {folder}: "
                    "add the image, or remove the mask."
                )


def _by_category(items: Iterable[Item]) -> dict[str, list[Item]]:
    groups: dict[str, list[Item]] = defaultdict(list)
    for item in items:
        groups[item.category].append(item)
    return groups


def _rank(item: Item, seed: int) -> bytes:
    return hashlib.sha256(f"{seed}/{item.category}/{item.path.name}".encode()).digest()
