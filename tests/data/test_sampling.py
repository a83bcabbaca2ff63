"""Shares of classes: exact frequencies, every image of a class in turn, and the same batches after resuming."""

from __future__ import annotations

import itertools
import warnings

import numpy as np
import pytest
import torch
from helpers import refused, run
from PIL import Image

from admg import TrainConfig
from admg.data import ClassSampling, DataError, batches, from_arrays, from_dataset
from admg.data.sampling import parse_weights

COUNTS = (50, 7, 3)


def long_tailed():
    """60 images, whose grey value is their number, of classes of 50, 7 and 3."""
    images = np.arange(60, dtype=np.uint8)[:, None, None].repeat(2, 1).repeat(2, 2)
    return from_arrays(images, np.repeat(np.arange(3), COUNTS), label_names=["cat", "dog", "a=b, c"])


def drawn(sampling: ClassSampling, epochs: int, seed: int = 0) -> np.ndarray:
    order = sampling.order_of(long_tailed(), seed)
    return np.stack([np.bincount(order(epoch), minlength=60) for epoch in range(epochs)])


@pytest.mark.parametrize(
    "sampling, shares",
    [
        (ClassSampling(0.0), (1 / 3, 1 / 3, 1 / 3)),
        (ClassSampling(0.6), np.power(COUNTS, 0.6) / np.power(COUNTS, 0.6).sum()),
        (ClassSampling(weights={"dog": 3.0}), (0.2, 0.6, 0.2)),
        (ClassSampling(weights={"cat": 0.0, "a=b, c": 0.25}), (0, 0.8, 0.2)),
    ],
)
def test_each_class_and_image_has_its_share_of_every_epoch(sampling, shares):
    counts = drawn(sampling, 400)
    classes = np.stack([part.sum(1) for part in np.split(counts, [50, 57], axis=1)], 1)
    expected = 60 * np.asarray(shares)
    assert (classes.sum(1) == 60).all() and (abs(classes - expected) < 1 + 1e-9).all()
    each = np.repeat(expected / COUNTS, COUNTS)
    assert (abs(counts - each) < 1 + 1e-9).all()  # no image twice before the others of its class have been used
    # the mean over epochs is the share: each count is one of two integers, of standard deviation at most 1/2
    assert (abs(counts.mean(0) - each) < 5 * 0.5 / np.sqrt(400)).all()
    assert (abs(classes.mean(0) - expected) < 5 * 0.5 / np.sqrt(400)).all()


def test_uniform_is_what_it_was():
    dataset = long_tailed()
    plain, uniform = (
        [y.tolist() for _, y in itertools.islice(batches(dataset, 8, seed=3, sampling=sampling), 20)]
        for sampling in (None, ClassSampling(1.0))
    )
    order = np.concatenate([np.random.default_rng((3, 0, epoch)).permutation(60) for epoch in range(3)])
    assert plain == uniform == dataset.labels[order][:160].reshape(20, 8).tolist()


@pytest.mark.thorough
def test_batches_depend_on_the_seed_and_their_number_alone():
    dataset, sampling = long_tailed(), ClassSampling(0.0)
    whole = [x for x, _ in itertools.islice(batches(dataset, 8, seed=1, sampling=sampling), 30)]
    resumed = itertools.islice(batches(dataset, 8, seed=1, sampling=sampling, start=13), 17)
    assert all(torch.equal(x, other) for (x, _), other in zip(resumed, whole[13:], strict=True))
    parts = [batches(dataset, 8, seed=1, sampling=sampling, part=(rank, 2)) for rank in (0, 1)]
    for x in whole:
        assert torch.equal(torch.cat([next(part)[0] for part in parts]), x)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a machine with one core warns of more workers than that
        workers = batches(dataset, 8, seed=1, sampling=sampling, workers=2)
        assert all(torch.equal(next(workers)[0], x) for x in whole)
    other = [x for x, _ in itertools.islice(batches(dataset, 8, seed=2, sampling=sampling), 30)]
    assert not any(torch.equal(x, y) for x, y in zip(whole, other))


