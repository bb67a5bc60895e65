"""A real Chromium, and the explorer of a live service in it."""

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from explorer_page import Page, explorer, store
from live_http import fake_settings
from selenium import webdriver


@pytest.fixture
def driver() -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or "/usr/bin/chromium"
    for argument in (
        "--headless=new", "--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking",
        "--disable-component-update", "--disable-sync", "--window-size=1400,1000",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(shutil.which("chromedriver") or "/usr/bin/chromedriver")
    browser = webdriver.Chrome(options=options, service=service)
    try:
        yield browser
    finally:
        browser.quit()


@pytest.fixture
def screenshots(request: pytest.FixtureRequest) -> Path | None:
    folder = request.config.getoption("--screenshots")
    return None if folder is None else Path(folder)


@pytest.fixture
def page(driver: webdriver.Chrome, screenshots: Path | None) -> Iterator[Page]:
    with explorer(driver, fake_settings(), screenshots) as (made, client):
        store(client, "ann", 6)
        store(client, "bob", 3)
        yield made
        driver.get("about:blank")  # it would go on asking a service that has ended
    trouble = [entry["message"] for entry in driver.get_log("browser") if entry["level"] == "SEVERE"]  # type: ignore[no-untyped-call]
    assert trouble == []
