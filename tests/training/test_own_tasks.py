"""Training with tasks, networks and data of a user's own: right, or refused in one line."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch
from helpers import TRUNK, randomised
from torch import Tensor, nn
from torch.utils.data import Dataset, Subset

import admg
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Classifier, Model
from admg.data import DataError, from_arrays, from_dataset
from admg.data.split import known_labels, split
from admg.diffusion.config import DiffusionConfig
from admg.engine.device import ALONE, Processes
from admg.models import ClassifierConfig, NoisyClassifier, UNet, UNetConfig
from admg.training import ClassifierTask, DiffusionTask, TrainConfig, TrainingRun
from admg.training.prefetch import draw_batches
from admg.training.step import _Calls
from admg.training.tasks import check_one_call
from admg.training.validation import ValidationLoss

CONFIG = TrainConfig(steps=2, batch_size=8, lr=1e-3, warmup=1, precision="fp32", log="none")
PROCESS = DiffusionConfig(diffusion_steps=50)


def model(**changes) -> Model:
    torch.manual_seed(0)
    network = randomised(UNet(UNetConfig(**TRUNK | changes)), 0).requires_grad_(True)
    return Model(network, PROCESS.build(), (1, 8, 8), Labels(changes.get("num_classes", 0)), PROCESS)


def images(labels: list[int] | None = None):
    x = torch.rand(16, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    return from_arrays(x, labels, value_range=(0, 1))


@dataclass
class Extra(DiffusionTask):
    """Draws a number that is not one per image."""

    def draw(self, shape: torch.Size, generator: torch.Generator) -> tuple[Tensor, ...]:
        return *super().draw(shape, generator), torch.rand(1, generator=generator)


@pytest.mark.parametrize("accumulate", [1, 4])
def test_what_is_drawn_has_a_row_per_image(accumulate, tmp_path):
    run = TrainingRun(Extra(model()), images(), tmp_path / "run", replace(CONFIG, accumulate=accumulate))
    with pytest.raises(ValueError, match=r"draw of Extra must return tensors with one row per image, 8, got \(1,\)"):
        list(run)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_weights_in_half_precision_are_refused(dtype, tmp_path):
    half = model()
    half.network.to(dtype)
    with pytest.raises(ValueError, match=r"must be float32, got time_embed.0.weight in b?float16: call network.float"):
        TrainingRun(DiffusionTask(half), images(), tmp_path / "run", CONFIG)
    assert not (tmp_path / "run").exists()


def test_parameters_that_an_earlier_run_has_frozen_are_noted(tmp_path, recwarn):
    own = model()
    TrainingRun(DiffusionTask(own), images(), tmp_path / "a", replace(CONFIG, freeze="time_embed.*")).close()
    assert not recwarn.list
    with pytest.warns(UserWarning, match=r"^4 of \d+ parameters require no gradient, .* time_embed.0.weight, ...$"):
        TrainingRun(DiffusionTask(own), images(), tmp_path / "b", CONFIG).close()


class Keeping:
    """A loss that calls the network which it found when it was made."""

    def __init__(self, network: nn.Module):
        self.network = network


def test_a_loss_that_does_not_call_the_parallel_network_is_refused():
    own, parallel = nn.Linear(2, 2), nn.Linear(2, 2)
    calls = _Calls(parallel)
    own(torch.ones(1, 2)).sum().backward()
    with pytest.raises(ValueError, match="the loss of Keeping does not call the network of its model"):
        calls.check(Keeping(own), own)
    assert not parallel._forward_pre_hooks


def test_a_parameter_without_effect_is_named():
    network = nn.ModuleDict({"used": nn.Linear(2, 2), "unused": nn.Linear(2, 2)})
    calls = _Calls(network["used"])
    network["used"](torch.ones(1, 2)).sum().backward()
    with pytest.raises(ValueError, match=r"the loss does not depend on the parameter unused\.weight"):
        calls.check(Keeping(network), network)
    network["unused"].requires_grad_(False)
    calls.check(Keeping(network), network)


class Own(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.conv = nn.Embedding(3, 1), nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor, y: Tensor | None = None) -> Tensor:
        return self.conv(x) if y is None else self.conv(x + self.embedding(y)[:, :, None, None])


def test_images_without_a_label_in_several_processes_need_a_label_of_their_own():
    process = replace(PROCESS, variance="fixed_small")
    own = Model(Own(), process.build(), (1, 8, 8), Labels(3), process, takes_labels=True)
    task = DiffusionTask(own, objective="simple", label_dropout=0.0)
    check_one_call(task)
    batch = torch.zeros(4, 1, 8, 8), torch.tensor([0, -1, 0, -1])
    with pytest.raises(ValueError, match="training Own with images without a label in several processes requires"):
        next(draw_batches(task, iter([batch]), 0, 0, Processes(0, 2)))
    assert torch.equal(next(draw_batches(task, iter([batch]), 0, 0, ALONE))[1], batch[1])


class Pets(Dataset):
    """16 cats and 4 dogs."""

    targets = (0,) * 16 + (1,) * 4
    classes = ("cat", "dog")

    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return torch.full((1, 8, 8), index / 20), self.targets[index]


def test_the_labels_of_a_torch_data_set_are_those_of_its_targets():
    whole, part = from_dataset(Pets()), from_dataset(Subset(Pets(), range(10, 20)))
    assert known_labels(whole).tolist() == list(Pets.targets) and known_labels(part).tolist() == [0] * 6 + [1] * 4
    for dataset, dogs in ((whole, 1), (part, 1)):
        training, held_out = split(dataset, 0.25, seed=0)
        assert (held_out.batch(range(len(held_out)))[1] == 1).sum() == dogs
        assert np.array_equal(known_labels(training), training.batch(range(len(training)))[1].numpy())


def test_a_subset_of_a_torch_data_set_is_drawn_in_balance(tmp_path):
    config = replace(CONFIG, sampling="balanced")
    network = model(num_classes=2)
    list(TrainingRun(DiffusionTask(network), from_dataset(Subset(Pets(), range(4, 20))), tmp_path / "run", config))
    assert admg.load(tmp_path / "run").training["steps"] == 2


def test_a_torch_data_set_is_opened_and_a_label_that_is_missing_is_found_before_the_first_step(tmp_path):
    class Unlabelled(Pets):
        targets = (0, 1) * 9 + (-1, 0)

        def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
            return torch.full((1, 8, 8), index / 20), None if index == 18 else self.targets[index]

    TrainingRun(DiffusionTask(model(num_classes=2)), Pets(), tmp_path / "a", CONFIG).close()
    network = NoisyClassifier(ClassifierConfig(**TRUNK | {"num_classes": 2}))
    task = ClassifierTask(Classifier(network, PROCESS.build(), Labels(2), PROCESS))
    with pytest.raises(DataError, match="every image needs a label for training a classifier, but some have none"):
        TrainingRun(task, Unlabelled(), tmp_path / "b", CONFIG)
    assert not (tmp_path / "b").exists()


@pytest.mark.parametrize("num", [0, -1])
def test_fewer_validation_images_than_one_are_refused_before_training(num, tmp_path):
    with pytest.raises(ValueError, match=f"val_images must be at least 1, got {num}"):
        ValidationLoss(10, images(), images(), num)
    with pytest.raises(ValueError, match=f"val_images must be at least 1, got {num}"):
        admg.train_classifier(images([0, 1] * 8), tmp_path / "run", CONFIG, validation=0.25, val_images=num)
    measure = ValidationLoss(0, images(), images(), 1)
    with pytest.raises(ValueError, match="every of ValidationLoss must be at least 1, got 0"):
        TrainingRun(DiffusionTask(model()), images(), tmp_path / "run", CONFIG, measures=[measure])
    assert not (tmp_path / "run").exists()
