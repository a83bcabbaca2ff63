"""`admg sweep`: which cells, their samples and figures against `admg sample` and `admg evaluate`, what is kept, and
how it is shown."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import refused, run
from PIL import Image

import admg
from admg.checkpoints.loading import as_model
from admg.cli import sweep as command_module
from admg.cli.options import Parser, add_options, parse
from admg.evaluation import curves
from admg.evaluation.cells import Cell, Row
from admg.evaluation.features import FeatureNetwork
from admg.evaluation.metrics_cache import fingerprint_source
from admg.evaluation.report import MetricValue
from admg.evaluation.sources import Source, open_source
from admg.evaluation.sweep import Metrics, Sweep, plan_sweep
from admg.evaluation.table import SweepTable
from admg.generation.sampler_specs import sampler_name, set_options
from admg.generation.stage import Maker

OWN = """
import torch
class Quarters(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x[:, :1], 2).flatten(1)
class Bright:
    def predict(self, images):
        return (images.mean((1, 2, 3)) > 127).astype(int)
"""
NUM = 12


class Quarters(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)


@pytest.fixture(autouse=True)
def alone(monkeypatch, tmp_path):
    monkeypatch.setenv("ADMG_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("ADMG_OFFLINE", "1")
    for variable in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(variable, raising=False)


@pytest.fixture
def metrics(tmp_path) -> list[str]:
    """Options for a reference, a feature network and a label classifier."""
    (tmp_path / "own.py").write_text(OWN)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (30, 1, 1, 1)) + rng.integers(0, 56, (30, 8, 8, 1))
    np.savez(tmp_path / "reference.npz", arr_0=images.astype(np.uint8))
    own = tmp_path / "own.py"
    return [
        "--reference",
        str(tmp_path / "reference.npz"),
        "--network",
        f"{own}:Quarters",
        "--label-classifier",
        f"{own}:Bright",
    ]


@pytest.fixture
def models(tiny_folders) -> list[str]:
    folders = ["--model", tiny_folders["model"], "--classifier", tiny_folders["classifier"]]
    return [*folders, "--precision", "fp32"]


@pytest.fixture
def command(models, metrics) -> list[str]:
    sizes = ["--num", str(NUM), "--steps", "3", "--shard-size", "4", "--batch-size", "4"]
    return ["sweep", *models, *metrics, *sizes]


@pytest.fixture
def made(monkeypatch) -> list[range]:
    """The shards that are sampled from here on."""
    found: list[range] = []
    make = Maker.make
    monkeypatch.setattr(Maker, "make", lambda self, span, *rest: found.append(span) or make(self, span, *rest))
    return found


def succeed(capsys, *arguments) -> str:
    code, out, err = run(capsys, *arguments)
    assert code == 0, err
    return out


def rows_of(out: Path) -> list[dict[str, str]]:
    with (out / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def samples_of(out: Path, cell: str) -> Path:
    return out / cell / f"samples_{NUM}x8x8x1.npz"


# -- cells -----------------------------------------------------------------------------------------------------------


def planned(*arguments: str) -> Sweep:
    parser = Parser()
    add_options(parser, command_module)
    options, _ = parse(parser, command_module, [*arguments, "--reference", "r.npz"])
    model = as_model(options.model)
    return plan_sweep(model, **options.plan(model))


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ("--scale 0,4 --sampler ddim,ddpm --steps 5,10",
         "ddim-5-scale-0 ddim-5-scale-4 ddim-10-scale-0 ddim-10-scale-4 "
         "ddpm-5-scale-0 ddpm-5-scale-4 ddpm-10-scale-0 ddpm-10-scale-4"),
        ("--scale 2 --sampler ddim:5,ddpm:50,ddim:karras7", "ddim-5-scale-2 ddpm-50-scale-2 ddim-karras7-scale-2"),
        ("--cfg 1,1.5", "ddim-25-cfg-1 ddim-25-cfg-1.5"),
        ("--scale 0,1 --cfg 2,3 --steps 9",
         "ddim-9-scale-0-cfg-2 ddim-9-scale-0-cfg-3 ddim-9-scale-1-cfg-2 ddim-9-scale-1-cfg-3"),
        ("--scale 1,1.0,0,-0", "ddim-25-scale-1 ddim-25-scale-0"),
        ("--scale 1.0000001,1", "ddim-25-scale-1.0000001 ddim-25-scale-1"),
        ("--guide apg:3", "ddim-25"),
        ("--scale 1 --sampler ddim --steps 5,,10", "ddim-5-scale-1 ddim-10-scale-1"),
        ("", " ".join(f"ddim-25-scale-{s}" for s in ("0", "0.5", "1", "2", "4", "8"))),
    ],
)  # fmt: skip
def test_lists_are_axes_and_pairs_are_pairs(options, expected):
    assert " ".join(cell.name for cell in planned("--num", "4", *options.split()).jobs) == expected


def test_options_apply_to_the_cells_that_take_them(models):
    text = "--num 4 --scale 0,2 --sampler ddim,unipc --steps 3 --eta 0.5 --sampler-option order=3 --interval 0.3,5"
    text += " --reuse 2 --compile off"
    sweep = planned(*models, *text.split())
    stages = {cell.name: sweep.stage(cell) for cell in sweep.jobs}
    ddim, unguided, other = (stages[name] for name in ("ddim-3-scale-2", "ddim-3-scale-0", "unipc-3-scale-2"))
    assert set_options(ddim.recipe.sampler) == {"eta": 0.5} and ddim.recipe.compile == "off"
    assert set_options(other.recipe.sampler) == {"order": 3} and sampler_name(other.recipe.sampler) == "unipc"
    guide = ddim.recipe.guide
    assert (guide.low, guide.high, guide.guide.every) == (0.3, 5, 2)
    assert guide.classifier is other.recipe.guide.classifier
    assert unguided.recipe.guide is None


def test_dry_run_lists_remaining_work_and_writes_nothing(capsys, command, tmp_path):
    out = succeed(capsys, *command, "--scale", "0,1", "--out", tmp_path / "s", "--dry-run")
    assert [line.split()[:2] for line in out.splitlines()[:-1]] == [["ddim-3-scale-0", "12"], ["ddim-3-scale-1", "12"]]
    assert out.splitlines()[-1] == "2 cells, 72 network evaluations to sample"
    assert not (tmp_path / "s").exists()


# -- samples and figures ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_cells_equal_sample_followed_by_evaluate(capsys, command, models, metrics, tmp_path):
    out = tmp_path / "s"
    sampled = ["sample", *models, "--num", NUM, "--steps", "3", "--scale", 50, "--out", out / "ddim-3-scale-50"]
    succeed(capsys, *sampled)  # taken as it is
    before = samples_of(out, "ddim-3-scale-50").stat().st_mtime_ns
    text = succeed(capsys, *command, "--scale", "0,50", "--out", out)
    assert samples_of(out, "ddim-3-scale-50").stat().st_mtime_ns == before

    model, classifier = admg.load(models[1]), admg.load_classifier(models[3])
    labels = [i % 5 for i in range(NUM)]
    for cell, guide in (
        ("ddim-3-scale-0", None),
        ("ddim-3-scale-50", admg.guidance.ClassifierGuidance(classifier, 50.0)),
    ):
        expected = admg.sample(model, labels, guide=guide, steps=3, batch_size=4, progress=False).images
        found = np.load(samples_of(out, cell))
        assert np.abs(found["arr_0"].astype(int) - expected).max() <= 1 and found["arr_1"].tolist() == labels
        assert (out / cell / "sheet.png").is_file()
    assert not (out / "ddim-3-scale-0" / "images").exists()

    rows = rows_of(out)
    assert [(row["sampler"], row["steps"], row["guidance"], row["scale"], row["samples"]) for row in rows] == [
        ("ddim", "3", "none", "0.0", "12"),
        ("ddim", "3", "classifier", "50.0", "12"),
    ]
    for row in rows:
        assert row["network"] == "Quarters"
        cell = out / f"ddim-3-scale-{float(row['scale']):g}"
        succeed(capsys, "evaluate", cell, *metrics[1:4], "--classifier", metrics[5], "--json", tmp_path / "e.json")
        figures = {f["metric"]: f for f in json.loads((tmp_path / "e.json").read_text())["metrics"]}
        for metric in ("fid", "precision", "recall", "accuracy"):
            name = figures[metric]["name"]
            assert float(row[name]) == figures[metric]["value"]
            assert [float(row[f"{name} {end}"]) for end in ("low", "high")] == [
                figures[metric][e] for e in ("low", "high")
            ]
            assert f"| {name} |" in text
    assert float(rows[0]["FD-Quarters"]) != float(rows[1]["FD-Quarters"])
    assert "no IS-Quarters: Quarters does not predict classes" in text
    for name in ("curves.png", "table.md", "sweep.csv"):
        assert str(out / name) in text.splitlines()[-1]
    assert (out / "table.md").read_text().strip() in text
    assert Image.open(out / "curves.png").size[0] > 1000


@pytest.mark.slow
def test_no_accuracy_without_labels(capsys, command, tmp_path):
    """An unconditional model without guidance is asked for nothing."""
    arguments = [*command, "--scale", "0,50", "--unconditional", "--labels", "balanced", "--no-interval"]
    succeed(capsys, *arguments, "--out", tmp_path / "s")
    rows = rows_of(tmp_path / "s")
    assert rows[0]["Accuracy"] == "" and 0 <= float(rows[1]["Accuracy"]) <= 1
    assert "arr_1" not in np.load(samples_of(tmp_path / "s", "ddim-3-scale-0")).files
    assert rows[0]["FD-Quarters low"] == "" and float(rows[0]["FD-Quarters"]) > 0


@pytest.mark.thorough
def test_no_picture_without_metrics(capsys, command, tmp_path):
    """The first cell has no label, and only the accuracy is wanted: curves.png comes with the second."""
    out, arguments = tmp_path / "s", [*command, "--unconditional", "--metrics", "accuracy", "--out", tmp_path / "s"]
    text = succeed(capsys, *arguments, "--scale", "0,50")
    assert str(out / "curves.png") in text and (out / "curves.png").is_file()
    SweepTable([row("ddim", "3", 0.0, {})], "", "").write(out)  # as after the first cell
    assert not (out / "curves.png").exists() and len(rows_of(out)) == 1


# -- kept ------------------------------------------------------------------------------------------------------------


def without_times(table: str) -> list[str]:
    return [line.rsplit("|", 2)[0] if line.startswith("|") else line for line in table.splitlines()]


@pytest.mark.slow
def test_interrupted_and_continued(capsys, command, made, monkeypatch, tmp_path):
    """Ctrl-C inside the second of two cells: the first shard of three is there."""
    arguments = [*command, "--scale", "0,50", "--out"]
    succeed(capsys, *arguments, tmp_path / "whole")
    assert len(made) == 6
    make = Maker.make
    monkeypatch.setattr(Maker, "make", lambda *a: interrupt() if len(made) == 10 else make(*a))
    assert run(capsys, *arguments, tmp_path / "s")[0] == 130
    assert [row["scale"] for row in rows_of(tmp_path / "s")] == ["0.0"]  # a look at it as it runs
    assert made[6:] == [range(0, 4), range(4, 8), range(8, 12), range(0, 4)]
    monkeypatch.setattr(Maker, "make", make)
    text = succeed(capsys, *arguments, tmp_path / "s")
    assert "1 of 2 cells are done" in text and "cell 2 of 2: ddim 3, scale 50" in text and "continuing" in text
    assert made[10:] == [range(4, 8), range(8, 12)]
    assert (tmp_path / "s" / "sweep.csv").read_bytes() == (tmp_path / "whole" / "sweep.csv").read_bytes()
    tables = [without_times((tmp_path / folder / "table.md").read_text()) for folder in ("s", "whole")]
    assert tables[0] == tables[1] and "s/image" not in tables[0][0]


def interrupt():
    raise KeyboardInterrupt


@pytest.mark.slow
def test_continued_with_shards_of_another_size(capsys, command, made, monkeypatch, tmp_path):
    """What is there is of the recorded size: one shard of four, of 12 images."""
    out, make = tmp_path / "s", Maker.make
    monkeypatch.setattr(Maker, "make", lambda *a: interrupt() if len(made) == 1 else make(*a))
    assert run(capsys, *command, "--scale", "0", "--out", out)[0] == 130
    monkeypatch.setattr(Maker, "make", make)
    other = [*command, "--scale", "0", "--out", out, "--shard-size", 6]
    assert succeed(capsys, *other, "--dry-run").splitlines()[-1] == "1 cells, 24 network evaluations to sample"
    succeed(capsys, *other)
    assert made == [range(0, 4), range(4, 8), range(8, 12)]
    assert succeed(capsys, *other, "--dry-run").splitlines()[-1] == "1 cells, 0 network evaluations to sample"
    anew = succeed(capsys, *other, "--dry-run", "--overwrite").splitlines()[-1]
    assert anew == "1 cells, 36 network evaluations to sample" and samples_of(out, "ddim-3-scale-0").exists()


@pytest.mark.slow
def test_killed_and_continued(capsys, command, tmp_path):
    arguments = [*command, "--scale", "0,50", "--num", "60", "--out"]
    process = subprocess.Popen([sys.executable, "-m", "admg", *arguments, str(tmp_path / "s")],
                               stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
    while process.poll() is None and not list((tmp_path / "s").glob("ddim-3-scale-50/shards/0*.npz")):
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    for out in ("s", "whole"):
        succeed(capsys, *arguments, tmp_path / out)
    assert (tmp_path / "s" / "sweep.csv").read_bytes() == (tmp_path / "whole" / "sweep.csv").read_bytes()


@pytest.mark.slow
def test_a_second_run_computes_nothing_and_a_longer_list_adds_cells(capsys, command, made, monkeypatch, tmp_path):
    out, looked, call = tmp_path / "s", [], FeatureNetwork.__call__
    monkeypatch.setattr(FeatureNetwork, "__call__", lambda self, x: looked.append(len(x)) or call(self, x))
    arguments = [*command, "--out", out, "--no-cache", "--scale"]
    first = succeed(capsys, *arguments, "0,50")
    assert len(made) == 6 and sum(looked) == 30 + 2 * NUM  # the reference once
    before = {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")}
    content = (out / "sweep.csv").read_bytes()
    second = succeed(capsys, *arguments, "0,50")
    assert len(made) == 6 and sum(looked) == 30 + 2 * NUM
    assert {path: path.stat().st_mtime_ns for path in out.rglob("*.npz")} == before
    assert (out / "sweep.csv").read_bytes() == content
    assert second.splitlines()[1:] == first.splitlines()[1 - len(second.splitlines()) :]
    succeed(capsys, *arguments, "0,20,50")
    assert len(made) == 9 and sum(looked) == 2 * 30 + 3 * NUM
    lines = (out / "sweep.csv").read_bytes().splitlines()
    assert [lines[0], lines[1], lines[3]] == content.splitlines() and lines[2].startswith(b"ddim,3,classifier,20.0,")


@pytest.mark.slow
def test_metrics_are_cached_only_for_the_same_inputs(capsys, command, made, tmp_path):
    out, own = tmp_path / "s", tmp_path / "own.py"
    arguments = [*command, "--out", out, "--scale", "50"]
    succeed(capsys, *arguments)
    first = rows_of(out)[0]
    # The same classifier with other code, which is never correct.
    own.write_text(OWN.replace(".astype(int)", ".astype(int) + 5"))
    second = rows_of_run(capsys, arguments, out)
    assert second["FD-Quarters"] == first["FD-Quarters"] and second["Accuracy"] != first["Accuracy"]
    with np.load(tmp_path / "reference.npz") as file:
        np.savez(tmp_path / "reference.npz", arr_0=file["arr_0"][::-1] // 2)
    third = rows_of_run(capsys, arguments, out)
    assert third["FD-Quarters"] != second["FD-Quarters"] and third["Accuracy"] == second["Accuracy"]
    fourth = rows_of_run(capsys, [*arguments, "--metrics", "kid,recall"], out)
    assert "KD-Quarters" in fourth and "FD-Quarters" not in fourth and fourth["Recall"] == third["Recall"]
    assert len(made) == 3  # the samples are those of the first run


def test_metrics_are_computed_again_if_the_reference_is_read_otherwise(capsys, models, metrics, tmp_path):
    """In the range that --value-range states, with the same figures as `admg evaluate`."""
    rng = np.random.default_rng(0)
    (tmp_path / "dark").mkdir()
    for i in range(20):
        Image.fromarray(rng.integers(0, 60, (8, 8)).astype(np.uint8)).save(tmp_path / "dark" / f"{i}.png")
    network = ["--network", metrics[3], "--metrics", "fid", "--no-cache"]
    arguments = ["sweep", *models, *network, "--reference", tmp_path / "dark", "--scale", 0, "--sampler", "ddim:2"]
    arguments += ["--num", NUM, "--out", tmp_path / "s"]
    plain = rows_of_run(capsys, arguments, tmp_path / "s")["FD-Quarters"]
    stretched = rows_of_run(capsys, [*arguments, "--value-range", "0,64"], tmp_path / "s")["FD-Quarters"]
    (cell,) = (path for path in (tmp_path / "s").iterdir() if path.is_dir())
    for ranged, expected in (([], plain), (["--value-range", "0,64"], stretched)):
        succeed(capsys, "evaluate", cell, tmp_path / "dark", *network, *ranged, "--json", tmp_path / "e.json")
        found = json.loads((tmp_path / "e.json").read_text())
        values = found["metrics"] if isinstance(found, dict) else found
        assert float(values[0]["value"]) == pytest.approx(float(expected), rel=1e-6)
    assert plain != stretched
    line = refused(capsys, *arguments[:-1], tmp_path / "t", "--reference", metrics[1], "--value-range", "0,64")
    assert "--value-range applies only to image files" in line


def test_the_reference_is_read_as_in_the_training_of_the_model(tiny_model, tmp_path):
    """On its background, which is stored with the metrics: they are computed again for a model of another one."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(0, 256, (8, 8, 8, 2), dtype=np.uint8)
    pixels[..., 1] = rng.choice([0, 255], (8, 8, 8))
    (tmp_path / "f").mkdir()
    for i, image in enumerate(pixels):
        Image.fromarray(image, "LA").save(tmp_path / "f" / f"{i}.png")

    def found(background: int | None) -> float:
        model = replace(tiny_model, training={**tiny_model.training, "background": background})
        options = {"guides": [None], "samplers": ["ddim:2"], "num": 4, "metrics": ["fid"], "progress": False}
        (row,) = admg.sweep(model, reference=tmp_path / "f", out=tmp_path / "s", features=Quarters(), **options)
        (record,) = (tmp_path / "s").glob("*/metrics.json")
        assert json.loads(record.read_text())["background"] == background
        (samples,) = (tmp_path / "s").glob("*/samples_*.npz")
        level = 255 if background is None else background
        reference = np.where(pixels[..., 1:] == 255, pixels[..., :1], np.uint8(level))
        direct = admg.evaluate(samples, reference, ["fid"], Quarters(), progress=False, cache=False)
        assert row["fid"] == pytest.approx(direct["fid"], rel=1e-6)
        return row["fid"]

    assert len({round(found(background), 6) for background in (0, 200, None)}) == 3


