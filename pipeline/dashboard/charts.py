"""ECharts options of the charts; their colours read on the dark and on the light page."""

from __future__ import annotations

from functools import lru_cache
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
import orjson

from pipeline.dashboard.texts import ENGLISH, Speech

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from pipeline.dashboard.good import GoodParts
    from pipeline.dashboard.view import LineView, RatePoint

BINS = 60
KEPT = 4  # drawings: two languages, dark and light
INK, GRID = "ink", "rgba(138,153,169,.22)"  # ink: see ``inked``
INKS = {True: "#a3b1bf", False: "#4c5866"}  # by whether the page is dark
COLOURS = {"PASS": "#3fb984", "FAIL": "#f0595f", "UNDECIDED": "#e5a63b"}
PATTERNS = {  # a second signal beside colour: symbol and pattern of each band
    "PASS": None,
    "FAIL": {"symbol": "rect", "dashArrayX": [1, 0], "dashArrayY": [3, 3], "rotation": 0.8},
    "UNDECIDED": {"symbol": "circle", "symbolSize": 0.6},
}


def inked(options: Any, is_dark: bool) -> Any:  # noqa: ANN401 - a tree of JSON
    """The same options with words in a colour that reads on the page."""
    match options:
        case dict():
            return {key: inked(value, is_dark) for key, value in options.items()}
        case list():
            return [inked(value, is_dark) for value in options]
        case str() if options == INK:
            return INKS[is_dark]
        case _:
            return options


@lru_cache(maxsize=KEPT)
def depth_drawn(view: LineView, say: Speech, is_dark: bool) -> orjson.Fragment:
    """The histogram of a view as JSON, made once for all visitors of a language."""
    return orjson.Fragment(orjson.dumps(inked(depth_options(view.depth, say), is_dark)))


@lru_cache(maxsize=KEPT)
def rates_drawn(view: LineView, is_dark: bool) -> orjson.Fragment:
    """The rates of a view as JSON, made once for all visitors."""
    return orjson.Fragment(orjson.dumps(inked(rate_options(view.rates), is_dark)))


def _axis(*, has_ends: bool = True, **more: object) -> dict[str, Any]:
    """An axis; without its ends where these are no round numbers or would not fit."""
    ends = {} if has_ends else {"showMinLabel": False, "showMaxLabel": False}
    axis = {
        "axisLabel": {"color": INK, "fontSize": 15, "hideOverlap": True, **ends},
        "axisLine": {"lineStyle": {"color": GRID}},
        "axisTick": {"show": False},
        "splitLine": {"lineStyle": {"color": GRID}},
        "nameTextStyle": {"color": INK, "fontSize": 14},
    }
    return axis | more


def depth_options(depth: Sequence[tuple[int, int]], say: Speech = ENGLISH) -> dict[str, Any]:
    """Histogram of denoise steps; every step count from 0 to the deepest has its place."""
    return {
        "animation": False,
        "grid": {"left": 6, "right": 12, "top": 26, "bottom": 4, "containLabel": True},
        "tooltip": {"trigger": "axis"},
        "xAxis": _axis(type="category", data=[str(steps) for steps, _ in depth]),
        "yAxis": _axis(type="value", minInterval=1, splitNumber=3),
        "series": [
            {
                "name": say("parts"),
                "type": "bar",
                "data": [number for _, number in depth],
                "itemStyle": {"color": "#5a9cf0", "borderRadius": [4, 4, 0, 0]},
                "barCategoryGap": "22%",
            }
        ],
    }


def rate_options(rates: Sequence[RatePoint]) -> dict[str, Any]:
    """Parts per minute over time, stacked by decision."""
    bands = {
        "PASS": [(point.at_ns, point.passed) for point in rates],
        "FAIL": [(point.at_ns, point.failed) for point in rates],
        "UNDECIDED": [(point.at_ns, point.undecided) for point in rates],
    }
    return {
        "animation": False,
        "grid": {"left": 6, "right": 14, "top": 34, "bottom": 4, "containLabel": True},
        "legend": {"top": 0, "right": 8, "textStyle": {"color": INK, "fontSize": 15}},
        "tooltip": {"trigger": "axis"},
        "xAxis": _axis(type="time", splitLine={"show": False}, splitNumber=4, has_ends=False),
        "yAxis": _axis(type="value", splitNumber=3),
        "series": [_band(name, points) for name, points in bands.items()],
    }


