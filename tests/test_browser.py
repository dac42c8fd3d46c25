"""The page in headless Chromium, as wide as a laptop and as a phone: it loads, answers, and reports each mistake."""

import shutil
import time

import pytest
from latent_tiny import tiny_stack
from reasoner_tiny import PROMPTS
from reasoner_tiny import tiny_model as tiny_reasoner
from tiny import tiny_model

from common import serving
from common.sources import Example
from demo import answer, chain, ideas
from demo.drawing import Plane
from demo.page import build, css
from demo.thought import Knowledge, candidates_of
from latent_stack.trace import ideas_at_hand
from reasoner.model import Reasoner, ReasonerTalker, Talker
from reasoner.tasks import Example as TreeExample

QUESTION = "Tom has 12 pears. Ana gives Tom 7 more. How many pears are there now?"
SIZES = {"laptop": (1280, 900), "phone": (390, 844)}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def address():
    """A page with one run, that of nanoJEPA."""
    model = tiny_model(max_new_tokens=3, block_size=64).eval()
    numbers = candidates_of(model, [str(i) for i in range(40)], "the whole numbers to 39")
    page = build(
        {"nanojepa": answer.tab_of("out/tiny", model, Knowledge(numbers, examples=(Example(QUESTION, "19"),)))}
    )
    yield serving.launch(page, "127.0.0.1", 0, css(), max_bytes=65536)
    page.close(verbose=False)


@pytest.fixture(scope="module")
def siblings():
    """A page with a run of JEPA-Reasoner and one of the latent stack."""
    reasoner = ReasonerTalker(tiny_reasoner(Reasoner, trained="sst"), tiny_reasoner(Talker))
    tree = TreeExample(PROMPTS[1], "1 7 9")
    stack = tiny_stack(max_new_tokens=5)
    test, _ = ideas_at_hand(stack, limit=20)
    loaded = {
        "reasoner": chain.ChainTab("out/chain", reasoner, (tree,), frozenset(), "about", 1000),
        "latent_stack": ideas.IdeasTab("out/ideas", stack, "about", test, Plane.fit(test.z)),
    }
    page = build(loaded)
    yield serving.launch(page, "127.0.0.1", 0, css(), max_bytes=65536)
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser():
    webdriver = pytest.importorskip("selenium.webdriver", reason="needs selenium")
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (chromium and driver):
        pytest.skip("needs chromium and chromedriver")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    started = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield started
    started.quit()


def find(browser, selector: str):
    """The first visible element, within a minute."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        for element in browser.find_elements("css selector", selector):
            if element.is_displayed():
                return element
        time.sleep(0.1)
    pytest.fail(f"{selector} did not appear")


@pytest.fixture(params=SIZES)
def opened(request, browser, address):
    width, height = SIZES[request.param]
    size = dict(width=width, height=height, deviceScaleFactor=1, mobile=request.param == "phone")
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    browser.get(address)
    find(browser, "#answer-ask textarea")
    return browser


def choose_tab(browser, name: str) -> None:
    (tab,) = (e for e in browser.find_elements("css selector", "button[role=tab]") if e.text == name)
    tab.click()


def fits(browser) -> bool:
    """Is nothing wider than the window?"""
    return browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")


def ask(browser, question: str) -> None:
    box = find(browser, "#answer-ask textarea")
    box.clear()
    box.send_keys(question)
    find(browser, "#answer-ask button").click()


def test_a_question_is_answered_beside_it_and_announced(opened):
    """On a phone the answer once stood below the examples."""
    ask(opened, QUESTION)
    final = find(opened, "#answer-result .strip .final")
    assert "answer" in final.text and "the true answer is 19" in final.text
    time.sleep(1)  # the page scrolls
    height = opened.execute_script("return window.innerHeight")
    top, bottom = opened.execute_script(
        "return [document.querySelector('#answer-ask textarea').getBoundingClientRect().top,"
        "document.querySelector('#answer-result .final').getBoundingClientRect().bottom]"
    )
    assert 0 <= top and bottom <= height, "question and answer are not seen together"
    assert fits(opened)
    assert find(opened, "#answer-result svg") and find(opened, ".live").get_attribute("aria-live") == "polite"


def test_an_example_is_asked_by_one_click_and_by_keyboard(opened):
    button = find(opened, "#answer-shelf button")
    opened.execute_script("arguments[0].focus()", button)
    button.send_keys("\n")
    assert "the true answer is 19" in find(opened, "#answer-result .final").text
    assert find(opened, "#answer-ask textarea").get_attribute("value") == QUESTION


@pytest.mark.parametrize("question, message", ((" ", "There is no question yet"), ("12 + 7", "There are no words")))
def test_a_mistake_is_reported_in_place_of_an_answer(opened, question, message):
    ask(opened, question)
    assert message in find(opened, "#answer-result [role=alert]").text


def test_a_tab_without_a_run_prints_how_to_train_one(opened):
    for name, command in (("Chain", "python -m reasoner.train --preset quick"), ("Ideas", "latent_stack.train")):
        choose_tab(opened, name)
        assert command in find(opened, "[role=tabpanel] code").text


def test_a_chain_is_followed_and_disturbed_and_a_mistake_is_reported(opened, siblings):
    opened.get(siblings)
    find(opened, "button[role=tab]")
    choose_tab(opened, "Chain")
    find(opened, "#chain-ask button.primary").click()
    assert find(opened, "#chain-result svg") and find(opened, "#chain-result table") and fits(opened)
    prompt = find(opened, "#chain-ask textarea")
    prompt.clear()
    prompt.send_keys("1 2 ; root 1 goal <b>")
    find(opened, "#chain-ask button.primary").click()
    assert "<b>" in find(opened, "#chain [role=alert]").text


def test_two_texts_are_compared_and_a_mistake_is_reported(opened, siblings):
    opened.get(siblings)
    find(opened, "button[role=tab]")
    choose_tab(opened, "Ideas")
    assert find(opened, "#ideas-result .card") and find(opened, "#ideas-path svg") and fits(opened)
    box = find(opened, "#ideas textarea")
    box.clear()
    box.send_keys(" ")
    find(opened, "#ideas button.primary").click()
    assert "Text A is empty" in find(opened, "#ideas-result [role=alert]").text


def test_nothing_is_asked_of_another_machine(opened, address):
    ask(opened, QUESTION)
    find(opened, "#answer-result .strip")
    loaded = opened.execute_script("return performance.getEntriesByType('resource').map((e) => e.name)")
    assert loaded and not [url for url in loaded if not url.startswith((address, "data:", "blob:"))]