def test_few_samples_have_the_metrics_that_can_be_computed(tiny_model, tmp_path):
    sweep = plan_sweep(tiny_model, out=tmp_path / "s", guides=[None], samplers=["ddim:2"], num=3)
    reference = np.random.default_rng(0).integers(0, 256, (8, 8, 8, 1), dtype=np.uint8)
    (cell,) = sweep.jobs
    keeper, notes = sweep.keeper(reference, Metrics(features=Quarters(), cache=False), cell, False)
    assert [metric.name for metric in keeper.comparison.metrics] == ["fid"]
    assert notes[-1] == "no Precision, Recall: 3 nearest neighbours need at least 4 samples, got 3"


def test_the_frames_of_a_reference_count(tmp_path):
    reference = Source("a", [tmp_path / "a.gif"] * 2, (8, 8), 1, frames=[0, 1])
    (tmp_path / "a.gif").write_bytes(b"")
    assert fingerprint_source(reference) != fingerprint_source(replace(reference, frames=[0, 2]))


def rows_of_run(capsys, arguments, out) -> dict[str, str]:
    succeed(capsys, *arguments)
    return rows_of(out)[0]


@pytest.mark.slow
def test_cells_of_other_settings_are_refused_or_overwritten(capsys, command, made, tmp_path):
    out = tmp_path / "s"
    succeed(capsys, *command, "--scale", "0", "--out", out)
    line = refused(capsys, *command, "--scale", "50,0", "--out", out, "--num", 13)
    assert "ddim-3-scale-0 holds a run with other settings: num is 12 there, 13 here; choose another --out" in line
    line = refused(capsys, *command, "--scale", "50,0", "--out", out, "--seed", 1)
    assert "seed is 0 there, 1 here" in line
    assert sorted(path.name for path in out.iterdir() if path.is_dir()) == ["ddim-3-scale-0"]  # nothing was begun
    succeed(capsys, *command, "--scale", "0", "--out", out, "--seed", 1, "--overwrite")
    assert len(made) == 6
    assert json.loads((out / "ddim-3-scale-0" / "run.json").read_text())["settings"]["seed"] == 1


