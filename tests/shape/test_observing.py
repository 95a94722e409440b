"""What Prometheus and Grafana are told to look at is there, and the alarms go off when they should and not before."""

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from millhand.keys import Keys
from millhand.layers import load
from millhand_fleet.gate_view import GateView
from millhand_fleet.metrics import render
from millhand_fleet.snapshot import RedisView, Snapshot, StreamsView

PROJECT = Path(__file__).resolve().parents[2]
CONF = PROJECT / "conf"
ALERTS, DASHBOARD, SCRAPE = CONF / "alerts.yml", CONF / "grafana.json", CONF / "prometheus.yml"
RULE_TESTS = Path(__file__).with_name("alerts_test.yml")
METRIC = re.compile(r"\b(?:millhand|redis)_[a-z_]+\b")


def exposition() -> str:
    """Return the metrics of a fleet with something of everything."""
    stats = {"in_hand": 1, "oldest_s": 2.0, "log_dropped": 0}
    worker = {"name": "worker-1", "state": "ready", "restarts": 1, "stats": stats}
    janitor = {"name": "janitor", "state": "ready", "restarts": 0, "stats": {"sweeps": 1, "sweep": {"examined": 1}}}
    snapshot = Snapshot(
        "events",
        0.0,
        "tiny:1b",
        children=(worker, janitor),
        redis=RedisView(reachable=True, durability="durable", eviction="noeviction"),
        streams=StreamsView(enriched=1, dead=1, dead_by_reason={"timeout": 1}, drained_in_s=1.0),
        gate=GateView(tokens=1.0),
        keys=Keys.of(load(None, {})),
        seen=True,
    )
    return render(snapshot, 0.0).decode()


def exported() -> set[str]:
    """Return the names of all its samples."""
    return {sample.name for family in text_string_to_metric_families(exposition()) for sample in family.samples}


def expressions() -> dict[str, str]:
    """Return what each panel of the dashboard asks, by its title."""
    panels = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return {panel["title"]: "\n".join(target["expr"] for target in panel.get("targets", ())) for panel in panels}


def test_every_metric_that_an_alarm_names_is_exported() -> None:
    """An alarm on a name that is not there never goes off."""
    rules = [line for line in ALERTS.read_text(encoding="utf-8").splitlines() if not line.lstrip().startswith("#")]
    assert set(METRIC.findall("\n".join(rules))) - exported() == set()


def test_every_metric_that_the_dashboard_shows_is_exported() -> None:
    asked = expressions()
    assert len([expression for expression in asked.values() if METRIC.search(expression)]) > 20
    missing = {title: set(METRIC.findall(text)) - exported() for title, text in asked.items()}
    assert not any(missing.values()), missing


def test_the_dashboard_shows_every_metric_of_ours_but_those_for_alarms_and_labels() -> None:
    """What nobody looks at need not be measured; what is measured is found."""
    elsewhere = {"millhand_build_info", "millhand_ready", "millhand_janitor_sweeps_total"}
    elsewhere |= {f"millhand_{name}_total" for name in ("requeued_dead_letters", "dropped_dead_letters")}
    elsewhere |= {f"millhand_{name}_total" for name in ("trimmed_events", "retired_consumers")}
    shown = set(METRIC.findall("\n".join(expressions().values())))
    ours = {re.sub(r"_(sum|count)$", "_bucket", name) for name in exported() if name.startswith("millhand_")}
    assert ours - shown - elsewhere == set()


def test_the_dashboard_asks_the_source_that_its_reader_chooses() -> None:
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert dashboard["templating"]["list"][0]["type"] == "datasource"
    panels = [panel for panel in dashboard["panels"] if panel["type"] != "row"]
    assert {target["datasource"]["uid"] for panel in panels for target in panel["targets"]} == {"${datasource}"}
    assert len({panel["id"] for panel in dashboard["panels"]}) == len(dashboard["panels"])


def test_every_alarm_says_what_it_means_and_what_to_do() -> None:
    rules = ALERTS.read_text(encoding="utf-8").split("- alert: ")[1:]
    assert len(rules) > 10
    for rule in rules:
        assert re.search(r"^          summary: \S", rule, re.MULTILINE), rule
        assert re.search(r"^          description: \S", rule, re.MULTILINE), rule
        assert re.search(r"^          severity: (page|ticket)$", rule, re.MULTILINE), rule


def promtool(*arguments: str | Path, read: str = "") -> None:
    """Run Prometheus's own tool; skip where it is not installed, except in CI, which installs it."""
    program = shutil.which("promtool")
    if program is None:
        missing = "promtool is not installed; it comes with Debian's package `prometheus`"
        assert os.environ.get("CI") != "true", missing
        pytest.skip(missing)
    command = [program, *arguments]
    ran = subprocess.run(command, input=read, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stdout + ran.stderr


def test_prometheus_takes_the_rules_and_the_scrape_example() -> None:
    promtool("check", "rules", ALERTS)
    promtool("check", "config", SCRAPE)


def test_prometheus_finds_nothing_to_improve_in_our_metrics() -> None:
    """Units, suffixes, help."""
    promtool("check", "metrics", read=exposition())


def test_the_alarms_go_off_when_they_should_and_not_before() -> None:
    promtool("test", "rules", RULE_TESTS)


def test_every_alarm_is_tried() -> None:
    alarms = re.findall(r"- alert: (\w+)", ALERTS.read_text(encoding="utf-8"))
    tried = RULE_TESTS.read_text(encoding="utf-8")
    assert [alarm for alarm in alarms if f'alertname="{alarm}"' not in tried] == []
