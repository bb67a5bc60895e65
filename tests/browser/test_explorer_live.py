"""The explorer of a service that changes while the page is open: models, figures, and no answer at all."""

import pytest
from explorer_page import Page
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import Select

pytestmark = pytest.mark.chromium
METRICS = (
    "if (path === 'metrics') { if (window.figures.status) return answer(window.figures.status, '');"
    "  const { process, slates } = window.figures; return answer(200, `"
    'oneslate_slates_total{reason="none",source="model"} ${slates}\\n'
    'oneslate_recommend_stage_seconds_bucket{le="+Inf",stage="total"} ${slates}\\n`'
    "  + (process ? `oneslate_recommend_stage_seconds_created{stage=\"total\"} ${process}\\n` : '')); }"
)


def figures(page: Page) -> dict[str, str]:
    return dict(zip(page.texts("#figures dt"), page.texts("#figures dd"), strict=True))


def serve(page: Page, figures: str) -> None:
    page.driver.execute_script(f"Object.assign(window.figures, {figures})")


def opened(page: Page) -> None:
    page.open()
    page.until(lambda: len(page.slate()) == 5 and "ready" in page.find("#service").text)


def test_what_failed_at_the_start_is_loaded_when_it_works(page: Page) -> None:
    page.wrap_fetch(
        "if (path === 'version' && (window.asked = (window.asked ?? 0) + 1) <= 2)"
        "  return answer(503, { detail: 'starting' });",
        at_load=True,
    )
    page.open()
    page.until(lambda: "starting" in page.find("#history-note").text)
    page.until(lambda: len(page.slate()) == 5)
    page.until(lambda: "model fake" in page.find("#service").text)
    assert [option.text for option in Select(page.find("#model-A")).options] == ["the user's", "fake"]
    page.all(".card")[0].click()
    page.until(lambda: page.texts("#why button.main") == ["Send “view”", "Send “watch”"])


def test_a_model_that_comes_and_one_that_goes_are_followed(page: Page) -> None:
    opened(page)
    Select(page.find("#model-A")).select_by_value("fake")
    page.wrap_fetch(
        "if (path === 'version') return answer(200, { ...await (await ask()).json(), model_version: 'other',"
        "  num_items: 7, actions: ['buy'], max_beam_width: 3 });"
        "if (path === 'v1/models') return answer(200, { serving: ['other'] });"
    )
    page.until(lambda: "model other · 7 items" in page.find("#service").text)
    page.until(lambda: len(Select(page.find("#model-A")).options) == 3)
    picker = Select(page.find("#model-A"))
    assert [option.text for option in picker.options] == ["the user's", "other", "fake (not in service)"]
    assert picker.first_selected_option.get_attribute("value") == "fake"
    assert page.find("#beams-A").get_attribute("max") == "3"
    page.all(".card")[0].click()
    page.until(lambda: page.texts("#why button.main") == ["Send “buy”"])


def test_a_canary_is_offered_while_the_active_model_stays(page: Page) -> None:
    opened(page)
    page.wrap_fetch("if (path === 'v1/models') return answer(200, { serving: ['fake', 'canary'] });")
    page.until(lambda: len(Select(page.find("#model-A")).options) == 3, 20)


def test_one_model_that_cannot_explain_is_asked_so_no_more_and_others_are(page: Page) -> None:
    page.wrap_fetch(
        "if (path === 'v1/models') return answer(200, { serving: ['fake', 'mute'] });"
        "if (path !== 'v1/recommend') return ask(); const body = JSON.parse(options.body);"
        "(window.sent ??= []).push([body.model_version ?? '', body.explain]);"
        "if (body.model_version !== 'mute') return ask();"
        "if (body.explain) return answer(422, { detail: 'no', errors: [{ pointer: '/explain', detail: 'no' }] });"
        "delete body.model_version; options.body = JSON.stringify(body);"
        "return answer(200, { ...await (await ask()).json(), model_version: 'mute' });",
        at_load=True,
    )
    opened(page)
    page.until(lambda: len(Select(page.find("#model-A")).options) == 3)
    for model in ("mute", "fake", "mute"):
        Select(page.find("#model-A")).select_by_value(model)
        page.until(lambda model=model: f"model {model}" in page.find(".column > .note").text)
    sent = page.driver.execute_script("return window.sent")
    assert sent[1:] == [["mute", True], ["mute", False], ["fake", True], ["mute", False]]


