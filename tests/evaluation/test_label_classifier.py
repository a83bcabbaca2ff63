"""Tests of the label classifier and of the Fashion-MNIST benchmarks, on images and features with known answers."""

from __future__ import annotations

import argparse
import math
from pathlib import Path

import fewer_steps
import guidance_kinds
import guidance_table
import numpy as np
import pytest
from label_classifier import FEATURES, LabelClassifier
from measures import balanced_kid, precision_recall, wilson, within_class_distance

import admg
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Classifier, Model
from admg.data import open as open_dataset
from admg.diffusion.config import DiffusionConfig
from admg.evaluation.metrics import kid
from admg.models import ClassifierConfig, NoisyClassifier, UNet, UNetConfig

HERE = Path(__file__).parent
STATED_ACCURACY = 0.9321  # of the stored weights on all test images, as in label_classifier/README.md
DATA = next(
    (p for p in (HERE.parents[1] / "data/fashion-mnist", Path("/usr/share/datasets/fashion-mnist")) if p.is_dir()), None
)
STORED = HERE.parent / "label_classifier" / "test-images.npz"


@pytest.fixture(scope="module")
def classifier() -> LabelClassifier:
    return LabelClassifier()


def test_weights_are_small() -> None:
    assert (HERE.parent / "label_classifier" / "label_classifier.safetensors").stat().st_size < 600_000


@pytest.mark.slow
@pytest.mark.skipif(DATA is None, reason="Fashion-MNIST is not installed")
def test_accuracy_on_all_test_images(classifier: LabelClassifier) -> None:
    test = open_dataset(DATA, 32, fit="pad", split="test")
    x, y = test.batch(range(len(test)))
    assert np.mean(classifier.predict(x) == y.numpy()) == pytest.approx(STATED_ACCURACY, abs=5e-4)


def test_accuracy_on_stored_test_images(classifier: LabelClassifier) -> None:
    """There are 20 images per class, so 0.87 is four standard deviations below the stated accuracy."""
    stored = open_dataset(STORED, 28)
    assert np.bincount(stored.labels).tolist() == [20] * 10
    assert np.mean(classifier.predict(stored.images) == stored.labels) > 0.87


def test_all_forms_of_an_image_give_the_same_features(classifier: LabelClassifier) -> None:
    stored = open_dataset(STORED, 32, fit="pad")
    x, _ = stored.batch(range(40))
    padded = np.pad(stored.images[:40], ((0, 0), (2, 2), (2, 2), (0, 0)))
    features = classifier.features(x)
    assert features.shape == (40, FEATURES)
    for form in (x.numpy(), padded, stored.images[:40]):
        np.testing.assert_allclose(classifier.features(form), features, atol=1e-4)
    with pytest.raises(ValueError, match="28x28"):
        classifier.predict(np.zeros((1, 64, 64, 1), np.uint8))
    with pytest.raises(ValueError, match="int64"):
        classifier.predict(np.zeros((1, 1, 28, 28), np.int64))


def test_precision_and_recall_if_half_of_the_reference_is_covered() -> None:
    """The reference has two distant clusters and only one is sampled: precision is 1 and recall is 0.5."""
    rng = np.random.default_rng(0)
    near, far = rng.normal(size=(50, 8)), rng.normal(size=(50, 8)) + 1000
    reference = np.concatenate([near, far])
    assert precision_recall(near, reference) == (1.0, 0.5)
    assert precision_recall(reference, near) == (0.5, 1.0)
    assert precision_recall(reference, reference) == (1.0, 1.0)
    assert precision_recall(near, far) == (0.0, 0.0)


def test_precision_and_recall_computed_by_hand() -> None:
    """With k=1 the balls of the reference 0, 1, 10 have radii 1, 1, 9, those of the samples 2, 30 have 28, 28."""
    reference, samples = np.array([[0.0], [1], [10]]), np.array([[2.0], [30]])
    assert precision_recall(samples, reference, k=1) == (0.5, 1.0)
    # The balls of the samples 2, 2.5 have radius 0.5 and contain no reference point.
    assert precision_recall(np.array([[2.0], [2.5]]), reference, k=1) == (1.0, 0.0)
    # With k=2 the balls of 0, 1, 10 have radii 10, 9, 10.
    assert precision_recall(np.array([[20.0], [21], [-9]]), reference, k=2) == (pytest.approx(2 / 3), 1.0)


def test_precision_and_recall_need_more_points_than_neighbours() -> None:
    with pytest.raises(ValueError, match="at least 4 samples, got 3"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))
    with pytest.raises(ValueError, match="at least 4 reference images, got 3"):
        precision_recall(np.zeros((9, 2)), np.zeros((3, 2)))


def test_within_class_distance() -> None:
    points = np.array([[0.0, 0], [3, 4], [100, 0], [100, 1], [100, 2], [7, 7]])
    classes = np.array([0, 0, 1, 1, 1, 2])
    assert within_class_distance(points, classes) == pytest.approx((5 + 4 / 3) / 2)
    assert within_class_distance(points[:2], np.zeros(2)) == pytest.approx(5)
    assert within_class_distance(np.ones((4, 3)), np.zeros(4)) == 0
    assert math.isnan(within_class_distance(points, np.arange(6)))


