"""The scrape configuration and the dashboard: their queries name gauges that runs export."""

from __future__ import annotations

import ast
import itertools
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from rlhf_ray.observe.metrics import gauge_name

REPOSITORY = Path(__file__).parents[2]
FOLDER = REPOSITORY / "launch" / "monitoring"
DASHBOARD: dict[str, Any] = json.loads((FOLDER / "grafana_dashboard.json").read_text())
PANELS: list[dict[str, Any]] = DASHBOARD["panels"]
QUERIES = [target["expr"] for panel in PANELS for target in panel["targets"]]
# Units of Grafana that the panels use, and the types of panels.
UNITS = {"none", "short", "s", "percentunit"}
TYPES = {"stat", "timeseries"}
# A gauge, or a pattern over names of gauges; nothing else but numbers and signs is in a query.
_GAUGE = re.compile(r'(ray_rlhf_ray_\w+)\{run=~"\$run"\}')
_PATTERN = re.compile(r'\{__name__=~"([^"]+)", run=~"\$run"\}')


def metrics_of_the_source() -> set[str]:
    """Names of metrics that are written out in the package, phases of the loop included."""
    found = {"step"}
    for file in (REPOSITORY / "rlhf_ray").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.Constant) and isinstance(node.value, str):
                if re.fullmatch(r"[a-z_]+(/[a-z_]+)+", node.value):
                    found.add(node.value)
            elif isinstance(node, ast.Call) and ast.unparse(node.func) == "clock" and node.args:
                found.add(f"time/{ast.literal_eval(node.args[0])}_s")
    return found


GAUGES = {f"ray_{gauge_name(name)}" for name in metrics_of_the_source()}
# Put together from the mode and the metric of the training.
GAUGES |= {f"ray_rlhf_ray_evaluation_{mode}_reward_mean" for mode in ("greedy", "sampled")}


@pytest.mark.parametrize("query", dict.fromkeys(QUERIES))
def test_every_query_names_gauges_that_exist(query):
    names, patterns = _GAUGE.findall(query), _PATTERN.findall(query)
    assert names or patterns
    assert [name for name in names if name not in GAUGES] == []
    for pattern in patterns:
        assert any(re.fullmatch(pattern, gauge) for gauge in GAUGES)
    rest = _PATTERN.sub("", _GAUGE.sub("", query))
    assert re.fullmatch(r"[ 0-9+*/().-]*", rest), rest


def test_the_dashboard_shows_what_a_run_is_watched_by():
    shown = " ".join(QUERIES)
    for metric in (
        *("step", "reward/mean", "publish/probe_gap_max", "engine/kv_cache_use_max"),
        *("engine/queue_max", "recovery/serving_engines", "recovery/lost_engines"),
        *(f"time/{phase}_s" for phase in ("generate", "score", "reference", "update", "publish")),
    ):
        assert f"ray_{gauge_name(metric)}{{" in shown, metric


def test_panels_are_of_the_form_that_grafana_reads():
    source = {"type": "prometheus", "uid": "${datasource}"}
    assert len({panel["id"] for panel in PANELS}) == len(PANELS)
    for panel in PANELS:
        assert panel["type"] in TYPES
        assert panel["fieldConfig"]["defaults"]["unit"] in UNITS
        assert panel["datasource"] == source
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
        assert all(target["datasource"] == source for target in panel["targets"])
    taken: set[tuple[int, int]] = set()
    for place in (panel["gridPos"] for panel in PANELS):
        columns = range(place["x"], place["x"] + place["w"])
        rows = range(place["y"], place["y"] + place["h"])
        assert columns.stop <= 24
        cells = set(itertools.product(columns, rows))
        assert not cells & taken
        taken |= cells
    variables = {variable["name"]: variable for variable in DASHBOARD["templating"]["list"]}
    assert variables["run"]["query"]["query"] == "label_values(ray_rlhf_ray_step, run)"
    assert variables["datasource"]["query"] == "prometheus"


def test_the_scrape_configuration_reads_the_file_of_ray():
    config = yaml.safe_load((FOLDER / "prometheus.yaml").read_text())
    [job] = config["scrape_configs"]
    [source] = job["file_sd_configs"]
    assert source["files"] == ["/tmp/ray/prom_metrics_service_discovery.json"]
