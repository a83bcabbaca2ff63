"""The functions of admg.evaluation from Python: the examples of their docstrings, and all forms of images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import run_example

import admg
from admg.evaluation import Estimate, Progress
from admg.evaluation.features import custom
from admg.evaluation.likelihood import bits_per_dim
from admg.evaluation.metrics import frechet_distance, kid, label_accuracy, precision_recall
from admg.evaluation.opening import as_source


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("ADMG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ADMG_OFFLINE", "1")


class Quarters(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


@pytest.fixture
def names(tmp_path) -> dict[str, object]:
    """What the examples use: a feature network, a folder, and images of the size of the shipped model."""
    images = np.random.default_rng(0).integers(0, 256, (16, 32, 32, 1), dtype=np.uint8)
    np.savez(tmp_path / "images.npz", arr_0=images, arr_1=np.arange(16) % 10)
    network = custom.from_module(Quarters())
    return {"admg": admg, "np": np, "torch": torch, "network": network, "images": images}


@pytest.mark.thorough
@pytest.mark.parametrize("function", [frechet_distance, kid, label_accuracy, precision_recall, bits_per_dim])
def test_examples_of_metrics(function):
    names = {"np": np, "torch": torch, "admg": admg, "Gaussian": admg.evaluation.metrics.Gaussian}
    run_example(function, **names, **{function.__name__: function})


@pytest.mark.thorough
@pytest.mark.parametrize("function", [admg.evaluate, admg.neighbours, admg.sweep, admg.nll])
def test_examples_of_functions(function, names, tmp_path):
    folder = tmp_path / "images.npz" if function is admg.nll else tmp_path / "out"
    run_example(function, **names, folder=str(folder), **{function.__name__: function})


def test_arrays_folders_and_npz_files_are_the_same_source(names):
    images = names["images"]
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    labels = torch.arange(16) % 3
    dataset = torch.utils.data.TensorDataset(x, labels)
    for form in (images, x, (x.double() / 255).float(), admg.data.from_arrays(images, labels.tolist()), dataset):
        np.testing.assert_array_equal(as_source(form)[0:16], images)
    assert as_source(dataset).labels.tolist() == labels.tolist()
    with pytest.raises(ValueError, match=r"clearly in \[-1, 1\] or \[0, 1\]"):
        as_source(np.full((4, 1, 8, 8), 0.1))
    with pytest.raises(ValueError, match="must be an array, Samples, a path or a data set, got int"):
        as_source(3)


def test_a_function_is_a_metric(names):
    def shift(samples: np.ndarray, reference: np.ndarray) -> Estimate:
        return Estimate(float(np.abs(samples.mean(0) - reference.mean(0)).max()), 0.1, 0.0, 1.0)

    steps: list[Progress] = []
    report = admg.evaluate(
        names["images"], names["images"], ["precision", shift], features=Quarters(), progress=steps.append
    )
    assert report["shift"] == 0 and report.get("shift").high == 1 and report["precision"] == 1
    assert "shift" in repr(report) and [step.done for step in steps[:1]] == [16]
    for unused in ("label_classifier", "infinite"):
        with pytest.raises(ValueError, match=f"{unused} requires the metric"):
            given = {unused: Quarters() if unused == "label_classifier" else True}
            admg.evaluate(names["images"], names["images"], ["precision"], features=Quarters(), progress=False, **given)
    with pytest.raises(KeyError, match="no 'fid' in this report: it has precision, shift"):
        report["fid"]
    with pytest.raises(ValueError, match="unknown metric 'precisoin': did you mean 'precision'"):
        admg.evaluate(names["images"], names["images"], ["precisoin"], features=Quarters())


def test_samples_of_sample_are_evaluated(tiny_model, names):
    samples = admg.sample(tiny_model, [0, 1, 2, 3, 0, 1], steps=2, progress=False)
    reference = names["images"][:, :8, :8]
    report = admg.evaluate(samples, reference, ["precision"], features=Quarters(), progress=False)
    assert report.images == 6 and report.reference_images == 16 and 0 <= report["precision"] <= 1


@pytest.mark.thorough
def test_guides_are_named(tiny_model, names, tmp_path):
    reference, metrics = names["images"][:, :8, :8], ["precision"]
    guides = {"none": None, "mine": lambda state: torch.zeros_like(state.x)}
    arguments = {"features": Quarters(), "metrics": metrics, "progress": False, "num": 4, "samplers": ["ddim:2"]}
    table = admg.sweep(tiny_model, reference=reference, out=tmp_path / "s", guides=guides, **arguments)
    assert [row.cell.name for row in table] == ["ddim-2-none", "ddim-2-mine"]
    assert table[0]["precision"] == table[1]["precision"] and "| ddim | 2 | mine |" in repr(table)
    with pytest.raises(ValueError, match="two guides have the name 'cfg 2'"):
        guide = admg.guidance.ClassifierFreeGuidance(2.0)
        admg.sweep(tiny_model, reference=reference, out=tmp_path / "t", guides=[guide, guide], **arguments)
