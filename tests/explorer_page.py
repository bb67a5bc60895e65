"""The explorer in a browser, for the tests that look at it."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
from live_http import live_client
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait

from service.settings import Settings


class Page:
    """The explorer in a browser."""

    def __init__(self, driver: webdriver.Chrome, url: str, screenshots: Path | None) -> None:
        self.driver = driver
        self.url = url
        self._screenshots = screenshots

    def open(self, user: str = "ann") -> None:
        self.driver.get(f"{self.url}/?user={user}")

    def find(self, css: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, css)

    def all(self, css: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, css)

    def texts(self, css: str) -> list[str]:
        return [one.text for one in self.all(css)]

    def until(self, holds: Callable[[], object], seconds: float = 15) -> Any:
        return WebDriverWait(self.driver, seconds, ignored_exceptions=[Exception]).until(lambda _: holds())

    def slate(self, column: int = 0) -> list[str]:
        cards = self.all(".column")[column].find_elements(By.CSS_SELECTOR, ".card strong")
        return [card.text for card in cards]

    def wrap_fetch(self, body: str, *, at_load: bool = False) -> None:
        """From now on the page's requests go through this JavaScript, with `path`, `options` and `ask()` at hand.

        Args:
            body: What it does; what it does not return is asked of the service. `held` is a list there for what is to
                be let go later (see `let_go`), `answer` makes an answer of a status and an object.
            at_load: From the next page on instead, before its own scripts run.
        """
        script = (
            "window.held = []; { const real = window.fetch; window.fetch = async (path, options = {}) => {"
            "const ask = () => real(path, options);"
            "const answer = (status, members) => new Response("
            "  typeof members === 'string' ? members : JSON.stringify(members), { status });"
            f"{body} return ask(); }}; }}"
        )
        if at_load:
            self.driver.execute_cdp_cmd("Page.addScriptToEvaluateOnNewDocument", {"source": script})
        else:
            self.driver.execute_script(script)

    def hold(self, condition: str) -> None:
        """Requests for which the condition holds are answered, but the page learns of it at `let_go` alone."""
        self.wrap_fetch(
            f"if ({condition}) {{ const answer = await ask(); await new Promise((go) => held.push(go));"
            " return answer; }"
        )

    def num_held(self) -> int:
        return int(self.driver.execute_script("return held.length"))

    def let_go(self) -> None:
        """All that is held, and the page has seen it."""
        self.driver.execute_async_script("held.splice(0).forEach((go) => go()); setTimeout(arguments[0], 300)")

    def shot(self, name: str) -> None:
        if self._screenshots is not None:
            self._screenshots.mkdir(parents=True, exist_ok=True)
            self.driver.save_screenshot(str(self._screenshots / f"{name}.png"))


@contextmanager
def explorer(
    driver: webdriver.Chrome, settings: Settings, screenshots: Path | None
) -> Iterator[tuple[Page, httpx.Client]]:
    with live_client(settings) as client:
        yield Page(driver, str(client.base_url).rstrip("/"), screenshots), client


def store(client: httpx.Client, user: str, num_events: int, token: str = "") -> None:
    events = [
        {
            "event_id": f"{user}-{n}",
            "user_id": user,
            "item_id": f"item-{n * 10}",
            "timestamp": time.time() - 3600 * (n + 1),
        }
        for n in range(num_events)
    ]
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    assert client.post("/v1/events", json={"events": events}, headers=headers).status_code == 200
