"""The page in a real browser: Chromium, headless, driven by Playwright."""

import re
import shutil
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Page, ViewportSize, expect, sync_playwright

from tests.fakes import FakePredictor, expected_prediction
from tests.server_process import KEY, ServerProcess, start

pytestmark = [pytest.mark.integration, pytest.mark.slow]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
WIDE = ViewportSize(width=1120, height=840)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as playwright:
        fetched = playwright.chromium.executable_path  # by `playwright install chromium`
        found = next(filter(None, map(shutil.which, (*NAMES, fetched))), None)
        if found is None:
            pytest.skip("Chromium is missing: on Debian, apt-get install chromium brings it")
        flags = ["--no-sandbox", "--disable-gpu", "--disable-background-networking"]
        browser = playwright.chromium.launch(executable_path=found, args=[*flags, "--no-first-run"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def server() -> Iterator[ServerProcess]:
    with start("fake") as process:
        yield process.until_ready()


@pytest.fixture
def page(browser: Browser, server: ServerProcess) -> Iterator[Page]:
    """The page with its key typed in; no error may appear in its console."""
    context = browser.new_context(viewport=WIDE, color_scheme="light")
    page = context.new_page()
    said: list[str] = []
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("console", lambda message: said.append(message.text))
    page.on("request", lambda request: said.append(request.url))
    page.goto(server.url)
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.get_by_label("sentence")).to_be_focused()
    yield page
    context.close()
    complaints = [text for text in said if not text.startswith((server.url, "data:"))]
    # Chromium itself notes every answer from 400.
    assert [text for text in complaints if "Failed to load resource" not in text] == []


def text_for(decision: str) -> str:
    """A text that the fake model decides so."""
    predictor = FakePredictor()
    for n in range(10_000):
        text = f"It was number {n}."
        answer = expected_prediction(predictor.encode(text))
        if predictor.policy.decide(answer).decision == decision:
            return text
    raise AssertionError(decision)


def ask(page: Page, text: str) -> None:
    page.get_by_label("sentence").fill(text)
    page.keyboard.press("Control+Enter")
    expect(page.locator("#history .text").first).to_have_text(text)


@pytest.mark.parametrize("decision", ["accept", "escalate", "clarify"])
def test_a_decision_and_what_it_rests_on(page: Page, decision: str):
    text = text_for(decision)
    answer = expected_prediction(FakePredictor().encode(text))
    verdict = FakePredictor().policy.decide(answer)

    ask(page, text)

    expect(page.locator("#decision")).to_have_text(decision)
    expect(page.locator("#decision")).to_have_class(f"decision {decision}")
    expect(page.locator("#verdict")).to_contain_text("positive")
    expect(page.locator("#reason")).to_have_text(f"{verdict.reason}.")
    expect(page.locator("#labels .name")).to_have_text(["positive", "negative"])
    expect(page.locator("#labels .bar")).to_have_count(2)
    expect(page.locator("#numbers")).to_contain_text("samples")
    where = [float(dot.get_attribute("cx")[:-1]) for dot in page.locator(".sample").all()]  # type: ignore[index]
    assert where == pytest.approx([100 * p for p in sorted(answer.sample_probabilities)])
    expect(page.locator("#labels .threshold")).to_have_attribute("x1", "80%")
    policy = FakePredictor().policy
    within = answer.probability >= policy.min_probability and answer.variance <= policy.max_variance
    assert zone_of_the_dot(page) == ("accept" if within else "unaccepted")
    expect(page.get_by_role("img", name="novelty p-value")).to_be_visible()


def zone_of_the_dot(page: Page) -> str:
    """The zone that lies under the middle of the answer's dot, as drawn."""
    dot = page.locator("#plane .now").bounding_box()
    assert dot is not None
    x, y = dot["x"] + dot["width"] / 2, dot["y"] + dot["height"] / 2
    for zone in page.locator("#plane rect.zone").all():
        box = zone.bounding_box()
        assert box is not None
        across = box["x"] <= x <= box["x"] + box["width"]
        if across and box["y"] <= y <= box["y"] + box["height"]:
            return (zone.get_attribute("class") or "").removeprefix("zone ")
    raise AssertionError("the dot lies in no zone")


def test_history_brings_an_answer_back_by_keyboard(page: Page):
    first, second = text_for("accept"), text_for("escalate")
    ask(page, first)
    ask(page, second)
    expect(page.locator("#plane .past")).to_have_count(1)

    for _ in range(9):  # from the input, over the buttons, to the older entry
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.title") == first:
            break
    page.keyboard.press("Enter")

    expect(page.locator("#decision")).to_have_text("accept")
    expect(page.get_by_label("sentence")).to_have_value(first)
    current = page.locator("#history button[aria-current=true]")
    expect(current).to_contain_text(first)
    expect(current).to_be_focused()
    page.get_by_role("button", name="Clear").click()
    expect(page.locator("#history li")).to_have_count(0)


def test_an_error_is_a_sentence_and_asking_goes_on(page: Page):
    page.get_by_label("sentence").fill("☠")
    page.get_by_role("button", name="Predict").click()
    problem = page.get_by_role("alert")
    expect(problem).to_contain_text("the forward pass failed on this input (request ")
    ask(page, "again")
    expect(problem).to_be_hidden()


def test_text_is_text(page: Page):
    ask(page, '<img src=x onerror=alert(1)> & "quotes" ünïcödé 🙂')
    assert page.locator("#history img").count() == 0


def test_a_wrong_key_is_asked_for_again(browser: Browser, server: ServerProcess):
    page = browser.new_page()
    page.goto(server.url)
    page.get_by_label("API key").fill("wrong")
    page.get_by_role("button", name="Use key").click()
    expect(page.get_by_role("alert")).to_contain_text("send a known key")
    expect(page.get_by_label("API key")).to_be_focused()
    page.get_by_label("API key").fill(KEY)
    page.keyboard.press("Enter")
    expect(page.get_by_label("sentence")).to_be_focused()
    expect(page.get_by_label("API key")).to_be_hidden()
    page.reload()
    expect(page.get_by_label("sentence")).to_be_focused()
    page.close()


def test_light_and_dark(browser: Browser, server: ServerProcess):
    context = browser.new_context(color_scheme="dark")
    page = context.new_page()
    page.goto(server.url)

    def lightness() -> float:
        colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
        return sum(map(int, re.findall(r"\d+", colour)[:3])) / 765

    button = page.get_by_role("button", name="Theme")
    assert lightness() < 0.2
    button.click()
    expect(button).to_have_text("Theme: light")
    assert lightness() > 0.8
    page.reload()
    assert lightness() > 0.8
    button.click()
    assert lightness() < 0.2
    button.click()
    expect(button).to_have_text("Theme: auto")
    page.emulate_media(color_scheme="light")
    assert lightness() > 0.8
    context.close()


def test_several_fields_and_a_narrow_screen(browser: Browser):
    with start("fake", api_keys=[], predictor={"fields": ["claim", "evidence"]}) as process:
        process.until_ready()
        context = browser.new_context(viewport=ViewportSize(width=360, height=740))
        page = context.new_page()
        page.goto(process.url)
        page.get_by_label("claim").fill("a")
        page.get_by_label("evidence").fill("b" * 400)
        page.get_by_role("button", name="Predict").click()
        expect(page.locator("#decision")).to_be_visible()
        expect(page.locator("#numbers")).to_contain_text("cut to fit")
        assert page.evaluate("document.documentElement.scrollWidth") <= 360
        context.close()


def test_of_several_adapters_one_is_chosen_by_keyboard(browser: Browser):
    with start("fake", api_keys=[], adapters="sentiment=/a,topic=/b") as process:
        process.until_ready()
        page = browser.new_page()
        page.goto(process.url)
        expect(page.locator("#served")).to_have_text("sentiment on fake-model")
        ask(page, "a text")
        page.get_by_label("adapter").focus()
        page.keyboard.press("ArrowDown")
        expect(page.locator("#served")).to_have_text("topic on fake-model")
        expect(page.get_by_label("adapter")).to_be_focused()
        expect(page.get_by_label("sentence")).to_have_value("a text")
        ask(page, "another")
        expect(page.locator("#plane .past")).to_have_count(0)  # those of another policy are not
        page.locator("#history button").nth(1).press("Enter")
        expect(page.locator("#served")).to_have_text("sentiment on fake-model")
        expect(page.get_by_label("sentence")).to_have_value("a text")
        counted = httpx.get(f"{process.url}/metrics").text
        assert 'dalorra_labels_total{adapter="topic",label="positive"} 1.0' in counted
        page.close()


def test_it_waits_for_a_model_that_loads(browser: Browser):
    with start("fake", api_keys=[], predictor={"load_seconds": 2}) as process:
        page = browser.new_page()
        page.goto(process.url)
        expect(page.locator("#served")).to_contain_text("still loading")
        expect(page.get_by_role("button", name="Predict")).to_be_disabled()
        expect(page.get_by_role("button", name="Predict")).to_be_enabled(timeout=15_000)
        assert httpx.get(f"{process.url}/health/ready").status_code == 200
        page.close()


@pytest.fixture
def questions(browser: Browser) -> Iterator[Page]:
    """The view of typed questions, of a server whose only adapter answers them."""
    with start("fake", api_keys=[], predictor={"questions": True}) as process:
        process.until_ready()
        page = browser.new_page(viewport=WIDE)
        page.goto(process.url)
        expect(page.get_by_role("tab", name="Questions")).to_have_attribute("aria-selected", "true")
        expect(page.get_by_role("button", name="Ask")).to_be_enabled()
        yield page
        page.close()


def add(page: Page, kind: str, text: str, criteria: str = "") -> None:
    """A question below those that are there."""
    page.get_by_role("button", name="Add a question").click()
    page.get_by_label("kind").last.select_option(kind)
    page.get_by_label("question", exact=True).last.fill(text)
    if criteria:
        page.locator(".question textarea").last.fill(criteria)


def test_three_kinds_of_questions_with_their_samples_and_decisions(questions: Page):
    page = questions
    page.get_by_label("state", exact=True).fill('{"text": "Where is my card?"}')
    add(page, "choice", "Who answers?", "cards: lost and late ones\nloans\n")
    add(page, "score", "How angry is it?", "calm\nannoyed\nfurious")
    with page.expect_response("**/v1/systemone") as answered:
        page.keyboard.press("Control+Enter")

    asked = answered.value.request.post_data_json
    assert asked["state"] == {"text": "Where is my card?"}
    assert list(asked["questions"].values()) == [
        {"type": "noul", "instructions": "Is this review positive?"},
        {
            "type": "choice",
            "instructions": "Who answers?",
            "criteria": {"cards": "lost and late ones", "loans": None},
        },
        {
            "type": "score",
            "instructions": "How angry is it?",
            "criteria": ["calm", "annoyed", "furious"],
        },
    ]
    cards = page.locator("#answers article")
    expect(cards).to_have_count(3)
    for card, answer in zip(cards.all(), answered.value.json()["answers"].values(), strict=True):
        expect(card.locator(".decision")).to_have_text(answer["x_decision"])
        expect(card.locator(".reason")).to_have_text(f"{answer['x_reason']}.")
        dots = [float(dot.get_attribute("cx")[:-1]) for dot in card.locator(".sample").all()]  # type: ignore[index]
        samples = sorted(answer["x_sample_probabilities"])
        if answer["type"] == "noul" and answer["noul"] < 0.5:
            samples = sorted(1 - p for p in samples)
        assert dots == pytest.approx([100 * p for p in samples])
        shares = card.locator(".labels .share").all_inner_texts()
        assert sum(float(share.removesuffix(" %")) for share in shares) == pytest.approx(100, abs=1)


def test_a_question_that_does_not_fit_is_named_and_can_be_removed(questions: Page):
    page = questions
    page.get_by_label("state", exact=True).fill("a state")
    add(page, "choice", "Which?", "only one")
    page.get_by_role("button", name="Ask").click()
    expect(page.get_by_role("alert")).to_contain_text("questions.question 2")
    expect(page.get_by_role("alert")).to_contain_text("at least 2 items")
    page.get_by_role("button", name="Remove").last.click()
    page.get_by_role("button", name="Ask").click()
    expect(page.locator("#answers article")).to_have_count(1)
    expect(page.get_by_role("alert")).to_be_hidden()
    expect(page.get_by_role("button", name="Remove")).to_have_count(0)


def test_views_are_changed_by_keyboard(page: Page):
    page.get_by_role("tab", name="Predict").focus()
    page.keyboard.press("ArrowRight")
    expect(page.get_by_role("tab", name="Questions")).to_be_focused()
    expect(page.get_by_label("state", exact=True)).to_be_visible()
    expect(page.get_by_label("sentence")).to_be_hidden()
    page.get_by_label("state", exact=True).fill("This movie was fantastic!")
    page.get_by_role("button", name="Ask").click()  # registered with the adapter that is served
    expect(page.locator("#answers .decision")).to_be_visible()
