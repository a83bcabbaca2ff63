"""Training from Python: any data set, the model at the end, options that do not fit, and upsamplers."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from helpers import TRUNK, run, run_example
from PIL import Image

import admg
from admg.data import DataConfig, DataError, from_arrays
from admg.data.spread import spread_indices
from admg.diffusion.losses import loss_terms
from admg.generation.starts import trained_fit
from admg.models import SuperResConfig, SuperResUNet, UNet, UNetConfig
from admg.training import ClassifierTask, DiffusionTask, ObjectiveConfig, TrainConfig, TrainingRun, UpsamplerTask

SMALL = {name: value for name, value in TRUNK.items() if name not in ("image_size", "image_channels")}
PROCESS = admg.DiffusionConfig(diffusion_steps=50)
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
LABELS = [0, 1, 2] * 4


class Pictures(torch.utils.data.Dataset):
    """A user's own data set of PIL images."""

    classes = ("cat", "cow", "dog")

    def __len__(self) -> int:
        return len(PIXELS)

    def __getitem__(self, index: int) -> tuple[Image.Image, int]:
        return Image.fromarray(PIXELS[index, :, :, 0]), LABELS[index]


def config(**changes) -> TrainConfig:
    options = {"steps": 3, "batch_size": 4, "lr": 1e-3, "warmup": 1, "precision": "fp32", "log_every": 1}
    return TrainConfig(**options | changes)


def losses(run: TrainingRun) -> list[float]:
    return [step["loss"] for step in run]


