"""Laws of what watches a line: rules, their tests, targets and dashboards name what exists.

Where ``promtool`` is found it has the last word; without it the same files are checked by parsing.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from pipeline.config import load_line
from pipeline.metrics import METRICS, PREFIX
from tests.promql import (
    ALERTS,
    MATCHER,
    PROMETHEUS,
    RULES,
    check_expression,
    check_values,
    labels_of,
    load,
    names_in,
)

ROOT = Path(__file__).parents[1]
DOCKER = ROOT / "docker"
BOARDS = sorted((DOCKER / "grafana" / "dashboards").glob("*.json"))
SEVERITIES = {"critical", "warning"}
DURATION = re.compile(r"\d+(s|m|h|d)")
TESTS: list[dict[str, Any]] = load(PROMETHEUS / "assayline.test.yml")["tests"]


# -- the reader itself ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong",
    [
        "assayline_verdict_total",
        "sum(rate(assayline_verdicts_total[5m])",
        "rate(assayline_frames_open[5m])",
        "assayline_verdicts_total",
        "sum by (frame_id) (assayline_frames_open)",
        'assayline_frames_open{recipe="thin"}',
        'rate(assayline_verdicts_total{decision="FAILED"}[5m])',
        "rate(assayline_verdict_seconds[5m])",
        "camera:assayline_nothing:ratio",
        "up == 0 and assayline_latency_ms > 3",
    ],
)
def test_a_wrong_expression_is_seen(wrong: str) -> None:
    """A foreign name, label or value, a counter read raw, a gauge as a rate, an open bracket."""
    with pytest.raises(AssertionError):
        check_expression(wrong)


# -- rules ------------------------------------------------------------------------------------


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("alert") or rule.get("record"))
def test_a_rule_asks_for_what_is_served(rule: dict[str, Any]) -> None:
    """Its expression names metrics of the table, with labels and values that they have."""
    check_expression(rule["expr"])


@pytest.mark.parametrize("name", sorted(ALERTS))
def test_an_alert_is_whole(name: str) -> None:
    """It waits, has a severity, says what is wrong in one line and what to do; names are known."""
    alert = ALERTS[name]
    assert set(alert) == {"alert", "expr", "for", "labels", "annotations"}
    assert DURATION.fullmatch(alert["for"])
    assert alert["labels"].keys() == {"severity"}
    assert alert["labels"]["severity"] in SEVERITIES
    assert alert["annotations"].keys() == {"summary", "description"}
    known = set().union(*(labels_of(one) or set() for one in names_in(alert["expr"])))
    for text in alert["annotations"].values():
        assert text.strip()
        for field in re.findall(r"{{(.+?)}}", text):
            assert re.fullmatch(r" \$value( \| humanize(Percentage|Duration))? ", field) or (
                field.strip().removeprefix("$labels.") in known
            ), field


def test_everything_asked_for_has_an_alert() -> None:
    """Camera, time, ledger, promise, memory, workers, disk."""
    wanted = {
        "CameraDown", "NotOnTime", "PartsUnaccounted", "FalseRejectsAbovePromise",
        "ServerMemoryNearLimit", "WorkerNotBeating", "WorkersMissing", "DiskNearlyFull",
    }  # fmt: skip
    assert wanted <= set(ALERTS)


# -- tests of rules ---------------------------------------------------------------------------


def test_every_alert_is_tested_firing_and_silent() -> None:
    """The unit tests let each alert fire once, and see it wait or stay away once."""
    seen: dict[str, set[bool]] = {}
    for test in TESTS:
        for case in test.get("alert_rule_test", []):
            seen.setdefault(case["alertname"], set()).add(bool(case["exp_alerts"]))
    assert set(seen) == set(ALERTS)
    assert {name for name, fired in seen.items() if True not in fired} == set()
    assert {name for name, fired in seen.items() if False not in fired} <= {"LineNotSeen"}


@pytest.mark.parametrize("test", TESTS, ids=lambda test: test["name"])
def test_recorded_series_could_be_ours(test: dict[str, Any]) -> None:
    """Series of a unit test have names and labels of the table, its texts are the rules'."""
    for series in test["input_series"]:
        name, inner = re.fullmatch(r"([\w:]+)\{(.*)\}", series["series"]).groups()  # type: ignore[union-attr]
        labels = {label: value for label, _, value in MATCHER.findall(inner)}
        assert labels.keys() <= (labels_of(name) or set()), name
        for label, value in labels.items():
            check_values(label, value)
        assert re.fullmatch(r"([\d.]+[+-][\d.]+x\d+ ?)+", series["values"])
    for case in test.get("alert_rule_test", []):
        for expected in case["exp_alerts"]:
            check_expected(ALERTS[case["alertname"]], expected)


def check_expected(alert: dict[str, Any], expected: dict[str, Any]) -> None:
    """The expected alert is the rule's: its severity, and its texts with the blanks filled."""
    labels = expected["exp_labels"]
    assert labels["severity"] == alert["labels"]["severity"]
    for key, text in alert["annotations"].items():
        filled = re.sub(r"{{ \$labels\.(\w+) }}", lambda found: labels[found[1]], text)
        pattern = re.sub(r"\\{\\{\\ \\\$value.*?\\}\\}", r"[\\d.]+(%|m 0s)?", re.escape(filled))
        assert re.fullmatch(pattern, expected["exp_annotations"][key]), key


@pytest.fixture(scope="module")
def promtool() -> str:
    """Prometheus' own checker."""
    found = shutil.which("promtool")
    if found is None:
        pytest.skip("promtool is not installed; it comes with the package prometheus")
    return found