@pytest.mark.parametrize("processes", [("1", "2"), ("", "")])
def test_a_restart_begins_the_figures_again(page: Page, processes: tuple[str, str]) -> None:
    before, after = processes
    page.driver.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument",
        {"source": f"window.figures = {{ process: '{before}', slates: 1000 }}"},
    )
    page.wrap_fetch(METRICS, at_load=True)
    opened(page)
    page.until(lambda: figures(page)["by the model"] == "0")
    serve(page, f"{{ process: '{after}', slates: 5 }}")
    page.until(lambda: figures(page) == {})
    page.until(lambda: figures(page)["by the model"] == "0")
    serve(page, "{ slates: 8 }")
    page.until(lambda: figures(page)["by the model"] == "3")


def test_replicas_that_take_turns_are_not_mixed(page: Page) -> None:
    page.driver.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument",
        {
            "source": "let turn = 0; window.figures = { get process() { turn += 1; return turn % 2; },"
            " get slates() { return turn % 2 ? 1000 + turn : turn; } };"
        },
    )
    page.wrap_fetch(METRICS.replace("process ?", "true ?"), at_load=True)
    opened(page)
    seen: set[str] = set()

    def looked() -> int:
        seen.update(figures(page).values() and [figures(page)["by the model"]])
        return len(seen)

    page.until(lambda: looked() >= 2, 30)
    assert seen <= {"2", "4"}


def test_what_is_older_than_a_minute_counts_no_more(page: Page) -> None:
    page.driver.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument",
        {
            "source": "window.figures = { process: '1', slates: 10 }; window.skipped = 0;"
            "const now = performance.now.bind(performance); performance.now = () => now() + window.skipped;"
        },
    )
    page.wrap_fetch(METRICS, at_load=True)
    opened(page)
    page.until(lambda: figures(page)["by the model"] == "0")
    serve(page, "{ slates: 20 }")
    page.until(lambda: figures(page)["by the model"] == "10")
    page.driver.execute_script("window.skipped = 70000")
    serve(page, "{ slates: 25 }")
    page.until(lambda: figures(page).get("by the model") == "0")


def test_metrics_that_fail_are_not_a_matter_of_the_key(page: Page) -> None:
    page.driver.execute_cdp_cmd(
        "Page.addScriptToEvaluateOnNewDocument", {"source": "window.figures = { process: '1', slates: 10 }"}
    )
    page.wrap_fetch(METRICS, at_load=True)
    opened(page)
    page.until(lambda: figures(page))
    serve(page, "{ status: 500 }")
    page.until(lambda: page.find("#live-note").text == "The metrics answer HTTP 500.")
    assert figures(page) == {}
    serve(page, "{ status: 403 }")
    page.until(lambda: page.find("#live-note").text == "This key may not read the metrics.")


@pytest.mark.parametrize(
    "trouble",
    [
        "throw new TypeError('Failed to fetch')",
        "await new Promise((_, no) => options.signal.addEventListener('abort', () => no(options.signal.reason)))",
    ],
    ids=["gone", "hangs"],
)
def test_a_service_that_does_not_answer_is_told_and_its_figures_go(page: Page, trouble: str) -> None:
    opened(page)
    page.until(lambda: figures(page))
    page.wrap_fetch(f"if (!window.isBack && ['metrics', 'readyz', 'version'].includes(path)) {{ {trouble}; }}")
    page.until(lambda: "does not answer" in page.find("#banner").text)
    assert figures(page) == {}
    assert page.find("#service").text == "The service does not answer."
    page.driver.execute_script("window.isBack = true")
    page.until(lambda: not page.find("#banner").is_displayed() and figures(page))


def test_a_look_that_takes_long_is_not_overtaken(page: Page) -> None:
    opened(page)
    page.hold("path === 'readyz'")
    page.until(page.num_held)
    page.find("#again").send_keys(Keys.ENTER)
    page.driver.execute_async_script("setTimeout(arguments[0], 3000)")
    assert page.num_held() == 1
