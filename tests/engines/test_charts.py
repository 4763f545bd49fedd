"""Laws of the charts: what they say is what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from matplotlib.patches import Rectangle

from engines.calibration import Judgement
from engines.charts import curve_figure, depth_figure, draw_charts, score_figure, sign
from engines.contracts import Decision, Finding
from engines.dataset import GOOD, Item
from engines.images import read_image
from engines.tables import Measured, category_row

if TYPE_CHECKING:
    from matplotlib.axes import Axes

SIZE = (16, 16)
THRESHOLD = 2.0


def one(
    defect: str, score: float, level: int = 0, steps: int = 0, *, judged: bool = True
) -> Measured:
    """A test image whose score is its surprise; its map is bright in the upper half."""
    anomaly_map = np.linspace(score, 0, 256, dtype=np.float32).reshape(SIZE)
    decision = Decision.FAIL if score > THRESHOLD else Decision.PASS
    return Measured(
        Item(Path("0000.png"), "nut", defect),
        np.broadcast_to(np.arange(16)[:, None] < 4, SIZE)
        if defect != GOOD
        else np.zeros(SIZE, bool),
        Finding("0", "nut", anomaly_map, score, plan=0, level=level, steps=steps, steps_planned=0),
        Judgement(decision, None, score, THRESHOLD, 1.0) if judged else None,
    )


@pytest.fixture
def measured() -> list[Measured]:
    """Four good parts, two dents that are found and two stains of which one is not."""
    good = [one(GOOD, 0.5 + i / 8, level=-1) for i in range(3)] + [one(GOOD, 2.5, 4, 2)]
    dents = [one("dent", 6.0 + i, 8, 5) for i in range(2)]
    return [*good, *dents, one("stain", 3.0, 8, 3), one("stain", 0.6, -1)]


def heights(axes: Axes) -> list[float]:
    """Bars of a panel, left to right as they were drawn."""
    return [float(bar.get_height()) for bar in axes.patches if isinstance(bar, Rectangle)]


def legend(axes: Axes) -> list[str]:
    """What a panel's legend says."""
    found = axes.get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts()]


def test_every_image_is_in_the_histogram_of_scores(measured: list[Measured]) -> None:
    """Bars add up to the images, the legend counts them, the line is at the threshold."""
    (axes,) = score_figure("nut", measured).axes
    assert sum(heights(axes)) == len(measured)
    assert legend(axes) == ["threshold 2", "good (n = 4)", "defective (n = 4)"]
    assert axes.lines[0].get_xdata() == [THRESHOLD, THRESHOLD]


def test_a_score_beyond_all_bounds_is_still_drawn(measured: list[Measured]) -> None:
    """Surprise has no upper limit; the last bar holds what lies further out."""
    far = [*measured, one("dent", 1e30)]
    (axes,) = score_figure("nut", far).axes
    assert sum(heights(axes)) == len(far)
    assert np.isfinite(axes.get_xlim()).all()


def test_without_calibration_there_is_no_threshold() -> None:
    """Raw scores, also negative ones, stand on a plain axis."""
    raw = [one(GOOD, -3.0, judged=False), one("dent", 5.0, judged=False)]
    (axes,) = score_figure("nut", raw).axes
    assert (axes.get_xlabel(), axes.get_xscale()) == ("raw anomaly score", "linear")
    assert sum(heights(axes)) == 2
    assert not axes.lines


def test_depth_has_a_row_per_type_of_defect(measured: list[Measured]) -> None:
    """All defects first; shares of good parts and of the type add up to one each."""
    panels = depth_figure("nut", measured).axes
    titles = [panel.get_title(loc="left") or panel.get_title() for panel in panels]
    assert titles == [
        "all defects (n = 4): mean level 5.8, good 0.2",
        "mean calls 3.2, good 0.5",
        "dent (n = 2): mean level 8.0, good 0.2",
        "mean calls 5.0, good 0.5",
        "stain (n = 2): mean level 3.5, good 0.2",
        "mean calls 1.5, good 0.5",
    ]
    assert [sum(heights(panel)) for panel in panels] == pytest.approx([2] * 6)
    ticks = [label.get_text() for label in panels[0].get_xticklabels()]
    assert ticks == ["none", "4", "8"]


