"""Inputs that would give a wrong result without a sign: they are refused, or the result is right."""

from __future__ import annotations

import dataclasses
import json
import linecache
import shutil
import warnings
from copy import deepcopy
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import refused, run, succeed
from PIL import Image
from torch.utils.data import TensorDataset

import admg
from admg import guidance
from admg.checkpoints import openai
from admg.checkpoints.labels import Labels
from admg.checkpoints.weights import CheckpointError
from admg.data import ClassSampling, DataError, batches, from_arrays, from_dataset
from admg.data.classes import as_numbers, with_classes
from admg.diffusion import Diffusion, DiffusionConfig, NoiseSchedule
from admg.evaluation import nll
from admg.evaluation.cells import SweepGuide, cells_of, guides_over, named_guides
from admg.evaluation.features import custom
from admg.evaluation.label_classifier import load_label_classifier
from admg.evaluation.opening import as_source
from admg.evaluation.real_images import open_real_images
from admg.evaluation.sources import open_source
from admg.generation.identity import identify, identity_of, network_record
from admg.generation.labels import resolve_labels
from admg.guidance.base import reads_labels
from admg.guidance.pretrained import differing_label
from admg.training import ClassifierTask, DiffusionTask, ObjectiveConfig, TrainConfig, checkpointing, posthoc, snapshots
from admg.training.log import Log, checksum, read_jsonl, read_rows
from admg.training.prefetch import draw_batches
from admg.userfile import load_object

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
    with pytest.raises(ValueError, match=f"must return a gradient like x, \\(8, 1, 8, 8\\), got {found}"):
        admg.sample(tiny_model, [1] * 8, guide=guides[form], steps=2, progress=False)
    with pytest.raises(ValueError, match="must return a gradient like x"):
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
    source = dataclasses.replace(admg.evaluation.opening.source_from_array(images), labels=np.array([1, 0, 1, 0, 1, 0]))
    with pytest.raises(ValueError, match="must return one integer label for each of"):
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
        with pytest.raises(ValueError, match=r"must be floats in \[-1, 1\]"):
            admg.sample(tiny_model, [1], sampler=admg.samplers.repaint(image, mask), steps=4, progress=False)
        with pytest.raises(ValueError, match=r"the reference .* floats in \[-1, 1\]"):
            guidance.ILVR(image, 2)
        with pytest.raises(ValueError, match=r"must be floats in \[-1, 1\]"):
            guidance.calibrated(tiny_classifier, tiny_classifier.diffusion, image, torch.tensor([1]))
    for guide in (guidance.DPS(guidance.Downsample(2), bright.byte()[..., ::2, ::2]),
                  guidance.LinearInverse(guidance.Downsample(2), bright.byte()[..., ::2, ::2], 0.1)):  # fmt: skip
        with pytest.raises(ValueError, match=r"the measurement must be floating-point, .* got torch\.uint8"):
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
        (["--metrics", "fid", "--classifier", "nosuch"], "--classifier requires the metric accuracy"),
        (["--metrics", "precision", "--infinite"], "--infinite requires the metric fid or sfid"),
        (["--no-cache", "--cache", tmp_path / "cache"], "--no-cache cannot be combined with --cache"),
        (["--json", tmp_path], "must be the name of a file, but"),
    ):
        assert message in refused(capsys, *evaluate, *more), message
    code, _, err = run(capsys, *evaluate, "--metrics", "precision", "--no-cache")
    assert code == 0 and "FID" not in err
    line = refused(
        capsys, "export", "fashion-mnist", "--to", "onnx", "--scheduler", "ddim", "--out", tmp_path / "x.onnx"
    )
    assert "--scheduler requires --to diffusers" in line
    train = ["train", "--data", files_of_samples, "--out", tmp_path / "run", "--sampling"]
    assert "--sampling weighted needs --class-power or --class-weight" in refused(capsys, *train, "weighted")


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
        with pytest.raises(ValueError, match=r"x_T must have unit variance .*, got a root mean square of"):
            of(sigma_max * noise)
    one = torch.cat([noise[:1], 80 * noise[1:]])
    for wrong in (one, noise.numpy(), noise.to(torch.int64), noise[0], torch.full_like(noise, float("nan"))):
        with pytest.raises(ValueError, match="x_T "):
            of(wrong)
    for shape in (tiny_model.shape, (1, *tiny_model.shape), (2, 1, 1, 1)):
        with pytest.raises(ValueError, match="noise_sampler must return noise"):
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
            with pytest.raises(ValueError, match=r"must have one row, or one for each of 6 images, got 4"):
                admg.sample(tiny_model, [1] * 6, batch_size=batch_size, **chosen)


@pytest.mark.thorough
def test_a_row_for_each_image_of_a_run_with_shards(tiny_model, tmp_path):
    images = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    guide = guidance.DPS(guidance.Downsample(2), guidance.Downsample(2)(images))
    whole = admg.sample(tiny_model, [1] * 4, guide=guide, steps=3, progress=False).images
    options = {"guide": guide, "steps": 3, "batch_size": 2, "shard_size": 2, "precision": "fp32"}
    done = admg.generate(tiny_model, [1] * 4, out=tmp_path, progress=False, **options)
    assert np.abs(done.read()[0:4].astype(int) - whole.astype(int)).max() <= 1


