"""Expressions of Prometheus, read just so far that a wrong name in one cannot pass.

No parser of PromQL is at hand on every machine: this one takes out names, labels, values, groupings
and ranges, and holds them against the table of metrics and the recording rules.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pipeline.labels import CLOSED
from pipeline.metrics import METRICS, PREFIX

PROMETHEUS = Path(__file__).parents[1] / "docker" / "prometheus"
FROM_PROMETHEUS = {"up": {"job", "instance"}, "ALERTS": {"alertname", "alertstate"}}
FROM_SCRAPE = {"job", "instance"}  # labels that Prometheus adds to every series
WORD = re.compile(
    r"""(?P<text>"[^"]*")|(?P<range>\[[^\]]*\])|(?P<number>\b\d[\w.]*)|(?P<name>[a-zA-Z_:][\w:]*)"""
)
GROUPED = re.compile(r"\b(by|without|on|ignoring)\s*\(([^)]*)\)")
SELECTOR = re.compile(r"([a-zA-Z_:][\w:]*)\s*\{([^}]*)\}")
MATCHER = re.compile(r"\s*([a-zA-Z_]\w*)\s*(=~|!~|!=|=)\s*\"([^\"]*)\"\s*")
WORDS = {
    "and", "or", "unless", "by", "without", "on", "ignoring", "bool", "offset",
    "group_left", "group_right",
}  # fmt: skip
FUNCTIONS = {
    "sum", "min", "max", "avg", "count", "rate", "increase", "absent", "time", "scalar", "round",
    "clamp_min", "histogram_quantile", "label_values",
}  # fmt: skip


def load(path: Path) -> Any:  # noqa: ANN401 - a YAML document
    """A YAML file."""
    return yaml.safe_load(path.read_text("utf-8"))


RULES: list[dict[str, Any]] = [
    rule for group in load(PROMETHEUS / "assayline.rules.yml")["groups"] for rule in group["rules"]
]
ALERTS = {rule["alert"]: rule for rule in RULES if "alert" in rule}
RECORDS = {rule["record"]: rule for rule in RULES if "record" in rule}


def labels_of(name: str) -> set[str] | None:
    """Labels that a series of this name has; None where no such series exists."""
    if name in FROM_PROMETHEUS:
        return FROM_PROMETHEUS[name]
    if name in RECORDS:
        return labels_kept(RECORDS[name]["expr"])
    bare, le = name.removeprefix(PREFIX), set[str]()
    base = re.sub(r"_(bucket|sum|count)$", "", bare)
    if base != bare and base in METRICS and METRICS[base].kind == "histogram":
        bare, le = base, {"le"} if name.endswith("_bucket") else set()
    if not name.startswith(PREFIX) or bare not in METRICS:
        return None
    if METRICS[bare].kind == "histogram" and bare == name.removeprefix(PREFIX):
        return None  # a histogram has no series of its own name
    return set(METRICS[bare].labels) | le | FROM_SCRAPE


def labels_kept(expr: str) -> set[str]:
    """What a recording rule's series are told apart by."""
    grouped = {label.strip() for _, inner in GROUPED.findall(expr) for label in inner.split(",")}
    return grouped - {"le"}


def bare(expr: str) -> str:
    """An expression without comments and label matchers."""
    return re.sub(r"\{[^}]*\}", "", re.sub(r"#.*", "", expr))


def names_in(expr: str) -> Iterator[str]:
    """Names of series in an expression."""
    flat = GROUPED.sub(" ", bare(expr))
    for word in WORD.finditer(flat):
        name = word["name"]
        if name and name not in WORDS | FUNCTIONS and not name.startswith("$"):
            yield name


def check_expression(expr: str) -> None:
    """Balanced, every name a metric or a rule, every label one that its series has."""
    for opened, closed in ("()", "[]", "{}"):
        assert expr.count(opened) == expr.count(closed), expr
    names = list(names_in(expr))
    assert names, f"no series in {expr}"
    for name in names:
        assert labels_of(name) is not None, f"{name} is no metric: {expr}"
    known = set().union(*(labels_of(name) or set() for name in names))
    for _, inner in GROUPED.findall(bare(expr)):
        assert {label.strip() for label in inner.split(",")} <= known, expr
    for name, inner in SELECTOR.findall(expr):
        for label, _, value in MATCHER.findall(inner):
            assert label in (labels_of(name) or set()), f"{name} has no {label}: {expr}"
            check_values(label, value)
    check_ranges(expr)


def check_values(label: str, value: str) -> None:
    """What is asked of a closed label is one of its values."""
    if label in CLOSED and "$" not in value:
        assert set(value.split("|")) <= CLOSED[label] | {"none"}, f"{label} is never {value}"


def check_ranges(expr: str) -> None:
    """Counters are read as rates, gauges as they are."""
    flat = re.sub(r"\{[^}]*\}", "", re.sub(r"#.*", "", expr))
    for name in names_in(expr):
        if not name.startswith(PREFIX):
            continue
        counts = re.sub(r"_(bucket|sum|count)$", "", name) != name or name.endswith("_total")
        for match in re.finditer(rf"(\w+)\(\s*{re.escape(name)}\b(?P<range>\[[^\]]*\])?", flat):
            ranged = match[1] in {"rate", "increase"} and match["range"] is not None
            assert ranged == counts or match[1] == "label_values", expr
        if counts and "label_values" not in expr:
            assert re.search(rf"(rate|increase)\(\s*{re.escape(name)}\[", flat), expr
