"""The paper's whole stack from nothing, by its commands: base model, classifier, upsampler, and the pipeline of all."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import arrays, succeed
from PIL import Image

import admg

COLOURS = {"blue": (40, 60, 220), "red": (220, 50, 40)}
NETWORK = ["--channels", 32, "--channel-mult", "1,1", "--num-res-blocks", 1, "--head-channels", 32, "--batch-size", 16,
           "--warmup", 5, "--diffusion-steps", 40, "--noise-schedule", "cosine", "--precision", "fp32",
           "--checkpoint-every", 1000, "--preview-every", 1000]  # fmt: skip
MODEL = ["--predict", "x0", "--variance", "fixed_small", "--objective", "simple", "--label-dropout", 0.5, "--lr", 2e-3]


@pytest.fixture
def pictures(tmp_path) -> str:
    """Return a folder of pictures of one colour each, brighter or darker, at 16 pixels."""
    generator = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (tmp_path / "data" / name).mkdir(parents=True)
        for i in range(8):
            pixels = np.clip(np.array(colour) + generator.integers(-20, 20), 0, 255)
            Image.fromarray(np.full((16, 16, 3), pixels, np.uint8)).save(tmp_path / "data" / name / f"{i}.png")
    return str(tmp_path / "data")


def nearest(images: np.ndarray) -> np.ndarray:
    """Return the label whose colour is nearest to the mean of each image."""
    colours = np.array(list(COLOURS.values()), dtype=float)
    return np.abs(images.mean((1, 2))[:, None] - colours).sum(2).argmin(1)


@pytest.mark.slow
def test_a_stack_that_is_trained_from_nothing_makes_the_images_of_each_label(pictures, tmp_path, capsys, monkeypatch):
    """The base model is sampled by Algorithm 1 without labels, so that the classifier alone leads it to them."""
    monkeypatch.setattr("admg.training.DiffusionTask.preview", lambda *_: {})
    monkeypatch.setattr("admg.training.UpsamplerTask.preview", lambda *_: {})
    data = ["--data", pictures, *NETWORK]
    base = [*data, "--image-size", 8, "--attention-resolutions", 4]
    succeed(capsys, "train", *base, *MODEL, "--steps", 100, "--out", tmp_path / "base")
    succeed(capsys, "train-classifier", *base, "--lr", 1e-3, "--steps", 120, "--out", tmp_path / "classifier")
    large = [*data, "--image-size", 16, "--small-size", 8, "--attention-resolutions", 8, "--augment-noise", 0.2]
    succeed(capsys, "train-upsampler", *large, *MODEL, "--steps", 60, "--out", tmp_path / "upsampler")

    out, options = tmp_path / "out", ["--steps", 20, "--seed", 7, "--precision", "fp32"]
    command = ["sample", "--model", tmp_path / "base", "--classifier", tmp_path / "classifier", *options,
               "--labels", "red,blue", "--num", 24, "--unconditional", "--scale", 20, "--sampler", "ddpm",
               "--no-bound-guidance",
               "--upsampler", tmp_path / "upsampler", "--upsampler-steps", 10]  # fmt: skip
    succeed(capsys, *command, "--out", out)
    images, labels = arrays(out / "samples_24x16x16x3.npz")
    small, small_labels = arrays(out / "base" / "samples_24x8x8x3.npz")
    assert labels.tolist() == small_labels.tolist() == [1, 0] * 12
    right = nearest(small) == labels
    assert right.sum() >= 20  # 12 without guidance, and 20 with a chance of 0.08 %
    assert (nearest(images) == labels)[right].all()
    shrunk = images.reshape(24, 8, 2, 8, 2, 3).mean((2, 4))
    assert np.abs(shrunk - small)[right].mean() < 12  # of 255; two labels differ by 120
    model = admg.load_upsampler(tmp_path / "upsampler")
    low_res = torch.from_numpy(small).permute(0, 3, 1, 2) / 127.5 - 1
    again = admg.upsample(model, low_res, labels.tolist(), steps=10, seed=7, progress=False).images
    assert np.abs(again.astype(int) - images).max() <= 1
