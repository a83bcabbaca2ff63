"""Inputs that would give a wrong result without a sign: they are refused, or the result is right."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch
from helpers import refused, run, succeed

import admg
from admg import guidance
from admg.checkpoints import openai
from admg.checkpoints.labels import Labels
from admg.checkpoints.weights import CheckpointError
from admg.data import ClassSampling, DataError, batches, from_dataset
from admg.evaluation import nll
from admg.evaluation.label_classifier import load_label_classifier
from admg.evaluation.real_images import open_real_images
from admg.evaluation.sources import open_source
from admg.generation.labels import resolve_labels
from admg.guidance.pretrained import differing_label

QUARTERS = """
import torch
class Quarters(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x[:, :1], 2).flatten(1)
"""


@pytest.mark.thorough
def test_the_unconditional_likelihood_of_images_with_labels(tiny_model, digits):
    images = open_real_images(digits, tiny_model.shape, Labels(10), num=4)
    five = dataclasses.replace(images, labels=images.labels % 5)
    given = nll(tiny_model, five, steps=3, unconditional=True, progress=False)
    plain = nll(tiny_model, dataclasses.replace(images, labels=None), steps=3, unconditional=True, progress=False)
    labelled = nll(tiny_model, five, steps=3, progress=False)
    assert given.total == plain.total != labelled.total
    with pytest.raises(ValueError, match="steps"):
        nll(tiny_model, five, steps=0, progress=False)


@pytest.mark.parametrize(
    ("guide", "found"),
    [
        (lambda state: torch.arange(8.0), r"shape \(8,\)"),  # as long as the images are wide
        (lambda state: torch.ones(1, 1, 8, 8), r"shape \(1, 1, 8, 8\)"),
        (lambda state: 1.0, "type float"),
    ],
)
@pytest.mark.parametrize("form", ["alone", "sum", "scaled", "interval"])
def test_gradients_of_another_shape(tiny_model, guide, found, form):
    plain = guidance.guide(guide)
    guides = {"alone": guide, "sum": plain + (lambda state: None), "scaled": 2 * plain,
              "interval": guidance.Interval(plain, 0.0, 1e9)}  # fmt: skip
    with pytest.raises(ValueError, match=f"returned a gradient of {found}: one like x is needed, \\(8, 1, 8, 8\\)"):
        admg.sample(tiny_model, [1] * 8, guide=guides[form], steps=2, progress=False)
    with pytest.raises(ValueError, match="returned a gradient of"):
        [*admg.samplers.ddim(tiny_model.respace(2), torch.zeros(8, 1, 8, 8), guide=guides[form])]


@pytest.mark.thorough
def test_labels_of_a_run_are_those_of_its_model(capsys, tiny_model, tiny_classifier, tmp_path):
    """A classifier with the same names in another order, and one with other names."""
    tiny_model.save(tmp_path / "model")
    sample = ["sample", "--model", tmp_path / "model", "--scale", 0, "--num", 10, "--steps", 2, "--no-images"]
    succeed(capsys, *sample, "--precision", "fp32", "--out", tmp_path / "run")
    source = open_source(tmp_path / "run", labels=True)
    names = tiny_model.labels.names
    assert source.names_of_numbers == names and open_source(tmp_path / "run").labels is None
    turned = dataclasses.replace(tiny_classifier, labels=Labels(len(names), names[::-1]))
    assert load_label_classifier(turned, source).numbers == [*range(len(names))][::-1]
    others = dataclasses.replace(tiny_classifier, labels=Labels(len(names), (*names[:-1], "another")))
    with pytest.raises(ValueError, match=f"{names[-1]}"):
        load_label_classifier(others, source)


class Predicting:
    def __init__(self, output):
        self.output = output

    def predict(self, images):
        return self.output(len(images))


@pytest.mark.parametrize("output", [lambda n: np.zeros((n, 1), int), lambda n: np.zeros(1, int), lambda n: np.zeros(n)])
def test_outputs_of_a_label_classifier(output):
    images = np.zeros((6, 8, 8, 1), np.uint8)
    source = dataclasses.replace(admg.evaluation.opening.of_array(images), labels=np.array([1, 0, 1, 0, 1, 0]))
    with pytest.raises(ValueError, match="one whole number for each is needed"):
        load_label_classifier(Predicting(output), source).count_correct(source)
    module = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 1))
    with pytest.raises(ValueError, match="of at least 2 labels"):
        load_label_classifier(module, source).count_correct(source)


def test_names_of_a_classifiers_classes():
    assert differing_label(("a", "b"), ("a", "b"), 2) is None and differing_label(("a", "b"), (), 2) is None
    assert differing_label(("a", "b"), ("A", "bee"), 2) is None  # other words for some
    assert "label 0 of the model is 'a', which is class 1" in differing_label(("a", "b"), ("b", "a"), 2)
    assert "not among the classes" in differing_label(("coat", "bag"), ("cat", "dog"), 2)


def test_images_of_another_range(tiny_model, tiny_classifier):
    bright = torch.rand(1, 1, 8, 8) * 255
    mask = torch.ones(8, 8, dtype=torch.bool)
    for image in (bright, bright.byte()):
        with pytest.raises(ValueError, match=r"expected are floats in \[-1, 1\]"):
            admg.sample(tiny_model, [1], sampler=admg.samplers.repaint(image, mask), steps=4, progress=False)
        with pytest.raises(ValueError, match=r"the reference .* floats in \[-1, 1\]"):
            guidance.ILVR(image, 2)
        with pytest.raises(ValueError, match=r"expected are floats in \[-1, 1\]"):
            guidance.calibrated(tiny_classifier, tiny_classifier.diffusion, image, torch.tensor([1]))
    for guide in (guidance.DPS(guidance.Downsample(2), bright.byte()[..., ::2, ::2]),
                  guidance.LinearInverse(guidance.Downsample(2), bright.byte()[..., ::2, ::2], 0.1)):  # fmt: skip
        with pytest.raises(ValueError, match=r"the measurement is of type torch\.uint8: expected are floats"):
            admg.sample(tiny_model, [1], guide=guide, steps=2, progress=False)


class Renumbered(torch.utils.data.Dataset):
    """Whose items have other labels than `targets`, as with torchvision's target_transform."""

    targets = (0, 1, 2) * 8

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        return torch.full((1, 8, 8), i / 24), self.targets[i] + 1


