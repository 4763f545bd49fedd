"""Laws of the bench of the page: what a turn is, what counts in it, and real visitors of a page."""

from __future__ import annotations

from pathlib import Path

import pytest

from engines.contracts import EngineFault
from pipeline.bench.dashboard import LEAST, Seen, Took, Turn, results_of
from pipeline.bench.stubbed import BAD_FROM, CATEGORY, frame_s, write_parts, write_stub_bundle
from pipeline.bench.visitors import visiting
from tests.pipeline.pages import free_port, served
from tests.tiny_line import write_line

SECOND_NS = 10**9


def seen(with_ms: float, without_ms: float) -> Seen:
    """Two turns of each kind; verdicts between them, a hundred times slower, count for neither."""
    found = Seen()
    for number, is_watched in enumerate((False, True, True, False)):
        begin = 2 * number * SECOND_NS
        took = with_ms if is_watched else without_ms
        found.turns.append(Turn(begin, begin + SECOND_NS, is_watched, 0.25, 1, 1.0))
        for at in range(LEAST):
            found.decided.append((begin + at, Took(took, took / 2)))
            found.decided.append((begin + SECOND_NS + at, Took(100 * took, 100 * took)))
    return found


def test_only_what_was_decided_in_a_turn_counts() -> None:
    """A page that costs a tenth has the ratio 10/11, its own time stands beside one core."""
    found = {one.name: one for one in results_of(seen(11.0, 10.0))}
    quantiles = {"p50", "p99", "worker_p50", "worker_p99"}
    assert set(found) == {f"dashboard.{name}" for name in (*quantiles, "cpu")}
    assert found["dashboard.p99"].value == 11
    assert found["dashboard.worker_p99"].value == 5.5
    assert found["dashboard.p99"].ratio == pytest.approx(10 / 11)
    assert found["dashboard.cpu"].ratio == 4


def test_a_turn_without_enough_verdicts_has_no_p99() -> None:
    """Rather no figure than one of a handful."""
    with pytest.raises(EngineFault, match="too slow"):
        Seen().quantile(Turn(0, 1, is_watched=False), 0.99)


def test_a_stubbed_bundle_can_be_judged(tmp_path: Path) -> None:
    """It opens as any other, is calibrated, and its parts are files."""
    from engines.bundle import open_bundle

    bundle = open_bundle(write_stub_bundle(tmp_path / "bundle").folder)
    calibration = bundle.calibration()
    assert calibration is not None
    entry = calibration.entries["stub:f32"][CATEGORY]
    assert bundle.category_name(CATEGORY) == CATEGORY
    assert entry.evidence.good > 0
    assert len(list(write_parts(tmp_path / "parts", 6, 3).iterdir())) == 6
    assert 0 < frame_s() < 1
    assert BAD_FROM > 0


def test_visitors_are_told_what_browsers_are(tmp_path: Path) -> None:
    """Each holds a socket of a real page and gets its updates."""
    pytest.importorskip("nicegui", reason="the extra 'dashboard' is not installed")
    redis = {"url": f"unix://{tmp_path}/none.sock"}
    yaml = write_line(tmp_path, tmp_path / "none", redis=redis)
    with (
        served(yaml, free_port()) as address,
        visiting(f"{address}/", 3) as crowd,
    ):
        import time

        until_s = time.monotonic() + 20
        while crowd.updates < 3:
            assert time.monotonic() < until_s, "the page told them nothing"
            time.sleep(0.05)


def test_a_page_that_is_not_there_turns_visitors_away() -> None:
    """In one sentence, at once."""
    with (
        pytest.raises(EngineFault, match="turned away"),
        visiting(f"http://127.0.0.1:{free_port()}/", 2),
    ):
        pass
