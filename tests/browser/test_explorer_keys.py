"""The explorer with API keys: wrong ones, odd ones, those of one user, and those that may not ask often."""

from pathlib import Path

import pytest
from explorer_page import Page, explorer, store
from live_http import fake_settings
from selenium import webdriver
from selenium.webdriver.common.keys import Keys

from service.keys import SCOPES, ApiKey, digest, new_token, write_keys

pytestmark = pytest.mark.chromium


def test_where_no_keys_are_in_force_none_is_said_to_be_asked_for(page: Page) -> None:
    page.open()
    page.until(lambda: len(page.slate()) == 5)
    page.find("#ask-key").click()
    assert "This service" not in page.find("#key-dialog").text
    assert page.find("#key-trouble").text == ""


def test_a_key_that_no_request_can_carry_is_refused_where_it_is_typed(page: Page) -> None:
    page.open()
    page.until(lambda: len(page.slate()) == 5)
    page.find("#ask-key").click()
    page.find("#key").send_keys("schlüssel", Keys.ENTER)
    page.until(lambda: "ASCII" in page.find("#key-trouble").text)
    assert page.find("#key-dialog").is_displayed()
    assert page.driver.execute_script("return sessionStorage.getItem('key')") is None
    page.find("#key").send_keys(Keys.ESCAPE)
    page.find("#again").click()
    page.until(lambda: len(page.slate()) == 5 and not page.all("[aria-busy]"))


def test_another_key_brings_its_user_and_nothing_of_the_one_before(
    driver: webdriver.Chrome, screenshots: Path | None, tmp_path: Path
) -> None:
    file = tmp_path / "keys.json"
    everything, of_carl = new_token(), new_token()
    keys = [ApiKey(name="all", sha256=digest(everything), scopes=SCOPES)]
    keys.append(ApiKey(name="carl", sha256=digest(of_carl), scopes=SCOPES, user_id="carl"))
    write_keys(file, keys)
    with explorer(driver, fake_settings(keys_file=file), screenshots) as (page, client):
        store(client, "ann", 2, everything)
        store(client, "carl", 4, everything)
        page.open()
        page.until(lambda: page.find("#key-dialog").is_displayed())
        page.find("#key").send_keys(everything, Keys.ENTER)
        page.until(lambda: page.find("#history-note").text.startswith("2 events"))
        page.find("#ask-key").click()
        page.find("#key").send_keys(of_carl, Keys.ENTER)
        page.until(lambda: page.find("#history-note").text.startswith("4 events") and len(page.slate()) == 5)
        assert page.find("#user").get_attribute("value") == "carl"
        page.driver.get(page.url)  # what is remembered of users is of this key
        page.until(lambda: page.find("#history-note").text.startswith("4 events"))
        assert page.find("#user").get_attribute("value") == "carl"


def test_titles_are_waited_for_where_a_key_may_not_ask_often(page: Page) -> None:
    page.wrap_fetch(
        "if (!path.startsWith('v1/items/')) return ask();"
        "window.now = (window.now ?? 0) + 1; window.most = Math.max(window.most ?? 0, now);"
        "try { await new Promise((go) => setTimeout(go, 50));"
        "  if ((window.lookups = (window.lookups ?? 0) + 1) % 4 === 0) return new Response('{}',"
        "    { status: 429, headers: { 'Retry-After': '1' } });"
        "  return await ask(); } finally { now -= 1; }",
        at_load=True,
    )
    page.open()
    page.until(lambda: len(page.slate()) == 5 and page.find("#history-note").text.startswith("6 events"), 30)
    assert all(name.startswith("Item ") for name in page.slate() + page.texts("#history li strong"))
    assert 1 < page.driver.execute_script("return window.most") <= 6


def test_titles_that_cannot_be_had_are_said_to_be_missing(page: Page) -> None:
    page.wrap_fetch(
        "if (path.startsWith('v1/items/')) return new Response(JSON.stringify({ detail: 'one request a minute' }),"
        "  { status: 429, headers: { 'Retry-After': '60' } });",
        at_load=True,
    )
    page.open()
    page.until(lambda: len(page.slate()) == 5)
    assert "titles of 5 items are not loaded: one request a minute" in page.find(".column > .note").text
    page.until(lambda: "titles of 6 items are not loaded: one request a minute" in page.find("#history-note").text)
