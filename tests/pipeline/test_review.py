"""Laws of review labels: appended, read again, never lost, exported where nothing can escape."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest

from engines.contracts import BadConfig, BadData, Decision, Reason, Verdict
from engines.dataset import good_items, load_model_input
from engines.images import encode_png
from pipeline.config import load_line
from pipeline.outputs.archive import Archive
from pipeline.review import LABELS, ReviewLabels
from pipeline.review_export import Exported, export_labels
from pipeline.stream import VerdictDelivery
from tests.tiny_line import CATEGORY, write_line


def verdict(number: int, decision: Decision = Decision.FAIL, **more: object) -> Verdict:
    """A part that did not pass."""
    reason = Reason.DEADLINE if decision is Decision.UNDECIDED else None
    known = {"frame_id": f"left/1-{number}", "camera": "left", "captured_ns": 1, "decided_ns": 2}
    told = {"decision": decision, "reason": reason, "category": CATEGORY}
    return Verdict.model_validate(known | told | more)


def test_labels_survive_a_restart_and_the_newest_counts(tmp_path: Path) -> None:
    """Another process reads what was said, and the answer that was given last."""
    labels = ReviewLabels(tmp_path)
    labels.add(verdict(1), "agree", "Ada")
    labels.add(verdict(2), "unsure", "Ada")
    labels.add(verdict(1), "false_reject", "Ben")
    again = ReviewLabels(tmp_path)
    found = again.of("left/1-1")
    assert found is not None
    assert (found.answer, found.who) == ("false_reject", "Ben")
    assert len(again.newest()) == 2
    assert len((tmp_path / LABELS).read_text().splitlines()) == 3
    assert again.of("left/1-9") is None


@pytest.mark.parametrize("torn", [b'{"frame_id": "left/1-', b"\xff\xfe", b"{}", b"null"])
def test_a_torn_line_costs_itself_alone(tmp_path: Path, torn: bytes) -> None:
    """What was said before and after a crash is kept."""
    labels = ReviewLabels(tmp_path)
    labels.add(verdict(1), "agree", "Ada")
    with (tmp_path / LABELS).open("ab") as file:
        file.write(torn)
    again = ReviewLabels(tmp_path)
    again.add(verdict(2), "agree", "Ada")
    assert set(again.newest()) == set(ReviewLabels(tmp_path).newest()) == {"left/1-1", "left/1-2"}


def test_what_cannot_be_kept_is_said(tmp_path: Path) -> None:
    """Nobody believes that a label is kept that is not."""
    (tmp_path / LABELS).mkdir()
    with pytest.raises(BadConfig, match="cannot be written"):
        ReviewLabels(tmp_path).add(verdict(1), "agree", "Ada")


def test_many_people_may_answer_at_once(tmp_path: Path) -> None:
    """Lines are whole whoever writes them."""
    labels = ReviewLabels(tmp_path)

    def answer(person: int) -> None:
        for number in range(20):
            labels.add(verdict(100 * person + number), "agree", f"p{person}")

    people = [threading.Thread(target=answer, args=(person,)) for person in range(4)]
    for one in people:
        one.start()
    for one in people:
        one.join()
    assert len(ReviewLabels(tmp_path).newest()) == 80


def reviewed_line(folder: Path, *answers: tuple[Verdict, str]) -> Path:
    """A line whose archive holds these parts, and what people said of them."""
    folder.mkdir(exist_ok=True)
    line = write_line(folder, folder / "no-bundle", sinks={"archive": {}})
    archive, labels = Archive(folder / "run" / "archive", 10**9), ReviewLabels(folder / "run")
    for one, answer in answers:
        picture = encode_png(np.full((16, 16, 3), 77, np.uint8))
        delivery = VerdictDelivery("left", "1-1", one, b"", picture)
        archive.act(delivery, threading.Event())
        labels.add(one, answer, "Ada")  # type: ignore[arg-type]
    return line


def test_false_rejects_become_good_images(tmp_path: Path) -> None:
    """In the layout that calibrate and train read, pixel for pixel what the model saw."""
    line = reviewed_line(
        tmp_path,
        (verdict(1), "false_reject"),
        (verdict(2), "agree"),
        (verdict(3), "unsure"),
        (verdict(4, Decision.UNDECIDED), "agree"),
    )
    done = export_labels(load_line(line), tmp_path / "out")
    assert done == Exported(good=1, rejects=1, unsure=2, gone=0)
    (item,) = good_items(tmp_path / "out", CATEGORY)
    assert (load_model_input(item, (16, 16)) == 77).all()
    assert (tmp_path / "out" / CATEGORY / "test" / "reject" / "left-1-2.png").exists()
    with pytest.raises(BadData, match="not empty"):
        export_labels(load_line(line), tmp_path / "out")


@pytest.mark.parametrize("category", ["../../../up", "/etc/x", "..", "a/b", "<b>x</b>", ""])
def test_no_category_leads_out_of_the_folder(tmp_path: Path, category: str) -> None:
    """A hostile name is a folder called unknown."""
    line = reviewed_line(tmp_path / "in", (verdict(1, category=category), "false_reject"))
    export_labels(load_line(line), tmp_path / "out")
    files = [path.relative_to(tmp_path) for path in tmp_path.rglob("*1-1.png")]
    assert files == [Path("out", "unknown", "train", "good", "left-1-1.png")]


def test_a_forged_label_reads_no_other_file(tmp_path: Path) -> None:
    """Whoever writes into the labels reaches nothing outside the archive."""
    line = reviewed_line(tmp_path)
    (tmp_path / "secret.picture.png").write_bytes(b"secret")
    with (tmp_path / "run" / LABELS).open("w") as file:
        for frame_id in ("../../secret", "left/../../secret", "/etc/passwd"):
            said = '"answer": "false_reject", "who": "x", "at_ns": 1, "decision": "FAIL"'
            file.write(f'{{"frame_id": "{frame_id}", {said}}}\n')
    done = export_labels(load_line(line), tmp_path / "out")
    assert done == Exported(good=0, rejects=0, unsure=0, gone=3)
