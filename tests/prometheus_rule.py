"""The rules of deploy/prometheus as the Prometheus operator takes them.

`python tests/prometheus_rule.py` writes the component's file again.
"""

from typing import Final

import yaml
from monitored import DEPLOY, RULE_FILES

FILE: Final = DEPLOY / "kubernetes" / "components" / "service-monitor" / "rules.yaml"
_HEAD: Final = """\
# Written by `python tests/prometheus_rule.py` from deploy/prometheus: change them there, and run it again.
# The operator's Prometheus may look for a label of its own here (`release: ...`): its `ruleSelector`.
"""


def text() -> str:
    """What the file is to say."""
    groups = [
        group for file in RULE_FILES for group in yaml.safe_load((DEPLOY / "prometheus" / file).read_text())["groups"]
    ]
    rule = {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "oneslate", "labels": {"app.kubernetes.io/name": "oneslate"}},
        "spec": {"groups": groups},
    }
    # As wide as it takes: an expression that is broken into lines cannot be found.
    return _HEAD + yaml.safe_dump(rule, sort_keys=False, width=10_000)


if __name__ == "__main__":
    FILE.write_text(text())
