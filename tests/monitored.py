"""What Prometheus and Grafana are told, as tests read it."""

import json
from pathlib import Path
from typing import Any, Final

import yaml

ROOT: Final = Path(__file__).resolve().parents[1]
DEPLOY: Final = ROOT / "deploy"
RULE_FILES: Final = ("records.yml", "alerts.yml")
RULES: Final[list[dict[str, Any]]] = [
    rule
    for file in RULE_FILES
    for group in yaml.safe_load((DEPLOY / "prometheus" / file).read_text())["groups"]
    for rule in group["rules"]
]
RECORDS: Final[dict[str, str]] = {rule["record"]: rule["expr"] for rule in RULES if "record" in rule}
ALERTS: Final = {rule["alert"]: rule for rule in RULES if "alert" in rule}

DASHBOARD: Final[dict[str, Any]] = json.loads((DEPLOY / "grafana" / "dashboards" / "oneslate.json").read_text())
PANELS: Final = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def expanded(expr: str) -> str:
    """With what each recorded name stands for in its place."""
    for name, recorded in RECORDS.items():
        expr = expr.replace(name, f"({recorded})")
    return expr
