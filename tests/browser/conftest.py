"""The browser of the tests in this folder."""

from collections.abc import Iterator
from typing import Any

import pytest

from tests.browser.chromium import DESKTOP, resize, start


@pytest.fixture(scope="module")
def chromium() -> Iterator[Any]:
    """A browser for the tests of a module."""
    browser = start()
    yield browser
    browser.quit()


@pytest.fixture
def browser(chromium: Any) -> Iterator[Any]:
    """The browser, at the size of a desktop; a page must not have logged anything."""
    resize(chromium, DESKTOP)
    chromium.get_log("browser")
    yield chromium
    assert chromium.get_log("browser") == []
