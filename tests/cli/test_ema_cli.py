"""`admg ema`: models of other averages from the snapshots of a run, their comparison, and what is refused."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import make, refused, snapshot, succeed

import admg
from admg.training import TrainConfig, TrainingRun, reconstruct_ema

QUARTERS = """
import torch
class Quarters(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x[:, :1], 2).flatten(1)
"""


@pytest.fixture(scope="module")
def runs(digits, tmp_path_factory) -> Path:
    """Runs of a diffusion model and of a classifier, each with snapshots of 6 steps."""
    root = tmp_path_factory.mktemp("runs")
    config = TrainConfig(steps=6, batch_size=4, precision="fp32", warmup=1, lr=1e-2, ema_snapshots=1)
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.setattr("admg.training.tasks.DiffusionTask.preview", lambda *arguments: {})
        monkeypatch.setattr("admg.training.trackers.plot_log", lambda *arguments: None)
        for kind in ("diffusion", "classifier"):
            list(TrainingRun(make(kind), admg.data.open(digits, 8), root / kind, config))
    return root


@pytest.fixture
def reference(tmp_path, monkeypatch) -> list[object]:
    """Options of a comparison with 40 images, in features of a small network."""
    monkeypatch.setenv("ADMG_HOME", str(tmp_path / "home"))
    (tmp_path / "own.py").write_text(QUARTERS)
    images = np.random.default_rng(0).integers(0, 256, (40, 8, 8, 1), dtype=np.uint8)
    np.savez(tmp_path / "reference.npz", arr_0=images)
    network = f"{tmp_path / 'own.py'}:Quarters"
    return ["--reference", tmp_path / "reference.npz", "--network", network, "--metrics", "fid", "--num", 8,
            "--steps", 2, "--precision", "fp32"]  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("kind", ["diffusion", "classifier"])
def test_models_of_several_lengths_are_written(capsys, runs, tmp_path, kind):
    out = succeed(capsys, "ema", runs / kind, "--length", "5%,0.15,15%", "--out", tmp_path)
    rows = [line.split() for line in out.splitlines()]
    assert rows[0] == ["length", "error", "of", "the", "fit"] and [row[0] for row in rows[1:3]] == ["0.05", "0.15"]
    assert rows[1][1] == "0.00%" and 0 < float(rows[2][1].rstrip("%")) < 10
    assert sorted(path.name for path in tmp_path.iterdir()) == ["length-0.05", "length-0.15"]
    load = admg.load if kind == "diffusion" else admg.load_classifier
    for length in (0.05, 0.15):
        found, expected = load(tmp_path / f"length-{length}"), reconstruct_ema(runs / kind, length)
        assert found.training["average"] == f"{100 * length:g}%" and found.training["steps"] == 6
        assert found.training["ema"]["error"] == expected.training["ema"]["error"]
        for p, q in zip(found.network.parameters(), expected.network.parameters(), strict=True):
            assert torch.equal(p, q)


@pytest.mark.thorough
def test_the_lengths_without_an_option_are_those_that_the_snapshots_reach(capsys, runs, tmp_path):
    """Six snapshots reach from 4% to 18%."""
    succeed(capsys, "ema", runs / "diffusion", "--out", tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["length-0.05", "length-0.1", "length-0.15"]
    succeed(capsys, "ema", runs / "diffusion", "--step", 1, "--out", tmp_path / "first")
    assert sorted(path.name for path in (tmp_path / "first").iterdir()) == ["length-0.05", "length-0.1"]


@pytest.mark.thorough
def test_samples_of_each_length_are_compared_with_a_reference(capsys, runs, reference, tmp_path):
    command = ["ema", runs / "diffusion", "--length", "5%,15%", "--out", tmp_path / "out", *reference]
    out = succeed(capsys, *command)
    with (tmp_path / "out" / "lengths.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["length"] for row in rows] == ["0.05", "0.15"]
    samples = tmp_path / "out" / "length-0.15" / "ddim-2" / "samples_8x8x8x1.npz"
    own = admg.evaluate(samples, reference[1], ["fid"], features=str(reference[3]), progress=False)
    assert float(rows[1]["FD-Quarters"]) == pytest.approx(own["fid"], rel=1e-6)
    assert float(rows[0]["FD-Quarters"]) != pytest.approx(own["fid"], rel=1e-3)
    assert "FD-Quarters" in out and f"{float(rows[1]['FD-Quarters']):.3g}"[:3] in out
    before = snapshot(tmp_path / "out")
    assert succeed(capsys, *command).splitlines()[-3:] == out.splitlines()[-3:]
    assert snapshot(tmp_path / "out") == before


@pytest.mark.thorough
def test_a_model_of_another_step_is_only_overwritten_on_request(capsys, runs, tmp_path):
    command = ["ema", runs / "diffusion", "--length", "10%", "--out", tmp_path]
    succeed(capsys, *command, "--step", 4)
    before = snapshot(tmp_path)
    succeed(capsys, *command, "--step", 4)
    assert snapshot(tmp_path) == before
    line = refused(capsys, "ema", runs / "diffusion", "--length", "5%,10%", "--out", tmp_path)
    assert "length-0.1/model holds another average: choose another --out, or --overwrite" in line
    assert snapshot(tmp_path) == before
    succeed(capsys, *command, "--overwrite")
    assert admg.load(tmp_path / "length-0.1").training["ema"]["step"] == 6


@pytest.mark.thorough
def test_what_is_refused_writes_nothing(capsys, runs, reference, tmp_path):
    out = tmp_path / "out"
    for arguments, message in (
        ([runs / "diffusion", "--length", "50%"], "--length must be above 0 and at most 0.28, or up to 28%, got '50%'"),
        ([runs / "diffusion", "--length", ""], "--length must be a list such as 5%,10%,15%"),
        ([runs / "diffusion", "--length", "1%"], "length 0.01 cannot be made from the 6 snapshots"),
        ([runs / "diffusion", "--step", "9"], "step 9 of"),
        ([runs / "diffusion", "--step", "0"], "--step must be at least 1, got 0"),
        ([runs / "diffusion", "--num", 100], "--num requires --reference"),
        ([runs / "diffusion", "--metrics", "kid"], "--metrics requires --reference"),
        ([runs / "diffusion", "--network", "dinov2_vits14"], "--network requires --reference"),
        ([runs / "diffusion", "--sampler", "ddpm"], "--sampler requires --reference"),
        ([runs], "has no snapshots of averages: training writes them with --ema-snapshots N"),
        ([runs / "nowhere"], "nowhere has no snapshots of averages"),
        ([runs / "classifier", *reference], "--reference requires a diffusion model, but"),
        ([runs / "diffusion", *reference, "--sampler", "ddmi"], "unknown sampler 'ddmi'"),
        ([runs / "diffusion", *reference, "--reference", tmp_path / "no.npz"], "no.npz"),
    ):
        assert message in refused(capsys, "ema", *arguments, "--out", out), message
        assert not out.exists()