def test_wilson_interval() -> None:
    assert wilson(8, 10) == pytest.approx((0.4902, 0.9433), abs=1e-3)
    assert wilson(0, 200)[0] == 0
    assert wilson(200, 200)[1] == 1


def test_balanced_kid_averages_over_pairs_of_classes() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(9, 2)), rng.normal(size=(12, 2)) + 0.5

    def mean(a, b, same):  # over pairs of different items if a and b are the same
        return np.mean(
            [(p @ q / 2 + 1) ** 3 for i, p in enumerate(a) for j, q in enumerate(b) if not (same and i == j)]
        )

    def total(a, b, within):
        pairs = [(k, m) for k in range(3) for m in range(3)]
        return np.mean([mean(a[k::3], b[m::3], within and k == m) for k, m in pairs])

    expected = total(x, x, True) + total(y, y, True) - 2 * total(x, y, False)
    assert balanced_kid(x, y, 3).value == pytest.approx(expected, rel=1e-10)
    without = [balanced_kid(np.delete(x, range(3 * i, 3 * i + 3), 0), y, 3).value for i in range(3)]
    assert balanced_kid(x, y, 3).error == pytest.approx(math.sqrt(2 * np.var(without)), rel=1e-8)
    with pytest.raises(ValueError, match="samples must be a multiple of 3 and at least 6, got 8"):
        balanced_kid(x[:8], y, 3)


def test_balanced_kid_is_0_on_average_if_the_distributions_are_equal() -> None:
    """The two classes are far from each other, so the usual estimate for balanced sets is far below 0."""
    rng = np.random.default_rng(1)

    def draw(count: int) -> np.ndarray:
        return rng.normal(size=(count, 2)) + 3 * (np.arange(count) % 2)[:, None]

    pairs = [(draw(8), draw(40)) for _ in range(200)]
    balanced, usual = [balanced_kid(x, y, 2).value for x, y in pairs], [kid(x, y).value for x, y in pairs]
    assert abs(np.mean(balanced)) < 4 * np.std(balanced) / math.sqrt(200)
    assert np.mean(usual) < -4 * np.std(usual) / math.sqrt(200)


SMALL = {
    "image_size": 32,
    "image_channels": 1,
    "channels": 32,
    "channel_mult": (1,),
    "num_res_blocks": 1,
    "attention_resolutions": (),
    "head_channels": 32,
}


@pytest.fixture(scope="module")
def command(tmp_path_factory) -> list[str]:
    """Options of guidance_table with small untrained networks and the stored test images."""
    folder = tmp_path_factory.mktemp("table")
    config, labels = DiffusionConfig(), Labels(10)
    Model(UNet(UNetConfig(**SMALL)), config.build(), (1, 32, 32), labels, config).save(folder / "model")
    network = NoisyClassifier(ClassifierConfig(**SMALL, num_classes=10, pool="adaptive"))
    Classifier(network, config.build(), labels, config).save(folder / "classifier")
    arguments = f"--model {folder}/model --classifier {folder}/classifier --out {folder}/out --data {STORED}"
    return f"{arguments} --reference 100 --num 20 --samplers ddpm:2,ddim:1 --precision fp32".split()


@pytest.mark.slow
def test_table_continues_and_does_not_mix_settings(command: list[str], capsys, monkeypatch) -> None:
    out = Path(command[5])
    assert guidance_table.main([*command, "--scales", "0,1"]) == 0
    table = (out / "table.md").read_text()
    assert table.count("| DDPM 2 |") == 2 and table.count("| DDIM 1 |") == 2 and "| real images |" in table
    assert (out / "plot.png").stat().st_size > 0

    made = []
    sample = guidance_table.admg.sample
    monkeypatch.setattr(
        guidance_table.admg, "sample", lambda *a, **k: made.append((k["steps"], k["guide"].scale)) or sample(*a, **k)
    )
    assert guidance_table.main([*command, "--scales", "0,1,-2"]) == 0
    assert made == [("2", -2), ("1", -2)]
    assert (out / "table.md").read_text().startswith("\n".join(table.splitlines()[:4]))
    capsys.readouterr()
    assert guidance_table.main([*command, "--seed", "5"]) == 2
    assert "other settings (seed was 0, is now 5)" in capsys.readouterr().err


@pytest.fixture
def conditional_command(command: list[str], tmp_path) -> list[str]:
    """Options of the benchmarks that store their samples, with a small conditional network."""
    config = DiffusionConfig()
    network = UNet(UNetConfig(**SMALL, num_classes=10))
    Model(network, config.build(), (1, 32, 32), Labels(10), config).save(tmp_path / "conditional")
    common = [*command[2:4], *command[6:8]]
    sizes = ["--reference", "100", "--num", "20", "--precision", "fp32"]
    return ["--model", f"{tmp_path}/conditional", *common, *sizes]


