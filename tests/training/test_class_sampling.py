"""The shares of classes reach the batches of a run, before and after it is resumed, and its record."""

from __future__ import annotations

import dataclasses
import json
from collections import Counter

import numpy as np
import pytest

import admg
from admg import TrainConfig
from admg.data import from_arrays

NETWORK = {"channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "head_channels": 32}


class Watched:
    """A data set of 30 cats, 8 dogs and 2 cows that notes which images are used."""

    def __init__(self):
        self.dataset = from_arrays(np.zeros((40, 8, 8), np.uint8), ["cat"] * 30 + ["dog"] * 8 + ["cow"] * 2)
        self.image_size, self.channels, self.label_names = 8, 1, self.dataset.label_names
        self.labels, self.used = self.dataset.labels, []

    def __len__(self):
        return len(self.dataset)

    def batch(self, indices, seeds=None):
        self.used += [(int(i), seed) for i, seed in zip(indices, seeds or [None] * len(indices), strict=True)]
        return self.dataset.batch(indices, seeds)


@pytest.mark.slow
def test_a_run_draws_classes_by_their_shares(tmp_path):
    weights = ("cat=0", "dog=3")
    config = TrainConfig(steps=4, batch_size=10, log=("none",), sampling="weighted", class_weight=weights)
    images = Watched()
    for _ in (run := admg.train_classifier(images, tmp_path, config, network=NETWORK)):
        pass
    run.close()
    names = Counter(images.label_names[images.labels[i]] for i, _ in images.used)
    assert names == {"dog": 30, "cow": 10}  # an epoch of 40: three quarters and one quarter
    first = len(images.used)
    longer = dataclasses.replace(config, steps=6)
    for _ in (run := admg.train_classifier(images, tmp_path, longer, network=NETWORK)):
        pass
    run.close()
    order = config.class_sampling.order_of(images, 0)(1)
    assert [i for i, _ in images.used[first:]] == order[:20].tolist()  # the first half of the next epoch
    record = json.loads((tmp_path / "model" / "config.json").read_text())["training"]["train"]
    assert record["sampling"] == "weighted" and record["class_weight"] == list(weights)
