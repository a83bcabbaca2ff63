"""The log of a run, services that show it, and what the commands print while they train."""

from __future__ import annotations

import csv
import importlib.machinery
import json
import math
import os
import sqlite3
import subprocess
import sys
from importlib.util import find_spec
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest
import torch
from helpers import TRUNK, refused, succeed
from PIL import Image

import admg
from admg.cli import training as cli
from admg.data import from_arrays
from admg.engine.memory import peak_memory
from admg.generation.images import save_png
from admg.training import DiffusionTask, TrainConfig
from admg.training.curves import grouped
from admg.training.log import Log
from admg.training.services import RunFacts, open_services, read_ids, services_of
from admg.training.trackers import Tracker

SMALL = {name: value for name, value in TRUNK.items() if name not in ("image_size", "image_channels")}
PIXELS = np.random.default_rng(0).integers(0, 256, (12, 8, 8, 1), dtype=np.uint8)
QUICK = {"batch_size": 2, "precision": "fp32", "log_every": 1, "checkpoint_every": 2, "preview_every": 100}


@pytest.fixture(autouse=True)
def quick_previews(monkeypatch):
    """Previews are a grey picture instead of samples, which take time."""

    def preview(self, network, folder, step):
        save_png(Image.new("L", (4, 4), 99), folder / f"step_{step:07d}.png")
        return {}

    monkeypatch.setattr(DiffusionTask, "preview", preview)


def start(out, steps: int, **changes):
    options = {"diffusion": admg.DiffusionConfig(diffusion_steps=50), "network": SMALL}
    return admg.train_diffusion(from_arrays(PIXELS), out, TrainConfig(steps=steps, **QUICK | changes), **options)