@pytest.mark.process
@pytest.mark.slow
def test_two_processes_write_the_same(capsys, command, tmp_path):
    arguments = [*command, "--scale", "0,50"]
    succeed(capsys, *arguments, "--out", tmp_path / "one")
    shared = [*arguments, "--world-size", "2", "--out", str(tmp_path / "two"), "--rank"]
    code = [sys.executable, "-m", "admg", *shared, "1"]
    other = subprocess.Popen(code, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=os.environ)
    out0 = succeed(capsys, *shared, "0")
    _, err1 = other.communicate(timeout=100)
    assert other.returncode == 0, err1
    assert (tmp_path / "two" / "sweep.csv").read_bytes() == (tmp_path / "one" / "sweep.csv").read_bytes()
    assert "| ddim | 3 | 50 |" in out0
    assert sorted(path.name for path in (tmp_path / "two" / "ddim-3-scale-50").iterdir()) == [
        "metrics.json", "run.json", f"samples_{NUM}x8x8x1.npz", "sheet.png",
    ]  # fmt: skip


# -- how it is shown -------------------------------------------------------------------------------------------------


def row(sampler: str, steps: str, scale: float | None, figures: dict[str, float], cfg: float | None = None) -> Row:
    names = {"fid": "FD-Own", "accuracy": "Accuracy", "precision": "Precision", "recall": "Recall"}
    made = [MetricValue(m, names[m], value, value - 0.01, value + 0.02, "Own") for m, value in figures.items()]
    return Row(Cell(sampler, steps, scale, cfg), "classifier", 10, made)


