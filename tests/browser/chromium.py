"""Headless Chromium, driven by Selenium, for tests of pages on the disk.

Without a browser or its driver these tests are skipped, and say so.
"""

import json
import os
import shutil
from typing import Any

import pytest

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
DRIVER = "chromedriver"
WAIT = 10  # seconds for what a page does by itself
DESKTOP, PHONE = (1280, 900), (390, 844)  # CSS pixels
INTERACTIVE = "a[href], button, input, select, video[controls], [tabindex='0']"


def missing() -> str | None:
    """Why there is no browser to test with, None if there is one."""
    if not any(map(shutil.which, BROWSERS)):
        return "no Chromium here; install Debian's packages chromium and chromium-driver"
    if not shutil.which(DRIVER):
        return "no chromedriver here; install Debian's package chromium-driver"
    return None


def start(*arguments: str) -> Any:
    """Start a browser with these arguments more. Skips the test if there is none."""
    if reason := missing():
        pytest.skip(reason)
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = next(filter(None, map(shutil.which, BROWSERS)))
    for argument in ("--headless=new", "--disable-gpu", "--mute-audio", *arguments):
        options.add_argument(argument)
    if os.geteuid() == 0:
        options.add_argument("--no-sandbox")  # Chromium does not start as root otherwise
    options.add_argument("--disable-dev-shm-usage")  # containers have little of it
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(shutil.which(DRIVER))
    return webdriver.Chrome(options=options, service=service)


def resize(browser: Any, size: tuple[int, int]) -> None:
    """Give the page a size in CSS pixels."""
    width, height = size
    metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 500}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)


def requested(browser: Any) -> list[str]:
    """The addresses that were asked for since the last call."""
    messages = (json.loads(row["message"])["message"] for row in browser.get_log("performance"))
    sent = (one for one in messages if one["method"] == "Network.requestWillBeSent")
    return [one["params"]["request"]["url"] for one in sent]


def wait(browser: Any, condition: Any) -> Any:
    """Wait until a condition of the browser holds; its value."""
    from selenium.webdriver.support.ui import WebDriverWait

    return WebDriverWait(browser, WAIT, poll_frequency=0.05).until(condition)


def press(browser: Any, *keys: str) -> None:
    """Press keys, wherever the focus is."""
    from selenium.webdriver import ActionChains

    ActionChains(browser).send_keys(*keys).perform()
