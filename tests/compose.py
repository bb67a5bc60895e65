"""docker-compose.yml, read as compose reads it where no variable is set."""

import re
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]


def load(text: str | None = None) -> dict[str, Any]:
    """The whole file, `${NAME:-default}` filled with its default and merge keys merged."""
    text = (ROOT / "docker-compose.yml").read_text() if text is None else text
    loaded: dict[str, Any] = yaml.safe_load(re.sub(r"\$\{\w+:-([^}]*)\}", r"\1", text))
    return loaded


def conditions(service: dict[str, Any]) -> dict[str, str]:
    """What a service waits for: other services' names, and which state of each."""
    awaited = service.get("depends_on", {})
    if isinstance(awaited, list):
        return dict.fromkeys(awaited, "service_started")
    return {name: how["condition"] for name, how in awaited.items()}


def in_order(services: dict[str, Any]) -> list[str]:
    """Names of services, each after what it waits for; among equals in the file's order."""
    ordered: list[str] = []

    def add(name: str, waiting: tuple[str, ...]) -> None:
        assert name not in waiting, f"{' -> '.join((*waiting, name))}: a circle"
        if name not in ordered:
            for awaited in conditions(services[name]):
                add(awaited, (*waiting, name))
            ordered.append(name)

    for name in services:
        add(name, ())
    return ordered
