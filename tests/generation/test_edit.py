"""Edits, encoding and interpolation, compared with exact flows of Gaussian data and with sample(); their commands."""

from __future__ import annotations

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from exact import EVEN, Mixture, Network, betas_of
from helpers import refused, run, write_idx
from PIL import Image

import admg
from admg import guidance, samplers
from admg.diffusion.noise import SeededNoise
from admg.engine import accelerate
from admg.generation.contact_sheet import edit_sheet, interpolation_sheet
from admg.generation.images import to_uint8
from admg.generation.interpolate import slerp
from admg.generation.starts import load_images


def gaussian(std: float = 0.5) -> admg.Model:
    """Return a model of data N(0, std²) with its exact network and 1000 steps."""
    mixture = Mixture.of((1, 2, 2), [1.0], [0.0], [std], [0])
    diffusion = admg.Diffusion(admg.NoiseSchedule.from_betas(betas_of(EVEN).tolist()), "eps", "fixed_small")
    return admg.Model(Network(mixture), diffusion, (1, 2, 2))


def unclipped(model, x, **options):
    yield from samplers.ddim(model, x, clip=False, **options)


def stretch(alpha_bar: float, std: float) -> float:
    """Return the ratio of the standard deviations of x_t and x_0: the ODE keeps the quantile of Gaussian data."""
    return math.sqrt(alpha_bar * std**2 + 1 - alpha_bar) / std


@pytest.mark.parametrize(("strength", "kept"), [(0.5, 100), (0.25, 50), (1.0, 200), (0.001, 1)])
def test_an_edit_follows_the_exact_flow_from_the_noisy_image(strength, kept):
    """x_0 = (sqrt(ᾱ) image + sqrt(1 - ᾱ) ε) / stretch, with ᾱ of level `kept` of 200, least noise first."""
    model, image, std = gaussian(), torch.full((3, 1, 2, 2), 0.3), 0.5
    at = model.diffusion.schedule.respace(200).timesteps[kept - 1].item()
    alpha_bar = EVEN[at]
    noise = SeededNoise(5, range(3)).draw((1, 2, 2))
    exact = (math.sqrt(alpha_bar) * image + math.sqrt(1 - alpha_bar) * noise) / stretch(alpha_bar, std)
    edited = admg.edit(
        model, image, [None] * 3, strength=strength, steps=200, sampler=unclipped, seed=5, progress=False
    )
    assert (edited.x - exact).abs().max() < 0.02
    assert len(model.network.timesteps) == kept and max(model.network.timesteps) == at


@pytest.mark.thorough
def test_encoding_follows_the_exact_flow_more_closely_with_more_steps():
    std, x0 = 0.5, torch.tensor([0.4, -0.6, 0.1, 0.7]).view(1, 1, 2, 2)
    exact = x0 * stretch(EVEN[-1], std)
    errors = [(admg.encode(gaussian(std), x0, steps=n, seed=None) - exact).abs().max().item() for n in (50, 100, 200)]
    assert errors[2] < 0.03 and 1.6 < errors[0] / errors[1] < 2.5 and 1.6 < errors[1] / errors[2] < 2.5  # first order


