"""Pictures of simulated parts, and the truth about them."""

from __future__ import annotations

import os
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest

from engines.contracts import BadConfig
from pipeline.simulator import PARTS, defects, render

KINDS = [(part, kind) for part in PARTS for kind in defects(part)]


@pytest.mark.parametrize("part", PARTS)
def test_same_arguments_same_bytes(part: str) -> None:
    """A picture is a function of its arguments; another index or seed is another part."""
    first = render(part, 5, 3)
    again, other, elsewhere = render(part, 5, 3), render(part, 5, 4), render(part, 6, 3)
    assert np.array_equal(first.image, again.image)
    assert not np.array_equal(first.image, other.image)
    assert not np.array_equal(first.image, elsewhere.image)


def test_another_process_makes_the_same_bytes() -> None:
    """Nothing depends on the process: a fresh interpreter with another hash seed agrees."""
    code = (
        "import zlib; from pipeline.simulator import render; "
        "r = render('board', 2, 9, defect='shifted', severity=0.7); "
        "print(zlib.crc32(r.image.tobytes()), zlib.crc32(r.truth_mask.tobytes()))"
    )
    environment = {**os.environ, "PYTHONHASHSEED": "77"}
    root = Path(__file__).parents[3]
    told = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=True,
        cwd=root,
        env=environment,
    ).stdout.split()
    here = render("board", 2, 9, defect="shifted", severity=0.7)
    assert told == [str(zlib.crc32(a.tobytes())) for a in (here.image, here.truth_mask)]


@pytest.mark.parametrize("part", PARTS)
def test_good_part_has_no_truth_mask(part: str) -> None:
    """A good part is well exposed, of the size asked for, and nothing of it is altered."""
    good = render(part, 1, 0, (160, 200))
    assert good.image.shape == (160, 200, 3)
    assert good.image.dtype == np.uint8
    assert good.defect is None
    assert good.severity == 0
    assert not good.truth_mask.any()
    assert 20 < good.image.mean() < 200
    assert good.image.std() > 15


@pytest.mark.parametrize(("part", "kind"), KINDS)
def test_every_defect_alters_something_but_not_everything(part: str, kind: str) -> None:
    """The faintest defect has a truth mask; the grossest leaves most of the part alone."""
    for severity, index in ((0.05, 11), (1.0, 12)):
        faulty = render(part, 1, index, defect=kind, severity=severity)
        assert faulty.defect == kind
        assert 4 <= faulty.truth_mask.sum() < 0.4 * faulty.truth_mask.size


@pytest.mark.parametrize("part", PARTS)
def test_outside_the_mask_the_damaged_part_is_the_good_one(part: str) -> None:
    """The same part with and without damage: what differs lies in the mask, lens blur aside."""
    kind = defects(part)[0]
    good, bad = render(part, 1, 7), render(part, 1, 7, defect=kind, severity=0.8)
    change = np.abs(good.image.astype(int) - bad.image.astype(int)).max(2)
    assert change[bad.truth_mask].mean() > 8
    assert change[~bad.truth_mask].mean() < 0.5


@pytest.mark.parametrize("part", PARTS)
def test_severity_grows_what_is_altered(part: str) -> None:
    """Over all kinds, gross damage changes more light than faint damage of the same part."""

    def altered(index: int, severity: float) -> float:
        kind, good = defects(part)[index], goods[index]
        bad = render(part, 4, index, defect=kind, severity=severity).image
        return float(np.abs(bad.astype(float) - good).sum())

    goods = [render(part, 4, index).image for index in range(len(defects(part)))]
    faint, gross = (sum(altered(i, s) for i in range(len(goods))) for s in (0.1, 0.9))
    assert 1.5 * faint < gross


def test_unknown_names_are_refused_with_a_choice() -> None:
    """A part or defect that does not exist is answered with those that do."""
    with pytest.raises(BadConfig, match="disc, board, fabric"):
        render("gear", 0, 0)
    with pytest.raises(BadConfig, match="scratch"):
        render("disc", 0, 0, defect="missing_yarn")