# -- what counts as the same run, network or metric --------------------------------------------------------------------


def test_another_process_of_the_same_weights_is_another_run(tiny_model, tmp_path):
    """The record of a model has its process where that is not the one of its configuration."""
    record = network_record(tiny_model)
    assert record.keys() == {"loaded_as", "weights"}
    own = tiny_model.diffusion
    others = [
        dataclasses.replace(tiny_model, diffusion=own.with_schedule(NoiseSchedule.cosine(100))),
        dataclasses.replace(tiny_model, diffusion=Diffusion(own.schedule, "x0", own.variance)),
        dataclasses.replace(tiny_model, diffusion=Diffusion(own.schedule, own.predicts, "learned")),
        tiny_model.respace("10,1"),
    ]
    records = [json.dumps(network_record(model)) for model in (tiny_model, *others)]
    assert len(set(records)) == 5
    admg.generate(tiny_model, [0], out=tmp_path, num=1, steps=2, progress=False)
    for model in others:
        with pytest.raises(ValueError, match=r"holds a run with other settings: .*process"):
            admg.generate(model, [0], out=tmp_path, num=1, steps=2, progress=False)


GUIDE = """
import dataclasses
from admg import guidance
STRENGTH = 1.0
def push(x):
    return STRENGTH * x
class Base(guidance.Guidance):
    def __call__(self, state):
        return push(state.x)
@dataclasses.dataclass
class Mine(Base):
    factor: float = 2.0
    def method(self):
        return self.factor
"""


def test_a_guide_of_a_users_class_is_another_if_what_its_methods_use_is(tmp_path):
    def described(text: str) -> object:
        (tmp_path / "mine.py").write_text(text)
        linecache.clearcache()
        kind, _ = load_object(f"{tmp_path / 'mine.py'}:Mine")
        return identify(kind())

    first = described(GUIDE)
    assert described(GUIDE) == first
    for old, new in (("= 1.0", "= 5.0"), ("STRENGTH * x", "STRENGTH + x"), ("push(state.x)", "push(-state.x)")):
        assert described(GUIDE.replace(old, new)) != first


def test_a_users_file_is_another_if_a_file_that_it_imports_is(tmp_path):
    (tmp_path / "guide.py").write_text("from steps import inner\ndef push(state):\n    return inner.STRENGTH\n")
    (tmp_path / "steps").mkdir()
    (tmp_path / "steps" / "__init__.py").write_text("")
    (tmp_path / "steps" / "inner.py").write_text("from .deep import STRENGTH\n")
    found = []
    for strength in ("1", "22"):  # of another length, since Python's cache of bytecode compares size and seconds
        (tmp_path / "steps" / "deep.py").write_text(f"STRENGTH = {strength}\n")
        guide, digest = load_object(f"{tmp_path / 'guide.py'}:push")
        found.append((guide(None), digest))
    (_, first), (_, second) = found
    assert [strength for strength, _ in found] == [1, 22] and first != second
    assert load_object(f"{tmp_path / 'guide.py'}:push")[1] == second


class Powers(torch.nn.Module):
    """Features without weights that depend on an attribute."""

    def __init__(self, power: float):
        super().__init__()
        self.power = power

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x[:, :1].abs() ** self.power, 2).flatten(1)


class Threshold:
    def __init__(self, level: float):
        self.level = level

    def predict(self, images):
        return (images.mean((1, 2, 3)) > self.level).astype(int)


@pytest.mark.thorough
def test_networks_and_classifiers_that_differ_in_an_attribute_are_others(tmp_path):
    one, two = (custom.from_module(Powers(power)) for power in (1.0, 2.0))
    assert one.identity != two.identity and one.identity == custom.from_module(Powers(1.0)).identity
    rng = np.random.default_rng(0)
    samples, reference = (rng.integers(0, 256, (40, 8, 8, 1), dtype=np.uint8) for _ in range(2))
    options = {"metrics": ["kid"], "progress": False, "cache": tmp_path}
    found = [admg.evaluate(samples, reference, features=Powers(power), **options)["kid"] for power in (1.0, 2.0)]
    expected = admg.evaluate(samples, reference, features=Powers(2.0), **{**options, "cache": False})["kid"]
    assert found[1] == expected != found[0]
    source = as_source(samples)
    few, many = (load_label_classifier(Threshold(level), source).identity for level in (120.0, 130.0))
    assert few != many and few == load_label_classifier(Threshold(120.0), source).identity


FACTOR = 1.0


def spread(samples, reference):
    return FACTOR * float(samples.std())


@pytest.mark.thorough
def test_a_sweep_computes_a_changed_metric_anew(tiny_model, monkeypatch, tmp_path):
    reference = np.random.default_rng(0).integers(0, 256, (20, 8, 8, 1), dtype=np.uint8)

    def swept() -> float:
        table = admg.sweep(
            tiny_model, reference=reference, out=tmp_path / "sweep", guides=[None], samplers=["ddim:2"], num=4,
            features=Powers(1.0), metrics=[spread], progress=False,
        )  # fmt: skip
        return table[0]["spread"]

    first = swept()
    assert swept() == first
    monkeypatch.setitem(globals(), "FACTOR", 10.0)
    assert swept() == pytest.approx(10 * first)