def test_images_without_a_label_are_a_class_of_their_own():
    dataset = from_arrays(np.zeros((6, 2, 2), np.uint8), [0, 0, 0, 0, 1, 1])
    dataset.labels[4:] = (-1, 1)
    counts = np.stack([np.bincount(ClassSampling(0.0).order_of(dataset, 0)(e), minlength=6) for e in range(50)])
    assert (counts[:, 4] == 2).all() and (counts[:, 5] == 2).all() and (counts[:, :4].sum(1) == 2).all()


def test_what_cannot_be_weighted_is_refused():
    images = np.zeros((4, 2, 2), np.uint8)
    with pytest.raises(DataError, match="if the images have labels"):
        batches(from_arrays(images), 2, seed=0, sampling=ClassSampling(0.0))
    with pytest.raises(DataError, match=r"class 'dgo' that the images do not have: did you mean 'dog'\?"):
        batches(long_tailed(), 2, seed=0, sampling=ClassSampling(weights={"dgo": 1.0}))
    with pytest.raises(DataError, match="leaves out all images"):
        weights = {"cat": 0.0, "dog": 0.0, "a=b, c": 0.0}
        batches(long_tailed(), 2, seed=0, sampling=ClassSampling(weights=weights))
    items = torch.utils.data.TensorDataset(torch.rand(4, 1, 8, 8), torch.arange(4))
    with pytest.raises(DataError, match="labels of a TorchDataset are known only when its images are read"):
        batches(from_dataset(items), 2, seed=0, sampling=ClassSampling(0.0))
    items = torch.utils.data.TensorDataset(torch.rand(4, 1, 8, 8), torch.tensor([0, 0, 0, 1]))
    items.targets = [0, 0, 0, 1]
    assert ClassSampling(0.0).order_of(from_dataset(items), 0).shares.tolist() == pytest.approx([1 / 6] * 3 + [0.5])


def test_weights_are_parsed():
    assert parse_weights(["cat=2", "a=b, c=0.5", "d=0"]) == {"cat": 2.0, "a=b, c": 0.5, "d": 0.0}
    for wrong in ("cat", "=2", "cat=", "cat=-1", "cat=nan", "cat=inf", "cat=x"):
        with pytest.raises(ValueError, match="class_weight must be CLASS=WEIGHT"):
            parse_weights([wrong])
    with pytest.raises(ValueError, match="class_weight names 'cat' twice"):
        parse_weights(["cat=2", "cat=3"])


def test_options():
    assert TrainConfig().class_sampling == ClassSampling(1.0)
    assert TrainConfig(sampling="balanced").class_sampling == ClassSampling(0.0)
    assert TrainConfig(sampling="weighted", class_power=0.5).class_sampling == ClassSampling(0.5)
    weighted = TrainConfig(sampling="weighted", class_weight=("cat=2",))
    assert weighted.class_sampling == ClassSampling(0.0, {"cat": 2.0})
    for wrong in (
        {"sampling": "weighted"},
        {"class_power": 0.5},
        {"sampling": "balanced", "class_weight": ("cat=2",)},
        {"sampling": "weighted", "class_power": 0.5, "class_weight": ("cat=2",)},
    ):
        with pytest.raises(ValueError, match=r"class_power (and|or) class_weight"):
            TrainConfig(**wrong)


def test_commands_refuse_what_does_not_fit(capsys, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "data" / name).mkdir(parents=True)
        Image.new("L", (8, 8)).save(tmp_path / "data" / name / "a.png")
        Image.new("L", (8, 8)).save(tmp_path / "data" / name / "b.png")
    network = ["--channels", 32, "--channel-mult", "1,1", "--head-channels", 32]
    command = ["train", "--data", tmp_path / "data", "--image-size", 8, "--out", tmp_path / "out", *network]
    assert "'cow'" in refused(capsys, *command, "--sampling", "weighted", "--class-weight", "cow=2")
    assert "--class-power and --class-weight need" in refused(capsys, *command, "--class-power", 0.5)
    assert "have labels" in refused(capsys, *command, "--sampling", "balanced", "--unlabelled")
    assert not (tmp_path / "out").exists()
    code, out, _ = run(capsys, *command, "--sampling", "weighted", "--class-weight", "cat=2", "--print-config")
    assert code == 0 and 'class_weight = ["cat=2"]' in out
