"""Jobs: shards, processes, interruptions, records of runs, and what is never replaced."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import arrays, failed, randomised, refused, run, snapshot, succeed

import admg
from admg import files, guidance
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.cli import options as cli_options
from admg.cli import sample as sample_command
from admg.engine.device import choose_device
from admg.generation import Recipe, job
from admg.generation.sampler_specs import sampler_name
from admg.generation.shards import Shards
from admg.generation.stage import Maker, Stage


@pytest.mark.thorough
def test_a_job_writes_the_images_of_sample(capsys, sampling, folders, tmp_path):
    out = succeed(capsys, *sampling, "--out", tmp_path / "out", "--keep-shards", "--scale", 2, "--seed", 7)
    images, labels = arrays(tmp_path / "out" / "samples_10x8x8x1.npz")
    assert labels.tolist() == [0, 1, 2, 3, 4] * 2 and "Saved 10 images to" in out
    guide = guidance.ClassifierGuidance(admg.load_classifier(folders["classifier"]), 2.0)
    expected = admg.sample(admg.load(folders["model"]), labels, guide=guide, sampler="ddpm", steps=3, seed=7,
                           batch_size=2, progress=False)  # fmt: skip
    assert np.array_equal(images, expected.images)
    assert len(list((tmp_path / "out" / "shards").iterdir())) == 5
    assert len(list((tmp_path / "out" / "images").glob("*.png"))) == 10


@pytest.mark.thorough
def test_the_file_does_not_depend_on_shards_and_processes(capsys, sampling, tmp_path):
    succeed(capsys, *sampling, "--out", tmp_path / "a")
    whole = (tmp_path / "a" / "samples_10x8x8x1.npz").read_bytes()
    for size in (4, 10, 100):
        succeed(capsys, *sampling, "--shard-size", size, "--out", tmp_path / str(size))
        assert (tmp_path / str(size) / "samples_10x8x8x1.npz").read_bytes() == whole
    said = [
        succeed(capsys, *sampling, "--out", tmp_path / "b", "--rank", rank, "--world-size", 3) for rank in (2, 0, 1)
    ]
    assert "process 2 of 3 is done, 4 shards are not" in said[0] and "process 0 of 3 is done, 2 shards" in said[1]
    assert "Saved 10 images to" in said[2] and not (tmp_path / "b" / "shards").exists()
    assert (tmp_path / "b" / "samples_10x8x8x1.npz").read_bytes() == whole
    assert "Saved 10 images to" in succeed(capsys, *sampling, "--out", tmp_path / "b", "--rank", 0, "--world-size", 3)


@pytest.mark.thorough
def test_an_image_differs_by_at_most_one_level_with_the_batch_size(capsys, sampling, tmp_path):
    succeed(capsys, *sampling, "--out", tmp_path / "a")
    succeed(capsys, *sampling, "--out", tmp_path / "b", "--batch-size", 7, "--shard-size", 3)
    a, b = (arrays(tmp_path / x / "samples_10x8x8x1.npz")[0].astype(int) for x in "ab")
    assert np.abs(a - b).max() <= 1 and a.std() > 10


@pytest.mark.thorough
def test_the_first_process_of_a_launcher_merges_for_all(capsys, sampling, tmp_path, monkeypatch):
    """The others make their share and print nothing, even if they are last."""
    succeed(capsys, *sampling, "--out", tmp_path / "one")
    whole = (tmp_path / "one" / "samples_10x8x8x1.npz").read_bytes()
    out = tmp_path / "two"
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert succeed(capsys, *sampling, "--out", out) == ""
    names = [path.name for path in sorted((out / "shards").iterdir())]
    assert names == ["0000002-0000003.npz", "0000006-0000007.npz"]
    succeed(capsys, *sampling, "--out", out, "--rank", 0, "--world-size", 3)  # the other shards, one by one
    assert succeed(capsys, *sampling, "--out", out) == ""
    assert not list(out.glob("samples*")) and not (out / "sheet.png").exists()
    monkeypatch.setenv("RANK", "0")
    said = succeed(capsys, *sampling, "--out", out)
    assert "Saved 10 images to" in said and "waiting" not in said
    assert (out / "samples_10x8x8x1.npz").read_bytes() == whole and (out / "sheet.png").exists()
    monkeypatch.setenv("RANK", "1")
    assert succeed(capsys, *sampling, "--out", out) == ""  # of a run that is finished, too


@pytest.mark.process
def test_two_processes_of_a_launcher_sample_and_enlarge(pipeline, tmp_path, capsys):
    """As torchrun starts them: the same files as of one process, of both stages, and the lines of the first alone."""
    code = [sys.executable, "-m", "admg", *map(str, pipeline), "--out", str(tmp_path / "two")]
    processes = [
        subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ | place)
        for place in ({"RANK": str(rank), "WORLD_SIZE": "2", "LOCAL_RANK": str(rank)} for rank in (0, 1))
    ]
    (out0, err0), (out1, err1) = (process.communicate(timeout=120) for process in processes)
    assert [process.returncode for process in processes] == [0, 0], err0 + err1
    assert "Saved 10 images to" in out0 and out1 == err1 == ""
    succeed(capsys, *pipeline, "--out", tmp_path / "one")
    for name in ("samples_10x16x16x1.npz", "base/samples_10x8x8x1.npz", "sheet.png", "base/sheet.png"):
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "one" / name).read_bytes(), name
    assert not list(tmp_path.glob("two/**/shards"))


def test_each_process_has_a_shard(tiny_model):
    stage = Stage(out=None, model=tiny_model, recipe=Recipe(), labels=[None] * 20, table=Labels(0))
    assert [stage.shards(processes=count).size for count in (1, 2, 8)] == [64, 10, 3]
    assert stage.shards(7, processes=8).size == 7


@pytest.mark.parametrize("command", ["demo", "info fashion-mnist", "evaluate nll --data x", "export m --to openai"])
def test_other_commands_are_for_one_process(capsys, monkeypatch, tmp_path, command):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setenv("RANK", "1")
    monkeypatch.chdir(tmp_path)
    out = [] if "info" in command else ["--out", "out"]
    line = refused(capsys, *command.split(), *out)
    assert "process 1 of 2: this command requires a single process, without a launcher, got 2" in line
    assert not list(tmp_path.iterdir())


def test_a_sheet_of_scales_is_for_one_process(capsys, sampling, tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    line = refused(capsys, *sampling, "--sheet", "scale=0,1", "--out", tmp_path / "out")
    assert "--sheet requires a single process, got 2" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.thorough
def test_an_interrupted_run_continues_and_makes_the_same_file(capsys, sampling, tmp_path, monkeypatch):
    succeed(capsys, *sampling, "--out", tmp_path / "a")
    made, make = [], Maker.make

    def failing(self, images, *rest):
        made.append(images)
        if len(made) == 3:
            raise KeyboardInterrupt
        return make(self, images, *rest)

    monkeypatch.setattr(Maker, "make", failing)
    assert run(capsys, *sampling, "--out", tmp_path / "b")[0] == 130
    whole = sorted((tmp_path / "b" / "shards").iterdir())
    assert len(whole) == 2 and not list((tmp_path / "b").glob("samples*"))
    whole[0].write_bytes(whole[0].read_bytes()[:-1])  # and a shard is damaged
    out = succeed(capsys, *sampling, "--out", tmp_path / "b")
    assert "continuing" in out and "2 of 10 images are there" in out
    assert made[3:] == [range(0, 2), range(4, 6), range(6, 8), range(8, 10)]
    names = ("samples_10x8x8x1.npz", "sheet.png", "run.json")
    assert all((tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes() for name in names)
    assert sorted(p.name for p in (tmp_path / "b").iterdir()) == sorted([*names, "images"])


@pytest.mark.slow
def test_killed_and_continued(capsys, sampling, tmp_path):
    """After SIGKILL there is nothing to clean up, and finished shards are kept."""
    arguments = [*map(str, sampling), "--num", "100", "--out"]
    command = [sys.executable, "-m", "admg.cli.main", *arguments, str(tmp_path / "b")]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env=os.environ)
    while len(list((tmp_path / "b").glob("shards/0*.npz"))) < 5 and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "continuing" in succeed(capsys, *arguments, tmp_path / "b")
    succeed(capsys, *arguments, tmp_path / "a")
    name = "samples_100x8x8x1.npz"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()


@pytest.mark.thorough
def test_a_finished_run_is_kept_and_other_settings_are_refused(capsys, sampling, tmp_path):
    succeed(capsys, *sampling, "--out", tmp_path)
    before = {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")}
    assert "holds the finished run" in succeed(capsys, *sampling, "--out", tmp_path)
    line = refused(capsys, *sampling, "--out", tmp_path, "--scale", 3, "--label", "two")
    assert "guide.scale is 4.0 there, 3.0 here; labels is balanced there, 2 here; choose another --out" in line
    assert {p: p.stat().st_mtime_ns for p in tmp_path.rglob("*")} == before
    (tmp_path / "sheet.png").unlink()  # as if it had been killed before the pictures
    succeed(capsys, *sampling, "--out", tmp_path)
    assert (tmp_path / "sheet.png").exists()
    (tmp_path / "mine.txt").write_text("kept")
    for name in ("denoising.gif", "denoising.mp4", "trajectory.png"):  # as --animate and --trajectory write them
        (tmp_path / name).write_bytes(b"of the old run")
    succeed(capsys, *sampling, "--out", tmp_path, "--scale", 3, "--num", 4, "--overwrite")
    assert not {"denoising.gif", "denoising.mp4", "trajectory.png"} & {path.name for path in tmp_path.iterdir()}
    assert arrays(tmp_path / "samples_4x8x8x1.npz")[0].shape == (4, 8, 8, 1)
    assert not (tmp_path / "samples_10x8x8x1.npz").exists() and (tmp_path / "mine.txt").read_text() == "kept"
    assert len(list((tmp_path / "images").glob("*.png"))) == 4


@pytest.mark.thorough
def test_other_weights_under_the_same_name_are_another_run(capsys, sampling, folders, tiny_model, tmp_path):
    tiny_model.save(tmp_path / "model")
    arguments = [*sampling, "--model", tmp_path / "model", "--out", tmp_path / "out"]
    succeed(capsys, *arguments)
    other = Model(randomised(type(tiny_model.network)(tiny_model.network.config), 9), tiny_model.diffusion, (1, 8, 8),
                  tiny_model.labels, tiny_model.config)  # fmt: skip
    other.save(tmp_path / "model")
    line = refused(capsys, *arguments)
    assert "other settings: model.weights is" in line and "scale" not in line
    config = dataclasses.replace(tiny_model.config, noise_schedule="cosine")  # the same weights with another schedule
    dataclasses.replace(tiny_model, config=config, diffusion=config.build()).save(tmp_path / "model")
    assert "other settings: model.weights is" in failed(capsys, *arguments)  # after a note on the classifier


@pytest.mark.thorough
def test_exactly_one_of_several_processes_merges(tmp_path, monkeypatch):
    """Each finds all shards and no merged file; the one that merges removes the shards."""
    shards = Shards(tmp_path, 4, 2, (2, 2, 1), False)
    for k in range(2):
        shards.write(k, np.full((2, 2, 2, 1), k, np.uint8), None)
    whole, missing, barrier, did = Shards.merge, Shards.missing, threading.Barrier(4), []

    def together(self):
        found = missing(self)
        barrier.wait(timeout=10)
        return found

    monkeypatch.setattr(Shards, "missing", together)
    monkeypatch.setattr(Shards, "merge", lambda self: (time.sleep(0.2), whole(self)))
    threads = [threading.Thread(target=lambda: did.append(job.merge(shards))) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(did) == [False, False, False, True]
    assert arrays(shards.target)[0][:, 0, 0, 0].tolist() == [0, 0, 1, 1]
    monkeypatch.undo()
    assert len(list(shards.parts.iterdir())) == 2  # and no lock
    shards.discard()
    assert job.merge(shards) is False  # no shards, but the merged file


def test_shards_that_another_process_removes_before_the_lock_are_merged(tmp_path, monkeypatch):
    shards = Shards(tmp_path, 2, 2, (2, 2, 1), False)
    shards.write(0, np.zeros((2, 2, 2, 1), np.uint8), None)
    locked = job.locked
    monkeypatch.setattr(job, "locked", lambda path: (shards.merge(), shards.discard(), locked(path))[-1])
    assert job.merge(shards) is False and shards.target.exists()


@pytest.mark.parametrize("names", [["cat/1.png"], [f"{i}.JPG" for i in range(10)]])
def test_samples_are_not_added_to_a_data_set(capsys, sampling, tmp_path, names):
    """Which training would then read with the samples as another class."""
    data = tmp_path / "data"
    for name in names:
        (data / name).parent.mkdir(parents=True, exist_ok=True)
        (data / name).write_bytes(b"pixels")
    before = snapshot(tmp_path)
    for overwrite in ([], ["--overwrite"]):
        line = refused(capsys, *sampling, "--out", data, *overwrite)
        assert f"data looks like a data set ({min(names)}): choose another folder" in line
    assert snapshot(tmp_path) == before
    (tmp_path / "notes" / "plots").mkdir(parents=True)
    (tmp_path / "notes" / "plan.png").write_bytes(b"one picture is no data set")
    succeed(capsys, *sampling, "--out", tmp_path / "notes")
    succeed(capsys, *sampling, "--out", tmp_path / "notes" / "plots")


@pytest.mark.thorough
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
def test_a_run_does_not_replace_the_run_of_its_base(capsys, sampling, pipeline, folders, tmp_path, overwrite):
    succeed(capsys, *sampling, "--out", tmp_path / "s1", "--keep-shards")
    succeed(capsys, *pipeline, "--out", tmp_path / "stack")
    (tmp_path / "link").symlink_to(tmp_path / "s1")
    before = snapshot(tmp_path)
    arguments = ["upsample", "--model", folders["upsampler"], "--steps", 2, *overwrite]
    name = "samples_10x8x8x1.npz"
    for base, out in (
        (f"s1/{name}", "s1"),
        (f"link/{name}", "s1"),
        (f"s1/{name}", "link"),
        ("s1/shards/0000000-0000001.npz", "s1"),
        (f"stack/base/{name}", "stack"),
    ):
        line = refused(capsys, *arguments, "--base", tmp_path / base, "--out", tmp_path / out)
        assert "belongs to the run in" in line and "choose another" in line and "overwrite" not in line, (base, out)
    assert snapshot(tmp_path) == before
    succeed(capsys, *arguments, "--base", tmp_path / "s1" / name, "--out", tmp_path / "s1" / "large")


@pytest.mark.thorough
@pytest.mark.parametrize("overwrite", [[], ["--overwrite"]])
@pytest.mark.parametrize(
    "file",
    ["images/mine.png", "shards/mine", "sheet.png", "samples_10x16x16x1.npz", "base/images/mine.png",
     "base/samples_10x8x8x1.npz", "run.json", "base/run.json"],
)  # fmt: skip
def test_files_of_no_run_are_never_replaced(capsys, pipeline, tmp_path, overwrite, file):
    (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / file).write_text("{}")
    line = refused(capsys, *pipeline, "--out", tmp_path, *overwrite)
    assert ("no run.json" in line or "not the record of a run" in line) and "--overwrite" not in line
    assert snapshot(tmp_path) == {(tmp_path / file).relative_to(tmp_path): b"{}"}


@pytest.mark.thorough
def test_overwriting_removes_the_run_and_nothing_beside_it(capsys, sampling, tmp_path):
    succeed(capsys, *sampling, "--out", tmp_path)
    mine = ["samples_1x2x3x4.npz", "base/images/mine.png", "base/samples_1x2x3x4.npz", "notes.txt"]
    for file in mine:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("mine")
    succeed(capsys, *sampling, "--out", tmp_path, "--scale", 3, "--num", 4, "--overwrite")
    assert all((tmp_path / file).read_text() == "mine" for file in mine)
    assert (tmp_path / "samples_4x8x8x1.npz").exists() and not (tmp_path / "samples_10x8x8x1.npz").exists()


def flip(path: Path, position: int) -> None:
    """Flip one bit of a file."""
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.thorough
def test_a_damaged_run_is_not_a_finished_one(capsys, sampling, tmp_path):
    succeed(capsys, *sampling, "--out", tmp_path)
    merged = tmp_path / "samples_10x8x8x1.npz"
    whole = merged.read_bytes()
    flip(merged, 300)  # within the images
    line = refused(capsys, *sampling, "--out", tmp_path)
    assert str(merged) in line and "Bad CRC-32" in line and "--overwrite" in line
    assert "Bad CRC-32" in refused(capsys, "evaluate", merged, merged, "--metrics", "fid")
    succeed(capsys, *sampling, "--out", tmp_path, "--overwrite")
    assert merged.read_bytes() == whole
    merged.unlink()
    succeed(capsys, *sampling, "--out", tmp_path)
    assert merged.read_bytes() == whole


@pytest.mark.thorough
def test_a_damaged_record_can_be_overwritten(capsys, sampling, tmp_path):
    succeed(capsys, *sampling, "--out", tmp_path)
    record = tmp_path / "run.json"
    whole = record.read_bytes()
    flip(record, whole.index(b"{", 5))
    (tmp_path / "notes.txt").write_text("mine")
    assert "not the record of a run" in refused(capsys, *sampling, "--out", tmp_path)
    succeed(capsys, *sampling, "--out", tmp_path, "--num", 4, "--overwrite")
    assert sorted(path.name for path in tmp_path.glob("samples*")) == ["samples_4x8x8x1.npz"]
    assert (tmp_path / "notes.txt").read_text() == "mine"


@pytest.mark.skipif(sys.platform == "win32", reason="needs fcntl")
def test_a_run_that_another_process_is_making_is_not_overwritten(capsys, sampling, tmp_path):
    succeed(capsys, *sampling, "--out", tmp_path)
    before = snapshot(tmp_path)
    with files.shared(tmp_path / "run.json", lambda: None):  # as the other process holds it
        line = refused(capsys, *sampling, "--out", tmp_path, "--seed", 1, "--overwrite")
        assert f"another process is writing the run in {tmp_path}" in line
    assert snapshot(tmp_path) == before
    succeed(capsys, *sampling, "--out", tmp_path, "--seed", 1, "--overwrite")
    assert snapshot(tmp_path) != before
    held = partial(files.unshared, tmp_path / "run.json", "it")
    with held(), pytest.raises(files.LockedError, match="another process is writing it"), held():
        pass


@pytest.mark.skipif(sys.platform == "win32", reason="needs fcntl")
def test_a_run_that_was_replaced_while_its_process_started_is_left_alone(capsys, sampling, tmp_path, monkeypatch):
    """Between the record of the run and its lock, another process overwrites the run."""

    def replaced(path, alone):
        record = path.read_bytes()
        path.unlink()
        path.with_name("other.json").write_bytes(record)  # so that the number of the file is not used again
        path.write_bytes(record)
        alone()

    real = files._try_lock
    monkeypatch.setattr(
        files, "_try_lock", lambda descriptor, path: (replaced(path, lambda: None), real(descriptor, path))[1]
    )
    line = refused(capsys, *sampling, "--out", tmp_path)
    assert "another process has replaced" in line and not list(tmp_path.rglob("*.npz"))


def test_a_file_named_base_does_not_matter(capsys, sampling, tmp_path):
    (tmp_path / "base").write_text("mine")
    for _ in range(2):
        succeed(capsys, *sampling, "--out", tmp_path, "--overwrite")
    assert (tmp_path / "base").read_text() == "mine"


@pytest.mark.thorough
@pytest.mark.parametrize("file", ["base", "shards", "base/shards"])
def test_a_file_in_place_of_a_folder_leaves_no_partial_run(capsys, pipeline, tmp_path, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("mine")
    line = refused(capsys, *pipeline, "--out", tmp_path)
    assert "cannot write to the output folder" in line or "holds shards, but no run.json" in line
    assert list(snapshot(tmp_path)) == [(tmp_path / file).relative_to(tmp_path)]


@pytest.mark.thorough
def test_a_run_continues_with_another_path_of_the_same_models(capsys, sampling, folders, tmp_path, monkeypatch):
    succeed(capsys, *sampling, "--out", tmp_path / "out")
    for name in ("model", "classifier"):
        (tmp_path / name).symlink_to(folders[name])
    monkeypatch.chdir(tmp_path)
    renamed = [*sampling, "--out", tmp_path / "out", "--model", "./model", "--classifier", "./classifier"]
    assert "holds the finished run" in succeed(capsys, *renamed)
    settings = json.loads((tmp_path / "out" / "run.json").read_text())["settings"]
    names = settings["model"]["loaded_as"], settings["guide"]["classifier"]["loaded_as"]
    assert names == (folders["model"], folders["classifier"])
    line = refused(capsys, *renamed, "--scale", 3)
    assert "scale is" in line and "model" not in line.split("settings:")[1]


def test_environment_variables_that_are_no_numbers(capsys, sampling, tmp_path, monkeypatch):
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        with monkeypatch.context() as patch:
            patch.setenv(variable, "x")
            line = refused(capsys, *sampling, "--out", tmp_path / "out")
            assert f"the environment variable {variable} must be a whole number, got 'x'" in line
    assert not (tmp_path / "out").exists()


def test_each_rank_of_a_machine_has_a_device(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    asked = []
    monkeypatch.setattr(torch, "device", lambda name: asked.append(name) or "cpu")
    for rank in range(3):
        choose_device("auto", rank)
    choose_device("auto")
    assert asked == ["cuda:0", "cuda:1", "cuda:0", "cuda:0"]


def test_batches_and_shards_by_default(tiny_model):
    def sizes(shape, num) -> tuple[int, int]:
        model = Model(tiny_model.network, tiny_model.diffusion, shape)
        stage = Stage(out=None, model=model, recipe=Recipe(), labels=[None] * num, table=Labels(0))
        return stage.batch, stage.shards().size

    assert sizes((1, 32, 32), 80) == (64, 64)
    assert sizes((3, 64, 64), 50_000) == (64, 64)
    assert sizes((3, 64, 64), 500_000) == (64, 256)
    assert sizes((3, 256, 256), 50_000) == (4, 100)
    assert sizes((3, 512, 512), 50_000) == (1, 85)  # 64 MB
    assert sizes((3, 1024, 1024), 10) == (1, 1)


@pytest.mark.thorough
def test_the_bound_of_gradients_is_an_option_and_belongs_to_the_run(capsys, sampling, tmp_path):
    succeed(capsys, *sampling, "--scale", 1, "--out", tmp_path, "--no-bound-guidance")
    assert '"bound_guidance": false' in (tmp_path / "run.json").read_text()
    assert "other settings" in refused(capsys, *sampling, "--scale", 1, "--out", tmp_path)


def test_images_that_are_not_finite_stop_the_run_before_they_are_written(capsys, sampling, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "admg.guidance.ClassifierGuidance", lambda *a: lambda state: torch.full_like(state.x, torch.nan)
    )
    line = failed(capsys, *sampling, "--out", tmp_path)
    assert "are not finite numbers" in line and not list((tmp_path / "shards").glob("*"))


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--model", "openai/imagenet-256"], ("ddpm", "250")),  # as the paper sampled
        (["--model", "openai/lsun-cat"], ("ddpm", "1000")),
        (["--model", "openai/imagenet-256", "--sampler", "ddim"], ("ddim", "25")),
        (["--model", "openai/imagenet-256", "--steps", "karras20"], ("ddpm", "karras20")),
        (["--model", "fashion-mnist"], ("ddim", "25")),
        (["--model", "a/folder"], ("ddim", "25")),
    ],
)
def test_sampler_and_steps_are_the_published_ones_by_default(arguments, expected):
    parser = cli_options.Parser(prog="admg sample")
    cli_options.add_options(parser, sample_command)
    options, _ = cli_options.parse(parser, sample_command, arguments)
    recipe = options.sampling.recipe(None, model=options.model)
    assert (sampler_name(recipe.sampler), recipe.steps) == expected


def test_a_process_does_not_wait_for_ever_for_one_that_has_ended(tmp_path, monkeypatch):
    """Each new shard makes it wait for an hour again."""
    now, left = [0.0], [{1: 3000.0, 2: 6000.0, 3: 1e9}]
    monkeypatch.setattr(job.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(job.time, "sleep", lambda seconds: now.__setitem__(0, now[0] + 60))
    monkeypatch.setattr(Shards, "missing", lambda self: [k for k, end in left[0].items() if now[0] < end])
    shards = Shards(tmp_path, 4, 1, (8, 8, 1), False)
    with pytest.raises(TimeoutError, match=r"3 of 4 shards are in .*, and no new one appeared for 60 minutes: another"):
        job.wait_for_others(shards, lambda progress: None)
    assert 6000 + 3600 < now[0] < 6000 + 3600 + 200
    left[0] = {1: now[0] + 3000}
    job.wait_for_others(shards, lambda progress: None)