@pytest.mark.slow
def test_fewer_steps_continues_with_alternating_labels(conditional_command, capsys, monkeypatch, tmp_path) -> None:
    monkeypatch.setattr(fewer_steps, "REFERENCE", ("ddpm", 3))
    made, sample = [], fewer_steps.admg.sample
    monkeypatch.setattr(
        "admg.sample", lambda model, labels, **k: made.append((labels, k)) or sample(model, labels, **k)
    )
    command = [*conditional_command, "--samplers", "ddim,heun", "--batch-size", "15", "--out", f"{tmp_path}/out"]
    assert fewer_steps.main([*command, "--steps", "1,2"]) == 0, capsys.readouterr().err
    assert [labels for labels, _ in made[:2]] == [
        [*range(10), *range(5)],
        [*range(5, 10)],
    ]  # the second batch starts at image 15
    assert [k["first"] for _, k in made[:2]] == [0, 15] and len(made) == 2 * 2 * 5
    assert {(k["sampler"], k["steps"]) for _, k in made} == {
        ("ddim", "1"), ("ddim", "2"), ("heun", "karras1"), ("heun", "karras2"), ("ddpm", "3")
    }  # fmt: skip
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.count("| DDIM |") == table.count("| Heun (karras) |") == table.count("| DDPM |") == 2
    assert table.count("matches DDPM with 250 steps") == 2 and (tmp_path / "out" / "plot.png").stat().st_size > 0

    made.clear()
    assert fewer_steps.main([*command, "--steps", "1,2"]) == 0
    assert made == [] and (tmp_path / "out" / "table.md").read_text() == table
    assert fewer_steps.main([*command, "--steps", "1,2", "--num", "30"]) == 0
    assert {k["first"] for _, k in made} == {20} and len(made[0][0]) == 10
    capsys.readouterr()
    assert fewer_steps.main([*command, "--seed", "5"]) == 2
    assert "other settings (seed was 0, is now 5)" in capsys.readouterr().err


@pytest.mark.slow
def test_kinds_of_guidance_have_equal_cost(conditional_command, capsys, monkeypatch, tmp_path) -> None:
    made, sample = [], fewer_steps.admg.sample
    monkeypatch.setattr(
        "admg.sample", lambda model, labels, **k: made.append((labels, k)) or sample(model, labels, **k)
    )
    command = [*conditional_command, "--budget", "4", "--out", f"{tmp_path}/out"]
    kinds = "no guidance;classifier-free;classifier alone"
    assert guidance_kinds.main([*command, "--kinds", kinds]) == 0, capsys.readouterr().err
    steps = {(type(k["guide"]).__name__, k["unconditional"]): k["steps"] for _, k in made}
    assert steps["NoneType", False] == 4 and steps["ClassifierFreeGuidance", False] == 2
    assert (
        2 <= steps["ClassifierGuidance", True] <= 3 and len(steps) == 3
    )  # unconditional, and each step costs more than without guidance
    assert all(labels == [*range(10)] * 2 for labels, _ in made)
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.count("| classifier-free |") == 4 and "| real images |" in table
    assert guidance_kinds.main([*command, "--kinds", "magic"]) == 2
    assert "unknown kind 'magic'" in capsys.readouterr().err


@pytest.mark.thorough
def test_cost_of_each_kind_of_guidance() -> None:
    model, classifier = admg.load("fashion-mnist"), admg.load_classifier("fashion-mnist")
    kinds = guidance_kinds.kinds_of(model, classifier, admg.load("fashion-mnist-small"))
    cost = {kind.name: kind.cost for kind in kinds}
    gradient = cost["classifier"] - 1
    assert 0.3 < gradient < 1.0  # of the cost of the U-Net, whose encoder the classifier resembles
    assert cost["gradient-free"] == pytest.approx(
        2 + gradient / 2
    )  # a second forward pass of the U-Net, and one of the classifier
    assert cost["classifier, divergence 1"] == cost["classifier, entropy 1"] == cost["classifier alone"]
    assert 1 < cost["classifier, in an interval"] < cost["classifier"]
    assert 1 < cost["autoguidance"] < 1.7  # the bad model is a smaller network
    options = argparse.Namespace(kinds=None, budget=20.0, sampler="ddim")
    keys = [cell.key for cell in guidance_kinds.cells_of(options, kinds)]
    assert len(set(keys)) == len(keys) == sum(len(kind.scales) for kind in kinds)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--num 19", "at least 20"),
        ("--reference 190", "exceed the 200 test images"),
        ("--samplers ddmp:5", "unknown sampler 'ddmp'"),
        ("--samplers ddim:0", "steps '0'"),
        ("--samplers ddim", "is not like"),
        ("--scales 1,x", "not a list of numbers"),
        ("--model nowhere", "nowhere"),
        ("--device nonsense", "--device nonsense"),
        ("--conditional", "is unconditional"),
    ],
)
def test_bad_input_is_one_line(command: list[str], options: str, words: str, tmp_path, capsys) -> None:
    try:
        code = guidance_table.main([*command, "--out", str(tmp_path), *options.split()])
    except SystemExit as stop:
        code = stop.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and len(lines) == 1 and words in lines[0], lines
