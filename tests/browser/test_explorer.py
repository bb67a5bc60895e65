"""The explorer in real Chromium, against a live service: what a person sees and does.

`pytest -m chromium tests/browser` (Debian's packages chromium and chromium-driver); `--screenshots FOLDER` keeps what
it looked like.
"""

import re
import time
from pathlib import Path

import httpx
import pytest
from explorer_page import Page, explorer, store
from live_http import fake_settings
from selenium import webdriver
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

from service.history.embedded import EmbeddedRedis
from service.keys import SCOPES, ApiKey, digest, new_token, write_keys

pytestmark = pytest.mark.chromium


def test_a_user_is_picked_and_typed_with_history_and_slate(page: Page) -> None:
    page.driver.get(page.url)
    page.until(lambda: len(page.slate()) == 5)
    assert {"ann", "bob"} <= set(page.texts("#some-users button"))
    page.find("#user").clear()
    page.find("#user").send_keys("ann", Keys.ENTER)
    page.until(lambda: page.find("#history-note").text.startswith("6 events"))
    history = page.texts("#history li")
    assert [re.split(r"\n", entry)[0] for entry in history] == [f"Item {n * 10}" for n in range(6)]
    assert "1 hour ago" in history[0]
    page.until(lambda: "ready" in page.find("#service").text)
    page.until(lambda: page.texts("#figures dt"), 15)
    assert not page.find("#banner").is_displayed()
    page.shot("history-and-slate")
    origins = page.driver.execute_script(
        "return performance.getEntriesByType('resource').map((one) => new URL(one.name).origin)"
    )
    assert set(origins) == {page.url}


def test_a_card_says_why(page: Page) -> None:
    page.open()
    page.until(lambda: len(page.slate()) == 5)
    page.all(".card")[1].click()
    page.until(lambda: page.find("#why").is_displayed() and page.texts("#why .branch"))
    taken = page.all("#why .branch.taken")
    assert len(taken) >= 2
    assert page.slate()[1] in page.find("#why-title").text
    assert page.slate()[1] in taken[-1].text
    assert all(re.search(r"code \d+\n(< )?[\d.]+ %", branch.text) for branch in page.all("#why .branch"))
    assert page.texts("#why table th") == [
        "history",
        "features",
        "queue",
        "inference",
        "explanation and the rest",
        "total",
    ]
    page.shot("why")
    page.find("#why button[aria-label=Close]").click()
    assert not page.find("#why").is_displayed()


def test_an_event_changes_history_and_the_next_slate(page: Page) -> None:
    page.open()
    page.until(lambda: len(page.slate()) == 5)
    first = page.slate()
    page.all(".card")[0].click()
    page.until(lambda: page.all("#why button.main"))
    page.all("#why button.main")[0].click()
    page.until(lambda: "stored" in page.find("#act-note").text)
    page.until(lambda: page.find("#history-note").text.startswith("7 events"))
    assert page.texts("#history li strong")[0] == first[0]
    page.until(lambda: first[0] not in page.slate())


def test_the_next_slate_repeats_nothing(page: Page) -> None:
    page.open()
    page.until(lambda: len(page.slate()) == 5)
    first = page.slate()
    page.find("#next").click()
    page.until(lambda: set(page.slate()).isdisjoint(first) and len(page.slate()) == 5)


def test_two_slates_side_by_side(page: Page) -> None:
    page.open()
    page.until(lambda: len(page.slate()) == 5)
    page.find("#compare").click()
    page.until(lambda: len(page.all(".column")) == 2 and len(page.slate(1)) == 5)
    page.find("#tags-B").send_keys("odd", Keys.TAB)
    page.until(lambda: all(int(name.split()[1]) % 2 for name in page.slate(1)))
    assert len(Select(page.find("#model-A")).options) == 2
    page.find("#beams-B").send_keys("2", Keys.TAB)
    page.until(lambda: "2 beams" in page.all(".column > .note")[1].text)
    assert "4 beams" in page.all(".column > .note")[0].text
    assert page.all(".card.only")
    page.shot("comparison")
    page.find("#compare").click()
    page.until(lambda: len(page.all(".column")) == 1)


def test_a_new_item_is_found_by_its_tag(page: Page) -> None:
    page.open()
    page.until(lambda: len(page.slate()) == 5)
    page.find("#item-id").send_keys("brand/new 1")
    page.find("#item-text").send_keys("A brand new thing")
    page.find("#item-tags").send_keys("brandnew")
    page.find("#item-form button").click()
    page.until(lambda: "at place 1" in page.find("#item-note").text, 20)
    assert re.search(r"added: semantic ID ‹\d+( \d+)*›", page.find("#item-note").text)
    page.find("#tags-A").send_keys("brandnew", Keys.TAB)
    page.until(lambda: page.slate() == ["A brand new thing"])
    assert "No more items are left" in page.find(".column .note").text


