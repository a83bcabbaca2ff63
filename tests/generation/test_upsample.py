"""Jobs of `admg sample` and `admg upsample`: shards, processes, interruptions, records, labels, and the pipeline."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import torch
from helpers import NAMES, TRUNK, randomised, refused, run
from PIL import Image

import admg
from admg import guidance
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.cli import options as cli_options
from admg.cli import sample as sample_command
from admg.diffusion.config import DiffusionConfig
from admg.diffusion.noise import SeededNoise
from admg.engine.device import choose_device
from admg.generation import Recipe, contact_sheet, job
from admg.generation.labels import random_labels, shares
from admg.generation.sampler_specs import sampler_name
from admg.generation.shards import Shards
from admg.generation.stage import Maker, Stage
from admg.generation.upsample import UPSAMPLER_SEED
from admg.models import SuperResConfig, SuperResUNet


@pytest.fixture(scope="session")
def upsampler() -> Model:
    """Return an upsampling model from 8 to 16 pixels."""
    config = DiffusionConfig(diffusion_steps=100)
    network = randomised(SuperResUNet(SuperResConfig(**TRUNK | {"image_size": 16}, num_classes=5, small_size=8)), 2)
    return Model(network, config.build(), (1, 16, 16), Labels(5, NAMES), config)


@pytest.fixture(scope="session")
def folders(tiny_folders, upsampler, tmp_path_factory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("upsampler")
    upsampler.save(root / "upsampler")
    anything = SuperResUNet(SuperResConfig(**TRUNK | {"image_size": 16}))  # any small size, unconditional
    Model(randomised(anything, 3), upsampler.diffusion, (1, 16, 16), Labels(0), upsampler.config).save(root / "any")
    return tiny_folders | {"upsampler": str(root / "upsampler"), "any": str(root / "any")}


@pytest.fixture
def sampling(folders):
    """Return a command for 10 images in 5 shards of 2."""
    return ["sample", "--model", folders["model"], "--classifier", folders["classifier"], "--steps", 3, "--num", 10,
            "--batch-size", 2, "--sampler", "ddpm", "--precision", "fp32"]  # fmt: skip


@pytest.fixture
def small(tmp_path) -> tuple[str, np.ndarray]:
    images = np.random.default_rng(0).integers(256, size=(6, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "small.npz", arr_0=images, arr_1=np.array([3, 1, 4, 1, 0, 2]))
    return str(tmp_path / "small.npz"), images


def arrays(path) -> tuple[np.ndarray, np.ndarray | None]:
    with np.load(path) as file:
        return file["arr_0"], file["arr_1"] if "arr_1" in file.files else None


def succeed(capsys, *arguments) -> str:
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    return out


def failed(capsys, *arguments) -> str:
    """Return the last line of a run that fails in the middle, after its progress."""
    code, _, err = run(capsys, *arguments)
    assert code == 2 and "Traceback" not in err
    return err.splitlines()[-1]


def test_a_job_writes_the_images_of_sample(capsys, sampling, folders, tmp_path):
    out = succeed(capsys, *sampling, "--out", tmp_path / "out", "--keep-shards", "--scale", 2, "--seed", 7)
    images, labels = arrays(tmp_path / "out" / "samples_10x8x8x1.npz")
    assert labels.tolist() == [0, 1, 2, 3, 4] * 2 and "Saved 10 images to" in out
    guide = guidance.ClassifierGuidance(admg.load_classifier(folders["classifier"]), 2.0)
    expected = admg.sample(admg.load(folders["model"]), labels, guide=guide, sampler="ddpm", steps=3, seed=7,
                           batch_size=2, progress=False)  # fmt: skip
    assert np.array_equal(images, expected.images)
    assert len(list((tmp_path / "out" / "shards").iterdir())) == 5
    assert len(list((tmp_path / "out" / "images").iterdir())) == 10


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


def test_an_image_differs_by_at_most_one_level_with_the_batch_size(capsys, sampling, tmp_path):
    succeed(capsys, *sampling, "--out", tmp_path / "a")
    succeed(capsys, *sampling, "--out", tmp_path / "b", "--batch-size", 7, "--shard-size", 3)
    a, b = (arrays(tmp_path / x / "samples_10x8x8x1.npz")[0].astype(int) for x in "ab")
    assert np.abs(a - b).max() <= 1 and a.std() > 10


def test_ranks_are_those_of_torchrun(capsys, sampling, tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    succeed(capsys, *sampling, "--out", tmp_path)
    names = [path.name for path in sorted((tmp_path / "shards").iterdir())]
    assert names == ["0000002-0000003.npz", "0000006-0000007.npz"]
    assert not list(tmp_path.glob("samples*")) and not (tmp_path / "sheet.png").exists()


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
    succeed(capsys, *sampling, "--out", tmp_path, "--scale", 3, "--num", 4, "--overwrite")
    assert arrays(tmp_path / "samples_4x8x8x1.npz")[0].shape == (4, 8, 8, 1)
    assert not (tmp_path / "samples_10x8x8x1.npz").exists() and (tmp_path / "mine.txt").read_text() == "kept"
    assert len(list((tmp_path / "images").iterdir())) == 4


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
    dataclasses.replace(tiny_model, config=config).save(tmp_path / "model")
    assert "other settings: model.weights is" in refused(capsys, *arguments)


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


def snapshot(folder) -> dict:
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


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
        assert "holds: choose another --out" in line and "overwrite" not in line, (base, out)
    assert snapshot(tmp_path) == before
    succeed(capsys, *arguments, "--base", tmp_path / "s1" / name, "--out", tmp_path / "s1" / "large")


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


def test_overwriting_removes_the_run_and_nothing_beside_it(capsys, sampling, tmp_path):
    succeed(capsys, *sampling, "--out", tmp_path)
    mine = ["samples_1x2x3x4.npz", "base/images/mine.png", "base/samples_1x2x3x4.npz", "notes.txt"]
    for file in mine:
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / file).write_text("mine")
    succeed(capsys, *sampling, "--out", tmp_path, "--scale", 3, "--num", 4, "--overwrite")
    assert all((tmp_path / file).read_text() == "mine" for file in mine)
    assert (tmp_path / "samples_4x8x8x1.npz").exists() and not (tmp_path / "samples_10x8x8x1.npz").exists()


@pytest.mark.parametrize("file", ["base", "shards", "base/shards"])
def test_a_file_in_place_of_a_folder_leaves_no_partial_run(capsys, pipeline, tmp_path, file):
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text("mine")
    line = refused(capsys, *pipeline, "--out", tmp_path)
    assert "cannot write to the output folder" in line or "holds shards, but no run.json" in line
    assert list(snapshot(tmp_path)) == [(tmp_path / file).relative_to(tmp_path)]


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


# Labels


def test_random_labels_depend_on_the_seed_but_not_on_the_number_of_images():
    labels = random_labels(3, 10, 1000)
    assert random_labels(3, 10, 20) == labels[:20] and random_labels(4, 10, 1000) != labels
    counts = np.bincount(labels, minlength=10)
    assert len(counts) == 10 and counts.min() > 70 and counts.max() < 130
    assert shares(range(5), 12) == [0, 1, 2, 3, 4, 0, 1, 2, 3, 4, 0, 1]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--labels", "balanced", "--num", 7], [0, 1, 2, 3, 4, 0, 1]),
        (["--labels", "balanced"], [*range(5)] * 8),
        (["--num", 3], random_labels(0, 5, 3)),
        (["--labels", "random", "--num", 7], random_labels(0, 5, 7)),
        (["--labels", "ankle boot, two,3", "--num", 4], [4, 2, 3, 4]),
        (["--labels", "1"], [1] * 8),
    ],
)
def test_labels(capsys, folders, tmp_path, arguments, expected):
    options = ["--model", folders["model"], "--steps", 1, "--no-images", "--out", tmp_path]
    succeed(capsys, "sample", *options, *arguments)
    images, labels = arrays(next(tmp_path.glob("samples*.npz")))
    assert labels.tolist() == expected and len(images) == len(expected) and not (tmp_path / "images").exists()


def test_labels_without_effect_are_not_written(capsys, folders, tmp_path):
    options = ["--model", folders["model"], "--steps", 1, "--unconditional", "--num", 3, "--out", tmp_path]
    succeed(capsys, "sample", *options)
    assert arrays(tmp_path / "samples_3x8x8x1.npz")[1] is None
    assert (tmp_path / "images" / "sample_000002.png").exists()


# Upsampling


def test_upsample_enlarges_each_image_with_its_label(capsys, folders, upsampler, small, tmp_path):
    path, images = small
    out = tmp_path / "out"
    options = ["--steps", 3, "--seed", 5, "--batch-size", 2, "--precision", "fp32"]
    succeed(capsys, "upsample", "--model", folders["upsampler"], "--base", path, "--out", out, *options)
    large, labels = arrays(out / "samples_6x16x16x1.npz")
    assert labels.tolist() == [3, 1, 4, 1, 0, 2]
    low_res = torch.from_numpy(images).permute(0, 3, 1, 2) / 255 * 2 - 1
    expected = admg.sample(upsampler, labels, low_res=low_res, steps=3, seed=2**32 + 5, batch_size=2, progress=False)
    assert np.abs(large.astype(int) - expected.images).max() <= 1
    shuffled = admg.sample(upsampler, labels, low_res=low_res.flip(0), steps=3, seed=2**32 + 5, progress=False)
    assert np.abs(expected.images.astype(int) - shuffled.images).max() > 10
    assert Image.open(out / "sheet.png").size[0] > 64 and len(list((out / "images").iterdir())) == 6


def test_the_noise_of_an_upsampler_is_independent_of_its_base():
    base, large = (SeededNoise(seed, [3]).draw((1, 64, 64)).flatten() for seed in (0, UPSAMPLER_SEED))
    assert abs(torch.corrcoef(torch.stack([base, large]))[0, 1]) < 0.05


def test_upsample_continues_and_does_not_depend_on_processes(capsys, folders, small, tmp_path):
    arguments = ["upsample", "--model", folders["upsampler"], "--base", small[0], "--steps", 2, "--batch-size", 2]
    succeed(capsys, *arguments, "--out", tmp_path / "a")
    for rank in (0, 1):
        succeed(capsys, *arguments, "--out", tmp_path / "b", "--rank", rank, "--world-size", 2)
    name = "samples_6x16x16x1.npz"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    images, labels = arrays(small[0])
    np.savez_compressed(small[0], arr_0=images, arr_1=labels)  # the same images, compressed
    assert "holds the finished run" in succeed(capsys, *arguments, "--out", tmp_path / "a")
    np.savez(small[0], arr_0=255 - images, arr_1=labels)
    assert "base is small.npz, checksum" in refused(capsys, *arguments, "--out", tmp_path / "a")


def test_upsample_of_the_first_images_and_with_a_classifier(capsys, folders, small, tmp_path):
    arguments = ["upsample", "--model", folders["any"], "--base", small[0], "--steps", 2, "--num", 3]
    succeed(capsys, *arguments, "--out", tmp_path / "out")
    assert arrays(tmp_path / "out" / "samples_3x16x16x1.npz")[1].tolist() == [
        3,
        1,
        4,
    ]  # kept, although the model is unconditional
    line = refused(capsys, *arguments, "--classifier", folders["classifier"], "--out", tmp_path / "guided")
    assert "the classifier is for images of 8 pixels, the model's have 16" in line
    assert not (tmp_path / "guided").exists()


def test_a_base_without_labels(capsys, folders, small, tmp_path):
    np.savez(tmp_path / "bare.npz", arr_0=small[1])
    arguments = ["upsample", "--base", tmp_path / "bare.npz", "--steps", 2, "--out", tmp_path / "out", "--model"]
    assert "needs a label for each base image" in refused(capsys, *arguments, folders["upsampler"])
    succeed(capsys, *arguments, folders["any"])
    assert arrays(tmp_path / "out" / "samples_6x16x16x1.npz")[1] is None
    succeed(capsys, *arguments, folders["upsampler"], "--unconditional", "--overwrite")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"arr_0": np.zeros((2, 4, 4, 1), np.uint8)}, "has images of 4x4 pixels and 1 channels"),
        ({"arr_0": np.zeros((2, 8, 4, 1), np.uint8)}, "upsamples images of 8x8 pixels and 1 channels"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.uint8)}, "8x8 pixels and 3 channels"),
        ({"arr_0": np.zeros((2, 8, 8, 1), np.uint8), "arr_1": np.array([0, 5])}, "label 5 in arr_1: the model's are 0"),
        ({"arr_0": np.zeros((2, 8, 8, 1))}, "arr_0 is float64"),
        ({"images": np.zeros((2, 8, 8, 1), np.uint8)}, "it has no arr_0"),
    ],
)  # fmt: skip
def test_bases_that_do_not_fit(capsys, folders, tmp_path, content, expected):
    np.savez(tmp_path / "base.npz", **content)
    out = tmp_path / "out"
    line = refused(capsys, "upsample", "--model", folders["upsampler"], "--base", tmp_path / "base.npz", "--out", out)
    assert expected in line and "base.npz" in line and not out.exists()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--num", 7], "num must be from 1 to 6, the images of "),
        (["--num", 0], "--num must be at least 1"),
        (["--base", "no.npz"], "no.npz does not exist"),
        (["--steps", "often"], "respacing 'often'"),
        (["--scale", 2], "guidance needs a classifier"),
        (["--classifier", "no/such"], "unknown model 'no/such'"),
    ],
)
def test_upsample_refuses_bad_input_and_writes_nothing(capsys, folders, small, tmp_path, arguments, expected):
    out = tmp_path / "out"
    usual = ["upsample", "--model", folders["upsampler"], "--base", small[0], "--out", out]
    assert expected in refused(capsys, *usual, *arguments)
    assert not out.exists()


def test_each_kind_of_model_has_its_command(capsys, folders, small, tmp_path):
    out = ["--out", tmp_path / "out"]
    assert "makes images from noise" in refused(
        capsys, "upsample", "--model", folders["model"], "--base", small[0], *out
    )
    assert "use admg upsample" in refused(capsys, "sample", "--model", folders["upsampler"], *out)
    assert not (tmp_path / "out").exists()


# From label to large pixels


@pytest.fixture
def pipeline(sampling, folders):
    return [*sampling, "--scale", 2, "--upsampler", folders["upsampler"], "--upsampler-steps", 2,
            "--upsampler-batch-size", 3]  # fmt: skip


def test_the_pipeline_equals_sample_and_then_upsample(capsys, pipeline, sampling, folders, tmp_path):
    succeed(capsys, *pipeline, "--out", tmp_path / "one")
    succeed(capsys, *sampling, "--scale", 2, "--out", tmp_path / "first")
    base = tmp_path / "first" / "samples_10x8x8x1.npz"
    assert (tmp_path / "one" / "base" / base.name).read_bytes() == base.read_bytes()
    options = ["--steps", 2, "--batch-size", 3, "--precision", "fp32", "--out", tmp_path / "then"]
    succeed(capsys, "upsample", "--model", folders["upsampler"], "--base", base, *options)
    name = "samples_10x16x16x1.npz"
    assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "then" / name).read_bytes()
    assert arrays(tmp_path / "one" / name)[1].tolist() == [0, 1, 2, 3, 4] * 2
    assert (tmp_path / "one" / "base" / "sheet.png").exists() and not list((tmp_path / "one").rglob("shards"))


def test_the_pipeline_continues_in_either_stage(capsys, pipeline, tmp_path, monkeypatch):
    succeed(capsys, *pipeline, "--out", tmp_path / "a")
    made, make = [], Maker.make

    def failing(self, images, *rest):
        made.append((self.stage.model.upsamples, images.start))
        if len(made) in (3, 8):
            raise OSError("the disk is full")
        return make(self, images, *rest)

    monkeypatch.setattr(Maker, "make", failing)
    assert "the disk is full" in failed(capsys, *pipeline, "--out", tmp_path / "b")
    assert "the disk is full" in failed(capsys, *pipeline, "--out", tmp_path / "b")
    assert "continuing" in succeed(capsys, *pipeline, "--out", tmp_path / "b")
    base = [(False, i) for i in (0, 2, 4, 4, 6, 8)]
    assert made == [*base, *((True, i) for i in (0, 3, 3, 6, 9))]
    name = "samples_10x16x16x1.npz"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    line = refused(capsys, *pipeline, "--scale", 3, "--out", tmp_path / "b")
    assert "base.guide.scale is 2.0 there, 3.0 here" in line


def test_processes_of_a_pipeline_wait_for_all_base_images(capsys, pipeline, tmp_path, monkeypatch):
    """Rank 0 runs first and waits; rank 1 makes the rest of the base images."""
    succeed(capsys, *pipeline, "--out", tmp_path / "a")
    wait, others = job.wait_for_others, []

    def start_the_other(shards, report):
        if not others:
            arguments = [*map(str, pipeline), "--out", str(tmp_path / "b"), "--rank", "1", "--world-size", "2"]
            others.append(threading.Thread(target=admg.cli.main.main, args=(arguments,)))
            others[0].start()
        wait(shards, report, seconds=0.01)

    monkeypatch.setattr(job, "wait_for_others", start_the_other)
    out = succeed(capsys, *pipeline, "--out", tmp_path / "b", "--rank", 0, "--world-size", 2)
    others[0].join()
    assert "waiting for the other processes" in out
    name = "samples_10x16x16x1.npz"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "b" / "run.json").read_text())["settings"]["base"]["guide"]["scale"] == 2.0


def test_a_pipeline_refuses_models_that_do_not_fit(capsys, sampling, folders, upsampler, tmp_path):
    config = SuperResConfig(**TRUNK | {"image_size": 16}, num_classes=7, small_size=4)
    network = randomised(SuperResUNet(config), 2)
    Model(network, upsampler.diffusion, (1, 16, 16), Labels(7), upsampler.config).save(tmp_path / "other")
    out = ["--out", tmp_path / "out"]
    line = refused(capsys, *sampling, "--upsampler", tmp_path / "other", *out)
    assert "has images of 8x8 pixels and 1 channels" in line and "upsamples images of 4x4" in line
    network.config = SuperResConfig(**TRUNK | {"image_size": 16}, num_classes=7, small_size=8)
    Model(network, upsampler.diffusion, (1, 16, 16), Labels(7), upsampler.config).save(tmp_path / "other")
    assert "has 7 labels" in refused(capsys, *sampling, "--upsampler", tmp_path / "other", *out)
    line = refused(capsys, *sampling, "--scale", 0, "--unconditional", "--upsampler", folders["upsampler"], *out)
    assert "needs a label for each base image (sample with labels" in line and "--unconditional" not in line
    line = refused(capsys, *sampling, "--upsampler", folders["upsampler"], "--upsampler-steps", "x", *out)
    assert "respacing 'x'" in line and not (tmp_path / "out").exists()


# Pieces


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


def test_images_that_are_not_finite_stop_the_run_before_they_are_written(capsys, sampling, tmp_path, monkeypatch):
    monkeypatch.setattr(
        "admg.guidance.ClassifierGuidance", lambda *a: lambda state: torch.full_like(state.x, torch.nan)
    )
    line = failed(capsys, *sampling, "--out", tmp_path)
    assert "are not finite numbers" in line and not list((tmp_path / "shards").glob("*"))


def test_contact_sheets_of_many_labels_and_many_images():
    """Few labels get a row each, many get captions; a sheet has at most 200 images and 16 megapixels."""
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(1000, 8, 8, 1), dtype=np.uint8)
    rows = contact_sheet.contact_sheet(images, [f"name {i % 10}" for i in range(1000)], "title")
    assert 20 * 68 < rows.width < 20 * 68 + 120 and 10 * 68 < rows.height < 10 * 68 + 60  # 10 labels, 20 of each
    grid = contact_sheet.contact_sheet(images, [f"name {i}" for i in range(1000)], "title")
    assert grid.width == 14 * 100 + 4 and 15 * 116 < grid.height < 15 * 116 + 60  # 96 pixels and a caption
    square = contact_sheet.contact_sheet(images[:9], [""] * 9, "t")
    assert square.width == 3 * 68 + 4
    huge = np.zeros((20, 1024, 1024, 1), np.uint8)
    assert contact_sheet.contact_sheet(huge, [""] * 20, "t").width == 4 * 1028 + 4


def test_samples_are_saved_as_a_job_writes_them(tiny_model, tmp_path):
    samples = admg.sample(tiny_model, ["two", "Ankle boot"], steps=1, progress=False)
    for _ in range(2):  # the demo may be repeated
        path = samples.save(tmp_path, "title")
    assert np.array_equal(arrays(path)[0], samples.images) and arrays(path)[1].tolist() == [2, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "samples_2x8x8x1.npz", "sheet.png"]
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == ["Ankle-boot_000001.png", "two_000000.png"]


def test_captions_are_cut_to_fit():
    image = np.full((8, 8, 1), 100, np.uint8)
    short, long = (
        contact_sheet.captioned(image, "cat"),
        contact_sheet.captioned(image, "a very long name of a label indeed"),
    )
    assert short.shape == long.shape == (112, 96, 3)
    assert (short[:96] == 100).all() and (short[96:] < 128).any() and (long[96:, [0, -1]] == 255).all()


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
