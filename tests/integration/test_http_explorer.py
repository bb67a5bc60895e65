"""The explorer's files as the service sends them: whole, guarded, and asking nobody else."""

import re
import time
from pathlib import Path

import pytest
from live_http import fake_settings, live_client

WEB = Path(__file__).resolve().parents[2] / "service" / "web"


@pytest.mark.parametrize(
    ("path", "file", "media_type"),
    [
        ("/", "index.html", "text/html"),
        ("/docs", "docs.html", "text/html"),
        ("/docs.js", "docs.js", "text/javascript"),
        ("/explorer.css", "explorer.css", "text/css"),
        ("/explorer.js", "explorer.js", "text/javascript"),
        ("/live.js", "live.js", "text/javascript"),
        ("/api.js", "api.js", "text/javascript"),
        ("/page.js", "page.js", "text/javascript"),
    ],
)
def test_files_are_sent_as_they_are(path: str, file: str, media_type: str) -> None:
    with live_client(fake_settings()) as client:
        answer = client.get(path)
    assert (answer.status_code, answer.content) == (200, (WEB / file).read_bytes())
    assert answer.headers["content-type"] == f"{media_type}; charset=utf-8"
    assert "default-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


def test_no_file_names_another_host_or_makes_markup_of_text() -> None:
    for file in WEB.iterdir():
        text = file.read_text()
        assert not re.search(r"(https?:)?//[a-z0-9]", text.replace("// ", "")), file
        assert not re.search(
            r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|eval\(|style=|\son\w+=\"", text
        ), file


@pytest.mark.parametrize(("page", "script", "fewest"), [("index.html", "explorer.js", 20), ("docs.html", "docs.js", 6)])
def test_every_element_that_the_script_looks_up_is_there(page: str, script: str, fewest: int) -> None:
    ids = set(re.findall(r'id="([\w-]+)"', (WEB / page).read_text()))
    text = (WEB / script).read_text()
    asked = set(re.findall(r'\$\("([\w-]+)"\)', text))
    made = set(re.findall(r'id: "([\w-]+)"', text))
    assert asked <= ids | made
    assert len(asked) >= fewest


def test_every_file_is_sent_and_every_part_that_a_script_imports() -> None:
    imported = {name for file in WEB.glob("*.js") for name in re.findall(r'from "\./([\w.]+)"', file.read_text())}
    with live_client(fake_settings()) as client:
        for file in WEB.iterdir():
            path = "" if file.name == "index.html" else file.name.removesuffix(".html")
            assert client.get(f"/{path}").content == file.read_bytes()
    assert imported <= {file.name for file in WEB.iterdir()}


def test_no_page_of_the_framework_is_left() -> None:
    with live_client(fake_settings()) as client:
        assert [client.get(path).status_code for path in ("/redoc", "/docs/oauth2-redirect")] == [404, 404]


def test_some_users_are_offered() -> None:
    with live_client(fake_settings()) as client:
        assert client.get("/v1/users").json() == {"user_ids": []}
        event = {"event_id": "1", "user_id": "ann", "item_id": "item-1", "timestamp": time.time() - 60}
        client.post("/v1/events", json={"events": [event]})
        assert client.get("/v1/users?limit=5").json() == {"user_ids": ["ann"]}
        assert client.get("/v1/users?limit=0").status_code == 422