@pytest.mark.thorough
@pytest.mark.parametrize("train", [admg.train_diffusion, admg.train_classifier, admg.train_upsampler])
def test_examples_of_the_docstrings(train, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run_example(train, torch=torch)


@pytest.mark.thorough
def test_every_kind_of_data_set_trains_the_same_model(tmp_path):
    """A folder, 8-bit arrays, float tensors, and two torch data sets of the same images, step by step."""
    for i, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        file = tmp_path / "data" / Pictures.classes[label] / f"{i:02}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[..., 0]).save(file)
    order = np.argsort(LABELS, kind="stable")  # of a folder: by path
    pixels, labels = PIXELS[order], np.array(LABELS)[order]
    unit = torch.from_numpy(pixels).permute(0, 3, 1, 2).double() / 255
    datasets = {
        "arrays": from_arrays(pixels, labels, label_names=Pictures.classes),
        "floats": from_arrays(2 * unit - 1, torch.from_numpy(labels), label_names=Pictures.classes),
        "path": tmp_path / "data",
        "config": DataConfig(data=str(tmp_path / "data"), image_size=8),
        "subset": torch.utils.data.Subset(Pictures(), order.tolist()),
        "tensors": torch.utils.data.TensorDataset(unit.float(), torch.from_numpy(labels)),
    }
    expected: list[float] = []
    for kind, data in datasets.items():
        training = admg.train_diffusion(data, tmp_path / kind, config(steps=9), network=SMALL, diffusion=PROCESS)
        names = training.model.label_names
        assert names == (("0", "1", "2") if kind == "tensors" else Pictures.classes)
        found = [step["loss"] for _, step in zip(range(3), training)]
        training.close()
        expected = expected or found
        assert found == pytest.approx(expected, rel=1e-5), kind
    assert len(expected) == 3 and len(set(expected)) == 3


@pytest.mark.thorough
def test_the_model_of_a_run_is_the_saved_average_in_evaluation_mode(tmp_path):
    start = {"network": {**SMALL, "dropout": 0.5}, "diffusion": PROCESS}
    training = admg.train_diffusion(Pictures(), tmp_path, config(), **start)
    assert training.step == 0 and len(list(training)) == 3 and training.step == 3
    model, saved = training.model, admg.load(tmp_path)
    assert isinstance(model, admg.Model) and model.labels.names == Pictures.classes and model.shape == (1, 8, 8)
    assert not any(module.training for module in model.network.modules())
    assert not any(p.requires_grad for p in model.network.parameters())
    for (name, a), b in zip(model.network.state_dict().items(), saved.network.state_dict().values(), strict=True):
        assert torch.equal(a, b), name
    assert model.training == saved.training | {"train": model.training["train"]}
    assert model.training["steps"] == 3 and model.training["data"] == "Pictures" and model.training["loss"] > 0
    weights = training.learner.network.state_dict()
    assert any(not torch.equal(a, weights[name]) for name, a in model.network.state_dict().items())

    again = admg.train_diffusion(Pictures(), tmp_path, config(), **start)  # has nothing left to do
    assert again.first_step == 3 and list(again) == []
    for a, b in zip(again.model.network.parameters(), model.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert "step 3 of 3" in repr(again)


@pytest.mark.thorough
def test_the_fit_of_the_images_is_recorded_for_later_commands(tmp_path):
    padded = from_arrays(PIXELS[:, :6, :6], image_size=8, fit="pad")
    for data, fit in ((padded, "pad"), (from_arrays(PIXELS), "resize"), (Pictures(), "resize")):
        model = admg.train_diffusion(data, tmp_path / "a", config(), network=SMALL).model
        assert trained_fit(model) == fit
    assert "fit" not in model.training  # of a data set that is not ours


def test_training_leaves_the_global_random_numbers_alone_until_it_is_iterated(tmp_path):
    before = torch.get_rng_state()
    admg.train_diffusion(Pictures(), tmp_path, config(), network=SMALL)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.thorough
def test_a_run_that_is_closed_keeps_its_checkpoint(tmp_path):
    training = admg.train_diffusion(Pictures(), tmp_path, config(steps=9, checkpoint_every=2), network=SMALL)
    for _ in range(3):
        next(training)
    training.close()
    assert list(training) == []
    resumed = admg.train_diffusion(Pictures(), tmp_path, config(steps=9), network=SMALL)
    assert resumed.first_step == 2 and next(resumed)["step"] == 3
    resumed.close()


def test_a_network_may_be_given_by_its_whole_architecture(tmp_path):
    architecture = UNetConfig(**TRUNK, num_classes=3)
    training = admg.train_diffusion(Pictures(), tmp_path / "a", config(), network=architecture)
    assert isinstance(training.model.network, UNet) and training.model.network.config == architecture
    for changes, message in (
        ({"image_channels": 3}, "network: image_channels must be 1 for this data and the other options, got 3"),
        ({"num_classes": 0}, "network: num_classes must be 3 for this data and the other options, got 0"),
        ({"image_size": 4, "attention_resolutions": ()}, "network: image_size must be 8 .* got 4"),
    ):
        other = UNetConfig(**{**TRUNK, "num_classes": 3, **changes})
        with pytest.raises(ValueError, match=message):
            admg.train_diffusion(Pictures(), tmp_path / "b", config(), network=other)
    unlabelled = ObjectiveConfig(unlabelled=True)
    training = admg.train_diffusion(Pictures(), tmp_path / "c", config(), network=SMALL, objective=unlabelled)
    assert not training.model.conditional and training.model.labels.count == 3
    assert not (tmp_path / "b").exists()


def test_options_and_data_that_are_refused(tmp_path):
    with pytest.raises(ValueError, match="the Dataset has no labels: use class sub-folders"):
        admg.train_classifier(from_arrays(PIXELS), tmp_path / "a", config(), network=SMALL)
    other = from_arrays(PIXELS, LABELS, label_names=["a", "b", "c"])
    with pytest.raises(ValueError, match="the labels of the validation images differ from those of the Pictures"):
        admg.train_classifier(Pictures(), tmp_path / "a", config(), network=SMALL, validation=other)
    with pytest.raises(DataError, match="not \\(image, label\\)"):
        admg.train_diffusion([["a"], ["b"]], tmp_path / "a", config())
    with pytest.raises(DataError, match="neither clearly"):
        admg.train_diffusion([(PIXELS[0] * 1.0, 0)], tmp_path / "a", config())
    for changes, message in (
        ({"objective": "elbo"}, "objective must be one of simple, hybrid, vlb, got 'elbo'"),
        ({"label_dropout": 1.5}, "label_dropout must be at least 0 and at most 1, got 1.5"),
    ):
        with pytest.raises(ValueError, match=message):
            ObjectiveConfig(**changes)
        with pytest.raises(ValueError, match=message):
            DiffusionTask(None, **changes)
    for changes, message in (({"lr": 0.0}, "lr must be above 0, got 0.0"), ({"ema": 1.0}, "ema must be .*below 1"),
                             ({"steps": 0}, "steps must be at least 1, got 0"), ({"grad_clip": 0}, "grad_clip must"),
                             ({"device": "gpu"}, "device 'gpu' cannot be used")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            admg.train_diffusion(Pictures(), tmp_path / "a", config(**changes), network=SMALL)
    for small in (0, 8):
        with pytest.raises(ValueError, match=f"small_size must be from 1 to 7, got {small}"):
            admg.train_upsampler(Pictures(), tmp_path / "a", config(), network=SMALL, small_size=small)
    assert not (tmp_path / "a").is_dir() or not list((tmp_path / "a").iterdir())


# -- upsamplers ------------------------------------------------------------------------------------------------------


def upsampler_task(**changes) -> UpsamplerTask:
    torch.manual_seed(0)
    network = SuperResUNet(SuperResConfig(**TRUNK, num_classes=3, small_size=4))
    model = admg.Model(network, PROCESS.build(), (1, 8, 8), admg.Labels(3), PROCESS)
    return UpsamplerTask(model, 4, **changes)


def test_the_loss_of_an_upsampler_is_the_hybrid_one_given_the_area_average():
    """The small copy is the mean of each 2x2 area, and the label is given to the network too."""
    task = upsampler_task(label_dropout=0.0)
    for p in task.network.parameters():
        p.data += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel()))
    x = torch.from_numpy(PIXELS).permute(0, 3, 1, 2).float() / 127.5 - 1
    y = torch.tensor(LABELS)
    drawn = t, noise, dropped = task.draw(x.shape, torch.Generator().manual_seed(1))
    assert not dropped.any()
    small = x.unflatten(3, (4, 2)).unflatten(2, (4, 2)).mean(dim=(3, 5))
    expected = loss_terms(task.model.diffusion, task.network, x, t, noise, objective="hybrid", y=y, low_res=small)
    found = task.loss(x, y, *drawn)
    assert found.keys() == {"loss", "mse", "vb"}
    for name, value in found.items():
        assert torch.allclose(value, expected[name], rtol=1e-5), name
    without = loss_terms(task.model.diffusion, task.network, x, t, noise, low_res=small)
    assert not torch.allclose(found["mse"], without["mse"], rtol=1e-3)
    constant = torch.full_like(small, 0.3)
    blind = loss_terms(task.model.diffusion, task.network, x, t, noise, y=y, low_res=constant)
    assert not torch.allclose(found["mse"], blind["mse"], rtol=1e-3)


def test_an_upsampler_is_trained_on_copies_of_the_size_of_its_network():
    with pytest.raises(ValueError, match="small_size must be that of the network, 4, got 2"):
        UpsamplerTask(upsampler_task().model, 2)


def test_an_upsampler_drops_labels_as_a_diffusion_model_does():
    task, shape = upsampler_task(label_dropout=0.3), torch.Size([2000, 1, 8, 8])
    _, _, dropped = task.draw(shape, torch.Generator().manual_seed(0))
    assert dropped.float().mean().item() == pytest.approx(0.3, abs=0.04)


@pytest.mark.slow
def test_an_upsampler_learns_to_enlarge(digits, tmp_path, capsys):
    """By the command, resumed once: the mean of enlarged digits is nearer to the originals than a bilinear copy."""
    small = ["--channels", 32, "--channel-mult", "1,2", "--num-res-blocks", 1, "--attention-resolutions", 4,
             "--head-channels", 32, "--diffusion-steps", 100]  # fmt: skip
    command = ["train-upsampler", "--data", digits, "--image-size", 8, "--small-size", 4, *small, "--batch-size", 32,
               "--lr", 2e-3, "--warmup", 20, "--ema", 0.98, "--checkpoint-every", 100,
               "--out", tmp_path / "u"]  # fmt: skip
    assert run(capsys, *command, "--steps", 100)[0] == 0
    code, out, _ = run(capsys, *command, "--steps", 250)
    assert code == 0 and "resumed at step 100" in out and "1797 images of 8x8 pixels, 10 labels" in out
    assert (tmp_path / "u" / "samples" / "step_0000250.png").stat().st_size > 1000

    model = admg.load_upsampler(tmp_path / "u")
    assert model.upsamples and model.network.config.small_size == 4 and model.conditional
    stored = json.loads((tmp_path / "u" / "model" / "config.json").read_text())
    assert stored["kind"] == "upsampler" and stored["training"]["steps"] == 250
    dataset = admg.data.open(digits)
    x, y = dataset.batch(range(0, 640, 10))
    low_res = F.interpolate(x, 4, mode="area")
    draws = [admg.sample(model, y, low_res=low_res, steps=10, seed=seed, progress=False).x for seed in range(4)]
    enlarged = torch.stack(draws).mean(0)  # near the mean of p(x | low_res), the best guess of x
    assert enlarged.shape == x.shape
    bilinear = F.interpolate(low_res, 8, mode="bilinear")
    error, baseline = ((images - x).square().mean().item() for images in (enlarged, bilinear))
    assert error < 0.8 * baseline, (error, baseline)
    again = F.interpolate(enlarged, 4, mode="area")
    other = low_res.roll(1, 0)
    assert (again - low_res).square().mean() < 0.25 * (again - other).square().mean()  # it keeps to its own small image


@pytest.mark.thorough
def test_an_upsampler_starts_from_the_weights_of_another(tmp_path):
    options = {"small_size": 4, "network": SMALL, "diffusion": PROCESS}
    first = admg.train_upsampler(Pictures(), tmp_path / "a", config(), **options)
    list(first)
    second = admg.train_upsampler(Pictures(), tmp_path / "b", config(), init=tmp_path / "a", **options)
    for a, b in zip(first.model.network.parameters(), second.model.network.parameters(), strict=True):
        assert torch.equal(a, b)
    assert second.model.training["init"]["model"] == str(tmp_path / "a")
    with pytest.raises(ValueError, match=r"expected a 'diffusion' checkpoint, but .* holds a 'upsampler' one"):
        admg.train_diffusion(Pictures(), tmp_path / "c", config(), network=SMALL, init=tmp_path / "a")


@pytest.mark.thorough
def test_a_classifier_is_measured_on_its_validation_images(tmp_path):
    validation = from_arrays(PIXELS[:6], LABELS[:6], label_names=Pictures.classes)
    training = admg.train_classifier(
        Pictures(), tmp_path, config(), network=SMALL, diffusion=PROCESS, validation=validation, val_images=5
    )
    assert isinstance(training.task, ClassifierTask)
    list(training)
    model = training.model
    for name, pixels in (("val", PIXELS[:6]), ("train", PIXELS)):
        numbers = spread_indices(len(pixels), 5)
        x = torch.from_numpy(pixels[numbers]).permute(0, 3, 1, 2) / 127.5 - 1
        y = torch.tensor(LABELS)[numbers]
        generator = torch.Generator().manual_seed(0)
        expected = []
        for t in (0, 5, 11, 16, 22, 27, 33, 38, 44, 49):
            x_t = model.diffusion.q_sample(x, t, torch.randn(x.shape, generator=generator))
            expected.append((model(x_t, torch.full((5,), t)).argmax(1) == y).float().mean().item())
            assert model.training[f"{name}_accuracy_t{t}"] == pytest.approx(expected[-1], abs=1e-6)
        assert model.training[f"{name}_accuracy"] == pytest.approx(np.mean(expected), abs=1e-6)
    x = torch.zeros(2, 1, 8, 8)
    assert training.model(x, torch.tensor([0, 10])).shape == (2, 3)


def test_validation_data_may_lack_a_class(tmp_path):
    """Its labels have the numbers of training, not those of its own sorted names; the missing class is named."""
    for name in ("cat", "cow", "dog"):
        for part in ("train", "val"):
            if (name, part) != ("cat", "val"):
                (tmp_path / part / name).mkdir(parents=True)
                Image.new("L", (8, 8), 50).save(tmp_path / part / name / "1.png")
                Image.new("L", (8, 8), 60).save(tmp_path / part / name / "2.png")
    options = {"network": SMALL, "diffusion": PROCESS, "validation": tmp_path / "val"}
    with pytest.warns(UserWarning, match="no validation images of the class cat$"):
        training = admg.train_classifier(tmp_path / "train", tmp_path / "a", config(), **options)
    assert training.task.validation.batch(range(4))[1].tolist() == [1, 1, 2, 2]
    (tmp_path / "val" / "dog").rename(tmp_path / "val" / "wolf")
    with pytest.raises(
        DataError, match=r"validation images differ from those of .*train: wolf is not among cat, cow, dog"
    ):
        admg.train_classifier(tmp_path / "train", tmp_path / "b", config(), **options)
    assert not (tmp_path / "b").exists()


def test_an_unlabelled_model_is_trained_on_files_with_any_names(tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    for name in ("IMG_0001.png", "holiday.png"):
        Image.new("L", (8, 8), 50).save(photos / name)
    (photos / "dataset.json").write_text("not JSON")
    unlabelled = ObjectiveConfig(unlabelled=True)
    for data in (photos, DataConfig(data=str(photos), image_size=8)):
        training = admg.train_diffusion(data, tmp_path / "out", config(), network=SMALL, objective=unlabelled)
        assert len(training.dataset) == 2 and training.model.labels.count == 0 and not training.model.conditional
    contradiction = DataConfig(data=str(photos), image_size=8, labels="prefix")
    with pytest.raises(ValueError, match=r"unlabelled ignores labels, and cannot be combined with labels prefix"):
        admg.train_diffusion(contradiction, tmp_path / "out", config(), network=SMALL, objective=unlabelled)