ROWS = [
    row("ddim", "5", 4.0, {"fid": 3.0, "precision": 0.8, "recall": 0.3, "accuracy": 0.9}),
    row("ddim", "5", 0.0, {"fid": 5.0, "precision": 0.6, "recall": 0.7}),
    row("ddpm", "5", 0.0, {"fid": 4.0, "precision": 0.5, "recall": 0.75, "accuracy": 0.7}),
    row("ddim", "5", 1.0, {"fid": 3.0, "precision": 0.7, "recall": 0.5, "accuracy": 0.85}),
]


def test_the_best_value_of_each_column_is_bold():
    lines = SweepTable(ROWS, "", "Of what.").markdown().splitlines()
    assert lines[0] == "| sampler | steps | scale | FD-Own | Precision | Recall | Accuracy |"
    assert lines[2] == "| ddim | 5 | 4 | **3.0000** | **0.8000** | 0.3000 | **0.9000** |"
    assert lines[3] == "| ddim | 5 | 0 | 5.0000 | 0.6000 | 0.7000 |  |"
    assert lines[4] == "| ddpm | 5 | 0 | 4.0000 | 0.5000 | **0.7500** | 0.7000 |"
    assert lines[5] == "| ddim | 5 | 1 | **3.0000** | 0.7000 | 0.5000 | 0.8500 |"  # as good as the first
    assert lines[-1] == "Of what."
    nan = row("ddim", "5", 2.0, {"fid": float("nan"), "accuracy": 1.0})
    assert "| ddim | 5 | 2 |  |  |  | **1.0000** |" in SweepTable([*ROWS, nan], "", "").markdown()


