"""docker-compose.yml, read as compose reads it."""

import re
import shlex
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[1]


def load(**variables: str) -> dict[str, Any]:
    """The whole file with merge keys merged; `${NAME:-default}` and `${NAME:+alternate}` as these variables make them.

    A command of one string becomes its words.
    """

    def filled(found: re.Match[str]) -> str:
        name, how, text = found.groups()
        return (variables.get(name) or text) if how == "-" else (text if variables.get(name) else "")

    loaded: dict[str, Any] = yaml.safe_load(
        re.sub(r"\$\{(\w+):([-+])([^}]*)\}", filled, (ROOT / "docker-compose.yml").read_text())
    )
    for service in loaded["services"].values():
        if isinstance(service.get("command"), str):
            service["command"] = shlex.split(service["command"])
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
