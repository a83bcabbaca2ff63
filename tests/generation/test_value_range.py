"""Values of images that a model is given: as in its training, and in about [-1, 1] from Python."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refused, succeed
from PIL import Image

import admg
from admg.evaluation.likelihood import bits_per_dim
from admg.evaluation.real_images import open_real_images
from admg.generation.starts import TrainedReading, load_images


def scan(folder: Path, count: int = 3, low: int = -1000, high: int = 3000) -> Path:
    """Write images of 32-bit integers, as CT exports have them."""
    folder.mkdir()
    for i in range(count):
        values = np.random.default_rng(i).integers(low, high + 1, (8, 8), dtype=np.int32)
        values[0, :2] = low, high
        Image.fromarray(values).save(folder / f"{i}.tif")
    return folder


@pytest.mark.thorough
def test_the_range_of_the_training_is_recorded_and_used_again(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    scan(Path("ct"))
    network = ["--channels", "32", "--channel-mult", "1,1", "--num-res-blocks", "1", "--attention-resolutions", "4"]
    training = ["--image-size", "8", *network, "--steps", "1", "--batch-size", "2", "--head-channels", "32"]
    assert "from -1000 to 3000" in refused(capsys, "train", "--data", "ct", *training, "--out", "run")
    succeed(capsys, "train", "--data", "ct", *training, "--out", "run", "--value-range", "-1000,3000")
    model = admg.load("run")
    assert model.training["value_range"] == [-1000, 3000]
    images, _ = load_images(["ct"], model)
    assert images[0, 0, 0, :2].tolist() == [-1, 1]
    Image.fromarray(np.full((8, 8), 1000, np.int32)).save("one.tif")
    Image.fromarray(np.full((8, 8), 255, np.uint8)).save("one.png")
    one = (load_images(["one.tif"], model)[0] + 1) * 127.5
    assert one.round().unique().tolist() == [128]  # 2000 / 4000 of 255 is 127.5, and halves are rounded to even
    assert load_images(["one.png"], model)[0].unique().tolist() == [1]  # 8 bits stay 0..255
    edit = ["edit", "--model", "run", "--image", "one.tif", "--steps", "2", "--num", "1"]
    succeed(capsys, *edit, "--value-range", "0,2000", "--out", "edits")
    message = refused(capsys, *edit, "--value-range", "0,900", "--out", "other")
    assert "range from 1000 to 1000, outside [0, 900]" in message
    nll = ["evaluate", "nll", "--model", "run", "--data", "ct", "--steps", "2"]
    assert "--value-range must be two numbers LOW,HIGH" in refused(capsys, *nll, "--value-range", "5")
    succeed(capsys, *nll)


@pytest.mark.parametrize("stored", ["files", "array", "memory"])
def test_a_range_that_was_stated_for_8_bits_must_be_stated_again(tmp_path, stored):
    """Masks of four classes would otherwise be read as nearly black."""
    masks = np.random.default_rng(0).integers(0, 4, (6, 8, 8), dtype=np.uint8)
    masks[:, 0, :2] = 0, 3
    (folder := tmp_path / "masks").mkdir()
    for i, mask in enumerate(masks):
        Image.fromarray(mask).save(folder / f"{i}.png")
    np.savez(tmp_path / "masks.npz", arr_0=masks)
    path = {"files": folder, "array": tmp_path / "masks.npz", "memory": None}[stored]
    given = {"value_range": (0, 3)}
    data = admg.data.from_arrays(masks, **given) if path is None else admg.data.open(path, 8, labels="none", **given)
    network = {
        "channels": 32,
        "channel_mult": (1, 1),
        "num_res_blocks": 1,
        "attention_resolutions": (),
        "head_channels": 32,
    }
    config = admg.TrainConfig(steps=1, batch_size=2, log=("none",), preview_every=10)
    list(admg.train_diffusion(data, tmp_path / "run", config, network=network, validation=folder if path else None))
    model = admg.load(tmp_path / "run")
    assert model.training["byte_range"] == [0, 3]
    for read in (
        lambda **options: load_images([folder], model, **options)[0],
        lambda **options: load_images([folder / "0.png"], model, **options)[0],
        lambda **options: open_real_images(folder, model.shape, trained=TrainedReading.from_model(model), **options)
        .batch(slice(None))[0],
    ):  # fmt: skip
        with pytest.raises(ValueError, match=r"black and white are 0 and 3: pass value_range \(--value-range 0,3;"):
            read()
        assert read(value_range=(0, 3)).unique().tolist() == pytest.approx([-1, -1 / 3, 1 / 3, 1], abs=1e-6)
    with pytest.raises(ValueError, match="black and white are 0 and 3"):
        admg.sweep(model, reference=folder, out=tmp_path / "sweep", num=2, metrics=["precision"], progress=False)
    usual = admg.data.from_arrays(masks * 85, value_range=(0, 255))
    assert usual.decoding.byte_range is None


def test_a_reference_of_more_bits_is_read_by_its_range(tmp_path):
    class Mean(torch.nn.Module):
        def forward(self, x):
            return x.mean((2, 3))

    options = {"metrics": ["fid"], "features": Mean(), "cache": False, "progress": False, "interval": False}
    folder = scan(tmp_path / "ct")
    stored = np.stack([np.asarray(Image.open(path)) for path in sorted(folder.iterdir())])[..., None]
    samples = ((stored + 1000) * (255 / 4000)).round().astype(np.uint8)
    assert admg.evaluate(samples, folder, value_range=(-1000, 3000), **options)["fid"] < 1e-6
    with pytest.raises(ValueError, match="from -1000 to 3000, pass the values of black and white"):
        admg.evaluate(samples, folder, **options)


@pytest.mark.parametrize(
    "images, message",
    [
        (torch.full((1, 1, 8, 8), 255.0), r"images must be floats in \[-1, 1\], got values from 255 to 255"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), r"images must be floats in \[-1, 1\], .* got torch\.uint8"),
        (torch.linspace(-2.1, 2.6, 64).reshape(1, 1, 8, 8), "from -2.1 to 2.6, 56% of them beyond ±1.05: if they were"),
        (torch.full((1, 1, 8, 8), torch.nan), "images have values that are not finite"),
    ],
)
def test_images_from_python_are_checked(tiny_model, images, message):
    for function in (
        lambda: admg.edit(tiny_model, images, [0], steps=2, progress=False),
        lambda: admg.encode(tiny_model, images, steps=2),
        lambda: admg.interpolate(tiny_model, images.repeat(2, 1, 1, 1), steps=2, frames=2, progress=False),
        lambda: bits_per_dim(tiny_model.respace(2), images),
    ):
        with pytest.raises(ValueError, match=message):
            function()


def test_generated_images_that_slightly_exceed_the_range_are_edited(tiny_model):
    x = torch.linspace(-1.04, 1.04, 128).reshape(2, 1, 8, 8)
    x[0, 0, 0, 0] = -2.5
    assert admg.edit(tiny_model, x, [0, 1], steps=2, progress=False).x.shape == (2, 1, 8, 8)


def test_images_between_0_and_1_are_noted(tiny_model, tiny_upsampler):
    light = torch.rand(1, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    with pytest.warns(UserWarning, match=r"none below 0: expected \[-1, 1\], where -1 is black"):
        admg.edit(tiny_model, light, [0], steps=2, progress=False)
    with pytest.warns(UserWarning, match="low_res have values"):
        admg.upsample(tiny_upsampler, light[..., :4, :4], [0], steps=2, progress=False)
    with pytest.raises(ValueError, match=r"images must be a uint8 array .* got an array of float32"):
        admg.upsample(tiny_upsampler, np.zeros((1, 4, 4, 1), np.float32), [0], steps=2, progress=False)
