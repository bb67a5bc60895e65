"""What the autoscaler asks for: a metric that the adapter's rule makes of one that the service has."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml
from manifests import KUBERNETES, find, rendered
from prometheus_client.parser import text_string_to_metric_families

from service.metrics import STAGES, Metrics

(RULE,) = yaml.safe_load((KUBERNETES / "prometheus-adapter.yaml").read_text())["rules"]["custom"]


def query() -> str:
    """As the adapter asks for two pods."""
    text: str = RULE["metricsQuery"].replace("<<.GroupBy>>", "pod")
    return text.replace("<<.LabelMatchers>>", 'namespace="oneslate",pod=~"busy|idle"')


@pytest.mark.parametrize("overlay", ["cpu", "gpu"])
def test_the_autoscaler_goes_by_queue_delay_and_then_by_cpu(overlay: str) -> None:
    spec = find(rendered(overlay), "HorizontalPodAutoscaler")["spec"]
    target = spec["scaleTargetRef"]
    assert find(rendered(overlay), target["kind"], target["name"])["apiVersion"] == target["apiVersion"]
    queue, cpu = spec["metrics"]
    assert queue["pods"]["metric"]["name"] == RULE["name"]["as"]
    assert queue["pods"]["target"]["type"] == "AverageValue"
    assert cpu["resource"]["name"] == "cpu"


def test_the_rule_reads_series_and_a_stage_that_the_service_has() -> None:
    metrics = Metrics()
    metrics.observe_stages((0.0, 0.0, 0.0, 0.0, 0.0))
    families = text_string_to_metric_families(metrics.render().decode())
    known = {(sample.name, sample.labels.get("stage")) for family in families for sample in family.samples}
    for text in (RULE["seriesQuery"], RULE["metricsQuery"]):
        asked = re.findall(r'(oneslate_\w+)\{stage="(\w+)"', text)
        assert asked
        assert set(asked) <= known
        assert {stage for _, stage in asked} <= set(STAGES)
    # What the operator's scrapes are labelled with, and what the autoscaler asks by.
    overrides = RULE["resources"]["overrides"]
    assert overrides == {name: {"resource": name} for name in ("namespace", "pod")}
    assert all(f'{label}!=""' in RULE["seriesQuery"] for label in overrides)


@pytest.mark.prometheus
def test_the_rule_tells_the_mean_delay_of_each_replica_and_zero_of_an_idle_one(tmp_path: Path) -> None:
    series = [
        ("sum", "queue", "busy", "0+0.75x20"), ("count", "queue", "busy", "0+15x20"),
        ("sum", "inference", "busy", "0+9x20"), ("count", "inference", "busy", "0+15x20"),
        ("sum", "queue", "idle", "7x20"), ("count", "queue", "idle", "90x20"),
        ("sum", "queue", "other", "0+9x20"), ("count", "queue", "other", "0+9x20"),
    ]  # fmt: skip
    name = "oneslate_recommend_stage_seconds"
    test = {
        "evaluation_interval": "15s",
        "tests": [
            {
                "interval": "15s",
                "input_series": [
                    {"series": f'{name}_{kind}{{stage="{stage}",namespace="oneslate",pod="{pod}"}}', "values": values}
                    for kind, stage, pod, values in series
                ],
                "promql_expr_test": [
                    {
                        "expr": f"round({query()}, 0.000001)",
                        "eval_time": "5m",
                        "exp_samples": [
                            {"labels": '{pod="busy"}', "value": 0.05},
                            {"labels": '{pod="idle"}', "value": 0},
                        ],
                    }
                ],
            }
        ],
    }
    (tmp_path / "test.yaml").write_text(yaml.safe_dump(test))
    done = subprocess.run(
        ["promtool", "test", "rules", tmp_path / "test.yaml"], check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
