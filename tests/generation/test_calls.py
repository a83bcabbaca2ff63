"""What a notebook uses: single labels, names of models, Samples as a picture, progress of a job, samplers of a file."""

from __future__ import annotations

import functools
import io

import numpy as np
import pytest
import torch
from helpers import refused, run
from PIL import Image

import admg
from admg import samplers
from admg.generation import JobProgress

SAMPLER = """
from admg import samplers

def slow(model, x_T, *, eta=1.0, **options):
    yield from samplers.ddim(model, x_T, eta=eta, **options)

def fails(model, x_T, **options):
    raise KeyError("no such thing")

def ignores(model, x_T, *, guide=None, **options):
    yield from samplers.ddim(model, x_T, **options)

def late(model, x_T, *, guide=None, **options):
    for step in samplers.ddim(model, x_T, **options):
        yield step
    yield from samplers.ddim(model, step.x, guide=guide, **options)

number = 3
"""


@pytest.mark.thorough
def test_one_label_and_a_number_of_images(tiny_model):
    for label in ("two", 2, torch.tensor(2), np.int64(2)):
        samples = admg.sample(tiny_model, label, num=3, steps=1, progress=False)
        assert samples.labels.tolist() == [2, 2, 2] and samples.label_names == ("two",) * 3
    assert admg.sample(tiny_model, "two", steps=1, progress=False).labels.tolist() == [2]
    assert admg.sample(tiny_model, ["two", 0], num=3, steps=1, progress=False).labels.tolist() == [2, 0, 2]
    assert admg.sample(tiny_model, num=2, steps=1, progress=False).labels.tolist() == [-1, -1]
    with pytest.raises(ValueError, match="num must be at least 1, got 0"):
        admg.sample(tiny_model, "two", num=0, progress=False)


def test_numbers_are_numbers_whatever_the_labels_are_called(tiny_model):
    """Class folders "1", "2", "3" are labels 0, 1, 2: a number must not be looked up as a name."""
    model = admg.Model(tiny_model.network, tiny_model.diffusion, (1, 8, 8), admg.Labels(5, list("12345")))
    for labels in ([1, 2], torch.tensor([1, 2]), np.array([1, 2])):
        assert admg.sample(model, labels, steps=1, progress=False).labels.tolist() == [1, 2]
    assert admg.sample(model, ["1", "2"], steps=1, progress=False).labels.tolist() == [0, 1]
    tensor = torch.tensor([3, -1])
    assert admg.sample(model, tensor, steps=1, progress=False).labels.tolist() == [3, -1]
    with pytest.raises(ValueError, match="whole numbers"):
        admg.sample(model, torch.tensor([0.5]), steps=1, progress=False)


def test_an_unknown_argument_is_refused(tiny_model):
    with pytest.raises(TypeError, match="unexpected keyword argument 'y'"):
        admg.sample(tiny_model, [0], y=torch.tensor([1]))


def test_samples_show_and_save_themselves(tiny_model, tmp_path):
    samples = admg.sample(tiny_model, ["two", "Ankle boot"], num=4, steps=1, progress=False)
    assert repr(samples) == "Samples(4 images of 8x8, 1 channel; labels: two, Ankle boot)" and len(samples) == 4
    with Image.open(io.BytesIO(samples._repr_png_())) as picture:
        assert picture.size == samples.sheet().size
    pictures = samples.pil()
    assert [picture.mode for picture in pictures] == ["L"] * 4
    assert np.array_equal(np.stack(pictures)[..., None], samples.images)
    path = samples.save(tmp_path / "out")
    assert np.array_equal(np.load(path)["arr_0"], samples.images) and path.parent == tmp_path / "out"


def test_the_progress_of_a_job(tiny_model, tmp_path):
    seen: list[JobProgress] = []
    options = {"steps": 2, "batch_size": 2, "shard_size": 2, "precision": "fp32", "out": tmp_path}
    done = admg.generate(tiny_model, [0, 1], num=4, rank=1, world_size=2, progress=seen.append, **options)
    assert not done.finished and done.missing == 1 and done.sheet is None
    assert [p.done for p in seen] == [0, 1, 2, 2] and {p.total for p in seen} == {2}
    done = admg.generate(tiny_model, [0, 1], num=4, progress=seen.append, **options)
    assert (seen[4].done, seen[4].reused, seen[-1].done, seen[-1].total) == (2, 2, 4, 4)
    assert done.finished and not done.resumed and done.npz.exists() and done.images.is_dir()