@pytest.mark.thorough
def test_curves_show_the_metrics_at_their_scales():
    from matplotlib.figure import Figure as Picture

    lines = curves.lines_of(ROWS, curves.axis_of([r.cell for r in ROWS]))
    assert [(line.label, line.x) for line in lines] == [("ddim, 5 steps", [0, 1, 4]), ("ddpm, 5 steps", [0])]
    axes = Picture().add_subplot()
    curves.over_scale(axes, lines, "scale", "accuracy", "Accuracy")
    assert axes.lines[0].get_xydata().tolist() == [[1, 0.85], [4, 0.9]]  # at 0 there is none
    band = axes.collections[0].get_paths()[0].vertices
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((0.84, 0.92))
    assert axes.get_title() == "Accuracy ↑"
    assert [text.get_text() for text in axes.get_xticklabels()] == ["0", "1", "4"]
    at = [axes.transData.transform((x, 1))[0] for x in (0, 1, 2, 4)]
    np.testing.assert_allclose(np.diff(at), at[1] - at[0])  # from 0 to the first scale as far as an octave
    axes = Picture().add_subplot()
    curves.over_scale(axes, lines, "scale", "fid", "FD-Own")
    assert axes.get_title() == "FD-Own ↓"
    axes = Picture().add_subplot()
    curves.against_recall(axes, lines, "scale")
    assert axes.get_xlabel() == "Recall" and axes.lines[0].get_xydata().tolist() == [[0.7, 0.6], [0.5, 0.7], [0.3, 0.8]]
    assert sorted((text.get_text(), text.xy) for text in axes.texts) == [
        ("0", (0.7, 0.6)), ("0", (0.75, 0.5)), ("1", (0.5, 0.7)), ("4", (0.3, 0.8)),
    ]  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("cells", "axis", "labels"),
    [
        ([("ddim", "5", None, 1.0), ("ddim", "5", None, 2.0)], "cfg", ["ddim, 5 steps"]),
        ([("ddim", "5", 0.0, 1.0), ("ddim", "5", 2.0, 1.0), ("ddim", "5", 4.0, 1.0)], "scale", ["ddim, 5 steps"]),
        ([("ddim", "5", s, w) for s in (1.0, 2.0) for w in (1.0, 2.0, 3.0)], "cfg",
         ["ddim, 5 steps, scale 1", "ddim, 5 steps, scale 2"]),
        ([(s, n, 4.0, None) for s in ("ddim", "ddpm") for n in ("5", "25")], "steps", ["ddim", "ddpm"]),
        ([("ddim", n, 4.0, None) for n in ("5", "karras5")], "scale", ["ddim, 5 steps", "ddim, karras5"]),
    ],
)  # fmt: skip
def test_the_axis_of_curves(cells, axis, labels, tmp_path):
    rows = [row(sampler, steps, scale, {"fid": 2.0, "precision": 0.5, "recall": 0.5}, cfg)
            for sampler, steps, scale, cfg in cells]  # fmt: skip
    assert curves.axis_of([r.cell for r in rows]) == axis
    lines = curves.lines_of(rows, axis)
    assert [line.label for line in lines] == labels
    assert sum(len(line.x) for line in lines) == len(rows) and all(line.x == sorted(line.x) for line in lines)
    curves.draw(rows, "title", tmp_path / "curves.png")
    assert Image.open(tmp_path / "curves.png").size[0] > 1000