def test_cells_of_a_sweep_that_would_share_a_folder():
    ddim = [(partial(admg.samplers.ddim, eta=eta), "3") for eta in (0.0, 1.0)]
    cells = cells_of(ddim, [SweepGuide(None)])
    assert [cell.name for cell in cells] == ["ddim-eta-0.0-3", "ddim-eta-1.0-3"]
    assert [sampler.keywords["eta"] for sampler, _ in cells.values()] == [0.0, 1.0]
    guides = named_guides({"w<1": None, "w>1": None})
    with pytest.raises(ValueError, match="two cells of the sweep would have the folder ddim-3-w-1"):
        cells_of([("ddim", "3")], guides)


def test_samples_are_compared_with_a_classifier_by_names(tiny_model, tiny_classifier, tmp_path):
    names = tiny_classifier.labels.names
    turned = dataclasses.replace(tiny_classifier, labels=Labels(len(names), names[::-1]))
    samples = admg.sample(tiny_model, [0, 2, 2, 0], steps=2, progress=False)
    samples.save(tmp_path)
    for source in (as_source(samples), open_source(tmp_path, labels=True)):
        same, other = (load_label_classifier(c, source).numbers for c in (tiny_classifier, turned))
        assert [same[k] for k in (0, 2)] == [0, 2]
        assert [other[k] for k in (0, 2)] == [len(names) - 1, len(names) - 3]