@pytest.mark.thorough
def test_upsampling_in_memory_is_the_job(tiny_upsampler, tmp_path):
    small = np.random.default_rng(0).integers(256, size=(2, 4, 4, 1), dtype=np.uint8)
    np.savez(tmp_path / "small.npz", arr_0=small, arr_1=np.array([1, 2]))
    options = {"steps": 2, "seed": 3, "progress": False}
    one = admg.upsample(tiny_upsampler, small, [1, 2], **options)
    x = torch.from_numpy(small).permute(0, 3, 1, 2) / 127.5 - 1
    for images, labels in ((tmp_path / "small.npz", None), (x, torch.tensor([1, 2]))):
        assert np.array_equal(admg.upsample(tiny_upsampler, images, labels, **options).images, one.images)
    recipe = admg.generation.Recipe(steps=2, seed=3)
    done = admg.generation.generate_upsampled(tiny_upsampler, tmp_path / "small.npz", out=tmp_path / "out",
                                              recipe=recipe, progress=False)  # fmt: skip
    assert np.array_equal(done.read()[:], one.images)
    with pytest.raises(ValueError, match="not an upsampler"):
        admg.upsample("fashion-mnist", small)


@pytest.mark.thorough
def test_a_sampler_of_a_file(capsys, tiny_folders, tmp_path):
    path = tmp_path / "mine.py"
    path.write_text(SAMPLER)
    command = ["sample", "--model", tiny_folders["model"], "--steps", 3, "--label", "two", "--num", 2, "--scale", 0,
               "--precision", "fp32", "--out"]  # fmt: skip

    def made(name, *options):
        code, _, err = run(capsys, *command, tmp_path / name, *options)
        assert code == 0, err
        return np.load(tmp_path / name / "samples_2x8x8x1.npz")["arr_0"]

    mine = made("a", "--sampler", f"{path}:slow", "--sampler-option", "eta=0.5")
    assert np.array_equal(mine, made("b", "--sampler", "ddim", "--eta", 0.5))
    again = [*command, tmp_path / "a", "--sampler", f"{path}:slow", "--sampler-option", "eta=0.5"]
    assert "finished run with these settings" in run(capsys, *again)[1]
    path.write_text(SAMPLER.replace("eta=1.0", "eta=0.9"))
    assert "sampler.checksum is" in refused(capsys, *again)
    for name, message in (
        ("fails", "KeyError: 'no such thing' (line 8)"),
        ("number", "is not a sampler: expected a function"),
        ("nothing", "has no 'nothing'"),
    ):
        assert message in refused(capsys, *command, tmp_path / "c", "--sampler", f"{path}:{name}")
    guided = [*command, tmp_path / "c", "--guide", "classifier-free:2", "--sampler"]
    assert "'ignores' never evaluated the guide" in refused(capsys, *guided, f"{path}:ignores")
    assert not (tmp_path / "c").exists()
    assert run(capsys, *guided, f"{path}:late")[0] == 0  # it evaluates the guide, though not in the first step


def test_samplers_that_yield_no_steps_are_refused(tiny_model):
    def returning(model, x_T, **options):
        return x_T

    def yielding(model, x_T, **options):
        yield x_T

    for sampler in (returning, yielding):
        name = sampler.__name__
        with pytest.raises(ValueError, match=f"sampler '{name}' must yield a samplers.Step for each step, got Tensor"):
            admg.sample(tiny_model, "one", sampler=sampler, steps=1, progress=False)


def test_a_sampler_that_ignores_the_seed_is_noted_once(tiny_model, recwarn):
    def careless(model, x_T, *, noise_sampler=None, **options):
        yield from samplers.ddpm(model, x_T, **options)  # whose default is torch's global generator

    def careful(model, x_T, **options):
        yield from samplers.ddpm(model, x_T, **options)

    options = {"num": 4, "batch_size": 2, "steps": 3, "progress": False}
    for sampler in (careful, "ddpm", functools.partial(careful, clip=True)):
        admg.sample(tiny_model, "one", sampler=sampler, **options)
    assert not recwarn.list
    for sampler in (careless, functools.partial(careless, clip=True), admg.generation.Watched(careless, lambda *_: 0)):
        with pytest.warns(UserWarning) as caught:
            admg.sample(tiny_model, "one", sampler=sampler, **options)
        (note,) = caught
        assert "the sampler 'careless', or its guide, draws from torch's global" in str(note.message)
        assert "noise_sampler(x, i)" in str(note.message)
