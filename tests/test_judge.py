"""The judge of samples, and the measures of benchmarks/, on images and features with known answers."""

from __future__ import annotations

import math
import sys
from pathlib import Path

import numpy as np
import pytest

from admg.data import open_dataset
from admg.model import Classifier, DiffusionConfig, Labels, Model
from admg.nn import ClassifierConfig, NoisyClassifier, UNet, UNetConfig

sys.path.insert(0, str(Path(__file__).parent / "judge"))
sys.path.insert(0, str(Path(__file__).parent.parent / "benchmarks"))

import guidance_table
from judge import FEATURES, Judge
from measures import precision_recall, wilson, within_class_distance

HERE = Path(__file__).parent
STATED_ACCURACY = 0.9321  # of the stored weights on the 10,000 test images, as judge/README.md says
DATA = next(
    (p for p in (HERE.parent / "data/fashion-mnist", Path("/usr/share/datasets/fashion-mnist")) if p.is_dir()), None
)
STORED = HERE / "judge" / "test-images.npz"


@pytest.fixture(scope="module")
def judge() -> Judge:
    return Judge()


def test_weights_are_small() -> None:
    assert (HERE / "judge" / "judge.safetensors").stat().st_size < 600_000


@pytest.mark.skipif(DATA is None, reason="Fashion-MNIST is not on this machine")
def test_accuracy_on_all_test_images(judge: Judge) -> None:
    test = open_dataset(DATA, 32, fit="pad", split="test")
    x, y = test.batch(range(len(test)))
    assert np.mean(judge.predict(x) == y.numpy()) == pytest.approx(STATED_ACCURACY, abs=5e-4)


def test_accuracy_on_stored_test_images(judge: Judge) -> None:
    """Twenty of each garment; four standard deviations below the stated accuracy is 0.87."""
    stored = open_dataset(STORED, 28)
    assert np.bincount(stored.labels).tolist() == [20] * 10
    assert np.mean(judge.predict(stored.images) == stored.labels) > 0.87


def test_all_forms_of_an_image_are_judged_alike(judge: Judge) -> None:
    stored = open_dataset(STORED, 32, fit="pad")
    x, _ = stored.batch(range(40))
    padded = np.pad(stored.images[:40], ((0, 0), (2, 2), (2, 2), (0, 0)))
    features = judge.features(x)
    assert features.shape == (40, FEATURES)
    for form in (x.numpy(), padded, stored.images[:40]):
        np.testing.assert_allclose(judge.features(form), features, atol=1e-4)
    with pytest.raises(ValueError, match="28x28"):
        judge.predict(np.zeros((1, 64, 64, 1), np.uint8))
    with pytest.raises(ValueError, match="int64"):
        judge.predict(np.zeros((1, 1, 28, 28), np.int64))


def test_precision_recall_of_a_part_of_the_reference() -> None:
    """Two far clusters, of which only one is sampled: all samples are good, and half of the reference is covered."""
    rng = np.random.default_rng(0)
    near, far = rng.normal(size=(50, 8)), rng.normal(size=(50, 8)) + 1000
    reference = np.concatenate([near, far])
    assert precision_recall(near, reference) == (1.0, 0.5)
    assert precision_recall(reference, near) == (0.5, 1.0)
    assert precision_recall(reference, reference) == (1.0, 1.0)
    assert precision_recall(near, far) == (0.0, 0.0)


def test_precision_recall_by_hand() -> None:
    """On a line with k=1 the balls of the reference 0, 1, 10 have radii 1, 1, 9, those of the samples 2, 30: 28, 28."""
    reference, samples = np.array([[0.0], [1], [10]]), np.array([[2.0], [30]])
    assert precision_recall(samples, reference, k=1) == (0.5, 1.0)
    # Samples 2, 2.5 have radii of 0.5 only, which cover none of the reference.
    assert precision_recall(np.array([[2.0], [2.5]]), reference, k=1) == (1.0, 0.0)
    # k=2: the balls of 0, 1, 10 have radii 10, 9, 10.
    assert precision_recall(np.array([[20.0], [21], [-9]]), reference, k=2) == (pytest.approx(2 / 3), 1.0)


def test_precision_recall_needs_neighbours() -> None:
    with pytest.raises(ValueError, match="3 samples"):
        precision_recall(np.zeros((3, 2)), np.zeros((9, 2)))
    with pytest.raises(ValueError, match="3 reference"):
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
    """The table's command on small networks that know nothing, and the stored test images."""
    folder = tmp_path_factory.mktemp("table")
    config, labels = DiffusionConfig(), Labels(10)
    Model(UNet(UNetConfig(**SMALL)), config.build(), (1, 32, 32), labels, config).save(folder / "model")
    network = NoisyClassifier(ClassifierConfig(**SMALL, num_classes=10, pool="adaptive"))
    Classifier(network, config.build(), labels, config).save(folder / "classifier")
    arguments = f"--model {folder}/model --classifier {folder}/classifier --out {folder}/out --data {STORED}"
    return f"{arguments} --reference 100 --num 20 --samplers ddpm:2,ddim:1 --precision fp32".split()


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
    assert "other settings (seed 0 there, 5 now)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ("--num 19", "at least 20"),
        ("--reference 190", "exceed the 200 test images"),
        ("--samplers ddmp:5", "unknown sampler 'ddmp'"),
        ("--samplers ddim:0", "respacing '0'"),
        ("--samplers ddim", "is not like"),
        ("--scales 1,x", "not a list of numbers"),
        ("--model nowhere", "nowhere"),
        ("--device nonsense", "--device nonsense"),
        ("--conditional", "takes no labels"),
    ],
)
def test_bad_input_is_one_line(command: list[str], options: str, words: str, tmp_path, capsys) -> None:
    try:
        code = guidance_table.main([*command, "--out", str(tmp_path), *options.split()])
    except SystemExit as stop:
        code = stop.code
    lines = capsys.readouterr().err.splitlines()
    assert code == 2 and len(lines) == 1 and words in lines[0], lines
