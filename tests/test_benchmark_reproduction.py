"""The measurements and tables of benchmarks/reproduction.py."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from reproduction import Noised, loss, main, noisy_accuracy, shown, tables
from torch import nn

import admg

COUNT = 40


@pytest.fixture
def dataset():
    images = np.random.default_rng(0).integers(0, 256, (COUNT, 8, 8), dtype=np.uint8)
    return admg.data.from_arrays(images, [i % 5 for i in range(COUNT)])


class Known(nn.Module):
    """Returns what it was made with, whatever it is called with."""

    def __init__(self, output):
        super().__init__()
        self.output, self.start = output, 0

    def forward(self, x, t, y=None):
        self.start += len(x)
        return self.output[self.start - len(x) : self.start]


def test_the_loss_is_that_of_v(dataset, tiny_model):
    alpha_bar = tiny_model.diffusion.schedule.alpha_bar
    noised = Noised.of(dataset, alpha_bar, COUNT)
    assert sorted(noised.t.tolist()) == [i * len(alpha_bar) // COUNT for i in range(COUNT)]
    v = noised.signal * noised.noise - noised.sigma * noised.x
    for output, expected in ((v, 0.0), (v + 2, 4.0), (torch.zeros_like(v), float(v.square().mean()))):
        network = Known(torch.cat([output, torch.full_like(output, 9.0)], dim=1))  # the second half is the variance
        model = dataclasses.replace(tiny_model, network=network)
        assert loss(model, dataset, COUNT) == pytest.approx(expected, abs=1e-9)


def test_the_accuracy_is_that_of_the_labels(dataset, tiny_classifier):
    logits = nn.functional.one_hot(torch.arange(COUNT) % 5, 5).float()
    logits[:10] = logits[:10].roll(1, dims=1)
    classifier = dataclasses.replace(tiny_classifier, network=Known(logits))
    assert noisy_accuracy(classifier, dataset, COUNT) == pytest.approx(0.75)


def test_a_row_is_the_mean_over_the_seeds_with_its_standard_error():
    assert shown([1.0, 2.0, 3.0], ".2f") == "2.00 ± 0.58"
    assert shown([0.5], ".1%") == "50.0 %"
    rows = {
        "ADM #0": {"fd": 1.0, "accuracy": 0.5},
        "ADM #1": {"fd": 3.0, "accuracy": 0.5},
        "none #0": {"fd": 9.0, "accuracy": 1.0},
    }
    assert dict(tables({"networks": rows}))["networks"] == (
        "| | FD | label accuracy |\n| --- | ---: | ---: |\n"
        "| ADM | 2.00 ± 1.00 | 50.0 % ± 0.0 |\n| none | 9.00 | 100.0 % |\n"
    )


def test_results_whose_sizes_are_not_known_are_not_continued(tmp_path, capsys):
    (tmp_path / "results.json").write_text("{}")
    assert main(["--out", str(tmp_path), "--only", "steps"]) == 2
    assert "has results.json but not the settings.json that belongs to it: copy both" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["results.json"]