def test_stored_statistics_are_not_those_of_fewer_or_fitted_images(tmp_path):
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (30, 8, 8, 3), dtype=np.uint8)
    np.savez(tmp_path / "both.npz", arr_0=images, mu=np.zeros(2048), sigma=np.eye(2048))
    np.savez(tmp_path / "alone.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    both = open_source(tmp_path / "both.npz")
    assert both.statistics is not None and both.subset(30).statistics is not None
    assert both.subset(20).statistics is None and both.fitted((4, 4), "resize").statistics is None
    assert both.fitted((8, 8), "resize").statistics is not None
    with pytest.raises(ValueError, match="holds statistics but no images: 20 images cannot be chosen"):
        open_source(tmp_path / "alone.npz").subset(20)


# -- guidance that would not be where it is said to be -----------------------------------------------------------------


def test_reused_guidance_ends_where_its_guide_does(tiny_model):
    """Where a guide is off, by an interval or by returning None, nothing of it is extrapolated."""
    half = guidance.guide(lambda state: torch.full_like(state.x, 0.5))

    def late(state):
        return torch.full_like(state.x, 0.5) if state.sigma > 2 else None

    @dataclasses.dataclass(frozen=True)
    class Spy(guidance.Wrapper):
        seen: list

        def __call__(self, state):
            gradient = super().__call__(state)
            self.seen.append((state.sigma, gradient is not None))
            return gradient

    for guide, most in ((guidance.Interval(half, low=2.0), 0), (late, 1)):
        seen = []
        watched = Spy(guidance.Reused(guide, 2), seen)
        admg.sample(tiny_model, [0], guide=watched, steps=12, bound_guidance=False, progress=False)
        assert all(guided for sigma, guided in seen if sigma > 2)
        assert sum(guided for sigma, guided in seen if sigma <= 2) <= most  # the step before the next evaluation
    inner = guidance.Reused(guidance.APG(2.0), 1).begin()
    assert type(inner.guide).__name__ == "APGRun"  # which has the memory of the run


def test_guidance_in_an_interval_without_a_step_is_noted(tiny_model, recwarn):
    def sampled(low, high):
        guide = guidance.Interval(guidance.guide(lambda state: torch.ones_like(state.x)), low, high)
        return admg.sample(tiny_model, [0], guide=guide, steps=3, progress=False)

    sampled(0.0, 0.9)
    assert not [w for w in recwarn.list if "no step has a noise level" in str(w.message)]
    with pytest.warns(UserWarning, match=r"no step has a noise level from 0.5 to 0.6: .* the nearest levels are"):
        sampled(0.5, 0.6)


def test_labels_without_effect_on_the_guide(tiny_model, tiny_classifier):
    loss = guidance.LossGuidance(lambda x: x.square().mean((1, 2, 3)))
    inverse = guidance.DPS(torch.nn.Identity(), torch.zeros(1, *tiny_model.shape))
    named = guidance.ExtendedClassifierGuidance(tiny_classifier, labels={1: 1.0})
    classifier = guidance.ClassifierGuidance(tiny_classifier)
    perturbed, bad = guidance.PerturbedAttentionGuidance(2.0), guidance.AutoGuidance(tiny_model, 2.0)
    without = [
        perturbed,
        bad,
        loss,
        2 * loss,
        loss + inverse,
        guidance.Interval(named, 0.1),
        guidance.ILVR(torch.zeros(1, 1, 8, 8), 2),
    ]
    for guide in without:
        with pytest.raises(ValueError, match="labels would have no effect"):
            admg.sample(tiny_model, [1], guide=guide, unconditional=True, steps=2, progress=False)
        assert reads_labels(guide + classifier)
    reading = [classifier, guidance.ClassifierGuidance(tiny_classifier, 0.0), lambda state: None, loss + classifier]
    assert all(map(reads_labels, reading))


def test_numbers_of_labels_without_a_table(tiny_model):
    bare = dataclasses.replace(tiny_model, labels=Labels(0))
    for wrong in (-3, 99):
        with pytest.raises(ValueError, match=f"unknown label '{wrong}'|label '{wrong}'"):
            admg.sample(bare, [wrong], steps=2, progress=False)
    assert admg.sample(bare, [1, -1], steps=2, progress=False).labels.tolist() == [1, -1]


def test_a_single_step_of_noise_is_noted(tiny_model, recwarn):
    for steps in (2, "trailing1", 25):
        admg.sample(tiny_model, [0], steps=steps, progress=False)
    assert not [w for w in recwarn.list if "sampling begins" in str(w.message)]
    for steps in (1, "ddim1", "at0+1"):
        with pytest.warns(UserWarning, match="sampling begins with pure noise at timestep [01], where"):
            admg.sample(tiny_model, [0], steps=steps, progress=False)


@pytest.mark.parametrize("schedule", [NoiseSchedule.linear, NoiseSchedule.cosine])
def test_ddim_with_all_its_noise_from_pure_noise(schedule):
    """With eta = 1, 1 - ᾱ' - σ² is 0 at ᾱ = 0, up to rounding, which may make it negative."""
    process = schedule(1000).with_zero_terminal_snr()
    for steps in range(2, 101):
        diffusion = Diffusion(process.respace(f"trailing{steps}"), "v", "fixed_small")
        model = SimpleNamespace(diffusion=diffusion, predict=lambda x, i, y=None, clip=True, d=diffusion: d.predict(
            torch.zeros_like(x), x, i, clip=clip
        ))  # fmt: skip
        first = next(admg.samplers.ddim(model, torch.zeros(1, 1, 2, 2), eta=1.0))
        assert first.x.isfinite().all()


@pytest.mark.parametrize("levels", [(5.0, 1.0), (-1.0, 1.0), (float("nan"), 1.0)])
def test_levels_of_churn(tiny_model, levels):
    low, high = levels
    with pytest.raises(ValueError, match="0 <= s_min <= s_max"):
        next(admg.samplers.heun(tiny_model.respace(2), torch.zeros(1, *tiny_model.shape), s_min=low, s_max=high))


def test_a_guide_of_a_scheduler_begins_with_each_run():
    """A run may begin below the highest timestep, as in image-to-image; the next one must not go on with its memory."""
    steps = torch.tensor([75, 50, 25, 0])
    config = SimpleNamespace(prediction_type="epsilon")
    scheduler = SimpleNamespace(timesteps=steps, alphas_cumprod=NoiseSchedule.linear(100).alpha_bar, config=config)
    begun = []

    class Counting(guidance.Guidance):
        def begin(self):
            begun.append(1)
            return self

    guided = guidance.SchedulerGuidance(Counting(), scheduler, lambda x, t, y: torch.zeros_like(x), bound=False)
    for timesteps in (steps, steps[2:], steps[1:], steps[3:]):
        for t in timesteps:
            guided(torch.zeros(1, 1, 4, 4), t)
    assert len(begun) == 4  # also the last, which begins where the one before it ended


# -- training data and runs --------------------------------------------------------------------------------------------


def test_labels_that_are_numbers_match_class_folders_with_numbers_for_names():
    """Folders are sorted as text: 0, 1, 10, 2, ... A label 2 is the class '2', number 3."""
    names = tuple(sorted(map(str, range(11))))
    images = np.zeros((4, 4, 4), np.uint8)
    with pytest.warns(UserWarning, match="the labels of the images are numbers, .*: label 2 is taken for class '2'"):
        found = with_classes(from_arrays(images, [0, 2, 10, 9]), names)
    assert [names[label] for label in found.labels] == ["0", "2", "10", "9"]
    with pytest.warns(UserWarning, match="label 0 is taken for class number 0, '1'"):
        shifted = with_classes(from_arrays(images, [0, 1, 2, 2]), ("1", "2", "3"))
    assert shifted.labels.tolist() == [0, 1, 2, 2]  # '0' is not among the names
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert as_numbers(3, [0, 1, 2], ("cat", "dog", "fox"), "images") == (0, 1, 2)
        assert as_numbers(3, [0, 1, 2], ("0", "1", "2"), "images") == (0, 1, 2)


def test_real_images_with_numbers_match_labels_with_numbers_for_names(tiny_model, tmp_path):
    names = tuple(sorted(map(str, range(11))))
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((3, 8, 8, 1), np.uint8), arr_1=np.array([2, 10, 0]))
    with pytest.warns(UserWarning, match="label 2 is taken for class '2'"):
        found = open_real_images(tmp_path / "images.npz", (1, 8, 8), Labels(11, names))
    assert [names[label] for label in found.labels] == ["2", "10", "0"]


def test_checkpoints_are_in_the_order_of_their_steps(tmp_path):
    for step in (9_999_500, 10_000_000, 500):
        (tmp_path / "checkpoints" / f"{step:07d}").mkdir(parents=True)
    assert [checkpointing.step_of(path) for path in checkpointing.saved_checkpoints(tmp_path)] == [
        500,
        9_999_500,
        10_000_000,
    ]
    checkpointing.remove_old(tmp_path, 1, 0)
    assert [path.name for path in checkpointing.saved_checkpoints(tmp_path)] == ["10000000"]


