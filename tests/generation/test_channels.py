"""Images of 2, 4 and 5 channels, as of medicine and satellites: through every command, and in pictures."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import TRUNK, arrays, randomised, refused, run, succeed, write_npz
from PIL import Image

import admg
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.diffusion.config import DiffusionConfig
from admg.evaluation.neighbours import neighbours
from admg.evaluation.nll import nll
from admg.generation.contact_sheet import captioned, contact_sheet, sheet
from admg.generation.images import save_images, to_pil
from admg.generation.starts import load_images
from admg.models import SuperResConfig, SuperResUNet, UNet, UNetConfig

NET = {"channels": 32, "channel-mult": "1,1", "num-res-blocks": 1, "attention-resolutions": 4, "head-channels": 32}
BRIEF = {"image-size": 8, "diffusion-steps": 100, "steps": 1, "batch-size": 4, "warmup": 1}
TRAINING = [word for name, value in (NET | BRIEF).items() for word in (f"--{name}", str(value))]


def noise(count: int, channels: int, size: int = 8, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, channels), dtype=np.uint8)


@pytest.fixture(scope="module")
def own_network(tmp_path_factory) -> str:
    """A feature network of any number of channels: the mean of each channel, and of its square."""
    path = tmp_path_factory.mktemp("own") / "mean.py"
    path.write_text(
        "import torch\n"
        "class Means(torch.nn.Module):\n"
        "    def forward(self, x):\n"
        "        return torch.cat([x.mean((2, 3)), x.square().mean((2, 3))], 1)\n"
    )
    return f"{path}:Means"


def model_of(channels: int) -> Model:
    config = DiffusionConfig(diffusion_steps=100)
    network = randomised(UNet(UNetConfig(**TRUNK | {"image_channels": channels})), 0)
    return Model(network, config.build(), (channels, 8, 8), Labels(0), config)


@pytest.mark.thorough
@pytest.mark.parametrize("channels", [2, 5])
def test_functions_take_any_number_of_channels(channels, tmp_path, own_network):
    model, path = model_of(channels), write_npz(tmp_path / "data.npz", noise(4, channels))
    samples = admg.sample(model, [None] * 2, steps=2, progress=False)
    stored, _ = arrays(samples.save(tmp_path / "samples"))
    assert stored.shape == (2, 8, 8, channels) and np.array_equal(stored, samples.images)
    images, _ = load_images([path], model)
    assert torch.equal(images, admg.data.open(path).batch(range(4))[0])
    edits = admg.edit(model, images, [None] * 4, strength=0.5, steps=2, progress=False)
    way = admg.interpolate(model, images[:2], frames=3, steps=2, progress=False)
    assert edits.x.shape == (4, channels, 8, 8) and way.x.shape == (3, channels, 8, 8)
    assert math.isfinite(float(nll(model, path, steps=2, progress=False)))
    options = {"features": own_network, "cache": False, "progress": False}
    assert admg.evaluate(noise(4, channels), path, ["fid"], **options)["fid"] < 1e-6
    found = neighbours(noise(4, channels)[2:], path, num=2, k=1, **options)
    assert found.nearest.numbers[:, 0].tolist() == [2, 3] and found.picture().width > 64


@pytest.mark.thorough
def test_commands_take_any_number_of_channels(capsys, tmp_path, monkeypatch, own_network):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ADMG_HOME", str(tmp_path / "home"))
    write_npz(Path("data.npz"), noise(6, 4), [0, 1, 0, 1, 0, 1])
    data = ["--data", "data.npz", *TRAINING]
    succeed(capsys, "train", *data, "--out", "run")
    succeed(capsys, "train-classifier", *data, "--val-data", "data.npz", "--out", "classifier")
    succeed(capsys, "train-upsampler", *data, "--small-size", "4", "--out", "upsampler")
    assert all(list(Path(run, "samples").glob("*.png")) for run in ("run", "classifier", "upsampler"))
    how = ["--model", "run", "--classifier", "classifier", "--steps", "2", "--num", "2", "--label", "1"]
    succeed(capsys, "sample", *how, "--out", "samples")
    x, y = arrays(next(Path("samples").glob("*.npz")))
    assert x.shape == (2, 8, 8, 4) and y.tolist() == [1, 1]
    features = ["--network", own_network, "--no-cache"]
    succeed(
        capsys, "evaluate", "samples", "data.npz", "--metrics", "fid,accuracy", "--classifier", "classifier", *features
    )
    succeed(capsys, "diagnose", "run", "--images", "data.npz", "--num", "2", "--unconditional")
    builtin = refused(capsys, "evaluate", "samples", "data.npz", "--network", "efficientnet-lite0")
    assert "have 4 channels, but the feature network efficientnet-lite0 supports only grey and colour images" in builtin
    write_npz(Path("colour.npz"), noise(4, 3))
    other = refused(capsys, "evaluate", "samples", "colour.npz", *features)
    assert "has images of 4 channels, and colour.npz of 3" in other


def test_channels_are_drawn_side_by_side_in_grey():
    images = noise(2, 4)
    picture = to_pil(images[0])
    assert picture.mode == "L" and picture.size == (32, 8)
    assert np.array_equal(np.asarray(picture), np.hstack([images[0, ..., c] for c in range(4)]))
    grid = np.asarray(sheet([images], cell=8))
    for j in range(2):  # rows and columns are separated by 4 pixels
        cell = grid[4:12, 4 + 36 * j : 36 + 36 * j]
        assert np.array_equal(cell, np.repeat(np.asarray(to_pil(images[j]))[..., None], 3, -1))
    assert captioned(images[0], "cat").shape == (8 * 12 + 16, 32 * 12, 3)
    many = contact_sheet(noise(30, 4), [str(i) for i in range(30)])
    assert many.mode == "RGB" and many.width > 4 * 96


def test_files_of_samples_keep_all_channels(tmp_path):
    images = noise(3, 4)
    save_images(images, [0, 1, None], ["cat", "dog", ""], tmp_path / "images")
    paths = sorted((tmp_path / "images").glob("*.tif"))
    assert len(paths) == 3
    with Image.open(paths[0]) as file:
        assert file.n_frames == 4 and file.mode == "L"
    found = admg.data.open(tmp_path / "images", channels=4, labels="none")
    x, _ = found.batch(range(3))
    assert np.array_equal(((x + 1) * 127.5).round().byte().permute(0, 2, 3, 1).numpy(), images)
    with pytest.warns(UserWarning, match=r"3 of 3 files .* 12 in all.*4 channels make them the channels of one image"):
        assert admg.data.open(tmp_path / "images", labels="none").channels == 1
    assert len(admg.data.open(tmp_path / "images", labels="none", frames="all")) == 12


@pytest.mark.thorough
@pytest.mark.parametrize("model, data", [(1, 3), (3, 1)])
def test_grey_and_colour_are_not_mixed(capsys, tmp_path, monkeypatch, model, data):
    monkeypatch.chdir(tmp_path)
    for channels in (1, 3):
        write_npz(Path(f"{channels}.npz"), noise(4, channels), [0, 1, 0, 1])
        for k, image in enumerate(noise(4, channels)):
            (Path(f"{channels}") / "ab"[k % 2]).mkdir(parents=True, exist_ok=True)
            to_pil(image).save(Path(f"{channels}") / "ab"[k % 2] / f"{k}.png")
    for end in ("", ".npz"):
        both = ["--data", f"{model}{end}", "--val-data", f"{data}{end}"]
        code, _, err = run(capsys, "train-classifier", *both, *TRAINING, "--out", f"c{end}")
        assert code == 0 and (Path(f"c{end}") / "model" / "config.json").exists(), err
        assert "converting the validation images to " + ("grey" if model == 1 else "colour") in err
    model_of(model).save(Path("run"))
    how = ["--model", "run", "--steps", "1", "--num", "1"]
    for source in (f"{data}/a/0.png", f"{data}.npz", f"{data}"):
        code, _, err = run(capsys, "edit", *how, "--image", source, "--out", f"edits-{Path(source).name}")
        assert code == 0 and WORDS[model] in err


WORDS = {1: "is in colour, but the model's images are grey", 3: "is grey, but the model's images are in colour"}


@pytest.mark.thorough
@pytest.mark.parametrize("model, data", [(1, 3), (3, 1)])
def test_likelihoods_of_grey_and_colour_images(tmp_path, model, data):
    images, network = noise(4, data), model_of(model)
    if model == 1:
        same = np.stack([np.asarray(to_pil(image).convert("L"))[..., None] for image in images])
    else:
        same = images.repeat(3, -1)
    write_npz(tmp_path / "data.npz", images)
    write_npz(tmp_path / "same.npz", same)
    (tmp_path / "folder").mkdir()
    for k, image in enumerate(images):
        to_pil(image).save(tmp_path / "folder" / f"{k}.png")
    options = {"steps": 3, "unconditional": True}
    expected = admg.nll(network, tmp_path / "same.npz", **options).total_by_image
    for source in ("data.npz", "folder"):
        with pytest.warns(UserWarning, match=WORDS[model]):
            assert admg.nll(network, tmp_path / source, **options).total_by_image == expected


@pytest.mark.thorough
@pytest.mark.parametrize("model, data", [(1, 3), (3, 1)])
def test_diagnosis_by_grey_and_colour_images(capsys, tmp_path, monkeypatch, model, data):
    monkeypatch.chdir(tmp_path)
    write_npz(Path("data.npz"), noise(4, data))
    model_of(model).save(Path("run"))
    assert WORDS[model] in run(capsys, "diagnose", "run", "--images", "data.npz")[2]


def test_grey_samples_are_compared_with_colour_ones_as_rgb(own_network):
    grey, colour = noise(8, 1), noise(8, 3, seed=1)
    options = {"metrics": ["fid"], "features": own_network, "interval": False, "cache": False, "progress": False}
    with pytest.warns(UserWarning, match="the samples is grey and the reference is in colour: comparing both as RGB"):
        mixed = admg.evaluate(grey, colour, **options)
    same = admg.evaluate(np.repeat(grey, 3, -1), colour, **options)
    assert mixed["fid"] == same["fid"]


def weights(channels: int, out: int) -> dict[str, torch.Tensor]:
    state = {name: value.clone() for name, value in model_of(channels).network.state_dict().items()}
    state["out.2.weight"], state["out.2.bias"] = state["out.2.weight"][:out], state["out.2.bias"][:out]
    return state


def test_a_segmentation_network_is_not_an_upsampler():
    """MedSegDiff's network maps an image of 3 channels and a noisy mask to the mask and its variance."""
    with pytest.raises(ValueError, match="a network from 4 to 2 channels, which may segment images"):
        admg.openai.load(weights(4, 2))
    upsampler = randomised(SuperResUNet(SuperResConfig(**TRUNK | {"image_channels": 2}, small_size=4)), 0)
    flags = "--large_size 8 --small_size 4 --image_channels 2 --num_channels 32 --channel_mult 1,1 --num_res_blocks 1 "
    flags += "--attention_resolutions 4 --num_head_channels 32 --learn_sigma False"
    state = {name: value for name, value in upsampler.state_dict().items()}
    if state["out.2.weight"].shape[0] == 2:
        assert admg.openai.load(state, flags).upsamples
