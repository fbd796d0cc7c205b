"""The page in a real browser, as a person uses it: by keys, by words, on a phone; and that it rests when nobody does."""

import io
import shutil
from collections.abc import Iterator

import pytest
from PIL import Image

pytest.importorskip("playwright.sync_api", reason="a browser is driven by playwright: the extra `test`")
pytest.importorskip("starlette", reason="the page's server needs the extra: serve")

from playwright.sync_api import Browser, Page, expect, sync_playwright

from tests.test_play import FIRST, SHORTEST, ask, page, seat  # noqa: F401 (fixtures)

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-background-networking",
    "--disable-component-update", "--disable-sync",
]  # fmt: skip
SLOWEST = 180_000  # ms, with a larger board still to be compiled and other tests beside it

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="there is no chromium here")


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, headless=True, args=FLAGS)
        yield started
        started.close()


@pytest.fixture(scope="module")
def address(page: str) -> str:  # noqa: F811
    """The page's, once what it asks first is compiled."""
    for name in ("person", "model", "scores"):
        assert ask(page, name, FIRST | {"done": []})[0] == 200
    return page


class Watched:
    """A tab, what it asked the server, and what went wrong in it."""

    def __init__(self, browser: Browser, address: str, width: int = 1280, scheme: str = "light"):
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme)  # pyright: ignore
        context.set_default_timeout(SLOWEST)
        self.tab: Page = context.new_page()
        self.wrong: list[str] = []
        self.asked: list[str] = []
        self.tab.on("console", lambda message: self.wrong.append(message.text))
        self.tab.on("pageerror", lambda error: self.wrong.append(str(error)))
        self.tab.on("requestfailed", lambda request: self.wrong.append(request.url))
        self.tab.on("request", lambda request: self.asked.append(request.url))
        self.tab.goto(address)

    def says(self, where: str, words: str) -> None:
        expect(self.tab.locator(where)).to_contain_text(words, timeout=SLOWEST)

    def list(self, where: str) -> list[str]:
        return self.tab.locator(f"{where} li").all_inner_texts()


@pytest.fixture
def opened(browser: Browser, address: str) -> Iterator[Watched]:
    watched = Watched(browser, address)
    watched.says("#scores", "explorer")
    yield watched
    assert watched.wrong == []
    watched.tab.context.close()


def test_a_person_wins_by_keys(opened: Watched):
    tab = opened.tab
    expect(tab.locator("#you-picture")).to_be_visible()
    for key, words in (("3", "walked 3 cells"), ("ArrowRight", "turned right"), ("ArrowUp", "Won! 3 commands")):
        tab.keyboard.press(key)
        opened.says("#you-message", words)
    assert opened.list("#you-turns") == list(SHORTEST)
    opened.says("#scores .mine", "won")
    opened.says("#scores .mine", "100%")
    expect(tab.locator("[data-command=left]")).to_be_disabled()
    tab.keyboard.press("ArrowLeft")
    opened.says("#you-message", "takes no more commands")


def test_words_are_read_as_the_game_reads_them(opened: Watched):
    """The keys are off while one types; what the game does not know is said and costs nothing."""
    tab = opened.tab
    field = tab.get_by_label("Command", exact=True)
    field.press_sequentially("  LEFT 3 ")
    field.press("Enter")
    opened.says("#you-message", "turned left")
    field.fill("jump 2")
    field.press("Enter")
    opened.says("#you-message", "does not know “jump 2”")
    assert opened.list("#you-turns") == ["left"]
    tab.get_by_label("Keys").uncheck()
    tab.locator("h1").click()
    tab.keyboard.press("ArrowRight")
    tab.get_by_role("button", name="forward 2", exact=True).click()
    opened.says("#you-message", "Forward 2")
    assert opened.list("#you-turns") == ["left", "forward 2"], "with the keys switched off, no key counts"


def test_going_back_and_on_from_there(opened: Watched):
    tab = opened.tab
    for key in ("ArrowLeft", "ArrowLeft", "ArrowUp"):
        tab.keyboard.press(key)
    opened.says("#you-at", "3 of 3")
    was = tab.locator("#you-picture").get_attribute("src")
    opened.asked.clear()
    tab.get_by_role("button", name="One step back", exact=True).click()
    opened.says("#you-at", "2 of 3")
    assert tab.locator("#you-picture").get_attribute("src") != was
    assert [url for url in opened.asked if "/api/" in url] == [], "what has been seen is remembered"
    tab.keyboard.press("ArrowRight")
    opened.says("#you-at", "3 of 3")
    assert opened.list("#you-turns") == ["left", "left", "right"]
    opened.says("#scores .mine", "went back once")
    again = Watched(tab.context.browser, tab.url)  # pyright: ignore[reportArgumentType]
    again.says("#you-at", "3 of 3")
    assert again.list("#you-turns") == ["left", "left", "right"], "an address is a game"
    assert again.wrong == []