@pytest.mark.parametrize("names", [None, ("w", "x", "y", "z")])
def test_targets_that_are_not_the_labels(names):
    dataset = from_dataset(Renumbered(), label_names=names)
    assert dataset.label_names == (names or ("0", "1", "2", "3"))
    sampling = ClassSampling(weights={dataset.label_names[1]: 0.0})
    with pytest.raises(DataError, match="known only when its images are read"):
        next(batches(dataset, 8, seed=0, sampling=sampling))


@pytest.mark.thorough
def test_files_of_a_checkpoint_are_not_imported_and_trained_models_not_replaced(tiny_folders, tiny_model, tmp_path):
    with pytest.raises(CheckpointError, match="belongs to a checkpoint of admg"):
        openai.convert(f"{tiny_folders['model']}/model.safetensors", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    trained = shutil.copytree(tiny_folders["model"], tmp_path / "trained")
    file = tmp_path / "weights.pt"
    torch.save(tiny_model.network.state_dict(), file)
    with pytest.raises(CheckpointError, match="holds a model that was not imported, and is kept"):
        openai.convert(file, trained)
    first = openai.convert(file, tmp_path / "out")
    assert openai.convert(file, tmp_path / "out").shape == first.shape  # again


@pytest.mark.thorough
def test_options_without_effect(capsys, files_of_samples, tmp_path):
    evaluate = ["evaluate", files_of_samples, files_of_samples, "--network", f"{tmp_path / 'own.py'}:Quarters"]
    for more, message in (
        (["--metrics", "fid", "--classifier", "nosuch"], "--classifier is for the metric accuracy"),
        (["--metrics", "precision", "--infinite"], "--infinite is for the metric fid"),
        (["--no-cache", "--cache", tmp_path / "cache"], "--no-cache cannot be combined with --cache"),
        (["--json", tmp_path], "is a folder: give the name of a file"),
    ):
        assert message in refused(capsys, *evaluate, *more), message
    code, _, err = run(capsys, *evaluate, "--metrics", "precision", "--no-cache")
    assert code == 0 and "FID" not in err
    line = refused(
        capsys, "export", "fashion-mnist", "--to", "onnx", "--scheduler", "ddim", "--out", tmp_path / "x.onnx"
    )
    assert "--scheduler is for --to diffusers" in line
    train = ["train", "--data", files_of_samples, "--out", tmp_path / "run", "--sampling"]
    assert "--sampling weighted needs class_power or class_weight" in refused(capsys, *train, "weighted")


@pytest.fixture
def files_of_samples(tmp_path):
    (tmp_path / "own.py").write_text(QUARTERS)
    images = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1)).astype(np.uint8)
    np.savez(tmp_path / "samples.npz", arr_0=images, arr_1=np.arange(20) % 2)
    return tmp_path / "samples.npz"


def test_noise_of_another_scale_or_shape(tiny_model):
    def of(x_T, **options):
        return admg.sample(tiny_model, [0, 1], x_T=x_T, steps=2, progress=False, **options).x

    noise = torch.randn(2, *tiny_model.shape, generator=torch.Generator().manual_seed(0))
    of(0.5 * noise)  # of a lower temperature
    for sigma_max in (14.6, 80):
        with pytest.raises(ValueError, match=r"root mean square of .*: sampling begins with noise of unit variance"):
            of(sigma_max * noise)
    one = torch.cat([noise[:1], 80 * noise[1:]])
    for wrong in (one, noise.numpy(), noise.to(torch.int64), noise[0], torch.full_like(noise, float("nan"))):
        with pytest.raises(ValueError, match="x_T "):
            of(wrong)
    for shape in (tiny_model.shape, (1, *tiny_model.shape), (2, 1, 1, 1)):
        with pytest.raises(ValueError, match="noise_sampler returned noise"):
            of(noise, sampler="ddpm", noise_sampler=lambda x, index, shape=shape: torch.randn(shape))
    draws = iter(torch.randn(9, 2, *tiny_model.shape))
    of(noise, sampler="ddpm", noise_sampler=lambda x, index: next(draws))