def test_an_edit_of_strength_1_equals_sample_from_the_highest_level(tiny_model):
    """The noise stream of the seed goes on: a fresh one would repeat its first noise in the first step of ddpm."""
    images = torch.rand(3, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    labels = [1, 0, 4]
    edited = admg.edit(tiny_model, images, labels, strength=1, steps=4, sampler="ddpm", seed=2, progress=False)
    noise, model = SeededNoise(2, range(3)), tiny_model.respace(4)
    alpha_bar = model.diffusion.schedule.alpha_bar[-1].item()
    x = math.sqrt(alpha_bar) * images + math.sqrt(1 - alpha_bar) * noise.draw((1, 8, 8))
    # as sample() does: at the highest level a rounding error grows a hundredfold
    model = replace(model, network=accelerate(model.network, precision="fp32"))
    for step in samplers.ddpm(model, x, y=torch.tensor(labels), noise_sampler=noise):
        x = step.x
    assert (edited.x - x).abs().max() < 1e-5
    assert edited.labels.tolist() == labels and edited.label_names == ("one", "zero", "Ankle boot")


@pytest.mark.slow
def test_an_edit_does_not_depend_on_the_batch_size(tiny_model, tiny_classifier):
    images = torch.rand(5, 1, 8, 8, generator=torch.Generator().manual_seed(1)) * 2 - 1
    options = {"strength": 0.5, "steps": 8, "seed": 3, "guide": admg.guidance.ClassifierGuidance(tiny_classifier, 2.0),
               "sampler": "ddpm", "progress": False}  # fmt: skip
    labels = [0, 1, 2, 3, 4]
    whole = admg.edit(tiny_model, images, labels, **options).x
    parts = admg.edit(tiny_model, images, labels, batch_size=2, **options).x
    assert (whole - parts).abs().max() < 2e-3
    one = admg.edit(tiny_model, images[3:4], [3], first=3, **options).x
    assert (whole[3:4] - one).abs().max() < 2e-3
    inverted = {k: v for k, v in options.items() if k != "sampler"} | {"invert": True, "from_labels": [4, 3, 2, 1, 0]}
    whole = admg.edit(tiny_model, images, labels, **inverted).x
    assert (whole - admg.edit(tiny_model, images, labels, batch_size=2, **inverted).x).abs().max() < 2e-3


def test_an_encoding_does_not_depend_on_the_batch_size(tiny_model):
    """Each image keeps its noise, its label and its measurement."""
    images = torch.rand(3, 1, 8, 8) * 2 - 1
    guide = guidance.DPS(torch.nn.Identity(), images + 0.1, scale=0.3)
    options = {"steps": 4, "guide": guide, "bound_guidance": False, "progress": False}
    whole, *parts = (admg.encode(tiny_model, images, [0, 1, 2], batch_size=n, **options) for n in (None, 1, 2))
    other = admg.encode(
        tiny_model, images, [0, 1, 2], **{**options, "guide": replace(guide, measurement=images.flip(0))}
    )
    for part in parts:
        assert (part - whole).abs().max() < 2e-3 < (whole - other).abs().max() / 10


def test_labels_of_the_network_during_inversion(tiny_model):
    """The network is conditioned on the source labels during inversion, and on the target labels during sampling."""
    told = []
    network = tiny_model.network
    spy = torch.nn.Module()
    spy.config = network.config
    spy.forward = lambda x, t, y=None: told.append((int(t[0]), None if y is None else y.tolist())) or network(x, t, y=y)
    model = admg.Model(spy, tiny_model.diffusion, (1, 8, 8), tiny_model.labels)
    image = torch.zeros(1, 1, 8, 8)
    admg.edit(model, image, ["two"], invert=True, from_labels=["zero"], strength=0.5, steps=4, progress=False)
    assert told == [(0, [0]), (33, [2]), (0, [2])]  # two of four levels: one step up between them, two down
    told.clear()
    admg.edit(model, image, [None], invert=True, strength=0.5, steps=4, unconditional=True, progress=False)
    assert [y for _, y in told] == [None] * 3


@pytest.fixture(scope="module")
def shipped() -> admg.Model:
    return admg.load("fashion-mnist")


@pytest.fixture(scope="module")
def garments(shipped) -> torch.Tensor:
    """Return samples on a black background, like the images of the data set."""
    x = admg.sample(shipped, ["dress", "sneaker"], steps=10, seed=1, progress=False).x.clamp(-1, 1)
    return torch.where(x < -0.9, -1.0, x)


def rmse(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a - b).square().mean().sqrt().item()


@pytest.mark.slow
def test_the_distance_from_the_image_grows_with_the_strength(shipped, garments):
    labels = ["dress", "sneaker"]
    away = [rmse(admg.edit(shipped, garments, labels, strength=s, steps=25, progress=False).x, garments)
            for s in (0.01, 0.4, 0.9)]  # fmt: skip
    assert away[0] < 0.03 and away[0] < away[1] < away[2] and away[2] > 0.2


@pytest.mark.slow
def test_inversion_leads_back_and_interpolation_ends_at_the_images(shipped, garments):
    back = admg.edit(shipped, garments, ["dress", "sneaker"], invert=True, from_labels=["dress", "sneaker"],
                     strength=0.5, steps=30, progress=False)  # fmt: skip
    noised = admg.edit(shipped, garments, ["dress", "sneaker"], strength=0.5, steps=10, progress=False)
    assert rmse(back.x, garments) < 0.06 < 0.12 < rmse(noised.x, garments)
    frames = admg.interpolate(shipped, garments, frames=3, steps=30, progress=False).x
    assert rmse(frames[[0, 2]], garments) < 0.08 and rmse(frames[1:2], garments[:1]) > 0.15


@pytest.mark.slow
def test_noise_at_the_lowest_level_makes_x_T_of_a_plain_background_normal(shipped, garments):
    """Without it, DDIM inversion leaves the background smooth, and interpolations between two such x_T fail."""
    noise, smooth = (admg.encode(shipped, garments[1:], steps=20, seed=seed)[:, :, :8] for seed in (0, None))
    assert abs(noise.std().item() - 1) < 0.15 and smooth.std().item() < 0.6


@pytest.mark.thorough
def test_interpolation_between_seeds_ends_at_their_samples(tiny_model):
    way = admg.interpolate(tiny_model, (3, 8), "two", frames=4, steps=5, batch_size=3, progress=False)
    for seed, frame in ((3, 0), (8, 3)):
        single = admg.sample(tiny_model, ["two"], steps=5, seed=seed, progress=False)
        assert (way.x[frame] - single.x[0]).abs().max() < 2e-3
    assert way.label_names == ("two",) * 4


def test_slerp():
    a, b = torch.tensor([2.0, 0.0]), torch.tensor([0.0, 1.0])
    assert torch.allclose(slerp(a, b, 1 / 3), math.sqrt(3) / 2 * a + b / 2)  # sin 60°, sin 30°
    assert torch.equal(slerp(a, b, 0.0), a) and torch.allclose(slerp(a, b, 1.0), b)
    assert torch.allclose(slerp(a, 3 * a, 0.25), 1.5 * a)  # one direction: the line
    x, y = torch.randn(2, 10_000, generator=torch.Generator().manual_seed(0))
    assert abs(slerp(x, y, 0.5).std().item() - 1) < 0.02
    assert [round(slerp(a, b, t)[1].item(), 3) for t in (0.25, 0.75)] == [0.383, 0.924]


def test_edit_refuses_arguments_that_do_not_fit(tiny_model, tiny_upsampler):
    x = torch.zeros(2, 1, 8, 8)
    for options, message in (
        ({"strength": 0.0}, "strength must be above 0 and at most 1, got 0.0"),
        ({"strength": 1.1}, "at most 1"),
        ({"strength": math.nan}, "at most 1"),
        ({"from_labels": [0, 0]}, "requires invert=True"),
        ({"from_labels": [0], "invert": True}, "1 labels for 2 images"),
        ({"from_labels": [0, 9], "invert": True}, "unknown label '9'"),
        ({"batch_size": -1}, "batch_size must be at least 1"),
        ({"sampler": "euler"}, "unknown sampler"),
    ):
        with pytest.raises(ValueError, match=message):
            admg.edit(tiny_model, x, [0, 1], **{"steps": 2, "progress": False} | options)
    for images in (torch.zeros(2, 3, 8, 8), torch.zeros(2, 1, 8, 16)):
        with pytest.raises(ValueError, match="expected images of shape"):
            admg.edit(tiny_model, images, [0, 1], steps=2, progress=False)
    with pytest.raises(ValueError, match="a list of one per image, got 1 for 2 images"):
        admg.edit(tiny_model, x, [0], steps=2, progress=False)
    with pytest.raises(ValueError, match="no labels"):
        admg.edit(tiny_model, x[:0], [], steps=2, progress=False)
    with pytest.raises(ValueError, match="not an upsampling one"):
        admg.edit(tiny_upsampler, x, [0, 1], steps=2, progress=False)
    with pytest.raises(ValueError, match=r"frames must be from 2 \(the two ends\) to 10,000, got 1"):
        admg.interpolate(tiny_model, (0, 1), frames=1, steps=2, progress=False)
    with pytest.raises(ValueError, match="needs two ends, got 3"):
        admg.interpolate(tiny_model, torch.zeros(3, 1, 8, 8), steps=2, progress=False)


# The command line


@pytest.fixture
def models(tiny_folders):
    folders = ["--model", tiny_folders["model"], "--classifier", tiny_folders["classifier"]]
    return [*folders, "--steps", 4, "--precision", "fp32"]


@pytest.fixture
def pictures(tmp_path):
    """Return a folder with two 8x8 images, and the images."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    pixels = np.random.default_rng(0).integers(256, size=(2, 8, 8), dtype=np.uint8)
    for name, image in zip("ab", pixels):
        Image.fromarray(image).save(folder / f"{name}.png")
    return folder, torch.from_numpy(pixels)[:, None].float() / 127.5 - 1


def stored(out) -> np.lib.npyio.NpzFile:
    (path,) = out.glob("samples_*.npz")
    return np.load(path)


@pytest.mark.thorough
def test_the_edit_command_equals_edit(capsys, models, tiny_folders, pictures, tmp_path):
    """The order is images, then labels, then the edits of each; a folder stands for its images."""
    out, (folder, x) = tmp_path / "out", pictures
    code, _, err = run(capsys, "edit", *models, "--image", folder, "--label", "two", "--label", "one", "--num", 3,
                       "--strength", 0.5, "--scale", 2, "--seed", 4, "--sampler", "ddpm", "--batch-size", 5,
                       "--out", out)  # fmt: skip
    assert code == 0, err
    labels = [2, 2, 2, 1, 1, 1] * 2
    guide = admg.guidance.ClassifierGuidance(admg.load_classifier(tiny_folders["classifier"]), 2.0)
    expected = admg.edit(admg.load(tiny_folders["model"]), x.repeat_interleave(6, 0), labels, strength=0.5, guide=guide,
                         steps=4, seed=4, sampler="ddpm", batch_size=5, progress=False)  # fmt: skip
    assert np.array_equal(stored(out)["arr_0"], expected.images) and stored(out)["arr_1"].tolist() == labels
    assert len([*(out / "images").glob("*.png")]) == 12
    drawn = np.asarray(edit_sheet(to_uint8(x), 3)(expected.images, expected.label_names, "").convert("L"))
    cells = drawn[-400:, -400:].reshape(4, 100, 4, 100).transpose(0, 2, 1, 3)[:, :, 6:96:12, 6:96:12]
    assert np.array_equal(cells[:, 0], to_uint8(x)[[0, 0, 1, 1], :, :, 0])  # each image beside its edits
    assert np.array_equal(cells[:, 1:].reshape(12, 8, 8), expected.images[:, :, :, 0])
    with Image.open(out / "sheet.png") as sheet:
        assert sheet.height == drawn.shape[0] + 28  # and a title


@pytest.mark.thorough
def test_a_run_of_edits_continues_only_with_the_same_settings(capsys, models, pictures, tmp_path):
    folder, _ = pictures
    command = ["edit", *models, "--image", folder / "a.png", "--num", 2, "--out", tmp_path / "out"]
    assert run(capsys, *command)[0] == 0
    assert "finished run with these settings" in run(capsys, *command)[1]
    assert "start.strength is 0.6 there, 0.7 here" in refused(capsys, *command, "--strength", 0.7)
    assert "start.invert" in refused(capsys, *command, "--invert")
    Image.new("L", (8, 8), 7).save(folder / "a.png")
    assert "start.images" in refused(capsys, *command)


@pytest.mark.slow
def test_the_edit_command_with_inversion(capsys, models, tiny_folders, pictures, tmp_path):
    """The defaults are one edit per image and 100 steps; --from-label is for all images, or given once per image."""
    folder, x = pictures
    common = ["edit", *models, "--image", folder / "a.png", "--image", folder / "b.png", "--invert", "--label", 2]
    for given, told in ((["zero"], [0, 0]), (["zero", "one"], [0, 1])):
        out = tmp_path / str(len(given))
        options = [word for label in given for word in ("--from-label", label)]
        assert run(capsys, *common, *options, "--scale", 0, "--strength", 1, "--out", out)[0] == 0
        expected = admg.edit(admg.load(tiny_folders["model"]), x, [2, 2], strength=1, invert=True, from_labels=told,
                             steps=4, progress=False)  # fmt: skip
        assert np.array_equal(stored(out)["arr_0"], expected.images)
    bare = [word for word in common if word not in ("--steps", 4)]
    assert run(capsys, *bare, "--scale", 0, "--out", tmp_path / "long")[0] == 0
    assert json.loads((tmp_path / "long" / "run.json").read_text())["settings"]["steps"] == "100"


@pytest.mark.thorough
def test_sample_with_init_equals_edit(capsys, models, tiny_folders, pictures, tmp_path):
    folder, x = pictures
    code, _, err = run(capsys, "sample", *models, "--init", folder / "b.png", "--strength", 0.5, "--label", "two",
                       "--num", 3, "--scale", 0, "--out", tmp_path / "out")  # fmt: skip
    assert code == 0, err
    expected = admg.edit(admg.load(tiny_folders["model"]), x[1:], [2] * 3, strength=0.5, steps=4, progress=False)
    assert np.array_equal(stored(tmp_path / "out")["arr_0"], expected.images)


@pytest.mark.slow
def test_the_interpolate_command_equals_interpolate(capsys, models, tiny_folders, pictures, tmp_path):
    folder, x = pictures
    model = admg.load(tiny_folders["model"])
    images = ["--image", folder / "a.png", "--image", folder / "b.png"]
    labels = ["--label", "one", "--label", "two"]
    for name, ends, command in (("images", x, images), ("seeds", (3, 4), ["--seeds", "3,4", "--scale", 0])):
        out = tmp_path / name
        code, _, err = run(capsys, "interpolate", *models, *command, *labels, "--frames", 3, "--out", out)
        assert code == 0, err
        expected = [admg.interpolate(model, ends, label, frames=3, steps=4, progress=False).images for label in (1, 2)]
        assert np.abs(stored(out)["arr_0"].astype(int) - np.concatenate(expected)).max() <= 1
        assert stored(out)["arr_1"].tolist() == [1, 1, 1, 2, 2, 2]
        drawn = interpolation_sheet(to_uint8(x) if name == "images" else None, 3)(
            stored(out)["arr_0"], ["", "", ""] * 2, ""
        )
        assert drawn.width == (5 if name == "images" else 3) * 100 + 4  # the images stand beside their frames
        assert Image.open(out / "sheet.png").height == drawn.height + 28  # and a title


def test_pictures_may_have_idx_in_their_names(tiny_model, tmp_path):
    picture = np.random.default_rng(0).integers(0, 256, (8, 8), dtype=np.uint8)
    for name in ("cat.png", "idx_0001.png", "sidxy.png"):
        Image.fromarray(picture).save(tmp_path / name)
        x, names = load_images([tmp_path / name], tiny_model)
        assert names == [name[:-4]] and np.array_equal(to_uint8(x)[0, :, :, 0], picture)
    path = write_idx(tmp_path / "train-images-idx3-ubyte", picture[None])
    assert np.array_equal(to_uint8(load_images([path], tiny_model)[0])[0, :, :, 0], picture)


def test_images_are_fitted_as_in_the_training_of_the_model(shipped, tiny_model, tmp_path):
    """The shipped model was trained on 28x28 in a black border; for an unknown model images are resized by default."""
    Image.new("L", (28, 28), 255).save(tmp_path / "x.png")
    x, names = load_images([str(tmp_path / "x.png")], shipped, None)
    assert x.shape == (1, 1, 32, 32) and x.sum().item() == 28 * 28 - (32 * 32 - 28 * 28) and names == ["x"]
    assert (load_images([str(tmp_path / "x.png")], shipped, "resize")[0] == 1).all()
    assert (load_images([str(tmp_path / "x.png")], tiny_model, None)[0] == 1).all()
    Image.new("RGB", (40, 40)).save(tmp_path / "large.png")
    with pytest.raises(ValueError, match=r"large\.png is 40x40, larger than image_size 32x32"):
        load_images([str(tmp_path / "large.png")], shipped, None)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["edit"], "image is required"),
        (["edit", "--image", "no.png"], "no.png does not exist"),
        (["edit", "--image", __file__], "cannot be read as an image"),
        (["edit", "--image", "A", "--strength", 0], "--strength must be above 0"),
        (["edit", "--image", "A", "--strength", 2], "--strength must be above 0"),
        (["edit", "--image", "A", "--num", 0], "--num must be at least 1"),
        (["edit", "--image", "A", "--label", "ankel boot"], "did you mean 'Ankle boot'"),
        (["edit", "--image", "A", "--from-label", "one"], "--from-label requires --invert"),
        (
            ["edit", "--image", "A", "--invert", "--from-label", "1", "--from-label", "2"],
            "from_labels must have one label or one per image, got 2",
        ),
        (
            ["edit", "--image", "A", "--label", "one", "--unconditional", "--scale", 0],
            "neither the model nor a guide uses them",
        ),
        (["edit", "--image", "A", "--scale", 4], "classifier guidance needs labels"),
        (["edit", "--image", "A", "--steps", "often"], "steps 'often'"),
        (["interpolate"], "--image or --seeds is required"),
        (["interpolate", "--image", "A"], "--image must be given twice, for the two ends, got 1"),
        (["interpolate", "--seeds", "1"], "--seeds must be two whole numbers"),
        (["interpolate", "--seeds", "1,2", "--image", "A"], "but not both"),
        (["interpolate", "--seeds", "1,2", "--frames", 1], "--frames must be at least 2"),
        (["interpolate", "--seeds", "1,2", "--fit", "pad"], "--fit requires --image"),
        (["interpolate", "--seeds", "1,2", "--value-range", "0,9"], "--value-range requires --image"),
        (["sample", "--strength", 0.5], "--strength requires --init"),
        (["sample", "--fit", "pad"], "--fit requires --init"),
        (["sample", "--upsampler-steps", "nonsense"], "--upsampler-steps requires --upsampler"),
        (["sample", "--upsampler-sampler", "heun"], "--upsampler-sampler requires --upsampler"),
        (["sample", "--sheet", "scale=1,2", "--scale", 7], "sheet varies scale, and cannot be combined with --scale"),
        (["sample", "--sheet", "cfg=1,2", "--cfg", 3], "sheet varies cfg, and cannot be combined with --cfg"),
        (["edit", "--image", "A", "--invert", "--unconditional", "--scale", 2, "--from-label", 1], "unconditional"),
        (["sample", "--init", "A", "--sheet", "scale=1,2"], "cannot be combined with --init"),
        (["sample", "--init", "FOLDER"], "holds 2: use admg edit"),
    ],
)
def test_bad_input_gives_one_line_and_writes_nothing(capsys, models, pictures, tmp_path, arguments, expected):
    named = {"A": pictures[0] / "a.png", "FOLDER": pictures[0]}
    command, *options = [named.get(word, word) for word in arguments]
    steps = models if "--steps" not in options else models[:-2]
    assert expected in refused(capsys, command, *steps, *options, "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_images_of_other_kinds_for_edits(tiny_model):
    """Arrays are edited as tensors are; a path, and labels that are not one per image, are refused."""
    images, options = torch.rand(4, 1, 8, 8) - 0.5, {"steps": 2, "progress": False}
    found = admg.edit(tiny_model, images.numpy(), "one", **options).x
    assert torch.equal(found, admg.edit(tiny_model, images, "one", **options).x)
    assert torch.equal(admg.encode(tiny_model, images.numpy(), **options), admg.encode(tiny_model, images, **options))
    with pytest.raises(ValueError, match=r"got 'x.png': admg.generation.starts.load_images\(.*\)\[0\] opens files"):
        admg.edit(tiny_model, "x.png", "one", **options)
    with pytest.raises(ValueError, match="a single label, or a list of one per image, got 3 for 4 images"):
        admg.edit(tiny_model, images, ["one", "two", 0], **options)
    with pytest.raises(ValueError, match="images must be floats"):
        admg.edit(tiny_model, np.zeros((1, 1, 8, 8), np.uint8), "one", **options)