def test_the_model_step_by_step_and_taking_turns_with_it(opened: Watched):
    tab = opened.tab
    opened.says("#model-message", "It says `forward 3`")
    said = [text.split("\n")[0] for text in tab.locator("#tokens button").all_inner_texts()]
    assert said == ["`", "forward", "␣", "3", "`", "end"]
    assert tab.locator("#actions tr.said th").inner_text() == "forward 3"
    tab.locator("#tokens button").nth(3).click()
    opened.says("#rivals caption", "Token 4")
    assert tab.locator("#value svg").count() == 1
    opened.says("#on-picture", "of its attention")
    tab.get_by_role("button", name="One turn").click()
    opened.says("#model-message", "It says `right`")
    tab.get_by_role("button", name="Take over from here").click()
    opened.says("#you-message", "after 1 command")
    opened.says("#scores .mine", "after 1 command of the model")
    tab.get_by_role("button", name="To the end").click()
    opened.says("#model-message", "Won in 3 commands")
    opened.says("#model-at", "3 of 3")
    tab.keyboard.press("b")
    opened.says("#model-at", "2 of 3")
    tab.keyboard.press("ArrowRight")
    opened.says("#you-at", "2 of 2")
    tab.get_by_role("button", name="Let the model go on").click()
    opened.says("#model-at", "2 of 2")
    assert opened.list("#model-turns") == ["forward 3", "right"]
    opened.says("#model-message", "It says `forward 1`")
    tab.keyboard.press("m")
    opened.says("#model-message", "Won in 3 commands")
    with tab.expect_download() as download:
        tab.locator("#model-gif").click()
    assert Image.open(io.BytesIO(download.value.path().read_bytes())).format == "GIF"
    assert download.value.suggested_filename == "gridwalker-0.gif"


def test_other_boards(opened: Watched):
    """A larger one than the model's, and one that cannot be."""
    tab = opened.tab
    tab.get_by_label("Size").fill("12")
    tab.get_by_label("Seed", exact=True).fill("snow ☃")
    tab.get_by_role("button", name="Play", exact=True).click()
    opened.says("#model-status", "boards up to 8 by 8")
    expect(tab.locator("#model-picture")).not_to_be_visible()
    tab.get_by_label("Size").fill("2")
    tab.get_by_role("button", name="Play", exact=True).click()
    assert not tab.locator("#blocks").evaluate("field => field.validity.valid"), "so the form is not sent"
    tab.evaluate("location.hash = 'seed=1&size=2&blocks=9'")
    opened.says("#alert", "0 to 1 blocks")
    assert ["400 (Bad Request)" in line for line in opened.wrong] == [True]
    opened.wrong.clear()
    tab.get_by_label("Size").fill("8")
    tab.get_by_role("button", name="New seed").click()
    opened.says("#model-status", "0 commands")
    expect(tab.locator("#alert")).not_to_be_visible()


def test_a_link_that_cannot_be_opens_the_first_board(browser: Browser, address: str):
    """And what is wrong with it is said in the server's own words."""
    fresh = Watched(browser, f"{address}/#seed=1&size=2&blocks=9")
    fresh.says("#scores", "explorer")
    fresh.says("#alert", "0 to 1 blocks")
    fresh.says("#model-message", "It says")
    assert fresh.tab.get_by_label("Size").input_value() == "8"
    assert ["400 (Bad Request)" in line for line in fresh.wrong] == [True]
    fresh.tab.context.close()


def test_it_rests_when_nobody_does_anything(opened: Watched):
    opened.tab.wait_for_timeout(300)
    opened.asked.clear()
    before = opened.tab.evaluate("document.getAnimations().length")
    opened.tab.wait_for_timeout(1500)
    assert opened.asked == []
    assert before == 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_shows_it_readably(browser: Browser, address: str, scheme: str):
    """No scrolling sideways at 375 pixels; all text has a contrast of 4.5 to 1 with what is behind it."""
    phone = Watched(browser, address, width=375, scheme=scheme)
    phone.says("#scores", "explorer")
    phone.tab.get_by_role("button", name="right", exact=False).first.click()
    phone.says("#you-message", "turned right")
    phone.says("#model-message", "It says")
    phone.tab.wait_for_timeout(800)
    assert phone.tab.evaluate("document.documentElement.scrollWidth") <= 375
    assert phone.tab.evaluate(POOR_CONTRAST) == []
    assert phone.wrong == []
    phone.tab.context.close()


POOR_CONTRAST = """(() => {
  const levels = (colour) => colour.match(/[\\d.]+/g).map(Number);
  const linear = (level) => (level /= 255) <= 0.04045 ? level / 12.92 : ((level + 0.055) / 1.055) ** 2.4;
  const light = (rgb) => 0.2126 * linear(rgb[0]) + 0.7152 * linear(rgb[1]) + 0.0722 * linear(rgb[2]);
  const behind = (element) => {
    for (let at = element; at; at = at.parentElement) {
      const colour = levels(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const poor = [];
  for (const element of document.querySelectorAll("body *")) {
    const hasText = [...element.childNodes].some((node) => node.nodeType === 3 && node.textContent.trim());
    if (!hasText || !element.checkVisibility() || element.disabled) continue;
    const [front, back] = [levels(getComputedStyle(element).color), behind(element)].map(light);
    const ratio = (Math.max(front, back) + 0.05) / (Math.min(front, back) + 0.05);
    if (ratio < 4.5) poor.push(`${element.tagName} ${element.textContent.trim().slice(0, 30)} ${ratio.toFixed(2)}`);
  }
  return poor;
})()"""
