"""What comes late, or not at all: the explorer never shows the answer to one question under another."""

import pytest
from explorer_page import Page
from selenium.webdriver.common.keys import Keys

pytestmark = pytest.mark.chromium
IS_EVENTS = "path === 'v1/events'"


def ask_for(page: Page, user: str) -> None:
    page.find("#user").clear()
    page.find("#user").send_keys(user, Keys.ENTER)


def opened(page: Page) -> None:
    page.open()
    page.until(lambda: len(page.slate()) == 5 and page.texts("#history li"))


def test_a_dialog_that_stays_open_sends_events_of_its_own_slate(page: Page) -> None:
    opened(page)
    page.wrap_fetch(
        "if (options.body) (window.sent ??= []).push({ path, ...JSON.parse(options.body) });"
        "if (path === 'v1/recommend') { const got = await ask(); const slate = await got.clone().json();"
        "  (window.made ??= []).push(slate.recommendation_id); return got; }"
    )
    page.find("#again").click()
    page.until(lambda: len(page.driver.execute_script("return window.made ?? []")) == 1)
    page.until(lambda: not page.all("[aria-busy]"))
    item = page.all(".card .note")[1].text.split(" ")[0]
    page.all(".card")[1].click()
    page.until(lambda: page.all("#why button.main"))
    for button in page.all("#why button.main"):
        before = page.driver.execute_script("return made.length")
        button.click()
        page.until(lambda before=before: page.driver.execute_script("return made.length") > before)
        page.until(lambda: not page.all("[aria-busy]"))
    shown = page.driver.execute_script("return made[0]")
    sent = [one["events"][0] for one in page.driver.execute_script("return sent") if one["path"] == "v1/events"]
    assert [(one["item_id"], one["recommendation_id"], one["user_id"]) for one in sent] == [(item, shown, "ann")] * 2


def test_a_card_that_is_clicked_while_another_is_looked_up_has_the_dialog(page: Page) -> None:
    opened(page)
    page.wrap_fetch(
        "if (path === 'v1/recommend') { const slate = await (await ask()).json();"
        "  slate.explanation[0].levels[0].runner_ups = [{ code: 1, logprob: -2, item_id: 'item-500' }];"
        "  return new Response(JSON.stringify(slate)); }"
        "if (path === 'v1/items/item-500') { const got = await ask(); await new Promise((go) => held.push(go));"
        "  return got; }"
    )
    page.find("#again").click()
    page.until(lambda: not page.all("[aria-busy]"))
    first, second = page.slate()[:2]
    page.all(".card")[0].click()
    page.until(lambda: page.find("#why").is_displayed() and page.num_held())
    assert first in page.find("#why-title").text
    assert "Looking up" in page.find("#why-body").text
    page.find("#why button[aria-label=Close]").click()
    page.all(".card")[1].click()
    page.until(lambda: page.find("#why").is_displayed())
    page.until(lambda: page.texts("#why .branch.taken"))
    page.let_go()
    assert second in page.find("#why-title").text
    assert second in page.texts("#why .branch.taken")[-1]


def test_a_slate_that_was_refused_is_not_shown_again(page: Page) -> None:
    opened(page)
    page.find("#compare").click()
    page.until(lambda: len(page.all(".column")) == 2 and len(page.slate(1)) == 5)
    page.wrap_fetch(
        "if (path === 'v1/recommend' && JSON.parse(options.body).beam_width === 7)"
        "  return answer(422, { detail: 'no such beams' });"
    )
    page.find("#beams-A").send_keys("7", Keys.TAB)
    page.until(lambda: page.all(".column > .note")[0].text == "no such beams")
    page.find("#size-B").clear()
    page.find("#size-B").send_keys("3", Keys.TAB)
    page.until(lambda: len(page.slate(1)) == 3 and not page.all("[aria-busy]"))
    assert page.slate(0) == []
    assert page.all(".column > .note")[0].text == "no such beams"
    assert page.all(".card.only") == []


def test_while_a_slate_is_asked_for_nothing_of_the_former_user_is_left(page: Page) -> None:
    opened(page)
    page.hold("path === 'v1/recommend' || path.endsWith('/history')")
    ask_for(page, "bob")
    page.until(lambda: page.num_held() == 2)
    assert page.slate() == []
    assert page.texts("#history li") == []
    assert [one.get_attribute("aria-busy") for one in page.all(".cards, #history")] == ["true", "true"]
    assert "Asking" in page.find(".column > .note").text
    assert "Asking" in page.find("#history-note").text
    page.let_go()
    page.until(lambda: len(page.slate()) == 5 and page.find("#history-note").text.startswith("3 events"))
    assert page.all("[aria-busy]") == []


def test_a_history_that_fails_leaves_no_other_users_in_the_dialog(page: Page) -> None:
    opened(page)
    page.wrap_fetch("if (path === 'v1/users/bob/history')  return answer(503, { detail: 'not now' });")
    ask_for(page, "bob")
    page.until(lambda: page.find("#history-note").text == "not now" and len(page.slate()) == 5)
    assert page.texts("#history li") == []
    page.all(".card")[0].click()
    page.until(lambda: page.texts("#why .branch"))
    assert page.texts("#why ul.plain") == []


def test_a_late_failure_of_the_former_user_changes_nothing(page: Page) -> None:
    opened(page)
    page.wrap_fetch(
        "if (path.startsWith('v1/users/bob')) { await new Promise((go) => held.push(go));"
        "  return answer(503, { detail: 'too late' }); }"
    )
    ask_for(page, "bob")
    page.until(page.num_held)
    ask_for(page, "ann")
    page.until(lambda: page.find("#history-note").text.startswith("6 events"))
    page.let_go()
    assert page.find("#history-note").text.startswith("6 events")
    assert len(page.texts("#history li")) == 6


def test_of_two_refreshes_the_later_one_stays(page: Page) -> None:
    opened(page)
    page.wrap_fetch(
        "if (path.endsWith('/history') && !window.first) { window.first = true; const got = await ask();"
        "  await new Promise((go) => held.push(go)); return got; }"
    )
    page.all(".card")[0].click()
    page.until(lambda: page.all("#why button.main"))
    page.all("#why button.main")[0].click()
    page.until(page.num_held)
    page.all("#why button.main")[1].click()
    page.until(lambda: page.find("#history-note").text.startswith("8 events"))
    page.let_go()
    assert page.find("#history-note").text.startswith("8 events")


def test_an_item_is_not_said_to_be_in_no_slate_where_the_slate_was_refused(page: Page) -> None:
    opened(page)
    page.wrap_fetch("if (path === 'v1/recommend') return answer(429, { detail: 'too busy' });")
    page.find("#item-id").send_keys("new")
    page.find("#item-text").send_keys("A brand new thing")
    page.find("#item-form button").click()
    page.until(lambda: "not known: too busy" in page.find("#item-note").text)
    assert "It is not in this user's slate" not in page.find("#item-note").text
