"""`admg upsample`, and the pipeline of `admg sample --upsampler`."""

from __future__ import annotations

import copy
import json
import threading

import numpy as np
import pytest
import torch
from helpers import TRUNK, arrays, failed, randomised, refused, succeed
from PIL import Image

import admg
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.diffusion.noise import SeededNoise
from admg.generation import job
from admg.generation.stage import Maker
from admg.generation.upsample import UPSAMPLER_SEED
from admg.models import SuperResConfig, SuperResUNet


@pytest.mark.thorough
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
    assert Image.open(out / "sheet.png").size[0] > 64 and len(list((out / "images").glob("*.png"))) == 6


def test_the_noise_of_an_upsampler_is_independent_of_its_base():
    """Of every base image: a seed of two words must not be taken for a seed and an index."""
    noise = torch.cat([SeededNoise(seed, range(3)).draw((1, 64, 64)).flatten(1) for seed in (0, UPSAMPLER_SEED)])
    assert (torch.corrcoef(noise) - torch.eye(6)).abs().max() < 0.08  # five standard deviations of 1/64


def test_noise_does_not_depend_on_the_default_dtype():
    expected = SeededNoise(3, [0]).draw((4,))
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(SeededNoise(3, [0]).draw((4,)), expected)
    finally:
        torch.set_default_dtype(torch.float32)


def test_an_upsampler_is_guided_by_a_worse_one(upsampler):
    """The worse model sees the same small images, those of its batch."""
    model, small = copy.deepcopy(upsampler), torch.rand(3, 1, 8, 8) * 2 - 1
    model.network.double()  # in which rounding errors are below any difference that matters
    options = {"steps": 2, "progress": False}
    itself = admg.guidance.AutoGuidance(model, 3.0)  # w has no effect between equal models
    expected = admg.upsample(model, small, [0, 1, 2], **options)
    found = admg.upsample(model, small, [0, 1, 2], guide=itself, batch_size=2, **options)
    torch.testing.assert_close(found.x, expected.x, atol=1e-8, rtol=0)


@pytest.mark.thorough
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
    np.savez(small[0], arr_0=images, arr_1=labels[::-1])
    assert "base is small.npz, checksum" in refused(capsys, *arguments, "--out", tmp_path / "a")
    np.savez(small[0], arr_0=255 - images, arr_1=labels)
    assert "base is small.npz, checksum" in refused(capsys, *arguments, "--out", tmp_path / "a")


@pytest.mark.thorough
def test_upsample_of_the_first_images_and_with_a_classifier(capsys, folders, small, tmp_path):
    arguments = ["upsample", "--model", folders["any"], "--base", small[0], "--steps", 2, "--num", 3]
    succeed(capsys, *arguments, "--out", tmp_path / "out")
    assert arrays(tmp_path / "out" / "samples_3x16x16x1.npz")[1].tolist() == [
        3,
        1,
        4,
    ]  # the model is unconditional
    line = refused(capsys, *arguments, "--classifier", folders["classifier"], "--out", tmp_path / "guided")
    assert "the classifier expects images of 8 pixels, the model of 16" in line
    assert not (tmp_path / "guided").exists()


@pytest.mark.thorough
def test_a_base_without_labels(capsys, folders, small, tmp_path):
    np.savez(tmp_path / "bare.npz", arr_0=small[1])
    arguments = ["upsample", "--base", tmp_path / "bare.npz", "--steps", 2, "--out", tmp_path / "out", "--model"]
    assert "needs a label for each base image" in refused(capsys, *arguments, folders["upsampler"])
    succeed(capsys, *arguments, folders["any"])
    assert arrays(tmp_path / "out" / "samples_6x16x16x1.npz")[1] is None
    succeed(capsys, *arguments, folders["upsampler"], "--unconditional", "--overwrite")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"arr_0": np.zeros((2, 4, 4, 1), np.uint8)}, "has images of 4x4 pixels and 1 channel:"),
        ({"arr_0": np.zeros((2, 8, 4, 1), np.uint8)}, "upsamples images of 8x8 pixels and 1 channel"),
        ({"arr_0": np.zeros((2, 8, 8, 3), np.uint8)}, "8x8 pixels and 3 channels"),
        ({"arr_0": np.zeros((2, 8, 8, 1), np.uint8), "arr_1": np.array([0, 5])}, "labels in arr_1 must be"),
        ({"arr_0": np.zeros((2, 8, 8, 1))}, "arr_0 must be uint8 (N, H, W, C) or (N, H, W), got float64"),
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
        (["--steps", "often"], "steps 'often'"),
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
    assert "not an upsampler" in refused(capsys, "upsample", "--model", folders["model"], "--base", small[0], *out)
    assert "use admg upsample" in refused(capsys, "sample", "--model", folders["upsampler"], *out)
    assert not (tmp_path / "out").exists()


@pytest.mark.thorough
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


@pytest.mark.thorough
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


@pytest.mark.thorough
def test_processes_of_a_pipeline_wait_for_all_base_images(capsys, pipeline, tmp_path, monkeypatch):
    """Rank 0 runs first and waits; rank 1 makes the rest of the base images."""
    succeed(capsys, *pipeline, "--out", tmp_path / "a")
    wait, others = job.wait_for_others, []

    def start_the_other(shards, report, *more, **options):
        if not others:
            arguments = [*map(str, pipeline), "--out", str(tmp_path / "b"), "--rank", "1", "--world-size", "2"]
            others.append(threading.Thread(target=admg.cli.main.main, args=(arguments,)))
            others[0].start()
        wait(shards, report, *more, **options | {"seconds": 0.01})

    monkeypatch.setattr(job, "wait_for_others", start_the_other)
    out = succeed(capsys, *pipeline, "--out", tmp_path / "b", "--rank", 0, "--world-size", 2)
    others[0].join()
    assert "waiting for the other processes" in out
    name = "samples_10x16x16x1.npz"
    assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert json.loads((tmp_path / "b" / "run.json").read_text())["settings"]["base"]["guide"]["scale"] == 2.0


@pytest.mark.thorough
def test_a_pipeline_refuses_models_that_do_not_fit(capsys, sampling, folders, upsampler, tmp_path):
    trunk = TRUNK | {"image_size": 16, "attention_resolutions": ()}
    config = SuperResConfig(**trunk, num_classes=7, small_size=4)
    network = randomised(SuperResUNet(config), 2)
    Model(network, upsampler.diffusion, (1, 16, 16), Labels(7), upsampler.config).save(tmp_path / "other")
    out = ["--out", tmp_path / "out"]
    line = refused(capsys, *sampling, "--upsampler", tmp_path / "other", *out)
    assert "has images of 8x8 pixels and 1 channel" in line and "upsamples images of 4x4" in line
    network.config = SuperResConfig(**trunk, num_classes=7, small_size=8)
    Model(network, upsampler.diffusion, (1, 16, 16), Labels(7), upsampler.config).save(tmp_path / "other")
    assert "has 7 labels" in refused(capsys, *sampling, "--upsampler", tmp_path / "other", *out)
    line = refused(capsys, *sampling, "--scale", 0, "--unconditional", "--upsampler", folders["upsampler"], *out)
    assert "needs a label for each base image (sample with labels" in line and "--unconditional" not in line
    line = refused(capsys, *sampling, "--upsampler", folders["upsampler"], "--upsampler-steps", "x", *out)
    assert "steps 'x'" in line and not (tmp_path / "out").exists()