@pytest.mark.thorough
def test_snapshots_of_another_spacing_are_kept(monkeypatch, tmp_path):
    monkeypatch.setattr(DiffusionTask, "preview", lambda self, network, folder, step: {})
    images = from_arrays(np.random.default_rng(0).integers(0, 256, (8, 8, 8), dtype=np.uint8))
    network = {"channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "attention_resolutions": ()}
    options = {"batch_size": 2, "log": ("none",), "checkpoint_every": 2, "preview_every": 100}

    def train(steps: int, **more) -> TrainConfig:
        config = TrainConfig(steps=steps, **options, **more)
        run = admg.train_diffusion(images, tmp_path / "run", config, network=network)
        list(run)
        return run.config

    assert train(4, ema_snapshots=2).ema_snapshots == 2
    with pytest.raises(ValueError, match=r"are 2 steps apart: resume the run with ema_snapshots 2, or with 0"):
        train(6, ema_snapshots=3)
    assert snapshots.steps_of(tmp_path / "run") == [2, 4]
    assert train(6).ema_snapshots == 2  # that of the run
    assert snapshots.steps_of(tmp_path / "run") == [2, 4, 6]
    train(8, ema_snapshots=0)
    assert snapshots.steps_of(tmp_path / "run") == [2, 4, 6]
    with pytest.warns(UserWarning, match="the last snapshot of .* is of step 6, and its model of step 8"):
        assert posthoc.steps_until(tmp_path / "run", None) == (2, 4, 6)


def test_a_log_with_metrics_of_different_frequency_is_not_damaged(tmp_path):
    log = Log(tmp_path)
    for step in range(1, 5):
        later = {"fd": 9.0} if step % 2 == 0 else {}
        log.append(step, 4 * step, {"loss": 0.5, **later, "val_loss": 0.6})
        stored = [checksum(rows) for rows in (read_rows(tmp_path / "log.csv"), read_jsonl(tmp_path / "metrics.jsonl"))]
        assert stored == [log.checksum, log.checksum]


def test_a_model_without_its_weights_is_damaged(capsys, tiny_model, tmp_path):
    tiny_model.save(tmp_path / "model")
    succeed(capsys, "verify", tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    code, out, err = run(capsys, "verify", tmp_path)
    assert code == 1 and "has no model.safetensors" in out + err


def test_masks_of_0_and_1_are_not_black_images(tmp_path):
    masks = np.random.default_rng(0).integers(0, 2, (6, 8, 8), dtype=np.uint8)
    (tmp_path / "files").mkdir()
    for i, mask in enumerate(masks):
        Image.fromarray(mask).save(tmp_path / "files" / f"{i}.png")
    np.savez(tmp_path / "masks.npz", arr_0=masks)
    opened = [
        lambda **options: from_arrays(masks, **options),
        lambda **options: admg.data.open(tmp_path / "files", **options),
        lambda **options: admg.data.open(tmp_path / "masks.npz", **options),
        lambda **options: from_dataset(TensorDataset(torch.from_numpy(masks)[:, None]), **options),
    ]
    for open_them in opened:
        with pytest.raises(DataError, match=r"only the values 0 and 1 of 0 to 255, all black: pass .* 0,1 or 0,255"):
            open_them()
        for white, expected in ((1, 1.0), (255, -1 + 2 / 255)):
            x, _ = open_them(value_range=(0, white)).batch(range(6))
            assert x.min() == -1 and x.max().item() == pytest.approx(expected)
    from_arrays(np.zeros((2, 8, 8), np.uint8))  # black images stay what they are
    for samples in (masks[..., None], tmp_path / "masks.npz"):
        with pytest.raises(DataError, match="only the values 0 and 1 of 0 to 255, all black: multiply them by 255"):
            as_source(samples)
    with pytest.raises(DataError, match="only the values 0 and 1 of 0 to 255, all black: pass"):
        as_source(tmp_path / "files")
    assert as_source(tmp_path / "files", value_range=(0, 1))[0:6].max() == 255
    masks[3] = 200
    Image.fromarray(masks[3]).save(tmp_path / "files" / "3.png")
    assert len(admg.data.open(tmp_path / "files")) == 6


def test_run_directories_are_no_classes(tmp_path):
    photos = tmp_path / "photos"
    for label in ("cat", "dog"):
        (photos / label).mkdir(parents=True)
        for i in range(2):
            Image.fromarray(np.full((8, 8), 100 + i, np.uint8)).save(photos / label / f"{i}.png")
    images = admg.data.DataConfig(data=str(photos), image_size=8)
    with pytest.raises(ValueError, match=r"lies in the folder of the training images, .*photos: choose another"):
        admg.train_diffusion(images, photos / "run", TrainConfig(steps=1))
    assert not (photos / "run").exists()
    (photos / "run" / "samples").mkdir(parents=True)  # that of an earlier version
    (photos / "run" / "run.json").write_text("{}")
    (photos / "run" / "log.csv").write_text("step,images\n")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(photos / "run" / "samples" / "step.png")
    with pytest.warns(UserWarning, match="left out the hidden and system folders, and training runs, of .*: run"):
        assert images.open().label_names == ("cat", "dog")


class Items(torch.utils.data.Dataset):
    """Images with labels, which a transform may have changed, and perhaps the attributes of torchvision's data sets."""

    def __init__(self, labels, **attributes):
        self.labels = labels
        vars(self).update(attributes)

    def __len__(self):
        return len(self.labels)

    def __getitem__(self, index):
        return torch.full((1, 8, 8), 100 + index % 100, dtype=torch.uint8), self.labels[index]


def test_images_without_a_label_are_refused_by_a_classifier(tiny_classifier, tmp_path):
    dataset = from_dataset(Items([0, 1, None, 2] * 8, classes=["cat", "dog", "fox"]))
    task = ClassifierTask(tiny_classifier, validation=dataset, val_images=32)
    with pytest.raises(DataError, match="every image needs a label for training a classifier"):
        next(draw_batches(task, iter([dataset.batch(range(4))]), seed=0, first=0))
    with pytest.raises(DataError, match="every image needs a label"):
        task.preview(tiny_classifier.network, tmp_path, 0)


def test_labels_of_a_data_set_that_its_attributes_contradict():
    fine, classes = [0, 1, 2, 3] * 10, ["plane", "cat", "dog", "ship"]
    coarse = [min(label, 1) for label in fine]
    assert from_dataset(Items(coarse, targets=fine, classes=classes)).label_names == ("0", "1")
    rare = list(coarse)
    targets = list(coarse)
    targets[1] = 5  # no probe sees it
    dataset = from_dataset(Items(rare, targets=targets, label_names=None), label_names=list("abcdef"))
    with pytest.raises(DataError, match=r"item 1 has label 1, but targets\[1\] is 5"):
        dataset.batch([1])
    late = from_dataset(Items([None] * 39 + [2]))
    with pytest.raises(DataError, match="item 39 has label 2, but the first ones have none"):
        late.batch([39])
    with pytest.raises(DataError, match="labels must be from 0 to 999,999, but range from 0 to 3000000"):
        from_dataset(Items([0, 3_000_000]))


def test_a_model_is_saved_and_trained_with_the_process_of_its_configuration(tiny_model, tiny_classifier, tmp_path):
    process = tiny_model.diffusion
    tiny_model.respace(10).save(tmp_path / "respaced")  # which only takes fewer of its steps
    assert len(admg.load(tmp_path / "respaced").diffusion) == len(process)
    for other in (
        Diffusion(process.schedule, "x0", process.variance),
        Diffusion(process.schedule, process.predicts, "learned"),
        process.with_schedule(NoiseSchedule.cosine(100)),
    ):
        with pytest.raises(ValueError, match="the model's diffusion process is not the one of its DiffusionConfig"):
            dataclasses.replace(tiny_model, diffusion=other).save(tmp_path / "other")
        for name in ("openai", "diffusers", "torch-export"):
            with pytest.raises(ValueError, match="the model's diffusion process is not the one of its DiffusionConfig"):
                admg.export.export(dataclasses.replace(tiny_model, diffusion=other), name, tmp_path / "other.pt2")
    assert not list(tmp_path.glob("other*"))
    with pytest.raises(ValueError, match="is respaced to 10 of 100 steps: train it with all of them"):
        DiffusionTask(tiny_model.respace(10))
    fewer = dataclasses.replace(tiny_classifier, diffusion=tiny_classifier.diffusion.respace(10))
    with pytest.raises(ValueError, match="is respaced to 10 of 100 steps"):
        ClassifierTask(fewer)


@pytest.mark.thorough
def test_a_run_is_not_resumed_with_other_frozen_layers(monkeypatch, tmp_path):
    monkeypatch.setattr(DiffusionTask, "preview", lambda self, network, folder, step: {})
    images = from_arrays(np.random.default_rng(0).integers(0, 256, (8, 8, 8), dtype=np.uint8))
    network = {"channels": 32, "channel_mult": (1,), "num_res_blocks": 2, "attention_resolutions": ()}
    options = {"batch_size": 2, "log": ("none",), "preview_every": 100}

    def train(steps: int, layer: int) -> None:
        config = TrainConfig(steps=steps, freeze=(f"input_blocks.{layer}.*",), **options)
        list(admg.train_diffusion(images, tmp_path / "run", config, network=network))

    train(1, 1)
    with pytest.raises(ValueError, match=r"the trained tensors differ .* input_blocks.1.* \(see freeze\)"):
        train(2, 2)
    train(2, 1)


def test_label_files_that_contradict_themselves_or_are_not_read(tmp_path):
    for i in range(2):
        Image.fromarray(np.full((8, 8), 100 + i, np.uint8)).save(tmp_path / f"{i}.png")
    (tmp_path / "dataset.json").write_text('{"labels": [["0.png", 1], ["1.png", 0], ["0.png", 0]]}')
    with pytest.raises(DataError, match=r"has 0.png twice, with the labels 1 and 0"):
        admg.data.open(tmp_path)
    (tmp_path / "dataset.json").unlink()
    table = tmp_path / "metadata.csv"
    table.write_text("file_name,label\n0.png,a\n1.png,b\n0.png,b\n")
    with pytest.raises(DataError, match=r"has 0.png twice, with the labels a and b"):
        admg.data.open(tmp_path)
    for heading in ("file_name,species\n0.png,a\n1.png,b\n", "file_name;label\n0.png;a\n1.png;b\n"):
        table.write_text(heading)
        with pytest.warns(UserWarning, match=r"has no column of labels \(it has (species|file_name;label)\)"):
            assert admg.data.open(tmp_path).labels is None
    np.savez(tmp_path / "images.npz", np.zeros((3, 8, 8), np.uint8), labels=np.arange(3))
    with pytest.warns(UserWarning, match="has no arr_1, from which labels are read; ignoring labels"):
        admg.data.open(tmp_path / "images.npz")


def test_an_objective_that_leaves_the_variance_untrained_is_noted(tmp_path):
    images = from_arrays(np.random.default_rng(0).integers(0, 256, (8, 8, 8), dtype=np.uint8))
    network = {"channels": 32, "channel_mult": (1,), "num_res_blocks": 1, "attention_resolutions": ()}
    simple = ObjectiveConfig(objective="simple")

    def make(name: str, **diffusion) -> None:
        admg.train_diffusion(
            images, tmp_path / name, TrainConfig(steps=1), network=network, diffusion=diffusion, objective=simple
        ).close()

    with pytest.warns(UserWarning, match="the objective simple does not train the variance, which is learned_range"):
        make("learned")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        make("fixed", variance="fixed_small")


# -- small images, and users' code -----------------------------------------------------------------------------------


def test_small_images_keep_their_labels_by_name(tiny_model, tiny_upsampler, tmp_path):
    """Of a model with the same classes in another order; names that the upsampler does not have are refused."""
    size = tiny_upsampler.network.config.small_size
    names = tiny_upsampler.labels.names
    x, labels = torch.rand(2, 1, size, size) * 2 - 1, torch.tensor([0, 2])
    turned = names[::-1]
    small = admg.Samples(x, labels, (turned[0], turned[2]))
    npz = small.save(tmp_path / "small")
    expected = [len(names) - 1, len(names) - 3]
    assert admg.upsample(tiny_upsampler, small, steps=2, progress=False).labels.tolist() == expected
    assert admg.upsample(tiny_upsampler, npz, steps=2, progress=False).labels.tolist() == expected
    done = admg.generation.generate_upsampled(tiny_upsampler, npz, out=tmp_path / "large", progress=False)
    assert done.read().labels.tolist() == expected
    for other in (admg.Samples(x, labels, ("zebra", "yak")), admg.Samples(x, labels, (names[0], "yak"))):
        with pytest.raises(ValueError, match=r"have the label '(zebra|yak)', but the upsampler does not"):
            admg.upsample(tiny_upsampler, other, steps=2, progress=False)
    plain = admg.Samples(x, labels, ("0", "2"))  # numbers without names
    assert admg.upsample(tiny_upsampler, plain, steps=2, progress=False).labels.tolist() == [0, 2]
    with pytest.raises(DataError, match="only the values 0 and 1"):
        admg.upsample(tiny_upsampler, np.eye(size, dtype=np.uint8)[None, ..., None], steps=2, progress=False)


class Odd(torch.nn.Module):
    """A network with attributes that no description can read."""

    def __init__(self, level: float):
        super().__init__()
        self.generator, self.args, self.level = torch.Generator(), SimpleNamespace(a=1), level

    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x[:, :1] * self.level, 2).flatten(1)


def test_the_identity_of_a_network_is_the_same_in_every_process():
    assert identity_of(Odd(1.0)) == identity_of(Odd(1.0)) != identity_of(Odd(2.0))
    assert custom.from_module(Odd(1.0)).identity == custom.from_module(Odd(1.0)).identity
    assert identify(Odd(1.0)) == identify(Odd(1.0))  # so that a run with it can be continued


def test_files_that_users_files_import_are_imported_once_until_they_change(tmp_path):
    (tmp_path / "state.py").write_text("calls = []\n")
    for name in ("one", "two"):
        (tmp_path / f"{name}.py").write_text(
            "import state\ndef add(item):\n    state.calls.append(item)\n    return state\n"
        )
    one, two = (load_object(f"{tmp_path / name}.py:add")[0] for name in ("one", "two"))
    assert one("a") is two("b") and one("c").calls == ["a", "b", "c"]
    (tmp_path / "state.py").write_text("calls = ['new']\n")
    assert load_object(f"{tmp_path / 'one'}.py:add")[0]("d").calls == ["new", "d"]


def test_labels_of_a_subset_that_its_data_set_contradicts():
    fine = Items([0, 1, 0, 1] * 4, targets=[0, 1, 2, 3] * 4, classes=["shirt", "trouser", "bag", "boot"])
    assert from_dataset(torch.utils.data.Subset(fine, range(3, 11))).label_names == ("0", "1")
    same = Items([0, 1, 2, 3] * 4, targets=[0, 1, 2, 3] * 4, classes=["shirt", "trouser", "bag", "boot"])
    assert from_dataset(torch.utils.data.Subset(same, range(3, 11))).label_names == ("shirt", "trouser", "bag", "boot")


def test_no_notes_where_nothing_is_wrong(tiny_model, tmp_path, recwarn):
    ends = torch.rand(2, *tiny_model.shape) * 2 - 1
    admg.interpolate(tiny_model, ends, 0, frames=2, steps=1, progress=False)
    for split in ("train", "val"):
        for label in ("cat", "dog"):
            (tmp_path / "data" / split / label).mkdir(parents=True)
            for i in range(2):
                Image.fromarray(np.full((8, 8), 100 + i, np.uint8)).save(tmp_path / "data" / split / label / f"{i}.png")
    (tmp_path / "data" / "train" / "metadata.csv").write_text("file_name,text\ncat/0.png,a cat\n")
    images = admg.data.DataConfig(data=str(tmp_path / "data"), image_size=8)
    images.held_out(str(tmp_path / "data" / "val"))
    assert admg.data.open(tmp_path / "data" / "train").label_names == ("cat", "dog")
    wrong = ("sampling begins", "lies in", "no column of labels")
    assert not [str(w.message) for w in recwarn.list if any(part in str(w.message) for part in wrong)]


def test_ends_of_an_interpolation_and_one_label_to_come_from(tiny_model):
    for ends in ((0, -1), (0, 1.5), np.zeros((2, 1, 8, 8))):
        with pytest.raises(ValueError, match=r"the ends must be two seeds \(non-negative integers\) or a tensor"):
            admg.interpolate(tiny_model, ends, 0, frames=2, steps=2, progress=False)
    images = torch.rand(2, *tiny_model.shape) * 2 - 1
    options = {"invert": True, "strength": 0.5, "steps": 4, "progress": False}
    one = admg.edit(tiny_model, images, 1, from_labels=0, **options)
    assert torch.equal(one.x, admg.edit(tiny_model, images, [1, 1], from_labels=[0, 0], **options).x)


def test_accuracy_of_a_process_with_fewer_steps_than_levels(tiny_classifier, tmp_path):
    """Each timestep counts once, so that an accuracy is at most 1; and labels that are always right give exactly 1."""
    short = DiffusionConfig(noise_schedule="cosine", diffusion_steps=4).build()
    x = torch.rand(8, 1, 8, 8) * 2 - 1
    network = AlwaysFirst(tiny_classifier.network.config)
    dataset = from_arrays(x, np.zeros(8, np.int64), value_range=(-1, 1))
    task = ClassifierTask(dataclasses.replace(tiny_classifier, network=network, diffusion=short), validation=dataset)
    found = task.preview(network, tmp_path, 0)
    assert found == {"val_accuracy": 1.0, **{f"val_accuracy_t{t}": 1.0 for t in range(4)}}


class AlwaysFirst(torch.nn.Module):
    """A network that recognises the first label in every image."""

    def __init__(self, config) -> None:
        super().__init__()
        self.config, self.bias = config, torch.nn.Parameter(torch.eye(10)[0])

    def forward(self, x, t):
        return self.bias.expand(len(x), -1)


def test_models_and_classifiers_given_as_paths(tiny_model, tiny_classifier, digits, tmp_path):
    tiny_model.save(tmp_path / "model")
    tiny_classifier.save(tmp_path / "classifier")
    images = open_real_images(digits, tiny_model.shape, Labels(10), num=4)
    images = dataclasses.replace(images, labels=images.labels % 5)
    report = nll(tmp_path / "model", images, steps=3, progress=False)
    assert report.total == nll(tiny_model, images, steps=3, progress=False).total
    (guide,) = guides_over(tiny_model, scales=[2.0], classifier=tmp_path / "classifier")
    loaded = admg.load_classifier(tmp_path / "classifier")
    assert identity_of(guide.guide.classifier.network) == identity_of(loaded.network)
    with pytest.raises(ValueError, match="nothing"):
        guides_over(tiny_model, scales=[2.0], classifier=tmp_path / "nothing")


@pytest.mark.parametrize(
    "guide",
    [
        partial(guidance.ClassifierGuidance, "classifier"),
        guidance.ClassifierFreeGuidance,
        partial(guidance.AutoGuidance, "bad"),
        guidance.PerturbedAttentionGuidance,
        guidance.APG,
        guidance.CFGZeroStar,
    ],
)
def test_a_guidance_scale_may_be_a_function_of_the_noise_level(tiny_model, tiny_classifier, guide):
    """A constant function is the number, one of two values is an Interval, and one that is not finite is refused."""
    parts = {"classifier": tiny_classifier, "bad": dataclasses.replace(tiny_model, network=perturbed(tiny_model))}
    if isinstance(guide, partial):
        guide = partial(guide.func, parts[guide.args[0]])
    off = 0.0 if getattr(guide, "func", None) is guidance.ClassifierGuidance else 1.0

    def sampled(guide):
        return admg.sample(tiny_model, [1, 2], guide=guide, steps=4, sampler="ddim", progress=False).x

    assert torch.equal(sampled(guide(lambda sigma: 3.0)), sampled(guide(3.0)))
    middle = tiny_model.respace(4).diffusion.schedule.sigma(2)
    varying = sampled(guide(lambda sigma: 3.0 if sigma <= middle else off))
    assert not torch.equal(varying, sampled(guide(3.0)))
    assert torch.equal(varying, sampled(guidance.Interval(guide(3.0), 0.0, middle)))
    with pytest.raises(ValueError, match=r"guidance scale at noise level .* must be a finite number"):
        sampled(guide(lambda sigma: float("inf")))


def perturbed(model):
    """Return a copy of a model's network with other weights."""
    network = deepcopy(model.network)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.01 * torch.randn(p.shape, generator=torch.Generator().manual_seed(1)))
    return network
