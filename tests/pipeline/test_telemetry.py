"""Facts become Prometheus text and JSON lines; names are declared and labels bounded."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from contextlib import contextmanager

import httpx
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import generate_latest
from prometheus_client.parser import text_string_to_metric_families

from engines.contracts import BadConfig, Decision, Reason
from pipeline.labels import CLOSED, NONE, OPEN_MAX, OTHER, ROLES, Labels
from pipeline.metrics import METRICS, TABLE
from pipeline.telemetry import Facts, facts, serve_metrics

BASE_UNITS = ("_seconds", "_bytes", "_ratio", "_frames", "_steps")
OWN_SCALE = {"surprise", "noise_level"}  # numbers without a unit


@contextmanager
def served(role: str) -> Iterator[str]:
    """The text at /metrics of a process of a role."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with serve_metrics(role, "127.0.0.1", port) as told:
        yield httpx.get(f"http://127.0.0.1:{told}/metrics").text


# -- the table --------------------------------------------------------------------------------


def test_names_say_their_unit_and_counters_end_in_total() -> None:
    """What a chart reads needs no manual: base units, no milliseconds, no percent."""
    for row in TABLE:
        assert row.name.endswith("_total") == (row.kind == "counter"), row.name
        if row.kind == "histogram":
            assert row.name.endswith(BASE_UNITS) or row.name in OWN_SCALE, row.name
        for unit in ("seconds", "bytes", "ratio"):
            bare = row.name.removesuffix("_total")
            assert (row.unit == unit) == bare.endswith(f"_{unit}"), row.name
    assert len(METRICS) == len(TABLE)


def test_every_row_is_whole() -> None:
    """A sentence, known roles, labels with a bound, and edges that rise exactly on histograms."""
    for row in TABLE:
        assert row.meaning.endswith("."), row.name
        assert row.roles, row.name
        assert set(row.roles) <= set(ROLES), row.name
        assert set(row.labels) <= set(CLOSED) | set(OPEN_MAX), row.name
        assert bool(row.buckets) == (row.kind == "histogram"), row.name
        assert list(row.buckets) == sorted(set(row.buckets)), row.name


def test_the_gate_is_an_edge() -> None:
    """Whether a verdict was in time can be read off exactly, whatever the camera's gate."""
    edges = METRICS["verdict_gate_ratio"].buckets
    assert 1 in edges
    assert sum(edge < 1 for edge in edges) >= 8
    assert 1 in METRICS["surprise"].buckets


# -- labels -----------------------------------------------------------------------------------


@given(st.lists(st.text(max_size=80), max_size=80), st.sampled_from(sorted(OPEN_MAX)))
def test_no_text_makes_series_without_end(values: list[str], label: str) -> None:
    """Whatever a frame says, a label has so many values at most, and each looks like a name."""
    labels = Labels()
    seen = {labels.bounded(label, value) for value in values}
    assert len(seen) <= OPEN_MAX[label] + 2
    assert all(value.isascii() and value.replace("-", "").isprintable() for value in seen)
    assert not any(mark in value for value in seen for mark in '"\\\n{}')


def test_what_a_line_names_keeps_its_place() -> None:
    """A flood of foreign recipes cannot push out one that the settings name."""
    labels = Labels()
    labels.expect("recipe", ["thin", "thick"])
    flood = {labels.bounded("recipe", f"made-up-{number}") for number in range(1000)}
    assert len(flood) == OPEN_MAX["recipe"] - 2 + 1
    assert OTHER in flood
    assert labels.bounded("recipe", "thick") == "thick"


def test_a_plant_s_own_words_are_kept() -> None:
    """What the settings name may be any line of text, and is served so that it parses again."""
    words = ['Deckel groß 12"', "a\\b{c}", "-7"]
    told = Facts()
    told.expect(recipe=[*words, "two\nlines", "a" * 65, ""])
    for recipe in [*words, "two\nlines", "a" * 65]:
        told.count("frames_admitted_total", camera="left", recipe=recipe)
    text = generate_latest(told.of_role("ingest")).decode()
    families = {family.name: family for family in text_string_to_metric_families(text)}
    samples = families["assayline_frames_admitted"].samples
    assert {one.labels["recipe"]: one.value for one in samples} == {
        **dict.fromkeys(words, 1.0),
        OTHER: 2.0,
    }


@pytest.mark.parametrize("hostile", ['a"} 1\nevil{x="', "a" * 65, "späße", "<b>", "../x", "a b"])
def test_what_is_no_name_is_other(hostile: str) -> None:
    """Text that is no name is counted, under one value."""
    assert Labels().bounded("recipe", hostile) == OTHER
    told = Facts()
    told.count("frames_admitted_total", camera=hostile, recipe=hostile)
    found = {"camera": OTHER, "recipe": OTHER}
    assert told.registry.get_sample_value("assayline_frames_admitted_total", found) == 1


