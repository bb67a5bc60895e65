"""A real Prometheus with the shipped configuration, for tests."""

import math
import os
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

import httpx
import yaml
from monitored import DEPLOY, ROOT, RULE_FILES

SCRAPED_EVERY: Final = "500ms"


@contextmanager
def running(command: list[str], log: Path, **environment: str) -> Iterator[None]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ONESLATE_")}
    with log.open("wb") as out:
        process = subprocess.Popen(command, env=clean | environment, cwd=ROOT, stdout=out, stderr=out)
        try:
            yield
            assert process.poll() is None, log.read_text()[-2000:]
        finally:
            process.terminate()
            process.wait(timeout=30)


def until(holds: Callable[[], Any], what: Callable[[], str], timeout_s: float = 60.0) -> Any:
    end_s = time.monotonic() + timeout_s
    while not (found := holds()):
        assert time.monotonic() < end_s, what()
        time.sleep(0.2)
    return found


class Prometheus:
    """What it says over HTTP."""

    def __init__(self, url: str) -> None:
        self._client = httpx.Client(base_url=url, timeout=10)

    def close(self) -> None:
        """No more questions."""
        self._client.close()

    def get(self, path: str, **parameters: str) -> Any:
        answer = self._client.get(f"/api/v1/{path}", params=parameters)
        assert answer.status_code == 200, answer.text
        return answer.json()["data"]

    def is_ready(self) -> bool:
        try:
            return self._client.get("/-/ready").status_code == 200
        except httpx.TransportError:
            return False

    def values(self, expr: str) -> dict[str, float]:
        """By the labels of each series; what is not a number is left out."""
        data = self.get("query", query=expr)
        if data["resultType"] == "scalar":
            return {"": float(data["result"][1])}
        found = {}
        for series in data["result"]:
            labels = ", ".join(f"{name}={value}" for name, value in series["metric"].items() if name != "__name__")
            found[labels] = float(series["value"][1])
        return {labels: value for labels, value in found.items() if not math.isnan(value)}


def write_config(folder: Path, targets: dict[str, str]) -> Path:
    """The shipped configuration and rules, but for where to scrape and how often."""
    config = yaml.safe_load((DEPLOY / "prometheus.yml").read_text())
    config["global"] = dict.fromkeys(("scrape_interval", "scrape_timeout", "evaluation_interval"), SCRAPED_EVERY)
    for job in config["scrape_configs"]:
        job["static_configs"] = [{"targets": [targets.pop(job["job_name"])]}]
    assert not targets
    rules = folder / "prometheus"
    rules.mkdir(parents=True)
    for file in RULE_FILES:
        (rules / file).write_text((DEPLOY / "prometheus" / file).read_text())
    path = folder / "prometheus.yml"
    path.write_text(yaml.safe_dump(config))
    return path