# -- bad input -------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_bad_input_is_one_line_and_nothing_is_written(capsys, models, metrics, tmp_path):
    out = tmp_path / "s"
    good = ["sweep", *models, *metrics, "--num", "4", "--out", out]
    wrong = [
        (["--sampler", "ddim,ddpn"], "unknown sampler 'ddpn': "),
        (["--sampler", "ddim:5,ddpm"], "a list of names or a list of pairs"),
        (["--sampler", "ddim:5", "--steps", "5"], "steps cannot be combined with"),
        (["--sampler", ""], "--sampler must be a list"),
        (["--steps", "3,banana"], "banana"),
        (["--steps", "101"], "cannot take 101 steps"),
        (["--scale", ""], "--scale must be a list such as"),
        (["--scale", "1,nan"], "--scale must be a finite number, got nan"),
        (["--cfg", "1;2"], "--cfg: invalid list of float"),
        (["--num", "-4"], "--num must be at least 2 and at most 10,000,000, got -4"),
        (["--num", "1"], "--num must be at least 2 and at most 10,000,000, got 1"),
        (
            ["--num", "3", "--metrics", "fid,density"],
            "Density cannot be computed: 3 nearest neighbours need at least 4",
        ),
        (["--num-reference", "5", "--metrics", "recall"], "5 nearest neighbours need at least 6 reference images"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--sampler", "ddpm", "--eta", "0.5"], "has no option 'eta'"),
        (["--sampler-option", "nothing=1"], "has no option 'nothing'"),
        (["--label", "trousers"], "trousers"),
        (["--reference", tmp_path / "none"], "does not exist"),
        (["--metrics", "lpips"], "unknown metric 'lpips'"),
        (["--metrics", "is"], "IS-Quarters cannot be computed: Quarters does not predict classes"),
        (["--label-classifier", f"{tmp_path / 'own.py'}:Dark"], "has no 'Dark'"),
        (["--feature-batch-size", "0"], "--feature-batch-size must be at least 1"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--unconditional", "--scale", "0"], "--label-classifier needs labels"),
        (["--rank", "2", "--world-size", "2"], "--rank must be from 0 to 1"),
        (["--guide", "apgg:2"], "unknown guidance 'apgg'"),
        (["--model", "none"], "none"),
    ]
    for arguments, message in wrong:
        assert message in refused(capsys, *good, *arguments), arguments
        assert not out.exists(), arguments
    assert "--reference" in refused(capsys, "sweep", *models, "--out", out)
    np.savez(tmp_path / "large.npz", arr_0=np.zeros((4, 16, 16, 1), np.uint8))
    line = refused(capsys, *good, "--reference", tmp_path / "large.npz")
    assert "images of 16x16, but the samples are 8x8: pass --fit resize" in line and not out.exists()


# -- the folder of the demo ------------------------------------------------------------------------------------------


def test_the_demo_folder_is_read_as_samples(tiny_model, tmp_path):
    """Not its sheet and its images/; and where there are several, they must be told apart."""
    samples = admg.sample(tiny_model, [0, 1, 2, 2], steps=2, progress=False)
    samples.save(tmp_path, "title")
    source = open_source(tmp_path, labels=True)
    np.testing.assert_array_equal(source[0:9], samples.images)
    assert source.labels.tolist() == [0, 1, 2, 2]
    np.savez(tmp_path / "samples_2x8x8x1.npz", arr_0=samples.images[:2])
    with pytest.raises(ValueError, match=r"holds samples_2x8x8x1.npz and samples_4x8x8x1.npz: choose one of them"):
        open_source(tmp_path)