def test_it_works_by_keyboard_alone(page: Page) -> None:
    page.open()
    page.until(lambda: len(page.slate()) == 5)
    page.find("body").send_keys(Keys.TAB)
    assert page.driver.switch_to.active_element.text == "Skip to the slates"
    page.driver.switch_to.active_element.send_keys(Keys.ENTER)
    for _ in range(20):
        page.driver.switch_to.active_element.send_keys(Keys.TAB)
        if "card" in (page.driver.switch_to.active_element.get_attribute("class") or ""):
            break
    card = page.driver.switch_to.active_element
    card.send_keys(Keys.ENTER)
    page.until(lambda: page.find("#why").is_displayed())
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.until(lambda: not page.find("#why").is_displayed())
    assert page.driver.switch_to.active_element == card


def test_everything_has_a_name_for_a_screen_reader(page: Page) -> None:
    page.open()
    page.until(lambda: len(page.slate()) == 5)
    page.find("#compare").click()
    page.until(lambda: len(page.all(".column")) == 2)
    everything = "input, select, textarea, button, dialog, section"
    shown = [one for one in page.all(everything) if one.is_displayed()]
    assert len(shown) > 20
    page.all(".card")[0].click()  # what lies behind a dialog has no name while it is open
    page.until(lambda: page.texts("#why .branch"))
    for one in page.all("#why, #why button"):
        assert one.accessible_name, one.get_attribute("outerHTML")
    page.find("#why button[aria-label=Close]").click()
    for one in shown:
        name = one.accessible_name or page.driver.execute_script(
            "return document.getElementById(arguments[0].getAttribute('aria-labelledby'))?.textContent ?? ''",
            one,
        )
        assert name, one.get_attribute("outerHTML")
    assert page.find("html").get_attribute("lang") == "en"
    ids = [one.get_attribute("id") for one in page.all("[id]")]
    assert len(ids) == len(set(ids))


def test_a_phone_and_the_dark(page: Page) -> None:
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 760, "deviceScaleFactor": 2, "mobile": True}
    )
    page.open()
    page.until(lambda: len(page.slate()) == 5)
    width = page.driver.execute_script("return [document.documentElement.scrollWidth, innerWidth]")
    assert width[0] <= width[1]
    page.shot("phone")
    light = page.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": "dark"}]}
    )
    page.driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    assert page.driver.execute_script("return getComputedStyle(document.body).backgroundColor") != light
    page.shot("dark")


def test_nothing_that_comes_from_outside_becomes_markup(page: Page) -> None:
    hostile = "<img src=x onerror=document.title='owned'>"
    with httpx.Client(base_url=page.url) as client:
        assert client.put("/v1/items/hostile", json={"title": hostile, "tags": ["hostile"]}).status_code == 200
    page.open()
    page.until(lambda: len(page.slate()) == 5)
    page.find("#tags-A").send_keys("hostile", Keys.TAB)
    page.until(lambda: page.slate() == [hostile])
    assert page.driver.title == "OneSlate explorer"


def test_a_service_with_keys_asks_for_one(driver: webdriver.Chrome, screenshots: Path | None, tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    token = new_token()
    write_keys(file, [ApiKey(name="all", sha256=digest(token), scopes=SCOPES)])
    with explorer(driver, fake_settings(keys_file=file), screenshots) as (page, client):
        store(client, "ann", 2, token)
        page.open()
        page.until(lambda: page.find("#key-dialog").is_displayed())
        page.shot("key")
        assert page.find("#key-trouble").text == "This service takes requests with a key alone."
        page.find("#key").send_keys("wrong", Keys.ENTER)
        page.until(lambda: page.find("#key-trouble").text == "The service does not know this key.")
        assert page.find("#key-trouble").get_attribute("role") == "alert"
        assert page.find("#key-dialog").is_displayed()
        page.find("#key").send_keys(token, Keys.ENTER)
        page.until(lambda: len(page.slate()) == 5)
        assert page.find("#history-note").text.startswith("2 events")


def test_without_redis_it_says_so(driver: webdriver.Chrome, screenshots: Path | None, tmp_path: Path) -> None:
    redis = EmbeddedRedis(tmp_path / "redis")
    settings = fake_settings(redis.start())
    try:
        with explorer(driver, settings, screenshots) as (page, client):
            store(client, "ann", 2)
            page.open()
            page.until(lambda: len(page.slate()) == 5)
            redis.stop()
            page.find("#again").click()
            page.until(lambda: "Degraded: The history store does not answer" in page.find("#banner").text, 30)
            page.until(lambda: "degraded" in page.find("#service").text, 30)
            page.shot("degraded")
            redis.start()

            def is_well() -> bool:
                page.find("#again").click()  # the store is asked again after half a second
                time.sleep(0.3)
                return not page.find("#banner").is_displayed()

            page.until(is_well, 30)
    finally:
        redis.stop()
