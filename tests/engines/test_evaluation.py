"""Laws of an evaluation, over a backend whose maps are known and a folder of drawn parts."""

from __future__ import annotations

import sys
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from engines.calibration import Calibration
from engines.calibration_fit import Wanted, fit_calibration
from engines.contracts import (
    ADAPTIVE,
    BadConfig,
    BadData,
    Decision,
    Evidence,
    ExitCode,
    Progress,
    Rows,
    UInt8,
)
from engines.evaluation import Evaluation, evaluate_on, origin, to_markdown
from engines.images import decode_image, encode_png
from engines.metrics import ranking_metrics
from engines.plots import line_px
from engines.tables import Row, mean_row
from engines.tiles import Tiling

if TYPE_CHECKING:
    from pathlib import Path

    from engines.bundle import Bundle

KEY = "numpy:f32"
SIZE = 32
CELL = 4
BRIGHT = 40  # above this a part takes the deeper plan
SUBSTITUTED = ("no network", "a toy")


class Brightness:
    """Maps the brightest pixel of each cell; plan 1 takes two steps and triples the map.

    A part with a pixel of 255 gives no evidence.
    """

    capacity = 8
    key = KEY

    def __init__(self) -> None:
        self._rows: dict[int, list[Any]] = {}  # slot -> [map, plan, steps left]

    def start(self, rows: Rows, slots: list[int]) -> Progress:
        """Bright parts take the deeper plan."""
        for i, slot in enumerate(slots):
            cells = rows.image[i, ..., 0].astype(np.float32)
            cells = cells.reshape(SIZE // CELL, CELL, SIZE // CELL, CELL).max(axis=(1, 3))
            plan = int(rows.plan[i]) if rows.plan[i] >= 0 else int(cells.max() > BRIGHT)
            seen = np.where(cells.max() == 255, np.float32(np.nan), cells * (1 + 2 * plan))
            self._rows[slot] = [seen, plan, 2 * plan]
        return self._progress(slots)

    def step(self, slots: list[int]) -> Progress:
        """One step of the plan."""
        for slot in slots:
            self._rows[slot][2] -= 1
        return self._progress(slots)

    def finish(self, slots: list[int]) -> Evidence:
        """The map, and its maximum."""
        maps = np.stack([self._rows[slot][0] for slot in slots])
        return Evidence(maps, maps.max(axis=(1, 2)))

    def close(self) -> None:
        """Forget every row."""
        self._rows.clear()

    def _progress(self, slots: list[int]) -> Progress:
        plans = np.array([self._rows[s][1] for s in slots], np.int32)
        return Progress(np.array([self._rows[s][2] for s in slots], np.int32), plans, plans + 3)


class Closing(Brightness):
    """Its level is 7 with two steps left, 6 with one, and 5 at the end."""

    def _progress(self, slots: list[int]) -> Progress:
        seen = super()._progress(slots)
        return Progress(seen.steps_left, seen.plan, seen.steps_left + 5)


def part(seed: int, spot: int = 0) -> tuple[UInt8, np.ndarray[Any, Any]]:
    """A dim noisy part and its truth mask; ``spot`` is the brightness of its defect."""
    draws = np.random.default_rng(seed)
    image = draws.integers(0, draws.integers(20, 60), (SIZE, SIZE, 3), np.uint8)
    truth = np.zeros((SIZE, SIZE), np.bool_)
    if spot:
        y, x = draws.integers(0, SIZE - 8, 2)
        truth[y : y + 8, x : x + 8] = True
        image[truth] = spot
    return image, truth


def write(root: Path, category: str, defect: str, spots: list[int], masks: bool = True) -> None:
    """Test images of one kind of defect, or good ones."""
    seed = sum(map(ord, category + defect))
    for i, spot in enumerate(spots):
        image, truth = part(seed * 1000 + i, spot)
        for below, picture in (("test", image), ("ground_truth", truth)):
            folder = root / category / below / defect
            name = f"{i:04d}_mask.png" if below == "ground_truth" else f"{i:04d}.png"
            if below == "test" or (masks and spot):
                folder.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(encode_png(picture))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two categories; nobody outlined the second one's defects."""
    root = tmp_path_factory.mktemp("data")
    write(root, "board", "good", [0] * 12)
    write(root, "board", "scratch", [100] * 6)
    write(root, "board", "stain", [15] * 6)  # darker than the noise: nothing to see
    write(root, "disc", "good", [0] * 12)
    write(root, "disc", "dent", [100] * 6, masks=False)
    return root


def bundle_of(calibration: Calibration | None = None) -> Bundle:
    """As much of a bundle as an evaluation reads."""
    known = ("board", "disc")
    plans = (SimpleNamespace(levels=()), SimpleNamespace(levels=(1, 0)))
    bundle = SimpleNamespace(
        bundle_id="0123456789ab",
        tiling=Tiling((SIZE, SIZE)),
        frame_size=(SIZE, SIZE),
        manifest=SimpleNamespace(
            method="brightness",
            categories=known,
            plans=plans,
            image_size=(SIZE, SIZE),
            steps_min=0,
            steps_unit=1,
            substitutions=SUBSTITUTED,
        ),
        category_id=lambda name: [*known, name].index(name),
        category_name=lambda name: name if name in known else "unknown",
        calibration=lambda: calibration,
    )
    return cast("Bundle", bundle)


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    """A bundle calibrated on held-out good parts."""
    held_out = {name: [part(i)[0] for i in range(60)] for name in ("board", "disc")}
    return bundle_of(fit_calibration(bundle_of(), Brightness(), held_out, Wanted(0.1)))


@pytest.fixture(scope="module")
def evaluation(bundle: Bundle, folder: Path) -> Evaluation:
    """The calibrated bundle on the whole folder, with each plan forced as well."""
    return evaluate_on(bundle, Brightness(), folder, plans=[0, 1])


def test_the_json_has_the_public_keys(evaluation: Evaluation) -> None:
    """Each category and the mean carry the metrics and depths that design promises."""
    promised = {"image_auroc", "image_ap", "image_f1max", "pixel_auroc", "pixel_ap", "aupro"}
    promised |= {"pixel_f1max", "mean_steps_good", "mean_steps_defect"}
    promised |= {"mean_level_good", "mean_level_defect", "image_auroc_se"}
    found = evaluation.model_dump(mode="json")
    assert promised <= set(found["categories"]["board"])
    assert promised == set(found["mean"])
    assert Evaluation.model_validate_json(evaluation.model_dump_json()) == evaluation


def test_what_can_be_seen_is_found_and_what_cannot_is_not(evaluation: Evaluation) -> None:
    """Each defect kind has its own AUROC: visible scratches 1, invisible stains about chance."""
    by_defect = evaluation.categories["board"].image_auroc_by_defect
    assert by_defect["scratch"] == 1
    assert by_defect["stain"] is not None
    assert 0.1 < by_defect["stain"] < 0.9
    assert evaluation.categories["disc"].image_auroc == 1


def test_without_masks_pixels_are_null(evaluation: Evaluation) -> None:
    """Pixel metrics exist where there are masks, and the mean is over those that exist."""
    board, disc = evaluation.categories["board"], evaluation.categories["disc"]
    assert (board.masks, disc.masks) == (12, 0)
    assert (disc.pixel_auroc, disc.pixel_ap, disc.pixel_f1max, disc.aupro) == (None,) * 4
    assert evaluation.mean.aupro == board.aupro is not None
    pair = [board.image_auroc, disc.image_auroc]
    assert evaluation.mean.image_auroc == np.mean([v for v in pair if v is not None])


def test_decisions_are_counted_and_every_image_is_listed(evaluation: Evaluation) -> None:
    """False rejects and escapes are those of the listed decisions, and each image is listed."""
    assert len(evaluation.scores) == 42
    for name, row in evaluation.categories.items():
        scores = [score for score in evaluation.scores if score.category == name]
        good = [score.decision for score in scores if score.defect == "good"]
        bad = [score.decision for score in scores if score.defect != "good"]
        assert (row.good, row.defect, row.undecided) == (len(good), len(bad), 0)
        assert row.false_rejects == good.count(Decision.FAIL)
        assert row.escapes == bad.count(Decision.PASS)
    assert evaluation.categories["disc"].escapes == 0
    assert evaluation.scores[0].path == "board/test/good/0000.png"


def test_surprise_ranks_parts_of_different_depth(evaluation: Evaluation) -> None:
    """The metric is that of the listed surprises, over parts that took different plans."""
    scores = [score for score in evaluation.scores if score.category == "board"]
    truth = [score.defect != "good" for score in scores]
    surprises = [score.surprise for score in scores if score.surprise is not None]
    expected = ranking_metrics(truth, surprises, "image")
    assert evaluation.ranked_by == "surprise"
    assert {score.plan for score in scores} == {0, 1}
    assert evaluation.categories["board"].image_auroc == expected["image_auroc"]


def test_forced_plans_are_rows_of_their_own(evaluation: Evaluation) -> None:
    """With one plan forced every part takes its steps; one scale changes no ranking."""
    shallow, deep = (evaluation.plans[plan].categories["board"] for plan in (0, 1))
    assert (shallow.mean_steps_good, shallow.mean_steps_defect) == (0, 0)
    assert (deep.mean_steps_good, deep.mean_level_defect) == (2, 4)
    assert shallow.image_auroc == deep.image_auroc
    assert shallow.aupro == pytest.approx(deep.aupro)


def test_without_calibration_the_deepest_plan_ranks_by_raw_score(folder: Path) -> None:
    """Raw scores are compared at one plan only, and the result says so."""
    found = evaluate_on(bundle_of(), Brightness(), folder, categories=["disc"])
    assert (found.ranked_by, found.calibration_id) == ("anomaly_score", None)
    assert "plan 1" in found.note
    assert {score.plan for score in found.scores} == {1}
    assert found.categories["disc"].false_rejects is None
    assert found.categories["disc"].image_auroc == 1
    assert found.note in to_markdown(found)


def test_without_calibration_the_chosen_depth_can_still_be_seen(folder: Path) -> None:
    """Asked for by itself, the graph's own choice is a row beside the forced ones."""
    found = evaluate_on(bundle_of(), Brightness(), folder, categories=["board"], plans=[ADAPTIVE])
    chosen = found.plans[ADAPTIVE].categories["board"]
    assert found.categories["board"].mean_steps_good == 2
    assert chosen.mean_steps_good < 2


def test_no_evidence_is_counted_and_ranks_nowhere(bundle: Bundle, tmp_path: Path) -> None:
    """A part without evidence is UNDECIDED, and the other parts are measured without it."""
    write(tmp_path, "disc", "good", [0] * 5)
    write(tmp_path, "disc", "dent", [100, 100, 255])
    row = evaluate_on(bundle, Brightness(), tmp_path).categories["disc"]
    assert (row.undecided, row.masks, row.image_auroc) == (1, 2, 1)


def test_unequal_image_sizes_are_measured_at_the_input_size(bundle: Bundle, tmp_path: Path) -> None:
    """A picture twice as large, with its mask, measures as the small one does."""
    write(tmp_path, "disc", "good", [0] * 4)
    write(tmp_path, "disc", "dent", [100] * 4)
    small = evaluate_on(bundle, Brightness(), tmp_path)
    for path in tmp_path.rglob("0001*.png"):
        picture = decode_image(path.read_bytes())
        path.write_bytes(encode_png(picture.repeat(2, axis=0).repeat(2, axis=1)))
    mixed = evaluate_on(bundle, Brightness(), tmp_path)
    assert mixed.mean == small.mean
    assert not small.note
    assert mixed.note == (
        f"'disc' has images of 2 sizes, {SIZE}x{SIZE} to {2 * SIZE}x{2 * SIZE}: "
        f"each is stretched to {SIZE}x{SIZE}."
    )


def test_simulator_truth_gives_a_row_per_severity(bundle: Bundle, tmp_path: Path) -> None:
    """With severities beside the images, the mild quartile is measured apart from the severe."""
    write(tmp_path, "disc", "good", [0] * 8)
    write(tmp_path, "disc", "dent", [1, 1, 70, 80, 90, 100, 110, 120])
    lines = [f"disc/test/dent/{i:04d}.png,disc,dent,{i / 8}" for i in range(8)]
    (tmp_path / "truth.csv").write_text("\n".join(["file,category,defect,severity", *lines]))
    found = evaluate_on(bundle, Brightness(), tmp_path).categories["disc"].image_auroc_by_severity
    assert list(found) == ["q1", "q2", "q3", "q4"]
    assert found["q1"] is not None
    assert found["q1"] < 0.9
    assert (found["q2"], found["q3"], found["q4"]) == (1, 1, 1)
    (tmp_path / "truth.csv").write_text("name\nx")
    with pytest.raises(BadData, match=r"truth\.csv"):
        evaluate_on(bundle, Brightness(), tmp_path)


def test_progress_reaches_its_total(bundle: Bundle, folder: Path) -> None:
    """Progress counts every image at every plan once."""
    seen: list[tuple[int, int]] = []
    evaluate_on(bundle, Brightness(), folder, plans=[0], progress=lambda d, t: seen.append((d, t)))
    assert seen == [(i, 84) for i in range(1, 85)]


def test_pictures_are_drawn_for_each_category(bundle: Bundle, folder: Path, tmp_path: Path) -> None:
    """A contact sheet, two images with map and mask to a row, and three charts per category.

    Lines of text stand above each image, at the head and at the foot of a sheet.
    """
    evaluate_on(bundle, Brightness(), folder, plot=tmp_path / "plots")
    names = {path.name for path in (tmp_path / "plots").iterdir()}
    kinds = ("", "_scores", "_depth", "_curves")
    assert names == {f"{name}{kind}.png" for name in ("board", "disc") for kind in kinds}
    sheet = decode_image((tmp_path / "plots" / "board.png").read_bytes())
    assert sheet.shape[1] == 2 * (3 * SIZE + 8) + 12
    line = line_px((SIZE, SIZE))
    assert sheet.shape[0] >= 8 * (line + SIZE) + 2 * line
    assert sheet[:line].min() < 100
    assert sheet[-line:].min() < 100


def test_the_table_has_a_line_per_category_and_the_mean(evaluation: Evaluation) -> None:
    """Markdown for the README, a dash where a metric does not exist."""
    lines = to_markdown(evaluation).splitlines()
    assert len(lines) == 2 + 2 + 1 + 2
    assert lines[0].startswith("| category | I-AUROC |")
    assert lines[3].startswith("| disc | 1.000 ± .000 | 1.000 | 1.000 | – | – | – | – |")
    assert {line.count("|") for line in lines[:5]} == {13}
    assert lines[3].endswith("| 1.5 | 2.0 | 3.8 | 4.0 |")  # calls and levels
    assert (
        lines[-1] == f"brightness (bundle 0123456789ab, {KEY}), substitutions: no network; a toy."
    )


def test_substitutions_go_where_the_numbers_go(evaluation: Evaluation) -> None:
    """They are in the JSON; a bundle that names none is not called the published method."""
    assert evaluation.substitutions == SUBSTITUTED
    bare = evaluation.model_copy(update={"substitutions": ()})
    assert origin(bare).endswith("), substitutions: none named.")


def test_the_error_of_the_mean_is_that_of_independent_categories() -> None:
    """Two errors of .03 and .04 make .025; the mean has none where a category has none."""
    rows = [Row(image_auroc=0.8, image_auroc_se=0.03), Row(image_auroc=0.9, image_auroc_se=0.04)]
    assert mean_row(rows).image_auroc_se == pytest.approx(0.025)
    assert mean_row([*rows, Row()]).image_auroc_se == pytest.approx(0.025)
    assert mean_row([*rows, Row(image_auroc=1.0)]).image_auroc_se is None


def test_the_level_is_the_one_a_finding_ends_with(folder: Path) -> None:
    """A method may learn its level while it steps, as GLAD does; what start said is forgotten."""
    found = evaluate_on(bundle_of(), Closing(), folder, categories=["disc"])
    assert {score.level for score in found.scores} == {5}
    assert found.mean.mean_level_good == found.mean.mean_level_defect == 5


@pytest.mark.parametrize("twin", ["disc", "Disc"])
def test_a_category_named_twice_is_refused(bundle: Bundle, folder: Path, twin: str) -> None:
    """Its images would count twice; a name that differs only in case is the same name."""
    with pytest.raises(BadData, match="one category name") as caught:
        evaluate_on(bundle, Brightness(), folder, categories=["disc", twin])
    assert caught.value.exit_code == ExitCode.BAD_DATA


def test_charts_without_their_library_are_refused_first(
    bundle: Bundle, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An installation that only inspects says what to install, before an image is run."""
    monkeypatch.setitem(sys.modules, "engines.charts", None)
    with pytest.raises(BadConfig, match=r"assayline\[train\]"):
        evaluate_on(bundle, Brightness(), folder, plot=tmp_path / "plots")
    assert not (tmp_path / "plots").exists()


def test_a_category_that_is_not_there_is_refused(bundle: Bundle, folder: Path) -> None:
    """A name without a folder ends in one sentence."""
    with pytest.raises(BadData, match="fabric"):
        evaluate_on(bundle, Brightness(), folder, categories=["fabric"])
