"""The studio in a real browser: images step by step, errors, stopping, two visitors, editing, and no other host."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

import admg
from admg.studio import Limits, serving
from admg.training import curves

pytestmark = pytest.mark.browser
STEPS = 6


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A folder of runs, which is empty, and one with a data set of 8 small pictures and one of handwritten digits."""
    root = tmp_path_factory.mktemp("studio")
    (root / "runs").mkdir()
    (root / "data" / "grey").mkdir(parents=True)
    for i in range(8):
        Image.fromarray(np.full((8, 8), 30 * i, np.uint8)).save(root / "data" / "grey" / f"{i}.png")
    digits = load_digits()
    np.savez(root / "data" / "digits.npz", (16 * digits.images[..., None]).clip(0, 255).astype(np.uint8), digits.target)
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
    page.tab("Sample")
    page.choose("sample-labels", "ankle")
    generate(page)
    assert "--label 'Ankle boot'" in page.text("sample-command")


def test_the_scale_sheet(page, screenshots):
    page.tab("Sample")
    page.tab("Scale sheet")
    page.fill("sheet-scales", "0, 2, 8" if screenshots is None else "0, 1, 4, 16")
    page.click("#sheet-start")
    page.wait_for_text("sheet-status", "Done")
    assert len(page.picture("sheet")) > 5000
    page.save(screenshots, "sheet", "sheet-scales")
    page.fill("sheet-scales", "strong")
    page.click("#sheet-start")
    assert "the scales must be 1 to 12 numbers" in page.message()


@pytest.mark.parametrize(
    ("field", "value", "back", "message"),
    [
        ("sample-num", 10_000, 8, "the number of images must be from 1 to 64, got 10,000"),
        ("sample-num", 0, 8, "the number of images must be from 1 to 64, got 0"),
        ("sample-seed", -1, 0, "seed must be at least 0"),
        ("sample-steps", 100_000, STEPS, "the number of steps must be from 1 to 250, got 100,000"),
    ],
)
def test_errors_are_shown(page, screenshots, field, value, back, message):
    from browser import TOAST

    page.tab("Sample")
    page.fill(field, value)
    page.click("#sample-start")
    if value == 10_000:
        page.find(TOAST)
        page.save(screenshots, "error")
    assert message in page.message()
    page.fill(field, back)


def test_a_job_is_stopped_and_a_second_visitor_waits(page, address):
    from browser import Page

    page.tab("Sample")
    page.fill("sample-num", 64)
    page.fill("sample-steps", 250)
    page.click("#sample-start")
    page.wait_for_text("sample-status", "Step")
    page.driver.switch_to.new_window("tab")
    other = Page(page.driver, address)
    other.click("#sample-start")
    other.wait_for_text("sample-status", "Waiting: 1 job ahead of yours")
    page.driver.switch_to.window(page.window)
    page.click("#sample-stop")
    began = time.monotonic()
    page.wait_for_text("sample-status", "Stopped")
    assert time.monotonic() - began < 60  # 250 steps of 64 images take minutes
    page.driver.switch_to.window(other.window)
    other.wait_for_text("sample-status", "Step")
    page.driver.close()  # which stops the job of this visitor
    page.driver.switch_to.window(page.window)
    page.click("#sample-stop")
    assert "You have no running job" in page.message()
    page.fill("sample-num", 8)
    page.fill("sample-steps", STEPS)
    generate(page)