def test_no_bar_of_depth_is_cut_off() -> None:
    """Where levels spread and all defects make as many calls, their bar of 100 % is whole."""
    spread = [one(kind, 1.0, level, 10) for kind in (GOOD, "dent") for level in range(4)]
    level, calls = depth_figure("nut", spread).axes
    assert (max(heights(level)), max(heights(calls))) == (0.25, 1)
    assert [panel.get_ylim()[0] for panel in (level, calls)] == [0, 0]
    assert min(panel.get_ylim()[1] for panel in (level, calls)) >= 1


def test_many_levels_share_bars() -> None:
    """A schedule of a thousand levels stays readable, and no image is lost."""
    spread = [one(GOOD, 1.0, level) for level in (-1, *range(0, 1000, 7))]
    spread.append(one("dent", 3.0, 999))
    level, _ = depth_figure("nut", spread).axes
    ticks = [label.get_text() for label in level.get_xticklabels()]
    assert len(ticks) <= 13
    assert (ticks[0], ticks[1], ticks[-1]) == ("none", "0–\n83", "924–\n1007")
    assert sum(heights(level)) == pytest.approx(2)


def test_curves_name_their_areas(measured: list[Measured]) -> None:
    """AUROC with its error and AP are those of the table; the threshold is marked."""
    row = category_row(measured, SIZE)
    roc, recall = curve_figure("nut", measured, row, SIZE).axes
    assert legend(roc) == [
        f"images: AUROC {row.image_auroc:.3f} ± {row.image_auroc_se:.3f}",
        f"pixels: AUROC {row.pixel_auroc:.3f}",
        "chance",
        "threshold: 75% found,\n25.0% of good rejected",
    ]
    assert legend(recall) == [
        f"images: AP {row.image_ap:.3f}",
        f"pixels: AP {row.pixel_ap:.3f}",
        "threshold: 75% of rejects defective",
    ]
    styles = {line.get_linestyle() for line in roc.lines[:2]}
    assert len(styles) == 2


def test_without_masks_there_are_no_curves_of_pixels(measured: list[Measured]) -> None:
    """Nobody outlined a defect: only images are ranked."""
    blind = [Measured(m.item, None, m.finding, m.judgement) for m in measured]
    roc, _ = curve_figure("nut", blind, category_row(blind, SIZE), SIZE).axes
    assert not [told for told in legend(roc) if "pixels" in told]


def test_a_chart_says_what_was_measured(measured: list[Measured]) -> None:
    """Every word of it stands below, in lines that are not wider than the chart."""
    figure = score_figure("nut", measured)
    before = figure.get_size_inches()
    told = f"DRDC-style (bundle 1), substitutions: {'; '.join(['a denoiser of size tiny'] * 20)}."
    sign(figure, told)
    figure.draw_without_rendering()
    (written,) = (text for text in figure.texts if text.get_text().startswith("DRDC-style"))
    assert written.get_text().split() == told.split()
    assert figure.get_size_inches()[0] == before[0]
    assert written.get_window_extent().width < figure.bbox.width
    assert written.get_window_extent().y0 >= 0


@pytest.mark.parametrize("kept", [GOOD, "dent", ""])
def test_charts_are_written_for_whatever_there_is(
    measured: list[Measured], kept: str, tmp_path: Path
) -> None:
    """With one class only, or a single image of each, nothing fails; curves need both."""
    shown = [m for m in measured if m.item.defect == kept] or measured[3:5]
    row = category_row(shown, SIZE)
    draw_charts(tmp_path, "nut", shown, row, SIZE, origin="GLAD, substitutions: none named.")
    kinds = {"scores", "depth"} | (set() if kept else {"curves"})
    assert {path.stem for path in tmp_path.iterdir()} == {f"nut_{kind}" for kind in kinds}
    for path in tmp_path.iterdir():
        pixels: Any = read_image(path)
        assert pixels.min() < 100 < pixels.max()
