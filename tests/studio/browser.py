"""A page of the studio in Chromium, for the tests."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import httpx
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.action_chains import ActionChains
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

PATIENCE = 300.0
"""Seconds that a test waits for something to appear, for machines that do other work as well."""
TOAST = "[data-testid=toast-text], .toast-message-text"
"""Messages of the page."""
ARGUMENTS = [
    "--headless=new",
    "--no-sandbox",
    "--disable-dev-shm-usage",
    "--window-size=1500,1300",
    "--hide-scrollbars",
]


def new_driver() -> webdriver.Chrome:
    """Start Chromium with its log of requests and of the console."""
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    assert browser and driver, "the browser tests need Debian's packages chromium and chromium-driver"
    options = Options()
    options.binary_location = browser
    for argument in ARGUMENTS:
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL", "browser": "ALL"})
    return webdriver.Chrome(options=options, service=Service(driver))


def wait_for(condition: Callable[[], Any], what: str, seconds: float | None = None) -> Any:
    """Return what the condition returns once that is true."""
    seconds = PATIENCE if seconds is None else seconds
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        try:
            if found := condition():
                return found
        except WebDriverException:  # it is just being drawn
            pass
        time.sleep(0.05)
    raise AssertionError(f"{what}: not within {seconds:g} s")


class Page:
    """A window of the browser that shows the studio."""

    def __init__(self, driver: webdriver.Chrome, address: str):
        self.driver, self.address = driver, address
        driver.get(address)
        self.window = driver.current_window_handle
        self.find("#sample-start")
        wait_for(lambda: driver.execute_script("return document.readyState") == "complete", "the page")

    def find(self, selector: str) -> Any:
        return wait_for(lambda: self.driver.find_element(By.CSS_SELECTOR, selector), selector)

    def click(self, selector: str) -> None:
        def clicked() -> bool:
            self.driver.execute_script("document.activeElement.blur()")  # which closes a list that is open
            self.find(selector).click()
            return True

        wait_for(clicked, f"a click on {selector}")

    def tab(self, title: str) -> None:
        """Open a tab."""
        path = f"//button[@role='tab'][normalize-space()='{title}']"

        def opened() -> list[Any]:
            return [one.click() or one for one in self.driver.find_elements(By.XPATH, path) if one.is_displayed()]

        wait_for(opened, f"the tab {title}")

    def text(self, element: str) -> str:
        return str(self.find(f"#{element}").text)

    def wait_for_text(self, element: str, begin: str, seconds: float | None = None) -> str:
        """Wait until the text of an element begins so, and return it."""
        return str(wait_for(lambda: (text := self.text(element)).startswith(begin) and text,
                            f"{element} with {begin!r}, which is {self.text(element)!r}", seconds))  # fmt: skip

    def fill(self, element: str, value: object) -> None:
        """Type a value into a field."""
        field = self.find(f"#{element} input, #{element} textarea")
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(str(value))
        self.driver.execute_script("arguments[0].blur()", field)  # the tab key would open a list beside it

    def choose(self, element: str, value: str) -> None:
        """Choose a value of a drop-down list by typing its name."""
        field = self.find(f"#{element} input")
        field.click()
        field.send_keys(Keys.CONTROL, "a")
        field.send_keys(value, Keys.ENTER)

    def slide(self, element: str, fraction: float) -> None:
        """Click a slider at a fraction of its length."""
        bar = self.find(f"#{element} input[type=range]")
        width = bar.size["width"]
        ActionChains(self.driver).move_to_element_with_offset(
            bar, round((fraction - 0.5) * (width - 16)), 0
        ).click().perform()

    def source(self, element: str) -> str:
        """Return the address of the picture in an element, "" without one."""
        found = self.driver.find_elements(By.CSS_SELECTOR, f"#{element} img")
        return str(found[0].get_attribute("src")) if found else ""

    def picture(self, element: str) -> bytes:
        """Return the file of the picture in an element."""
        return httpx.get(wait_for(lambda: self.source(element), f"a picture in {element}")).content

    def message(self) -> str:
        """Return the error that the page shows, and close it."""
        found = str(wait_for(lambda: self.find(TOAST).text, "the text of a message"))  # which fades in
        for button in self.driver.find_elements(By.CSS_SELECTOR, ".toast-close"):
            with suppress(WebDriverException):  # it has just faded out
                button.click()
        wait_for(lambda: not self.driver.find_elements(By.CSS_SELECTOR, TOAST), "the end of the message")
        return found

    def save(self, folder: Path | None, name: str, element: str = "") -> None:
        """Save a screenshot, if a folder is given. element: what is scrolled to"""
        if folder is not None:
            if element:
                self.driver.execute_script("arguments[0].scrollIntoView()", self.find(f"#{element}"))
            time.sleep(0.5)  # of animations
            self.driver.save_screenshot(str(folder / f"{name}.png"))
            self.driver.execute_script("window.scrollTo(0, 0)")

    def console_errors(self) -> list[str]:
        return [entry["message"] for entry in self.driver.get_log("browser") if entry["level"] == "SEVERE"]

    def hosts(self) -> set[str]:
        """Return the hosts that the page has asked."""
        found = set()
        for entry in self.driver.get_log("performance"):
            message = json.loads(entry["message"])["message"]
            if message["method"] in ("Network.requestWillBeSent", "Network.webSocketCreated"):
                part = message["params"]
                url = urlparse(part["request"]["url"] if "request" in part else part["url"])
                found |= {str(url.hostname)} if url.scheme not in ("data", "blob", "chrome") else set()
        return found