def csv_rows(out) -> list[dict[str, str]]:
    with (out / "log.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def json_rows(out) -> list[dict[str, float]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


# -- the log -----------------------------------------------------------------------------------------------------------


def test_both_files_have_the_same_rows_and_numbers_that_are_not_finite_are_null(tmp_path):
    log = Log(tmp_path)
    log.append(1, 4, {"loss": 0.1234567, "grad_norm": math.inf})
    log.append(2, 8, {"loss": 2.0, "grad_norm": 1.0})
    log.append(3, 12, {"loss": math.nan, "val_loss": 5.0})
    assert json_rows(tmp_path) == [
        {"step": 1, "images": 4, "loss": 0.123457, "grad_norm": None},
        {"step": 2, "images": 8, "loss": 2.0, "grad_norm": 1.0},
        {"step": 3, "images": 12, "loss": None, "val_loss": 5.0},
    ]
    rows = csv_rows(tmp_path)
    assert list(rows[0]) == ["step", "images", "loss", "grad_norm", "val_loss"]
    assert [row["grad_norm"] for row in rows] == ["inf", "1", ""] and [row["val_loss"] for row in rows] == ["", "", "5"]


def test_rows_of_steps_that_are_repeated_are_dropped_and_so_is_a_row_that_was_cut_off(tmp_path):
    log = Log(tmp_path)
    for step in range(1, 6):
        log.append(step, step, {"loss": step} | ({"val_loss": 0.5} if step % 2 == 0 else {}))
    with (tmp_path / "log.csv").open("a") as file:
        file.write("1,")  # of "16,...": the process was killed while it wrote
    resumed = Log(tmp_path, step=3)
    resumed.append(4, 4, {"loss": 40.0})
    resumed.append(5, 5, {"loss": 50.0})
    assert [float(row["loss"]) for row in csv_rows(tmp_path)] == [1, 2, 3, 40, 50]
    assert [row["loss"] for row in json_rows(tmp_path)] == [1, 2, 3, 40, 50]
    assert ["val_loss" in row for row in json_rows(tmp_path)] == [False, True, False, False, False]
    assert [row["val_loss"] for row in csv_rows(tmp_path)] == ["", "0.5", "", "", ""]
    again = Log(tmp_path, step=0)  # a run that begins anew
    again.append(1, 1, {"loss": 7.0})
    assert len(csv_rows(tmp_path)) == len(json_rows(tmp_path)) == 1


def test_a_slow_step_counts_by_its_duration(tmp_path):
    """Nine steps of 0.1 s, and one of 4.1 s of which 4 s are waiting: 160 images in 5 s."""
    tracker = Tracker(tmp_path, 0)
    for seconds, waited in [(0.1, 0.0)] * 9 + [(4.1, 4.0)]:
        tracker.add({"images_per_second": 16 / seconds, "data_wait": waited / seconds})
    tracker.write_row(10, 160)
    (row,) = json_rows(tmp_path)
    assert row["images_per_second"] == pytest.approx(32) and row["data_wait"] == pytest.approx(0.8)


def test_a_row_has_means_over_its_steps_and_the_last_memory(tmp_path):
    tracker = Tracker(tmp_path, 0)
    for loss, memory in ((1.0, 5.0), (3.0, 7.0)):
        tracker.add({"loss": loss, "memory_gib": memory})
    tracker.add_metrics({"val_loss": 0.5})
    tracker.add_metrics({"fd": 9.0})
    tracker.write_row(2, 8)
    tracker.add({"loss": 4.0, "memory_gib": 7.5})
    tracker.write_row(3, 12)
    first, second = json_rows(tmp_path)
    assert first == {"step": 2, "images": 8, "loss": 2.0, "memory_gib": 7.0, "val_loss": 0.5, "fd": 9.0}
    assert second == {"step": 3, "images": 12, "loss": 4.0, "memory_gib": 7.5}
    assert tracker.latest == {"loss": 4.0, "memory_gib": 7.5, "val_loss": 0.5, "fd": 9.0}


@pytest.mark.thorough
def test_a_run_logs_memory_and_the_share_of_waiting_for_data(tmp_path, monkeypatch):
    """The clock is that of the loop: each step waits 3 seconds for its images, and takes 4 in all."""
    run = start(tmp_path, 2)
    now = iter([0, 3, 4] * 2)
    monkeypatch.setattr("admg.training.trainer.time.perf_counter", lambda: next(now))
    rows = list(run)
    assert [row["data_wait"] for row in rows] == [0.75, 0.75] and rows[0]["images_per_second"] == 2 / 4
    assert 0.05 < rows[0]["memory_gib"] <= rows[1]["memory_gib"] < 64
    logged = csv_rows(tmp_path)
    assert [row["data_wait"] for row in logged] == ["0.75", "0.75"] and float(logged[1]["memory_gib"]) > 0.05


@pytest.mark.thorough
def test_peak_memory_grows_with_what_the_process_holds():
    before = peak_memory(torch.device("cpu"))
    held = torch.ones(before // 4 + 2**26)  # four bytes each: more than all that it has ever held
    after = peak_memory(torch.device("cpu"))
    assert held.numel() * 4 <= after and after > before


def test_columns_of_training_and_validation_share_a_panel_and_so_do_noise_levels():
    row = {"step": "5", "images": "20", "lr": "1", "loss": "2", "train_loss_t0": "3", "val_loss_t0": "4"}
    row |= {"val_loss_t7": "5", "val_accuracy": "0.5", "memory_gib": "1"}
    at = {"step": "9", "images": "36", "loss": "1", "val_loss_t7": "nan"}
    panels = grouped([row, at])
    assert panels["loss"] == {("", None): ((20, 36), (2.0, 1.0))}
    levels = panels["loss by noise level, training and validation images"]
    assert list(levels) == [("train", 0), ("val", 0), ("val", 7)] and levels["val", 0] == ((20,), (4.0,))
    assert len(levels["val", 7][1]) == 2
    assert list(panels) == ["loss", *list(panels)[1:2], "accuracy, training and validation images"]


# -- services ----------------------------------------------------------------------------------------------------------


def module(monkeypatch, name: str, **attributes) -> None:
    fake = ModuleType(name)
    fake.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(fake).update(attributes)
    monkeypatch.setitem(sys.modules, name, fake)


class FakeWandb:
    """Records what is called, as wandb.init() and its run."""

    def __init__(self):
        self.calls, self.started, self.id = [], [], None

    def init(self, **options):
        self.started.append(options)
        self.id = options["id"] or "abc123"
        return self

    def log(self, values, step):
        self.calls.append((step, values))

    def finish(self):
        self.calls.append("finished")

    def Image(self, path):
        return f"picture of {path}"


class FakeMlflow:
    """Records what is called, as mlflow.MlflowClient."""

    def __init__(self):
        self.calls, self.experiments = [], {}
        self.entities = SimpleNamespace(Metric=lambda name, value, time, step: (name, value, step))

    def get_experiment_by_name(self, name):
        return self.experiments.get(name)

    def create_experiment(self, name):
        self.experiments[name] = SimpleNamespace(experiment_id="7")
        return "7"

    def create_run(self, experiment, run_name):
        self.calls.append(("run", experiment, run_name))
        return SimpleNamespace(info=SimpleNamespace(run_id="r1"))

    def log_batch(self, run, metrics):
        self.calls.append((run, dict((name, value) for name, value, _ in metrics), metrics[0][2]))

    def __getattr__(self, name):
        return lambda *arguments, **options: self.calls.append((name, *arguments, *options.values()))


@pytest.fixture
def wandb(monkeypatch) -> FakeWandb:
    fake = FakeWandb()
    module(monkeypatch, "wandb", init=fake.init, Image=fake.Image)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    return fake


class FakeTrackio(FakeWandb):
    """Records what is called, as trackio.init() and its run, which greets."""

    def init(self, **options):
        print("* Trackio project initialized")
        self.started.append(options)
        self.name = options["name"]
        return self


@pytest.fixture
def trackio(monkeypatch) -> FakeTrackio:
    fake = FakeTrackio()
    module(monkeypatch, "trackio", init=fake.init, Image=fake.Image, finish=fake.finish)
    monkeypatch.delenv("TRACKIO_PROJECT", raising=False)
    return fake


@pytest.fixture
def mlflow(monkeypatch) -> FakeMlflow:
    fake = FakeMlflow()
    module(monkeypatch, "mlflow", MlflowClient=lambda: fake, entities=fake.entities)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return fake


@pytest.mark.thorough
def test_wandb_gets_rows_pictures_and_options_and_a_resumed_run_is_the_same_run(wandb, tmp_path):
    out = tmp_path / "mine"
    list(start(out, 2, log=("wandb",), preview_every=2))
    options = wandb.started[0]
    assert (options["project"], options["name"], options["id"], options["resume"]) == ("admg", "mine", None, "allow")
    assert options["config"]["train"]["batch_size"] == 2 and options["config"]["data"] == "Dataset"
    (_, first), (at, picture), (last, second), end = wandb.calls
    assert first["loss"] == pytest.approx(float(csv_rows(out)[0]["loss"]), rel=1e-5)
    assert (at, picture) == (2, {"samples": f"picture of {out / 'samples' / 'step_0000002.png'}"})
    assert last == 2 and second["grad_norm"] > 0 and end == "finished"
    list(start(out, 3, log=("wandb",)))
    assert wandb.started[1]["id"] == "abc123" and wandb.calls[4][0] == 3
    assert read_ids(out) == {"wandb": "abc123"}


@pytest.mark.thorough
def test_trackio_gets_rows_pictures_and_options_and_a_resumed_run_is_the_same_run(trackio, capsys, tmp_path):
    """Even if the run directory was renamed in between, since trackio knows runs by their names."""
    list(start(tmp_path / "mine", 2, log=("trackio",), preview_every=2))
    options = trackio.started[0]
    assert (options["project"], options["name"], options["resume"]) == ("admg", "mine", "never")
    assert options["config"]["train"]["batch_size"] == 2
    (_, first), (at, picture), (last, second), end = trackio.calls
    assert first["loss"] == pytest.approx(float(csv_rows(tmp_path / "mine")[0]["loss"]), rel=1e-5)
    assert (at, picture) == (2, {"samples": f"picture of {tmp_path / 'mine' / 'samples' / 'step_0000002.png'}"})
    assert last == 2 and second["grad_norm"] > 0 and end == "finished"
    (tmp_path / "mine").rename(tmp_path / "renamed")
    list(start(tmp_path / "renamed", 3, log=("trackio",)))
    assert (trackio.started[1]["name"], trackio.started[1]["resume"]) == ("mine", "allow") and trackio.calls[4][0] == 3
    assert "Trackio" not in capsys.readouterr().out


@pytest.mark.process
@pytest.mark.skipif(find_spec("trackio") is None, reason="needs trackio")
def test_the_real_trackio_keeps_the_rows_of_both_parts_of_a_run(tmp_path):
    """In a process of its own, since trackio reads its folder from the environment when it is imported."""
    code = """if True:
        import sys
        from pathlib import Path
        from admg.training.services import RunFacts, open_services
        for step, loss in ((0, 2.0), (1, 1.0)):
            (service,) = open_services(["trackio"], RunFacts(Path(sys.argv[1]), step, {"train": {"lr": 0.1}}))
            service.scalars({"loss": loss}, step + 1)
            service.close()
    """
    (tmp_path / "mine").mkdir()
    done = subprocess.run([sys.executable, "-W", "error::UserWarning:admg", "-c", code, str(tmp_path / "mine")],
                          env=os.environ | {"TRACKIO_DIR": str(tmp_path)}, capture_output=True, text=True)  # fmt: skip
    assert done.returncode == 0 and done.stdout == "", done.stdout + done.stderr
    with sqlite3.connect(tmp_path / "admg.db") as connection:
        rows = connection.execute("select run_name, step, metrics from metrics order by step").fetchall()
    assert [(name, step, json.loads(metrics)) for name, step, metrics in rows] == [
        ("mine", 1, {"loss": 2.0}), ("mine", 2, {"loss": 1.0})]  # fmt: skip


@pytest.mark.thorough
def test_mlflow_gets_rows_pictures_and_options_and_a_resumed_run_is_the_same_run(mlflow, tmp_path):
    out = tmp_path / "mine"
    list(start(out, 2, log=("mlflow",), preview_every=2))
    assert mlflow.calls[0] == ("run", "7", "mine")
    assert ("log_param", "r1", "train.batch_size", "2") in mlflow.calls
    assert ("log_artifact", "r1", str(out / "samples" / "step_0000002.png"), "pictures") in mlflow.calls
    rows = [call for call in mlflow.calls if isinstance(call[1], dict)]
    assert [step for _, _, step in rows] == [1, 2] and rows[1][1]["loss"] > 0
    assert mlflow.calls[-1] == ("set_terminated", "r1")
    mlflow.calls.clear()
    list(start(out, 3, log=("mlflow",)))
    assert mlflow.calls[0] == ("update_run", "r1", "RUNNING")
    assert [call[2] for call in mlflow.calls if isinstance(call[1], dict)] == [3]
    assert not any(call[0] in ("run", "log_param") for call in mlflow.calls)


def test_values_that_are_not_finite_are_not_sent(wandb, tmp_path):
    (service,) = open_services(["wandb"], RunFacts(tmp_path, 0, {}))
    service.scalars({"loss": 1.0, "grad_norm": math.inf, "val_loss": math.nan}, 1)
    assert wandb.calls == [(1, {"loss": 1.0})]


@pytest.mark.parametrize("method", ["init", "log", "finish"])
def test_a_service_that_fails_is_left_out_with_one_warning(wandb, monkeypatch, tmp_path, method):
    def fail(*_, **__):
        raise RuntimeError("the server is away\nand more")

    monkeypatch.setattr(wandb, method, fail)
    module(monkeypatch, "wandb", init=wandb.init, Image=wandb.Image)
    with pytest.warns(UserWarning, match="wandb failed and will receive no further .*: the server is away$") as notes:
        (service,) = open_services(["wandb"], RunFacts(tmp_path, 0, {}))
        service.scalars({"loss": 1.0}, 1)
        service.picture("samples", tmp_path / "step_0000001.png", 1)
        service.close()
    assert len(notes) == 1


@pytest.mark.thorough
def test_a_failing_service_does_not_stop_the_training(wandb, monkeypatch, tmp_path):
    monkeypatch.setattr(wandb, "log", lambda *_, **__: 1 / 0)
    with pytest.warns(UserWarning, match="wandb failed and will receive no further measurements: division by zero"):
        assert len(list(start(tmp_path, 2, log=("wandb",)))) == 2
    assert len(csv_rows(tmp_path)) == 2


@pytest.mark.thorough
def test_tensorboard_has_the_rows_and_previews_of_a_killed_and_resumed_run_once(tmp_path):
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    run = start(tmp_path, 4, preview_every=3)
    for _ in range(3):
        next(run)
    run.close()
    list(start(tmp_path, 4, preview_every=3))
    events = event_accumulator.EventAccumulator(str(tmp_path / "tensorboard")).Reload()
    losses = events.Scalars("loss")
    assert [event.step for event in losses] == [1, 2, 3, 4]
    assert [event.value for event in losses] == pytest.approx(
        [float(row["loss"]) for row in csv_rows(tmp_path)], rel=1e-5
    )
    assert [event.step for event in events.Images("samples")] == [3, 4]


def test_services_are_chosen_by_name(monkeypatch, tmp_path, capsys, digits):
    monkeypatch.setattr("admg.training.services.installed", lambda package: package == "wandb")
    assert services_of(("auto",)) == services_of(("none",)) == [] and services_of(("wandb",)) == ["wandb"]
    assert TrainConfig(log="wandb").log == ("wandb",)
    for log in ((), ("none", "wandb"), ("wandb", "auto")):
        with pytest.raises(ValueError, match="log must be auto or none alone, or some of tensorboard, wandb, track"):
            TrainConfig(log=log)
    with pytest.raises(ValueError, match=r"log must be one of auto, .*, wandb, trackio, mlflow, none, got 'csv'"):
        TrainConfig(log=("csv",))
    train = ["train", "--data", digits, "--image-size", 8, "--out", tmp_path / "run"]
    line = refused(capsys, *train, "--log", "wandb,mlflow")
    assert line.endswith("--log needs the package mlflow for mlflow: pip install 'admg[mlflow]'")
    assert "did you mean 'wandb'" in refused(capsys, *train, "--log", "wandbb")
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr("admg.training.services.installed", lambda package: True)
    assert services_of(("auto",)) == ["tensorboard"] and services_of(("mlflow", "wandb")) == ["wandb", "mlflow"]


# -- the commands ------------------------------------------------------------------------------------------------------


def test_each_save_is_one_line_and_at_most_one_a_minute(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(cli.time, "monotonic", lambda: now[0])
    run = SimpleNamespace(saved=10, config=SimpleNamespace(steps=60))
    saves, said = cli.Saves(run), []
    for saved, seconds in ((10, 5), (20, 6), (20, 70), (30, 71), (40, 130), (50, 131), (60, 132)):
        run.saved, now[0] = saved, seconds
        said.append(saves.line())
    text = "saved step {}; the same command resumes"
    assert said == ["", text.format(20), "", "saved step 30", "", "saved step 50",
                    "saved step 60; the same command with more --steps trains on"]  # fmt: skip


@pytest.mark.thorough
def test_a_command_says_that_it_has_saved_the_run(capsys, digits, tmp_path):
    command = ["train", "--data", digits, "--image-size", 8, "--channels", 32, "--channel-mult", "1,1",
               "--num-res-blocks", 1, "--head-channels", 32, "--attention-resolutions", 4, "--batch-size", 2,
               "--checkpoint-every", 1, "--diffusion-steps", 50, "--log", "none", "--out", tmp_path]  # fmt: skip
    out = succeed(capsys, *command, "--steps", 2)
    assert "saved step 1; the same command resumes\n" in out and "saved step 2; the same command with more" in out
    assert not (tmp_path / "tensorboard").exists()
    assert "saved" not in succeed(capsys, *command, "--steps", 2)


def test_the_progress_bar_shows_loss_gradient_rate_waiting_and_memory():
    step = {"loss": 0.12345, "grad_norm": 1.5, "lr": 3e-4, "images_per_second": 512.4, "data_wait": 0.034}
    shown = "loss 0.1235, grad 1.5, lr 0.0003, 512 images/s, 3% waiting for data"
    assert cli.progress(step) == shown and cli.progress(step | {"memory_gib": 2.25}) == f"{shown}, 2.2 GiB"
