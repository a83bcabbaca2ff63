"""The runs of the tab Train: what is shown of them, which names are allowed, and a training that is started."""

from __future__ import annotations

import json
import os
import platform
import time

import numpy as np
import pytest
from PIL import Image

from admg.studio.charts import log_chart
from admg.studio.runs import NewRun, RunFolder, Trainer, duration, is_running, latest_preview


@pytest.fixture
def runs(tmp_path):
    """A folder with a run of 100 steps at step 40, and files that are no runs."""
    root = tmp_path / "runs"
    out = root / "clothes"
    (out / "samples").mkdir(parents=True)
    (root / "notes").mkdir()
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret" / "log.csv").write_text("step,images\n1,1\n")
    (root / "link").symlink_to(tmp_path / "secret")
    record = {"settings": {}, "options": {"steps": 100, "batch_size": 16}, "changes": []}
    (out / "run.json").write_text(json.dumps(record))
    (out / "log.csv").write_text("step,images,loss,images_per_second\n20,320,0.5,64\n40,640,0.25,32\n")
    for name in ("a", "b"):
        Image.new("L", (4, 4)).save(out / "samples" / f"{name}.png")
    os.utime(out / "samples" / "b.png", (1, 1))
    return RunFolder(root)


@pytest.mark.thorough
def test_what_is_shown_of_a_run(runs):
    view = runs.view("clothes")
    assert (view.step, view.steps, view.rate, view.running) == (40, 100, 32, False)
    assert view.seconds_left == 60 * 16 / 32
    assert view.preview.name == "a.png" and view.status == "clothes: not running, step 40 of 100, 32 images/s"
    assert log_chart(view.rows).size[0] > 100 and log_chart([]) is None


def test_only_runs_of_the_folder_can_be_looked_at(runs):
    assert runs.names() == ["clothes"]
    for name in ("notes", "link", "..", "../secret", "/etc", "", None, ["clothes"], "clothes/../clothes"):
        with pytest.raises(ValueError, match="there is no run"):
            runs.view(name)
    with pytest.raises(ValueError, match="is not a folder"):
        RunFolder(runs.root / "clothes" / "run.json")


def test_a_run_is_running_while_its_process_lives(runs):
    lock = runs.root / "clothes" / ".lock"
    lock.write_text(f"process {os.getpid()} on {platform.node()}, since now")
    assert is_running(lock.parent) and runs.view("clothes").status.startswith("clothes: running")
    assert "30 s left" in runs.view("clothes").status
    lock.write_text(f"process 999999999 on {platform.node()}, since now")
    assert not is_running(lock.parent)
    lock.write_text("")
    assert not is_running(lock.parent)


def test_a_run_that_has_just_begun(tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / ".lock").write_text("")
    view = RunFolder(tmp_path).view("new")
    assert view.status == "new: no training has started here" and latest_preview(tmp_path / "new") is None


def test_times_in_words():
    assert [duration(s) for s in (0.4, 59, 60, 3599, 3600, 90000)] == [
        "0 s", "59 s", "1 min 0 s", "59 min 59 s", "1 h 0 min", "25 h 0 min",
    ]  # fmt: skip


@pytest.fixture
def trainer(tmp_path):
    data = tmp_path / "data"
    for label in ("dark", "light"):
        (data / "grey" / label).mkdir(parents=True)
        for i in range(8):
            pixels = np.full((8, 8), 10 * i + 100 * (label == "light"), np.uint8)
            Image.fromarray(pixels).save(data / "grey" / label / f"{i}.png")
    (data / "more.zip").write_bytes(b"")
    (data / ".hidden").mkdir()
    (data / "link").symlink_to(tmp_path)
    (tmp_path / "runs").mkdir()
    return Trainer(RunFolder(tmp_path / "runs"), data)


def new_run(**changed):
    return NewRun.read(**{"name": "first", "data": "grey", "image_size": 8, "steps": 3, "batch_size": 4} | changed)


def test_only_data_sets_of_the_folder_can_be_trained_on(trainer):
    assert trainer.data_sets() == ["grey", "more.zip"]
    for name in ("link", "..", "../runs", "/etc", ".hidden"):
        with pytest.raises(ValueError, match="unknown data set"):
            trainer.command(new_run(data=name))
    (trainer.runs.root / "first").mkdir()
    with pytest.raises(ValueError, match="a run named 'first' already exists"):
        trainer.command(new_run())


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"name": "../x"}, "the name of a run must have"),
        ({"name": ""}, "the name of a run must have"),
        ({"name": "a" * 61}, "the name of a run must have"),
        ({"name": None}, "the run needs a name"),
        ({"data": None}, "choose a data set"),
        ({"image_size": 12}, "image_size must be a multiple of 8"),
        ({"image_size": 100000}, "image_size must be at least 8 and at most 512"),
        ({"steps": 0}, "steps must be at least 1"),
        ({"batch_size": 2.5}, "batch_size must be a whole number"),
    ],
)
def test_trainings_that_are_refused(changed, message):
    with pytest.raises(ValueError, match=message):
        new_run(**changed)


@pytest.mark.slow
def test_a_training_is_started_watched_and_stopped(trainer):
    trainer.start(new_run(steps=100_000))
    with pytest.raises(ValueError, match="first is still training"):
        trainer.start(new_run(name="second"))
    end = time.monotonic() + 120
    while not (trainer.runs.root / "first" / "run.json").exists():
        assert time.monotonic() < end and trainer.running, trainer.message()
        time.sleep(0.1)
    assert trainer.runs.view("first").running and trainer.runs.view("first").steps == 100_000
    assert trainer.stop() and trainer.process.wait(60) in (130, -2), trainer.message()
    assert not trainer.runs.view("first").running and not trainer.stop()
    assert str(trainer.root) not in trainer.message()
