"""The pages of a gallery in a browser: what they show, and that everything works by keyboard."""

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.browser.chromium import (
    DESKTOP,
    INTERACTIVE,
    PHONE,
    missing,
    press,
    requested,
    resize,
    wait,
)
from tests.gallery_site import HOSTILE, ODD, gallery
from tests.workshop import Place

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(missing() is not None, reason=missing() or "a browser is here"),
]
CSS = "css selector"
TAB, RIGHT, HOME, ENTER, SPACE, ESCAPE = "\ue004", "\ue014", "\ue011", "\ue007", " ", "\ue00c"


@pytest.fixture(scope="module")
def site(filled: Place, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A gallery in a folder whose name needs escapes in an address, moved there."""
    folder = tmp_path_factory.mktemp("gallery")
    first = gallery(filled, folder=str(folder / "site"))
    return Path(shutil.move(first, folder / ODD))


@pytest.fixture
def index(browser: Any, site: Path) -> Any:
    """The browser at the page of all runs."""
    browser.get((site / "index.html").as_uri())
    return browser


def all_of(browser: Any, selector: str) -> list[Any]:
    return browser.find_elements(CSS, selector)


def one(browser: Any, selector: str) -> Any:
    return browser.find_element(CSS, selector)


def shown(browser: Any) -> list[str]:
    """The prompts of the cards that are shown, in order."""
    script = """return [...document.querySelectorAll('.card:not([hidden]) .prompt')]
      .map((prompt) => prompt.textContent)"""
    return browser.execute_script(script)


def fill(browser: Any, name: str, value: str) -> None:
    """Set a filter as a user does."""
    script = """const field = document.forms[0].elements[arguments[0]];
      field.value = arguments[1]; field.dispatchEvent(new Event('input', {bubbles: true}))"""
    browser.execute_script(script, name, value)


def open_run(index: Any, seed: str) -> None:
    """Open the page of a seed; the latest one if there are several."""
    index.get(one(index, f".card[data-seed='{seed}'] .prompt a").get_attribute("href"))


def test_every_page_opens_without_a_message_and_loads_only_files(index: Any, site: Path) -> None:
    pages = [site / "index.html", *(site / "runs").iterdir()]
    assert len(pages) == 6
    for page in pages:
        index.get(page.as_uri())
        broken = """return [...document.images].filter((image) => image.loading !== 'lazy'
          && !(image.complete && image.naturalWidth)).map((image) => image.src)"""
        assert wait(index, lambda browser, script=broken: browser.execute_script(script) == [])
        addresses = requested(index)
        assert len(addresses) > 3
        # data: the browser's own signs in its fields
        assert [one for one in addresses if not one.startswith(("file:", "data:image/svg"))] == []
        assert index.get_log("browser") == [], page


def test_a_hostile_prompt_stays_text(index: Any) -> None:
    assert HOSTILE in shown(index)
    open_run(index, "100000000000000000000")
    assert one(index, "h1").get_property("textContent") == HOSTILE
    assert index.title.startswith("</script><script>document.title='hacked'</script>")
    assert HOSTILE in one(index, "[aria-labelledby=settings-title] td").get_property("textContent")
    assert index.execute_script("return window.hacked") is None
    assert all_of(index, "img[src='x'], b, script:not([src])") == []


def test_inline_script_is_refused(index: Any) -> None:
    """The policy holds, should a page have a hole."""
    script = """const script = document.createElement('script');
      script.textContent = 'window.hacked = 1'; document.body.append(script);
      return window.hacked"""
    assert index.execute_script(script) is None
    [message] = index.get_log("browser")
    assert "Content Security Policy" in message["message"]


def test_the_slider_moves_through_the_steps(index: Any) -> None:
    open_run(index, "2")
    picture, slider = one(index, "#strip"), one(index, "#step")
    assert one(index, "#step-text").text == "4 of 4"
    seen = [picture.get_attribute("src")]
    slider.send_keys(HOME)
    for number in (1, 2, 3):
        assert one(index, "#step-text").text == f"{number} of 4"
        assert slider.get_attribute("aria-valuetext") == f"{number} of 4"
        assert picture.get_attribute("alt") == f"The prediction of step {number} of 4"
        seen.append(picture.get_attribute("src"))
        assert wait(index, lambda browser: picture.get_property("naturalWidth") > 0)
        slider.send_keys(RIGHT)
    assert len(set(seen)) == 4
    left = picture.rect["x"]
    one(index, "#frame").send_keys(HOME)
    assert one(index, "#frame-text").text == "1 of 2"
    one(index, "#frame").send_keys(RIGHT)
    width = one(index, ".strip").rect["width"]
    assert picture.rect["x"] == pytest.approx(left - width, abs=3)
    assert picture.rect["width"] == pytest.approx(2 * width, abs=5)


def test_filters_and_sorting_choose_the_cards(index: Any) -> None:
    assert len(shown(index)) == 5
    one(index, "[name=prompt]").send_keys("RUNS dog")
    assert shown(index) == ["a dog runs"]
    assert one(index, "#count").text == "1 of 5 runs"
    fill(index, "prompt", "")
    fill(index, "state", "unfinished")
    assert shown(index) == ["a dog runs"]
    fill(index, "state", "")
    fill(index, "sort", "prompt")
    assert shown(index) == sorted(shown(index))
    fill(index, "sort", "seed")
    assert shown(index)[-1] == HOSTILE
    fill(index, "model", one(index, "[name=model] option:last-child").get_attribute("value"))
    assert len(shown(index)) == 5


def test_dates_are_filtered_by_day(index: Any) -> None:
    day = one(index, "time").get_attribute("datetime")[:10]
    fill(index, "from", day)
    fill(index, "to", day)
    assert shown(index)
    fill(index, "from", "2999-01-01")
    fill(index, "to", "")
    assert shown(index) == []


def test_nothing_found_says_so_and_leads_back(index: Any) -> None:
    one(index, "[name=prompt]").send_keys("no such words")
    assert shown(index) == []
    assert one(index, "#nothing").is_displayed()
    assert one(index, "#count").text == "0 of 5 runs"
    one(index, "#reset").click()
    assert not one(index, "#nothing").is_displayed()
    assert len(shown(index)) == 5
    assert index.switch_to.active_element.get_attribute("name") == "prompt"


def test_a_card_plays_its_video_in_place(index: Any) -> None:
    one(index, ".card[data-seed='2'] .play").click()
    playing = "return document.querySelector('.card video')?.currentTime > 0"
    assert wait(index, lambda browser: browser.execute_script(playing))


def choose(index: Any, first: str, second: str) -> None:
    """Choose two cards to compare, by selectors."""
    for selector in (first, second):
        one(index, f"{selector} .compare").click()
    wait(index, lambda browser: one(browser, "#compare").is_displayed())


def videos(index: Any, expression: str) -> list[Any]:
    """A property of both videos in the dialog."""
    script = "return [...document.querySelectorAll('dialog video')].map((video) => %s)"
    return index.execute_script(script % expression)


def test_two_videos_play_side_by_side_in_step(index: Any) -> None:
    choose(index, ".card[data-seed='1']", ".card[data-seed='2']")
    assert wait(index, lambda _: videos(index, "video.readyState > 2") == [True, True])
    first, second = all_of(index, "dialog video")
    index.execute_script("arguments[0].currentTime = 3", first)
    assert wait(index, lambda _: videos(index, "video.currentTime") == [3, 3])
    index.execute_script("arguments[0].currentTime = 0.5", second)
    assert wait(index, lambda _: videos(index, "video.currentTime") == [0.5, 0.5])
    index.execute_script("arguments[0].play()", second)
    assert wait(index, lambda _: videos(index, "video.paused") == [False, False])
    assert wait(index, lambda _: min(videos(index, "video.currentTime")) > 0.7)
    one_time, other_time = videos(index, "video.currentTime")
    assert one_time == pytest.approx(other_time, abs=0.25)
    index.execute_script("arguments[0].pause()", first)
    assert wait(index, lambda _: videos(index, "video.paused") == [True, True])
    one(index, "#compare-play").click()
    assert wait(index, lambda _: videos(index, "video.paused") == [False, False])
    assert one(index, "#compare-play").text == "Pause"


def test_side_by_side_tells_what_differs_and_closes(index: Any) -> None:
    choose(index, ".card[data-seed='3']", ".card[data-seed='2']")
    rows = [row.text for row in all_of(index, "dialog tbody tr")]
    assert rows == ["prompt a dog runs a cat", "seed 3 2"]
    press(index, ESCAPE)
    assert not one(index, "#compare").is_displayed()
    assert all_of(index, "dialog video, [aria-pressed='true']") == []
    focused = index.switch_to.active_element
    assert focused.accessible_name.startswith("Compare a cat, seed 2")


def reached(browser: Any, most: int = 200) -> set[str]:
    """Press Tab until the focus leaves the page; the ids of the elements that had it."""
    found: set[str] = set()
    browser.execute_script("document.activeElement.blur(); window.scrollTo(0, 0)")
    for _ in range(most):
        press(browser, TAB)
        focused = browser.switch_to.active_element
        if focused.tag_name == "body":
            break
        outline = "return getComputedStyle(arguments[0]).outlineStyle"
        visible = browser.execute_script(outline, focused) != "none"
        assert visible or focused.tag_name == "video", focused.get_attribute("outerHTML")
        found.add(focused.id)
    return found


@pytest.mark.parametrize("page", ["index", "run"])
def test_the_keyboard_reaches_everything_and_everything_has_a_name(page: str, index: Any) -> None:
    if page == "run":
        open_run(index, "1")
    wanted = [
        element
        for element in all_of(index, INTERACTIVE)
        if element.is_displayed() and element.get_attribute("tabindex") != "-1"
    ]
    assert len(wanted) > 10
    assert [one.get_attribute("outerHTML") for one in wanted if not one.accessible_name] == []
    assert {element.id for element in wanted} - reached(index) == set()


def test_two_runs_are_compared_by_keyboard_alone(index: Any) -> None:
    for seed in ("1", "2"):
        button = one(index, f".card[data-seed='{seed}'] .compare")
        index.execute_script("arguments[0].focus()", button)
        press(index, ENTER)
    assert one(index, "#compare").is_displayed()
    assert index.switch_to.active_element.get_attribute("id") == "compare-close"
    press(index, SPACE)
    assert not one(index, "#compare").is_displayed()


@pytest.mark.parametrize("size", [DESKTOP, PHONE])
def test_no_page_is_wider_than_the_screen(size: tuple[int, int], index: Any, site: Path) -> None:
    resize(index, size)
    for page in (site / "index.html", *(site / "runs").iterdir()):
        index.get(page.as_uri())
        script = "return [document.documentElement.scrollWidth, innerWidth]"
        content, window = index.execute_script(script)
        assert content <= window == size[0]


def test_the_command_is_copied(index: Any) -> None:
    open_run(index, "1")
    one(index, "#copy").click()
    assert wait(index, lambda browser: one(browser, "#copied").text == "Copied")
