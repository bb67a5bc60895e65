"""The API's description at /docs in real Chromium: all of it, from this service alone."""

import httpx
import pytest
from explorer_page import Page

pytestmark = pytest.mark.chromium


def test_every_route_can_be_read_and_nobody_else_is_asked(page: Page) -> None:
    described = httpx.get(f"{page.url}/openapi.json").json()
    routes = {(method.upper(), path) for path, operations in described["paths"].items() for method in operations}
    page.open()
    page.find("header nav a").click()
    page.until(lambda: page.find("#docs-note").text == f"{len(routes)} routes.")
    shown = {
        (route.find_element("css selector", ".method").text, route.find_element("css selector", "summary code").text)
        for route in page.all(".route")
    }
    assert shown == routes
    assert page.texts("#routes h2") == [tag["name"].capitalize() for tag in described["tags"]]
    asked = page.driver.execute_script(
        "return performance.getEntriesByType('resource').map((one) => new URL(one.name).origin)"
    )
    assert set(asked) == {page.url}
    assert page.driver.execute_script("return document.scripts.length") == 1


def test_a_route_says_what_it_takes_and_answers(page: Page) -> None:
    page.driver.get(f"{page.url}/docs#similar_items")
    page.until(lambda: page.find("#docs-note").text.endswith("routes."))
    page.driver.get(f"{page.url}/docs#recommend")
    page.until(lambda: page.find("#recommend").get_attribute("open"))
    text = page.find("#recommend").text
    assert "slate_size required" in text
    assert "integer (1 to 10)" in text
    assert "422 The request is not valid" in text
    page.shot("docs")
    page.find("#recommend a[href='#form-HistoryEvent']").click()
    page.until(lambda: page.find("#form-HistoryEvent").get_attribute("open"))
    assert "timestamp" in page.find("#form-HistoryEvent").text


def test_it_fits_a_phone(page: Page) -> None:
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 320, "height": 760, "deviceScaleFactor": 2, "mobile": True}
    )
    page.driver.get(f"{page.url}/docs")
    page.until(lambda: page.find("#docs-note").text.endswith("routes."))
    page.driver.execute_script("document.querySelectorAll('details').forEach((one) => { one.open = true; })")
    assert page.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    page.shot("docs-phone")
