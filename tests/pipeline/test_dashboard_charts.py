"""Laws of what the charts of the pages hold."""

from __future__ import annotations

import orjson

from pipeline.dashboard.charts import depth_drawn, depth_options, inked, rate_options, score_options
from pipeline.dashboard.good import GoodParts
from pipeline.dashboard.texts import ENGLISH, Speech
from pipeline.dashboard.view import LineState, LineView


def test_an_axis_shows_no_number_that_is_not_round() -> None:
    """Ends of an axis that follow the data carry no label: it would have all digits of a float."""
    good = GoodParts((0.1, 0.2, 0.314159265358979), (3.0, 1.0), 4, 0.2, 0.25, is_beyond=False)
    for options in (score_options(good, ENGLISH), rate_options(())):
        label = options["xAxis"]["axisLabel"]
        assert (label["showMinLabel"], label["showMaxLabel"]) == (False, False)


def test_the_threshold_is_seen_where_the_part_lies_on_it() -> None:
    """Dashes are drawn over the line of the part, never under it."""
    good = GoodParts((0.1, 0.2, 0.3), (3.0, 1.0), 4, 0.2, 0.2, is_beyond=False)
    marks = score_options(good, ENGLISH)["series"][0]["markLine"]["data"]
    assert [mark["lineStyle"]["type"] for mark in marks] == ["solid", "dashed"]


def test_a_chart_is_drawn_once_for_all_who_see_the_same() -> None:
    """Visitors of one language and brightness share a drawing; it holds the options as JSON."""
    view = LineView("demo", 0, LineState.RUNNING, depth=((0, 2), (1, 5)))
    drawn = depth_drawn(view, ENGLISH, True)
    assert depth_drawn(view, Speech("en"), True) is drawn
    assert depth_drawn(view, Speech("de"), True) is not drawn
    assert depth_drawn(view, ENGLISH, False) is not drawn
    assert orjson.loads(orjson.dumps(drawn)) == inked(depth_options(view.depth, ENGLISH), True)
