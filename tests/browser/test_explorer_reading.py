"""Who reads the explorer otherwise: by keyboard, by ear, in high contrast, on little room, from right to left."""

import re

import httpx
import pytest
from explorer_page import Page, store
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.chromium
LONG_ID = "a" * 64
LONG_TITLE = "Donaudampfschifffahrtsgesellschaft" * 6


def opened(page: Page, user: str = "ann") -> None:
    page.open(user)
    page.until(lambda: len(page.slate()) == 5 and not page.all("[aria-busy]"))


def test_the_focus_goes_back_to_the_place_of_the_card(page: Page) -> None:
    opened(page)
    page.hold("path === 'v1/recommend'")
    page.all(".card")[2].send_keys(Keys.ENTER)
    page.until(lambda: page.all("#why button.main"))
    page.all("#why button.main")[0].send_keys(Keys.ENTER)
    page.until(page.num_held)
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.until(lambda: page.driver.switch_to.active_element == page.all(".card")[2])
    old = page.all(".card")[2]
    page.let_go()
    page.until(lambda: not page.all("[aria-busy]"))
    assert page.all(".card")[2] != old
    assert page.driver.switch_to.active_element == page.all(".card")[2]
    page.wrap_fetch("if (path === 'v1/recommend') return answer(429, { detail: 'too busy' });")
    page.all(".card")[2].send_keys(Keys.ENTER)
    page.until(lambda: page.all("#why button.main"))
    page.all("#why button.main")[1].send_keys(Keys.ENTER)
    page.until(lambda: page.find(".column > .note").text == "too busy")
    page.driver.switch_to.active_element.send_keys(Keys.ESCAPE)
    page.until(lambda: page.driver.switch_to.active_element == page.find(".column > .note"))


def test_an_answer_of_the_other_column_leaves_the_focus(page: Page) -> None:
    opened(page)
    page.find("#compare").click()
    page.until(lambda: len(page.slate(1)) == 5)
    card = page.all(".card")[0]
    page.hold("path === 'v1/recommend'")
    page.driver.execute_script(
        "const size = document.getElementById('size-B'); size.value = 2;"
        "size.dispatchEvent(new Event('change', { bubbles: true })); arguments[0].focus()",
        card,
    )
    page.until(page.num_held)
    page.let_go()
    page.until(lambda: len(page.slate(1)) == 2)
    assert page.driver.switch_to.active_element == card
    assert page.texts(".column:first-child .card.only")  # what B has no room for any more
    assert "only here" in page.find(".column:first-child .card.only").text


def test_what_changes_is_told_once_and_lists_have_names(page: Page) -> None:
    opened(page)
    page.find("#compare").click()
    page.until(lambda: len(page.slate(1)) == 5)
    assert [one.accessible_name for one in page.all(".cards")] == ["Slate A", "Slate B"]
    assert page.find("#some-users").aria_role == "group"
    assert page.find("#history-note").get_attribute("role") == "status"
    assert page.driver.execute_script("return getComputedStyle(banner).display") == "block"
    page.until(lambda: "ready" in page.find("#service").text)
    page.driver.execute_script(
        "window.told = 0; new MutationObserver(() => { told += 1; }).observe(service,"
        " { childList: true, characterData: true, subtree: true })"
    )
    page.driver.execute_async_script("setTimeout(arguments[0], 4500)")
    assert page.driver.execute_script("return told") == 0


def _luminance(color: str) -> float:
    channels = [int(part) / 255 for part in re.findall(r"\d+", color)[:3]]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    darker, lighter = sorted((_luminance(one), _luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_controls_and_placeholders_can_be_seen(page: Page, scheme: str) -> None:
    page.driver.execute_cdp_cmd(
        "Emulation.setEmulatedMedia", {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
    )
    opened(page)
    behind = page.driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    for css in ("#user", "#model-A", "#again", "#item-text", ".card"):
        edge, inside = page.driver.execute_script(
            "const style = getComputedStyle(arguments[0]); return [style.borderTopColor, style.backgroundColor]",
            page.find(css),
        )
        assert contrast(edge, inside) >= 3, css
        assert contrast(edge, behind) >= 3, css
    text, inside = page.driver.execute_script(
        "return ['::placeholder', null].map((part, at) =>"
        " getComputedStyle(arguments[0], part)[at ? 'backgroundColor' : 'color'])",
        page.find("#tags-A"),
    )
    assert contrast(text, inside) >= 4.5


@pytest.mark.parametrize("width", [320, 1400])
def test_long_ids_and_titles_stay_in_their_places(page: Page, width: int) -> None:
    page.driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    with httpx.Client(base_url=page.url) as client:
        store(client, LONG_ID, 2)
        client.put("/v1/items/item-0", json={"title": LONG_TITLE, "tags": ["t" * 90]})
        client.put("/v1/items/long", json={"title": LONG_TITLE, "tags": ["long", "t" * 90]}).raise_for_status()
    page.driver.get(f"{page.url}/?user={LONG_ID}")
    page.until(lambda: len(page.slate()) == 5 and page.texts("#history li"))
    page.find("#tags-A").send_keys("long", Keys.TAB)
    page.until(lambda: page.slate() == [LONG_TITLE])
    assert_inside(page, "main > section")
    chip = next(one for one in page.all("#some-users button") if one.text.startswith("aaa"))
    assert chip.get_attribute("title") == LONG_ID
    page.shot(f"long-{width}")
    page.all(".card")[0].click()
    page.until(lambda: page.texts("#why .branch"))
    assert_inside(page, "#why")
    assert page.find("#why button[aria-label=Close]").is_displayed()
    page.shot(f"long-why-{width}")


def assert_inside(page: Page, css: str) -> None:
    """Nothing in these reaches beyond them, and the page is as wide as its window."""
    beyond = page.driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].flatMap((box) => {"
        " const edge = box.getBoundingClientRect();"
        " return [...box.querySelectorAll('*')].filter((one) => { const at = one.getBoundingClientRect();"
        "  const isClipped = one.closest('.chips button') && !one.matches('button');"
        "  return !isClipped && at.width && (at.right > edge.right + 1 || at.left < edge.left - 1); })"
        " .map((one) => one.outerHTML.slice(0, 120)); })",
        css,
    )
    assert beyond == []
    assert page.driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")


def test_a_title_from_right_to_left_turns_nothing_round(page: Page) -> None:
    hebrew = "\u05e9\u05dc\u05d5\u05dd 12"
    with httpx.Client(base_url=page.url) as client:
        client.put("/v1/items/rtl", json={"title": hebrew, "tags": ["rtl"]}).raise_for_status()
    opened(page)
    page.find("#tags-A").send_keys("rtl", Keys.TAB)
    page.until(lambda: page.slate() == [hebrew])
    page.all(".card")[0].click()
    page.until(lambda: page.texts("#why .branch"))
    # Where each character of the heading's end is drawn: after the title, and from left to right.
    places = page.driver.execute_script(
        "const title = document.querySelector('#why-title bdi'), after = title.nextSibling;"
        "const range = document.createRange();"
        "return [title.getBoundingClientRect().right, ...[...after.data].map((_, at) => { range.setStart(after, at);"
        " range.setEnd(after, at + 1); return range.getBoundingClientRect().left; })]"
    )
    assert places == sorted(places)
    assert page.driver.execute_script(
        "return [...document.querySelectorAll('.codes')].every((one) => {"
        " const style = getComputedStyle(one); return style.direction === 'ltr' && style.unicodeBidi === 'isolate'; })"
    )