def test_series_are_remembered_within_their_bounds() -> None:
    """Text without end leaves nothing behind, and a name stands for its own kind every time."""
    told = Facts()
    for number in range(200):
        told.count("frames_admitted_total", camera="left", recipe=f"../{number}")
        told.count("frames_admitted_total", camera="left", recipe=None)
    assert len(told._series) == 1
    with pytest.raises(KeyError):
        told.gauge("frames_admitted_total", 1, camera="left", recipe=None)
    places = ({"recipe": "right", "camera": "left"}, {"recipe": "left", "camera": "right"})
    for number, labels in enumerate(places, 1):
        told.count("frames_admitted_total", number, **labels)
        told.count("frames_admitted_total", number, **dict(reversed(labels.items())))
    name = "assayline_frames_admitted_total"
    assert [told.registry.get_sample_value(name, labels) for labels in places] == [2, 4]


def test_closed_sets_are_the_contract_s() -> None:
    """Every decision and reason has a value of its own; a foreign one and an empty one have one."""
    labels = Labels()
    assert [labels.bounded("decision", one) for one in Decision] == [*Decision]
    assert [labels.bounded("reason", one) for one in Reason] == [*Reason]
    assert labels.bounded("reason", "because") == OTHER
    assert labels.bounded("reason", None) == NONE == labels.bounded("recipe", "")


# -- what is served ---------------------------------------------------------------------------


def test_facts_are_served_as_prometheus_text() -> None:
    """A counter, a gauge and a histogram come back over HTTP from the port asked for."""
    place = {"camera": "seen", "recipe": "thin"}
    facts.count("verdicts_total", decision="PASS", reason=None, **place)
    facts.gauge("frames_open", 3, camera="seen")
    facts.observe("verdict_seconds", 0.0075, **place)
    with served("sink") as text:
        counted = 'camera="seen",decision="PASS",reason="none",recipe="thin"'
        assert f"assayline_verdicts_total{{{counted}}} 1.0" in text
        assert 'assayline_frames_open{camera="seen"} 3.0' in text
        bucket = 'assayline_verdict_seconds_bucket{camera="seen",le="%s",recipe="thin"} %s'
        assert bucket % ("0.005", "0.0") in text
        assert bucket % ("0.01", "1.0") in text
        assert "_created" not in text


@pytest.mark.parametrize("role", ROLES)
def test_a_role_serves_its_own_rows(role: str) -> None:
    """Nothing stands there at 0 that another process counts, and nothing of its own is missing."""
    with served(role) as text:
        found = {family.name: family for family in text_string_to_metric_families(text)}
    rows = {row.name.removesuffix("_total"): row for row in TABLE if role in row.roles}
    assert {name.removeprefix("assayline_") for name in found} == set(rows)
    for name, row in rows.items():
        family = found[f"assayline_{name}"]
        assert family.type == row.kind
        if not row.name.startswith("process_"):
            assert family.documentation == row.meaning


def test_port_zero_serves_nothing() -> None:
    """Metrics are off unless asked for."""
    with serve_metrics("sink", "127.0.0.1", 0) as port:
        assert port == 0


def test_a_port_that_is_taken_is_told() -> None:
    """In one sentence that names the setting."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        refused = pytest.raises(BadConfig, match=r"set metrics\.port")
        with refused, serve_metrics("sink", "127.0.0.1", port):
            pass


def test_an_undeclared_fact_is_an_error() -> None:
    """A misspelt name, a foreign label or the wrong kind cannot make a new series."""
    with pytest.raises(KeyError):
        Facts().count("verdict_total")
    with pytest.raises(KeyError):
        Facts().gauge("verdicts_total", 1)
    with pytest.raises(ValueError, match="label"):
        Facts().count("verdicts_stale_total", frame_id="left/1-1")
    with pytest.raises(ValueError, match="label"):
        Facts().count("verdicts_stale_total")


def test_events_are_json_lines_from_the_level_on(capsys: pytest.CaptureFixture[str]) -> None:
    """One object per line, with role, level and time; what is below the level is not written."""
    told = Facts()
    told.speak_as("sink", "info")
    told.event("verdict", frame_id="left/1-1", decision="FAIL")
    told.event("verdict", level="debug", frame_id="left/1-2")
    captured = capsys.readouterr()
    [line] = captured.err.splitlines()
    event = json.loads(line)
    assert captured.out == ""
    assert event.items() >= {"role": "sink", "event": "verdict", "level": "info"}.items()
    assert event["frame_id"] == "left/1-1"
    assert event["timestamp"].endswith("Z")
