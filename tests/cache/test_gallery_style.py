"""The look of a gallery that a program can check: contrast, files, what the pages may load."""

import re
from importlib.resources import files

import pytest

PAGES = files("wanpipe.cache.gallery") / "pages"
CSS = (PAGES / "gallery.css").read_text("utf-8")
# text on what it stands on
PAIRS = [
    (text, ground)
    for text in ("text", "muted", "accent", "problem")
    for ground in ("ground", "surface", "well")
]
PAIRS.append(("on-accent", "accent"))
LINES = [("edge", "surface"), ("edge", "ground"), ("accent", "surface"), ("accent", "ground")]


def themes() -> dict[str, dict[str, str]]:
    """The colors of the light and of the dark theme, by name."""
    light, dark = re.findall(r":root \{(.*?)\}", CSS, re.DOTALL)
    found = re.compile(r"--([\w-]+): (#[0-9a-f]{6});")
    return {"light": dict(found.findall(light)), "dark": dict(found.findall(dark))}


def luminance(color: str) -> float:
    """Relative luminance (WCAG 2.2)."""
    parts = [int(color[start : start + 2], 16) / 255 for start in (1, 3, 5)]
    linear = [one / 12.92 if one <= 0.04045 else ((one + 0.055) / 1.055) ** 2.4 for one in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(one: str, other: str) -> float:
    """Contrast ratio (WCAG 2.2)."""
    darker, lighter = sorted((luminance(one), luminance(other)))
    return (lighter + 0.05) / (darker + 0.05)


def test_contrast_is_computed_as_defined() -> None:
    assert contrast("#000000", "#ffffff") == pytest.approx(21)
    assert contrast("#777777", "#ffffff") == pytest.approx(4.48, abs=0.005)


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("text", "ground"), PAIRS)
def test_text_has_a_contrast_of_4_5(theme: str, text: str, ground: str) -> None:
    colors = themes()[theme]
    assert contrast(colors[text], colors[ground]) >= 4.5


@pytest.mark.parametrize("theme", ["light", "dark"])
@pytest.mark.parametrize(("line", "ground"), LINES)
def test_borders_of_controls_have_a_contrast_of_3(theme: str, line: str, ground: str) -> None:
    colors = themes()[theme]
    assert contrast(colors[line], colors[ground]) >= 3


def test_colors_are_named_in_both_themes_and_nowhere_else() -> None:
    light, dark = themes().values()
    assert light.keys() == dark.keys()
    rest = CSS[CSS.rindex("--shadow: none") :]
    assert re.findall(r"#[0-9a-f]{3,8}\b", rest) == []


def test_nothing_comes_from_outside() -> None:
    for name in ("layout.html", "index.html", "run.html", "gallery.css", "gallery.js"):
        text = (PAGES / name).read_text("utf-8")
        assert re.findall(r"https?:|[\"'(]//|@import|@font-face", text) == [], name


def test_no_page_has_inline_script_or_style() -> None:
    for name in ("layout.html", "index.html", "run.html"):
        text = (PAGES / name).read_text("utf-8")
        assert re.findall(r"<style|\sstyle=|\son\w+=|javascript:|\|safe", text) == [], name
        assert re.findall(r"<script(?! src=)", text) == [], name


def test_the_script_is_small_and_sets_no_markup() -> None:
    script = (PAGES / "gallery.js").read_text("utf-8")
    assert len(script.splitlines()) <= 400
    assert re.findall(r"innerHTML|outerHTML|insertAdjacent|document\.write|eval\(", script) == []