def test_edit(page, screenshots, tmp_path):
    from browser import By, wait_for
    from selenium.webdriver.common.action_chains import ActionChains

    page.tab("Edit")
    page.click("#edit-start")
    assert "this edit needs a picture" in page.message()
    boot = admg.sample(admg.load("fashion-mnist"), "Ankle boot", num=1, steps=10, seed=1, progress=False)
    small = Image.fromarray(boot.images[0, :, :, 0])
    small.resize((256, 256), Image.Resampling.NEAREST).save(tmp_path / "boot.png")
    upload = page.find("#edit-editor input[type=file]")
    upload.send_keys(str(tmp_path / "boot.png"))
    canvas = wait_for(lambda: page.driver.find_element(By.CSS_SELECTOR, "#edit-editor canvas"), "the canvas")
    time.sleep(2)
    page.click("#edit-start")
    assert "paint over the region" in page.message()
    page.click("#edit-editor button[aria-label='Brush']")
    strokes = ActionChains(page.driver)
    for y in range(-60, 61, 20):
        strokes.move_to_element_with_offset(canvas, -60, y).click_and_hold().move_by_offset(70, 0).release()
    strokes.perform()
    page.choose("edit-labels", "ankle")
    page.click("#edit-start")
    page.wait_for_text("edit-status", "Done")
    assert len(page.picture("edit-after")) > 1000 and len(page.picture("edit-before")) > 300
    page.save(screenshots, "edit")


def test_a_file_that_is_no_picture_is_refused(page, tmp_path):
    page.tab("Edit")
    page.choose("edit-method", "Interpolate")
    (tmp_path / "a.png").write_text("this is no picture")
    page.find("#edit-second input[type=file]").send_keys(str(tmp_path / "a.png"))
    time.sleep(1)
    page.click("#edit-start")
    assert "the file cannot be read as a picture" in page.message()


def test_compare(page, screenshots):
    page.tab("Compare")
    page.fill("compare-num", 4)
    page.click("#compare-start")
    page.wait_for_text("compare-status", "Done")
    assert "label accuracy" in page.text("compare-table")
    assert page.picture("a-image") != page.picture("b-image")
    page.save(screenshots, "compare")


def test_a_large_upload_is_refused_and_the_page_goes_on(page, tmp_path):
    from browser import By

    page.tab("Edit")
    page.choose("edit-method", "Interpolate")
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)  # 1.5 MB as a PNG, over 1 MiB
    Image.fromarray(noise).save(tmp_path / "large.png")
    page.find("#edit-second input[type=file]").send_keys(str(tmp_path / "large.png"))
    assert "exceed the maximum allowed size of 1.0 Mb" in page.message()  # Gradio's, before anything is sent
    assert not page.driver.find_elements(By.CSS_SELECTOR, "#edit-second img")
    page.tab("Sample")
    page.fill("sample-seed", 1)
    generate(page)


def test_train(page, folders, screenshots, monkeypatch):
    """A training is started, watched, and stopped with a checkpoint; one that cannot begin says why."""
    page.tab("Train")
    if screenshots is not None:
        monkeypatch.setattr(curves, "LAYOUT", "constrained")  # which tests do without, as it is slow
        page.choose("new-data", "digits.npz")
        page.fill("new-name", "handwritten")
        page.fill("new-size", 8)
        page.fill("new-steps", 600)
        page.click("#new-start")
        page.wait_for_text("train-status", "handwritten: finished", 1200)
        time.sleep(5)
        page.save(screenshots, "train")
        page.choose("new-data", "grey")
        page.fill("new-name", "-")
    page.click("#new-stop")
    assert "No training run that was started here is running" in page.message()
    page.click("#new-start")
    assert "the name of a run" in page.message()
    page.fill("new-name", "first")
    page.fill("new-size", 8)
    page.fill("new-steps", 100_000)
    page.fill("new-batch", 4)
    page.click("#new-start")
    page.wait_for_text("train-status", "first: running, step")
    page.click("#new-stop")
    page.wait_for_text("train-status", "first: not running")
    assert list((folders / "runs" / "first" / "checkpoints").iterdir())
    page.click("#new-start")
    assert "first" in page.message()


def test_the_page_asks_no_other_host_and_logs_no_errors(page):
    assert page.hosts() == {"127.0.0.1"}
    # Gradio asks for the progress of an upload that is over already, and logs the 404 and the Response.
    harmless = re.compile(r"upload_progress.* 404 |assets/index-\S+\.js \S+ Response$")
    assert [error for error in page.console_errors() if not harmless.search(error)] == []