def run(*words: str) -> None:
    """A command that has to end well."""
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_promtool_takes_the_rules(promtool: str) -> None:
    """Prometheus itself parses the rules."""
    rules = PROMETHEUS / "assayline.rules.yml"
    run(promtool, "check", "rules", str(rules))


def test_promtool_proves_the_rules(promtool: str) -> None:
    """Against recorded series every alert fires when it should, and says what it should."""
    tests = PROMETHEUS / "assayline.test.yml"
    run(promtool, "test", "rules", str(tests))


# -- targets ----------------------------------------------------------------------------------


def test_prometheus_asks_every_process_where_it_answers(monkeypatch: pytest.MonkeyPatch) -> None:
    """Targets are services of the compose file, at the ports that the line's settings give them."""
    monkeypatch.delenv("ASSAYLINE_REDIS__PASSWORD", raising=False)
    services = load(DOCKER / "compose.yaml")["services"]
    metrics, jobs = load_line(DOCKER / "line.yaml").metrics, {}
    settings = load(PROMETHEUS / "prometheus.yml")
    for job in settings["scrape_configs"]:
        static = [t for one in job.get("static_configs", []) for t in one["targets"]]
        looked_up = job.get("dns_sd_configs", [])
        named = [f"{name}:{one['port']}" for one in looked_up for name in one["names"]]
        jobs[job["job_name"]] = static + named
        assert job["authorization"]["credentials_file"].startswith("/run/secrets/")
    assert {target.split(":")[0] for targets in jobs.values() for target in targets} == {
        name for name, service in services.items() if service["image"].startswith("assayline-")
    }
    ports = {name: [int(target.split(":")[1]) for target in found] for name, found in jobs.items()}
    assert ports["assayline-sink"] == [metrics.port_of("sink")]
    assert ports["assayline-inspect"] == [metrics.port_of("inspect")]
    assert ports["assayline-ingest"] == [metrics.port_of("ingest", n) for n in (0, 1)]
    assert ports["assayline-dashboard"] == [metrics.port_of("dashboard")]
    mounts = services["prometheus"]["volumes"]
    places = {mount.split(":")[1] for mount in mounts}
    assert all(Path(glob).match("/etc/prometheus/rules/*.yml") for glob in settings["rule_files"])
    assert {"/etc/prometheus/prometheus.yml", "/etc/prometheus/rules/assayline.rules.yml"} <= places


# -- dashboards -------------------------------------------------------------------------------


@pytest.fixture(params=BOARDS, ids=lambda path: path.stem)
def board(request: pytest.FixtureRequest) -> dict[str, Any]:
    """One of the dashboards."""
    loaded: dict[str, Any] = json.loads(request.param.read_text("utf-8"))
    return loaded


def test_a_dashboard_asks_for_what_is_served(board: dict[str, Any]) -> None:
    """Every expression names metrics of the table, and only variables of the dashboard."""
    variables = {one["name"] for one in board["templating"]["list"]}
    queries = [one["query"]["query"] for one in board["templating"]["list"]]
    targets = [target for panel in board["panels"] for target in panel.get("targets", [])]
    exprs = [target["expr"] for target in targets] + [board["annotations"]["list"][0]["expr"]]
    for expr in exprs:
        used = set(re.findall(r"\$(\w+)", expr)) - {"__rate_interval"}
        assert used <= variables, expr
        check_expression(re.sub(r"\$__rate_interval", "5m", expr))
    for query in queries:
        name, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", query).groups()  # type: ignore[union-attr]
        assert label in (labels_of(name) or set()), query
    for target in targets:
        for label in re.findall(r"{{(\w+)}}", target["legendFormat"]):
            known = set().union(*(labels_of(one) or set() for one in names_in(target["expr"])))
            assert label in known, target["legendFormat"]


def test_panels_lie_side_by_side(board: dict[str, Any]) -> None:
    """Each has an id, a title and a place of its own on 24 columns, and a datasource we ship."""
    shipped = load(DOCKER / "grafana/provisioning/datasources/prometheus.yml")["datasources"][0]
    ids, taken = set(), set()
    for panel in board["panels"]:
        ids.add(panel["id"])
        assert panel["title"]
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert place["x"] + place["w"] <= 24
        taken |= cells
        if panel["type"] != "row":
            assert panel["datasource"] == {"type": "prometheus", "uid": shipped["uid"]}
            assert panel["targets"]
            refs = [target["refId"] for target in panel["targets"]]
            assert len(set(refs)) == len(refs)
    assert len(ids) == len(board["panels"])


def test_dashboards_are_found_and_told_apart() -> None:
    """Grafana reads the folder that compose mounts; each dashboard has an address of its own."""
    boards = [json.loads(path.read_text("utf-8")) for path in BOARDS]
    assert len({board["uid"] for board in boards}) == len(boards) >= 3
    (provider,) = load(DOCKER / "grafana/provisioning/dashboards/assayline.yml")["providers"]
    grafana = load(DOCKER / "compose.yaml")["services"]["grafana"]
    places = dict(mount.split(":")[1::-1] for mount in grafana["volumes"])
    assert places[provider["options"]["path"]] == "./grafana/dashboards"
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert Path(home).name in {path.name for path in BOARDS}


def test_every_metric_is_looked_at() -> None:
    """What nobody shows and no rule reads would be counted in vain."""
    asked = " ".join(rule["expr"] for rule in RULES) + " ".join(
        path.read_text("utf-8") for path in BOARDS
    )
    unseen = {
        name for name in METRICS if not re.search(rf"{PREFIX}{name}\b|{PREFIX}{name}_", asked)
    }
    assert unseen <= {
        "frames_admitted_total",  # the ledger shows the same, over restarts
        "process_virtual_memory_bytes",  # the library's own
        "process_start_time_seconds",
    }
