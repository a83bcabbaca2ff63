"""The studio in a real browser: images step by step, stopping, two visitors, the comparison, and no other host."""

from __future__ import annotations

import io
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from admg.studio import Limits, serving

pytestmark = pytest.mark.browser
STEPS = 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of runs, which is empty, and one with a data set of 8 small pictures."""
    root = tmp_path_factory.mktemp("studio")
    (root / "runs").mkdir()
    (root / "data" / "grey").mkdir(parents=True)
    for i in range(8):
        Image.fromarray(np.full((8, 8), 30 * i, np.uint8)).save(root / "data" / "grey" / f"{i}.png")
    return root


@pytest.fixture(scope="module")
def address(folders):
    with serving(["fashion-mnist"], limits=Limits(max_upload=1), runs=folders / "runs", data=folders / "data") as found:
        yield found


@pytest.fixture(scope="module")
def driver():
    from browser import new_driver

    found = new_driver()
    yield found
    found.quit()


@pytest.fixture(scope="module")
def page(driver, address):
    from browser import Page

    return Page(driver, address)


@pytest.fixture(scope="module")
def screenshots(request):
    chosen = request.config.getoption("--screenshots")
    if chosen is None:
        return None
    folder = Path(chosen)
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def generate(page):
    """Generate images with settings that have changed, and return their sheet."""
    from browser import wait_for

    before = page.source("sample-x0")
    page.click("#sample-start")
    wait_for(lambda: page.source("sample-x0") != before and page.text("sample-status").startswith("Done"), "new images")
    return page.picture("sample-x0")


def test_images_appear_and_change_with_the_scale(page, screenshots):
    from browser import wait_for

    seen = set()
    page.click("#sample-steps-more button")
    page.fill("sample-steps", STEPS if screenshots is None else 15)
    page.click("#sample-start")
    wait_for(lambda: seen.add(page.source("sample-x0")) or page.text("sample-status").startswith("Done"), "images")
    assert len(seen - {""}) >= 3, "the images do not appear step by step"
    before = page.picture("sample-x0")
    page.save(screenshots, "sample")
    page.fill("sample-steps", STEPS)
    page.slide("sample-scale", 0.9)
    after = generate(page)
    assert before != after
    assert "--scale 1" in page.text("sample-command")
    with Image.open(io.BytesIO(after)) as image:
        assert image.size[0] > 300
    page.slide("sample-step", 0.0)
    wait_for(lambda: page.picture("sample-x0") != after, "the first step")


def test_labels_are_found_by_typing(page):
    page.choose("sample-labels", "ankle")
    generate(page)
    assert "--label 'Ankle boot'" in page.text("sample-command")


def test_a_job_is_stopped_and_a_second_visitor_waits(page, address):
    from browser import Page

    page.fill("sample-num", 64)
    page.fill("sample-steps", 250)
    page.click("#sample-start")
    page.wait_for_text("sample-status", "Step")
    page.driver.switch_to.new_window("tab")
    other = Page(page.driver, address)
    other.click("#sample-start")
    other.wait_for_text("sample-status", "Waiting: 1 job before yours")
    page.driver.switch_to.window(page.window)
    page.click("#sample-stop")
    began = time.monotonic()
    page.wait_for_text("sample-status", "Stopped")
    assert time.monotonic() - began < 60  # 250 steps of 64 images take minutes
    page.driver.switch_to.window(other.window)
    other.wait_for_text("sample-status", "Step")
    page.driver.close()  # which stops the job of this visitor
    page.driver.switch_to.window(page.window)
    page.fill("sample-num", 8)
    page.fill("sample-steps", STEPS)
    generate(page)


def test_compare(page, screenshots):
    page.tab("Compare")
    page.fill("compare-num", 4)
    page.click("#compare-start")
    page.wait_for_text("compare-status", "Done")
    assert "label accuracy" in page.text("compare-table")
    assert page.picture("a-image") != page.picture("b-image")
    page.save(screenshots, "compare")


def test_the_page_asks_no_other_host(page):
    assert page.hosts() == {"127.0.0.1"}
