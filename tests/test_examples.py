"""Every example runs with few steps and writes one picture, and its guides and samplers work on the command line."""

from __future__ import annotations

import importlib
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run
from PIL import Image

import admg

EXAMPLES = Path(__file__).parent.parent / "examples"
NAMES = [path.stem for path in sorted(EXAMPLES.glob("*.py")) if "def main(argv" in path.read_text(encoding="utf-8")]
EXTRA = {"colourisation": ["--train-steps", "2", "--model", "FOLDER"], "purification": ["--images", "4"]}
GUIDE = f"{EXAMPLES / 'custom_guides.py'}:symmetric"


@pytest.fixture
def examples(monkeypatch):
    """Import an example by name, with the folder of the examples on the path as when it is run."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    before = set(sys.modules)
    yield importlib.import_module
    for name in set(sys.modules) - before:
        if Path(getattr(sys.modules[name], "__file__", None) or "").parent == EXAMPLES:
            del sys.modules[name]


@pytest.mark.thorough
@pytest.mark.parametrize("name", NAMES)
def test_an_example_writes_one_picture(examples, tmp_path, name):
    out = tmp_path / "out"
    extra = [word.replace("FOLDER", str(tmp_path / "model")) for word in EXTRA.get(name, [])]
    assert examples(name).main(["--out", str(out), "--steps", "2", "--num", "2", *extra]) in (None, 0)
    (picture,) = out.iterdir()
    assert picture.name == f"{name}.png"
    with Image.open(picture) as image:
        pixels = np.asarray(image.convert("L"))
    assert min(pixels.shape) > 150 and len(np.unique(pixels)) > 50  # images in it, not one colour


@pytest.mark.thorough
def test_garments_without_the_data_set_are_samples(examples, monkeypatch):
    common = examples("common")
    monkeypatch.setattr(common, "DATA", ())
    model = admg.load("fashion-mnist")
    x = common.garments(model, ["bag", "coat"])
    assert (x - admg.sample(model, ["bag", "coat"], seed=1, progress=False).x).abs().max() == 0


@pytest.mark.thorough
def test_garments_are_test_images_in_order(examples, monkeypatch, tmp_path):
    images = np.arange(5, dtype=np.uint8)[:, None, None, None].repeat(28, 1).repeat(28, 2)
    np.savez(tmp_path / "data.npz", arr_0=images, arr_1=np.array([8, 3, 8, 8, 3]))
    common = examples("common")
    monkeypatch.setattr(common, "DATA", (str(tmp_path),))
    monkeypatch.setattr(common, "open_dataset", lambda _, size, **options: admg.data.open(
        tmp_path / "data.npz", size, **options))  # fmt: skip
    x = common.garments(admg.load("fashion-mnist"), ["bag", "dress", "bag"], first=0)
    assert ((x[:, 0, 16, 16] + 1) * 127.5).round().tolist() == [0, 1, 2]
    assert (x[:, 0, 0, 0] == -1).all()  # padded


@pytest.mark.thorough
def test_a_users_guide_gives_the_same_images_on_the_command_line_and_in_python(examples, capsys, tmp_path):
    symmetric = examples("custom_guides").symmetric
    model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    guide = admg.guidance.ClassifierGuidance(classifier, 4.0)
    plain = admg.sample(model, ["bag"], guide=guide, steps=6, progress=False)
    own = admg.sample(model, ["bag"], guide=guide + symmetric, steps=6, progress=False)
    code, _, err = run(capsys, "sample", "--label", "bag", "--num", 1, "--steps", 6, "--guide", GUIDE, "--scale", 4,
                       "--precision", "fp32", "--out", tmp_path / "out")  # fmt: skip
    assert code == 0, err
    stored = np.load(tmp_path / "out" / "samples_1x32x32x1.npz")["arr_0"]
    assert np.abs(stored.astype(int) - own.images).max() <= 1
    uneven = [(samples.x - samples.x.flip(-1)).square().sum().item() for samples in (plain, own)]
    assert uneven[1] < uneven[0] / 5  # the guide makes images symmetric


@pytest.mark.thorough
def test_the_custom_sampler_is_ddim_with_eta_1(examples):
    """Euler ancestral in x/sqrt(ᾱ) and σ is DDIM's equation 12 with the noise of eta = 1."""
    euler_ancestral = examples("custom_sampler").euler_ancestral
    model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    guide = admg.guidance.ClassifierGuidance(classifier, 2.0)
    own, ddim = (
        admg.sample(model, ["bag", "coat"], guide=guide, sampler=sampler, steps=6, progress=False)
        for sampler in (euler_ancestral, partial(admg.samplers.ddim, eta=1.0))
    )
    torch.testing.assert_close(own.x, ddim.x, atol=1e-3, rtol=0)


@pytest.mark.thorough
def test_the_custom_sampler_on_the_command_line(examples, capsys, tmp_path):
    spec = f"{EXAMPLES / 'custom_sampler.py'}:euler_ancestral"
    code, _, err = run(capsys, "sample", "--label", "bag", "--num", 1, "--steps", 3, "--scale", 4,
                       "--sampler", spec, "--precision", "fp32", "--out", tmp_path / "out")  # fmt: skip
    assert code == 0, err
    stored = np.load(tmp_path / "out" / "samples_1x32x32x1.npz")["arr_0"]
    guide = admg.guidance.ClassifierGuidance(admg.load_classifier("fashion-mnist"), 4.0)
    own = admg.sample(admg.load("fashion-mnist"), ["bag"], guide=guide, steps=3, progress=False,
                      sampler=examples("custom_sampler").euler_ancestral)  # fmt: skip
    assert np.abs(stored.astype(int) - own.images).max() <= 1
