"""Training by the commands from random weights, and what the loop guarantees: exact resumption, EMA, dropout."""

from __future__ import annotations

import csv
import dataclasses

import numpy as np
import pytest
import torch
from helpers import TRUNK, admg

from admg import guidance
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Classifier, Model
from admg.data import open as open_dataset
from admg.diffusion.config import DiffusionConfig
from admg.generation.sample import sample
from admg.models import UNet, UNetConfig
from admg.training import DiffusionTask, TrainConfig, TrainingRun
from admg.training.ema import EMA

NETWORK = ["--image-size", 8, "--channels", 32, "--channel-mult", "1,2", "--num-res-blocks", 1,
           "--attention-resolutions", 4, "--head-channels", 32]  # fmt: skip


def log(folder) -> list[dict[str, str]]:
    with (folder / "log.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_training_on_digits_from_random_weights(digits, tmp_path):
    """A resumed diffusion model and a classifier: a nearest-neighbour classifier recognises guided samples."""
    diffusion = ["train", "--data", digits, *NETWORK, "--batch-size", 64, "--lr", 2e-3, "--warmup", 50,
                 "--predict", "eps", "--noise-schedule", "linear",
                 "--ema", 0.995, "--label-dropout", 0.5, "--preview-every", 600, "--checkpoint-every", 250,
                 "--out", tmp_path / "d"]  # fmt: skip
    admg(*diffusion, "--steps", 250)
    assert "resumed at step 250" in admg(*diffusion, "--steps", 600).stdout
    classifier = ["train-classifier", "--data", digits, *NETWORK, "--batch-size", 64, "--lr", 2e-3, "--warmup", 50,
                  "--noise-schedule", "linear",
                  "--ema", 0.99, "--checkpoint-every", 300, "--out", tmp_path / "c"]  # fmt: skip
    admg(*classifier, "--steps", 300)

    rows = log(tmp_path / "d")
    assert [int(row["step"]) for row in rows] == list(range(50, 601, 50))
    assert float(rows[0]["mse"]) > 0.3 and float(rows[-1]["mse"]) < 0.14
    for name in ("curves.png", "run.json", "samples/step_0000600.png", "model/model.safetensors"):
        assert (tmp_path / "d" / name).stat().st_size > 1000
    assert list((tmp_path / "d" / "tensorboard").iterdir())

    from sklearn.neighbors import KNeighborsClassifier

    real = np.load(digits)
    nearest = KNeighborsClassifier(3).fit(real["arr_0"].reshape(-1, 64) / 255.0, real["arr_1"])
    model, guide = Model.load(tmp_path / "d" / "model"), Classifier.load(tmp_path / "c" / "model")
    targets = [i % 10 for i in range(100)]

    def accuracy(scale: float) -> float:
        samples = sample(
            model, targets, guide=guidance.ClassifierGuidance(guide, scale), unconditional=True, progress=False
        )
        return float(np.mean(nearest.predict(samples.images.reshape(-1, 64) / 255.0) == targets))

    assert accuracy(0.0) < 0.3  # chance is 0.1
    assert accuracy(4.0) > 0.7


@pytest.fixture
def tiny_run(digits):
    dataset = open_dataset(digits, 8, flip=True)

    def start(out, steps: int, **changes):
        torch.manual_seed(0)
        config = DiffusionConfig(diffusion_steps=50)
        network = UNet(UNetConfig(**TRUNK, num_classes=10, dropout=0.2))
        model = Model(network, config.build(), (1, 8, 8), Labels(10), config)
        options = {"batch_size": 4, "log_every": 1, "checkpoint_every": 3, "preview_every": 100, "precision": "fp32"}
        return TrainingRun(
            DiffusionTask(model), dataset, out, TrainConfig(steps=steps, **(options | changes)), {"data": "digits"}
        )

    return start


@pytest.mark.thorough
def test_a_killed_and_resumed_run_equals_an_uninterrupted_one(tiny_run, tmp_path):
    """The run is stopped twice between checkpoints, first after step 5, when the last checkpoint is that of step 3."""
    list(tiny_run(tmp_path / "whole", 9))
    for steps in (5, 2):
        run = tiny_run(tmp_path / "broken", 9)
        for _ in range(steps):
            next(run)
        run.close()
    list(tiny_run(tmp_path / "broken", 9))
    whole, broken = log(tmp_path / "whole"), log(tmp_path / "broken")
    assert [row["step"] for row in whole] == [row["step"] for row in broken] == [str(i) for i in range(1, 10)]
    for a, b in zip(whole, broken):
        assert a["loss"] == b["loss"] and a["grad_norm"] == b["grad_norm"]
    a, b = Model.load(tmp_path / "whole" / "model"), Model.load(tmp_path / "broken" / "model")
    for (name, p), q in zip(a.network.named_parameters(), b.network.parameters()):
        assert torch.equal(p, q), name


@pytest.mark.thorough
def test_another_seed_gives_another_run(tiny_run, tmp_path):
    first, second = (next(tiny_run(tmp_path / str(seed), 1, seed=seed))["loss"] for seed in (0, 1))
    assert first != second


def test_ema_is_the_weighted_sum_of_all_past_weights():
    """Compare with the recursion written out; the decay rises as (1 + n) / (10 + n), and the first update copies."""
    network = torch.nn.Linear(2, 1, bias=False)
    average, expected = EMA(network, 0.9), 100.0
    for n in range(200):
        torch.nn.init.constant_(network.weight, 100.0 - n)
        average.update(network)
        if n:
            decay = min(0.9, (1 + n) / (10 + n))
            expected = decay * expected + (1 - decay) * (100.0 - n)
    assert average.network.weight.tolist() == [pytest.approx([expected] * 2, rel=1e-5)]
    assert network.weight.requires_grad and not average.network.weight.requires_grad


@pytest.mark.thorough
def test_labels_are_dropped_at_the_given_rate(tiny_model):
    """The network is given the label -1 where it is dropped."""
    given = []
    network = tiny_model.network
    model = dataclasses.replace(tiny_model, network=Spy(network, lambda y: given.append(y)), takes_labels=True)
    x, y = torch.zeros(60, 1, 8, 8), torch.full((60,), 3)
    for share in (0.0, 0.4, 1.0):
        task = DiffusionTask(model, label_dropout=share)
        drawn = task.draw(torch.Size([4000, 1, 8, 8]), torch.Generator().manual_seed(0))
        assert drawn[2].float().mean().item() == pytest.approx(share, abs=0.03)
        with torch.no_grad():
            task.loss(x, y, *(tensor[:60] for tensor in drawn))
        assert given.pop().tolist() == [-1 if dropped else 3 for dropped in drawn[2][:60].tolist()]


class Spy(torch.nn.Module):
    """Passes the labels that a network is given to a function, and calls the network."""

    def __init__(self, network: torch.nn.Module, see):
        super().__init__()
        self.network, self.see = network, see

    def forward(self, x, timesteps, y=None):
        self.see(y)
        return self.network(x, timesteps, y)


@pytest.mark.slow
def test_warmup_and_validation_by_noise_level(digits, tmp_path):
    """The learning rate grows linearly; validation accuracy at ten noise levels is lowest for pure noise."""
    arguments = ["train-classifier", "--data", digits, "--val-data", digits, "--val-images", 500, *NETWORK,
                 "--batch-size", 64, "--lr", 1e-3, "--warmup", 100, "--ema", 0.9, "--log-every", 1,
                 "--preview-every", 150, "--crop", "random", "--out", tmp_path]  # fmt: skip
    admg(*arguments, "--steps", 150)
    rows = log(tmp_path)
    assert [float(rows[i]["lr"]) for i in (0, 49, 99, 149)] == pytest.approx([1e-5, 5e-4, 1e-3, 1e-3])
    accuracy = [float(rows[-1][f"val_accuracy_t{t}"]) for t in (0, 111, 222, 333, 444, 555, 666, 777, 888, 999)]
    assert accuracy[0] > 0.5 > 0.2 > accuracy[-1]
    assert float(rows[-1]["val_accuracy"]) == pytest.approx(np.mean(accuracy), rel=1e-4)
    assert (tmp_path / "samples" / "accuracy_0000150.png").exists()