def _band(name: str, points: Sequence[tuple[int, float]]) -> dict[str, Any]:
    decal = PATTERNS[name]
    return {
        "name": name,
        "type": "line",
        "stack": "rate",
        "showSymbol": False,
        "lineStyle": {"width": 1.5},
        "itemStyle": {"color": COLOURS[name]} | ({"decal": decal} if decal else {}),
        "areaStyle": {"opacity": 0.5} | ({"decal": decal} if decal else {}),
        "data": [[at_ns // 1_000_000, round(rate, 2)] for at_ns, rate in points],
    }


def score_options(found: GoodParts, say: Speech) -> dict[str, Any]:
    """Good parts over the raw score; the threshold and the part stand in it as lines with words."""
    middles = [(a + b) / 2 for a, b in pairwise(found.edges)]
    marks = []  # dashes last, so that both are seen where they meet
    if found.score is not None:
        at = found.edges[-2] if found.is_beyond else found.score
        marks.append(_mark(at, say("this_part"), "#5a9cf0", "solid"))
    if found.limit is not None:
        marks.append(_mark(found.limit, say("threshold"), COLOURS["FAIL"], "dashed"))
    return {
        "animation": False,
        "grid": {"left": 6, "right": 46, "top": 48, "bottom": 26, "containLabel": True},
        "xAxis": _axis(
            type="value",
            has_ends=False,
            min=found.edges[0],
            max=found.edges[-1],
            name=say("score_axis"),
            nameLocation="middle",
            nameGap=28,
            splitNumber=4,
            splitLine={"show": False},
        ),
        "yAxis": _axis(type="value", splitNumber=3),
        "series": [
            {
                "name": say("good_parts"),
                "type": "line",
                "step": "middle",
                "showSymbol": False,
                "lineStyle": {"width": 1.5, "color": COLOURS["PASS"]},
                "areaStyle": {"opacity": 0.45, "color": COLOURS["PASS"]},
                "data": [[x, round(y, 3)] for x, y in zip(middles, found.counts, strict=True)],
                "markLine": {"symbol": "none", "data": marks, "silent": True},
            }
        ],
    }


def _mark(at: float, text: str, colour: str, kind: str) -> dict[str, Any]:
    """A line across a chart with its words above it, each kind at a height of its own."""
    return {
        "xAxis": at,
        "lineStyle": {"color": colour, "width": 3, "type": kind},
        "label": {
            "formatter": text,
            "color": INK,
            "fontSize": 15,
            "position": "end",
            "distance": [0, 22 if kind == "dashed" else 4],
        },
    }


def flip_options(
    surprises: NDArray[np.float64], old: float, new: float, say: Speech
) -> dict[str, Any]:
    """Recorded parts by surprise, with the threshold as it is and as it might be."""
    top = max(2.5, 1.3 * max(old, new))
    counts, edges = np.histogram(np.minimum(surprises, top), bins=BINS, range=(0, top))
    middles = (edges[:-1] + edges[1:]) / 2
    return {
        "animation": False,
        "grid": {"left": 6, "right": 46, "top": 48, "bottom": 26, "containLabel": True},
        "xAxis": _axis(
            type="value",
            min=0,
            max=round(top, 2),
            name=say("surprise_axis", top=say.number(top)),
            nameLocation="middle",
            nameGap=28,
            splitLine={"show": False},
        ),
        "yAxis": _axis(type="value", minInterval=1, splitNumber=3),
        "series": [
            {
                "name": say("parts"),
                "type": "line",
                "step": "middle",
                "showSymbol": False,
                "lineStyle": {"width": 1.5, "color": "#5a9cf0"},
                "areaStyle": {"opacity": 0.45, "color": "#5a9cf0"},
                "data": [[x, int(y)] for x, y in zip(middles.tolist(), counts, strict=True)],
                "markLine": {
                    "symbol": "none",
                    "silent": True,
                    "data": [
                        _mark(new, say("new_threshold"), COLOURS["FAIL"], "solid"),
                        _mark(old, say("now_is"), INK, "dashed"),
                    ],
                },
            }
        ],
    }
