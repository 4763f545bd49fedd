"""The soak's own measure: slopes of series that are known, and a real line for some seconds."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.soak.drawing import draw
from tests.soak.fit import BYTES_PER_FRAME, growth, summary
from tests.soak.running import Look, Soaked, soak

PAGE = 4096
FRAMES = np.arange(1, 401) * 500.0  # 200,000 in 400 looks


def soaked(rss: np.ndarray, descriptors: np.ndarray | None = None) -> Soaked:
    """A run of one role that held so much at each look."""
    opened = np.full(len(rss), 12) if descriptors is None else descriptors
    looks = [
        Look(
            float(at), int(frames), 5_000_000, {"sink": int(held)}, {"sink": int(count)}, (1.0, 2.0)
        )
        for at, (frames, held, count) in enumerate(zip(FRAMES, rss, opened, strict=True))
    ]
    return Soaked(looks, processes=1)


def in_pages(values: np.ndarray) -> np.ndarray:
    """As the system counts memory."""
    return values // PAGE * PAGE


@pytest.mark.parametrize("leak", [0.0, 3.0, 20.0])
def test_a_slope_is_found_among_odd_looks(leak: float) -> None:
    """Noise, pages and a tenth of looks that are far off do not bend it by half a byte."""
    rng = np.random.default_rng(3)
    rss = 60e6 + leak * FRAMES + rng.normal(0, 20_000, len(FRAMES))
    rss[rng.integers(0, len(FRAMES), 40)] += 30e6
    assert growth(FRAMES, in_pages(rss)).per_frame == pytest.approx(leak, abs=0.5)


def test_warming_up_is_no_leak() -> None:
    """What grows at first and then is flat is flat."""
    rss = 60e6 + 30e6 * (1 - np.exp(-FRAMES / 8_000))
    told = summary(soaked(in_pages(rss)))
    assert told["wrongs"] == []
    assert told["rss_bytes"]["sink"]["per_frame"] < 1.0


def test_a_leak_and_an_open_file_are_told() -> None:
    """Each in words that name the role."""
    told = summary(soaked(60e6 + 2 * BYTES_PER_FRAME * FRAMES, 12 + np.arange(400) // 100))
    assert told["wrongs"] == [
        "sink grows by 10.0 bytes per frame",
        "sink has 15 descriptors after 13",
    ]


def test_what_cannot_be_judged_does_not_hold() -> None:
    """Too few looks are no evidence."""
    one = soaked(np.full(400, 60e6))
    one.looks = one.looks[:1]
    assert summary(one)["wrongs"]


def test_frames_without_a_verdict_and_restarts_are_told() -> None:
    """However flat the line is."""
    one = soaked(np.full(400, 60e6))
    one.residual, one.processes = 2, 3
    told = summary(one)
    assert told["wrongs"] == ["2 frames have no verdict", "2 processes were started again"]


def test_a_real_line_is_looked_at_and_drawn(tmp_path: Path) -> None:
    """Every role is seen with its memory and descriptors, and no frame is lost."""
    seen = soak(tmp_path / "line", 300, 1.0, 0.1, {})
    told = summary(seen)
    assert told["frames"] >= 300
    assert (told["residual"], told["restarts"], told["undecided"]) == (0, 0, {})
    assert told["rss_bytes"].keys() == {"ingest", "inspect", "sink", "server"}
    assert told["descriptors"].keys() == told["rss_bytes"].keys()
    assert told["latency_ms"]["p50_last"] > 0
    draw(tmp_path / "soak.png", seen.looks, told)
    assert (tmp_path / "soak.png").stat().st_size > 10_000