def test_labels_in_arrays(tiny_model):
    named = dataclasses.replace(
        tiny_model, labels=Labels(tiny_model.labels.count, list("abcdefghij")[: len(tiny_model.labels)])
    )
    for labels in (np.array(["a", "b"]), np.array(["a", 1], dtype=object), np.array([0, 1]), torch.tensor([0, 1])):
        assert resolve_labels(named, None, labels) == [0, 1]
    for wrong in ([True, False], np.array([True, False]), torch.tensor([True, False]), [0.0], np.array([[0, 1]])):
        with pytest.raises(ValueError, match=r"neither an integer nor a name|must hold whole numbers"):
            resolve_labels(named, None, wrong)


def test_labels_without_effect(tiny_model):
    message = "labels would have no effect: neither the model nor a guide uses them"
    images = torch.zeros(1, 1, 8, 8)
    for call in (
        lambda: admg.sample(tiny_model, [1], steps=2, unconditional=True, progress=False),
        lambda: admg.edit(tiny_model, images, [1], steps=2, unconditional=True, progress=False),
        lambda: admg.interpolate(tiny_model, (0, 1), 1, steps=2, unconditional=True, progress=False),
        lambda: admg.generation.Batcher(tiny_model).submit([1], steps=2, unconditional=True),
    ):
        with pytest.raises(ValueError, match=message):
            call()


class Flipped(torch.utils.data.Dataset):
    """Whose items are flipped at random."""

    def __len__(self):
        return 24

    def __getitem__(self, i):
        image = torch.arange(64.0).view(1, 8, 8) / 64
        return (image.flip(2) if torch.rand(()) < 0.5 else image), 0


def test_random_transforms_do_not_depend_on_the_number_of_processes_or_the_batch():
    dataset = from_dataset(Flipped())
    parts = [next(batches(dataset, 12, seed=0, part=(rank, 3)))[0] for rank in range(3)]
    whole = next(batches(dataset, 12, seed=0))[0]
    assert torch.equal(whole, torch.cat(parts)) and len(whole[:, 0, 0, 0].unique()) == 2  # some are flipped
    one, two = dataset.batch(range(6))[0], torch.cat([dataset.batch(range(i, i + 2))[0] for i in (0, 2, 4)])
    assert torch.equal(one, two)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4])
def test_what_a_guide_has_for_each_image_belongs_to_it_in_every_batch(tiny_model, tiny_classifier, batch_size):
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    small, weights = guidance.Downsample(2)(images), torch.eye(5)[[0, 3, 1, 1]] * 4

    def embed(x):
        return x.flatten(1)[:, :7]

    guides = {
        "DPS": guidance.DPS(guidance.Downsample(2), small),
        "LinearInverse": guidance.LinearInverse(guidance.Downsample(2), small, 0.1),
        "ILVR": guidance.ILVR(images, 2),
        "labels": guidance.ExtendedClassifierGuidance(tiny_classifier, labels=weights),
        "embedding": guidance.LossGuidance(guidance.EmbeddingDistance(embed, embed(images)), 10.0),
    }
    samplers = {"repaint": admg.samplers.repaint(images, torch.eye(8) > 0, jump_length=2, resamplings=2)}
    options = {"steps": 4, "progress": False}
    for name in (*guides, *samplers):
        chosen = {"guide": guides.get(name), "sampler": samplers.get(name, "ddim"), **options}
        whole = admg.sample(tiny_model, [1] * 4, batch_size=4, **chosen).x
        parts = admg.sample(tiny_model, [1] * 4, batch_size=batch_size, **chosen).x
        assert torch.allclose(whole, parts, atol=2e-3), name
        if batch_size in (1, 2):  # as many rows as a batch, or between
            with pytest.raises(ValueError, match=r"has 4 rows for 6 images: give one, or one for each image"):
                admg.sample(tiny_model, [1] * 6, batch_size=batch_size, **chosen)


@pytest.mark.thorough
def test_a_row_for_each_image_of_a_run_with_shards(tiny_model, tmp_path):
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    guide = guidance.DPS(guidance.Downsample(2), guidance.Downsample(2)(images))
    whole = admg.sample(tiny_model, [1] * 4, guide=guide, steps=3, progress=False).images
    options = {"guide": guide, "steps": 3, "batch_size": 2, "shard_size": 2, "precision": "fp32"}
    done = admg.generate(tiny_model, [1] * 4, out=tmp_path, progress=False, **options)
    assert np.abs(done.read()[0:4].astype(int) - whole.astype(int)).max() <= 1
