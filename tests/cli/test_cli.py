"""The command: its output, and for bad input one clear line with exit code 2 and no partial files."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings

import numpy as np
import pytest
from helpers import failed, refused, run, snapshot, state_file
from PIL import Image

from admg.checkpoints import loading
from admg.checkpoints.weights import digest_of_state
from admg.data import open as open_dataset
from admg.training import checkpointing


@pytest.fixture
def sample_arguments(tiny_folders):
    return ["sample", "--model", tiny_folders["model"], "--classifier", tiny_folders["classifier"], "--steps", "3"]


@pytest.mark.thorough
def test_training_reads_the_pictures_of_sample_with_the_same_labels(capsys, sample_arguments, tmp_path):
    out = tmp_path / "out"
    code, _, err = run(capsys, *sample_arguments, "--label", "ankle boot", "--label", 3, "--num", 5, "--out", out)
    assert code == 0, err
    stored = np.load(out / "samples_5x8x8x1.npz")
    assert stored["arr_0"].shape == (5, 8, 8, 1) and stored["arr_0"].dtype == np.uint8
    assert stored["arr_1"].tolist() == [4, 3, 4, 3, 4]
    names = sorted(path.name for path in (out / "images").glob("*.png"))
    assert names == [f"Ankle-boot_{i:06d}.png" for i in (0, 2, 4)] + [f"T-shirt-top_{i:06d}.png" for i in (1, 3)]
    with Image.open(out / "images" / names[0]) as image:
        assert np.array_equal(np.asarray(image), stored["arr_0"][0, :, :, 0])
    dataset = open_dataset(out / "images", 8)
    assert dataset.label_names == ("T-shirt/top", "Ankle boot") and dataset.labels.tolist() == [1, 1, 1, 0, 0]
    assert Image.open(out / "sheet.png").size[0] > 64


@pytest.mark.thorough
def test_the_columns_of_a_sheet_are_the_samples_at_each_scale(capsys, sample_arguments, tmp_path, monkeypatch):
    drawn = []

    def draw(columns, scales, *_):
        drawn.append((columns, scales))
        return Image.new("L", (1, 1))

    monkeypatch.setattr("admg.generation.scale_sheet.scale_sheet", draw)
    arguments = [*sample_arguments, "--label", "one", "--num", 2, "--seed", 5, "--out"]
    assert run(capsys, *arguments, tmp_path, "--sheet", "scale=0,50")[0] == 0
    (unguided, guided), scales = drawn[0]
    assert scales == [0, 50] and np.abs(unguided.astype(int) - guided).max() > 0
    for column, scale in ((unguided, 0), (guided, 50)):
        assert run(capsys, *arguments, tmp_path / str(scale), "--scale", scale)[0] == 0
        assert np.array_equal(np.load(tmp_path / str(scale) / "samples_2x8x8x1.npz")["arr_0"], column)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--label", "ankel boot"], "did you mean 'Ankle boot'"),
        (["--label", "7"], "labels are 0 to 4: zero, one, two, T-shirt/top, Ankle boot"),
        (["--label", "-1"], "unknown label '-1'"),
        (["--sampler", "ddpn"], "unknown sampler 'ddpn': did you mean 'ddpm'?"),
        (["--steps", "banana"], "steps 'banana'"),
        (["--steps", "101"], "cannot take 101 steps from 100"),
        (["--steps", "ddim77"], "no integer stride"),
        (["--scale", "four"], "invalid float value: 'four'"),
        (["--scale", "nan"], "finite"),
        (["--sheet", "scale=1,x"], "scale=0,1,2,4,8"),
        (["--sheet", "steps=1,2"], "scale=0,1,2,4,8"),
        (["--num", "0"], "--num must be at least 1"),
        (["--seed", "-1"], "--seed must be at least 0"),
        (["--labels", "one,ankel boot"], "did you mean 'Ankle boot'"),
        (["--labels", "one", "--label", "two"], "--label cannot be combined with --labels"),
        (["--labels", "random", "--unconditional", "--scale", "0"], "neither the model nor a guide uses them"),
        (["--shard-size", "0"], "--shard-size must be at least 1"),
        (["--labels", ""], "argument --labels: must not be empty"),
        (["--world-size", "0"], "--world-size must be at least 1, got 0"),
        (["--rank", "2", "--world-size", "2"], "--rank must be from 0 to 1"),
        (["--world-size", "2", "--overwrite"], "--overwrite requires a single process"),
        (["--upsampler-batch-size", "0"], "--upsampler-batch-size must be at least 1"),
        (["--sheet", "scale=1", "--upsampler", "x"], "cannot be combined with --upsampler"),
        (["--sheet", "scale=1", "--shard-size", "4"], "cannot be combined with --shard-size"),
        (["--sheet", "scale=1", "--no-images"], "cannot be combined with --images"),
        (["--batch-size", "0"], "--batch-size must be at least 1"),
        (["--eta", "1.5"], "--eta must be at least 0 and at most 1"),
        (["--eta", "0.5", "--sampler", "ddpm"], "--eta applies only to the sampler ddim"),
        (["--model", "fashion-mnits"], "did you mean 'fashion-mnist'"),
        (["--classifier", "no/such/folder"], "unknown model 'no/such/folder'"),
        (["--device", "warp"], "device 'warp' cannot be used"),
        (["--device", "meta"], "device 'meta' cannot be used"),
        (["--colour", "red"], "unknown option '--colour'"),
    ],
)
def test_sample_refuses_bad_input_and_writes_nothing(capsys, sample_arguments, tmp_path, arguments, expected):
    out = tmp_path / "out"
    assert expected in refused(capsys, *sample_arguments, "--num", 1, "--out", out, *arguments)
    assert not out.exists()


@pytest.mark.thorough
def test_output_folder_that_cannot_be_written(capsys, sample_arguments, tmp_path):
    (tmp_path / "file").write_text("kept")
    assert "cannot write to the output folder" in refused(capsys, *sample_arguments, "--out", tmp_path / "file" / "out")
    assert "cannot write to the output folder" in refused(capsys, *sample_arguments, "--out", tmp_path / "file")
    assert (tmp_path / "file").read_text() == "kept"


def spoil(folder, how: str) -> str:
    """Spoils a checkpoint folder; returns what the message must say."""
    config, weights = folder / "config.json", folder / "model.safetensors"
    values = json.loads(config.read_text())
    del values["checksum"]
    if how == "truncated":
        weights.write_bytes(weights.read_bytes()[:-1000])
        return "is damaged: its SHA-256"
    if how == "foreign weights":
        weights.write_bytes(b"PK\x03\x04" + bytes(100))
        return "is damaged: its SHA-256"
    if how == "no weights":
        weights.unlink()
        return "has no model.safetensors"
    if how == "not json":
        config.write_text("{")
        return "not valid JSON"
    if how == "foreign config":
        config.write_text('{"architectures": ["BertModel"]}')
        return "does not belong to an admg checkpoint"
    if how == "newer":
        config.write_text(json.dumps(values | {"version": 99}))
        return "version 99; this admg reads up to version 1"
    if how == "unknown field":
        config.write_text(json.dumps(values | {"network": values["network"] | {"flux": 1}}))
        return "flux"
    if how == "other architecture":
        config.write_text(json.dumps(values | {"network": values["network"] | {"channels": 64}}))
        return "does not fit its architecture"
    if how == "classifier":
        config.write_text(json.dumps(values | {"kind": "classifier"}))
        return "expected a 'diffusion' or 'upsampler' checkpoint, but"
    raise AssertionError(how)


@pytest.mark.parametrize(
    "how",
    ["truncated", "foreign weights", "no weights", "not json", "foreign config", "newer", "unknown field",
     "other architecture", "classifier"],
)  # fmt: skip
def test_checkpoints_that_cannot_be_used(capsys, tiny_folders, tmp_path, how):
    shutil.copytree(tiny_folders["model"], tmp_path / "model")
    expected = spoil(tmp_path / "model", how)
    out = tmp_path / "out"
    assert expected in refused(capsys, "sample", "--model", tmp_path / "model", "--num", 1, "--out", out)
    assert not out.exists()


def test_a_checkpoint_that_is_a_file(capsys, tmp_path):
    (tmp_path / "model.bin").write_bytes(b"x")
    assert "model.bin is damaged or not a .pt file" in refused(capsys, "info", tmp_path / "model.bin")
    (tmp_path / "model.pt").write_bytes(b"x")
    assert "is damaged" in refused(capsys, "info", tmp_path / "model.pt")


def tiny_training(data, out) -> list:
    return ["train", "--data", data, "--out", out, "--image-size", 8, "--channels", 32, "--channel-mult", "1,1",
            "--head-channels", 32, "--attention-resolutions", 4, "--num-res-blocks", 1, "--steps", 2, "--batch-size", 2,
            "--diffusion-steps", 50]  # fmt: skip


@pytest.fixture
def pictures(tmp_path):
    """Two classes of two images."""
    for i, name in enumerate(("cat", "dog")):
        (tmp_path / "data" / name).mkdir(parents=True)
        for j in range(2):
            Image.new("L", (8, 8), 100 * i + 50 * j).save(tmp_path / "data" / name / f"{j}.png")
    return tmp_path / "data"


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["--image-size", 9], "image size 9 must be a positive multiple of 2"),
        (["--image-size", 9, "--channel-mult", ""], "--image-size must be a multiple of 2 (preferably 16)"),
        (["--channels", 40], "multiple of 32"),
        (["--head-channels", 24], "cannot be divided into attention heads"),
        (["--noise-schedule", "square"], "'square' is not one of linear, cosine"),
        (["--label-dropout", 2], "--label-dropout must be at least 0 and at most 1, got 2.0"),
        (["--lr", "fast"], "invalid float value: 'fast'"),
        (["--lr", 0], "--lr must be above 0, got 0.0"),
        (["--channel-mult", "1,a"], "--channel-mult"),
        (["--precision", "fp8"], "is not one of auto, fp32, bf16"),
        (["--data", "no/such/data"], "no/such/data does not exist"),
        (["--config", "no-such.toml"], "no-such.toml"),
    ],
)
def test_train_refuses_bad_input_and_writes_nothing(capsys, pictures, tmp_path, arguments, expected):
    out = tmp_path / "out"
    assert expected in refused(capsys, *tiny_training(pictures, out), *arguments)
    assert not out.exists()


def test_empty_data_folder(capsys, tmp_path):
    (tmp_path / "data").mkdir()
    assert str(tmp_path / "data") in refused(capsys, *tiny_training(tmp_path / "data", tmp_path / "out"))
    assert not (tmp_path / "out").exists()


@pytest.mark.thorough
def test_a_corrupt_file_is_named_and_skipped_or_stops_a_strict_run(capsys, pictures, tmp_path):
    (pictures / "cat" / "broken.png").write_bytes(b"\x89PNG\r\n")
    line = refused(capsys, *tiny_training(pictures, tmp_path / "out"), "--strict")
    assert "broken.png" in line and not (tmp_path / "out").exists()
    code, _, err = run(capsys, *tiny_training(pictures, tmp_path / "out"))
    assert code == 0 and "broken.png" in err and "skipped 1 file" in err
    assert (tmp_path / "out" / "model" / "config.json").exists()


@pytest.mark.thorough
def test_config_file_and_command_line(capsys, pictures, tmp_path):
    """The command line wins over the file, the file over the defaults; unknown and mistyped options are named."""
    (tmp_path / "c.toml").write_text('lr = 0.125\nbatch_size = 1\nobjective = "simple"\nflip = true\n')
    arguments = [*tiny_training(pictures, tmp_path / "out"), "--config", tmp_path / "c.toml"]
    assert run(capsys, *arguments)[0] == 0
    train = json.loads((tmp_path / "out" / "model" / "config.json").read_text())["training"]["train"]
    assert (train["lr"], train["batch_size"], train["ema"]) == (0.125, 2, "10%")
    (tmp_path / "c.toml").write_text("learning_rate = 0.125\n")
    assert "c.toml: unknown option 'learning_rate': here it is 'lr'" in refused(capsys, *arguments)
    (tmp_path / "c.toml").write_text('lr = "fast"\n')
    assert "--lr: invalid float value: 'fast'" in refused(capsys, *arguments)
    (tmp_path / "c.toml").write_text("lr = \n")
    assert "not valid TOML" in refused(capsys, *arguments)


@pytest.mark.thorough
def test_training_starts_from_the_weights_of_a_model(capsys, pictures, tmp_path):
    """One step at a vanishing learning rate leaves the weights as they were in the model."""
    assert run(capsys, *tiny_training(pictures, tmp_path / "a"))[0] == 0
    arguments = [*tiny_training(pictures, tmp_path / "b"), "--steps", 1, "--lr", 1e-12, "--init", tmp_path / "a"]
    assert run(capsys, *arguments)[0] == 0
    first, second = loading.load(tmp_path / "a"), loading.load(tmp_path / "b")
    digest = digest_of_state(first.network.state_dict())
    init = {"model": str(tmp_path / "a"), "digest": digest, **first.training}
    kept = {"kept": len(first.network.state_dict()), "remade": {}, "dropped": []}
    assert second.training["init"] == init | {"start": kept}
    a, b = first.network.state_dict(), second.network.state_dict()
    assert all((a[name] - b[name]).abs().max() < 1e-6 for name in a) and a["out.2.weight"].abs().max() > 1e-6
    line = refused(capsys, *tiny_training(pictures, tmp_path / "c"), "--channel-mult", "1,2", "--init", tmp_path / "a")
    assert "network: --channel-mult must be 1,1, as in" in line and not (tmp_path / "c").exists()


@pytest.mark.thorough
def test_resuming_a_foreign_run_is_refused_and_leaves_it(capsys, pictures, tmp_path):
    out = tmp_path / "out"
    assert run(capsys, *tiny_training(pictures, out))[0] == 0
    before = state_file(out).read_bytes()
    line = refused(capsys, *tiny_training(pictures, out), "--channel-mult", "1,2", "--steps", 4)
    assert "begun with other settings" in line and state_file(out).read_bytes() == before
    state_file(out).write_bytes(before[:-500])
    assert "are damaged" in failed(capsys, *tiny_training(pictures, out), "--steps", 4)


@pytest.mark.thorough
def test_a_directory_that_holds_something_else_is_refused_and_left(capsys, sample_arguments, pictures, tmp_path):
    """Another kind of network, samples where training is to be, and training where samples are to be."""
    trained, sampled = tmp_path / "trained", tmp_path / "sampled"
    assert run(capsys, *tiny_training(pictures, trained))[0] == 0
    assert run(capsys, *sample_arguments, "--num", 1, "--out", sampled)[0] == 0
    before = snapshot(trained), snapshot(sampled)
    words = tiny_training(pictures, trained)
    line = refused(capsys, "train-classifier", *words[1:])
    assert "holds the training of a diffusion model, not of a noisy classifier: choose another directory" in line
    for more in ([], ["--overwrite"]):
        line = refused(capsys, *tiny_training(pictures, sampled), *more)
        assert "holds samples (run.json): choose another directory" in line
        line = refused(capsys, *sample_arguments, "--num", 1, "--out", trained, *more)
        assert "holds a training run: choose another folder" in line
    assert (snapshot(trained), snapshot(sampled)) == before


@pytest.mark.process
def test_output_that_nobody_reads_ends_the_command_without_a_word(tmp_path):
    """As by `admg models | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "admg", "models"]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert (done.returncode, done.stderr) == (141, "")


def test_a_pickle_in_place_of_a_training_checkpoint_is_not_executed(capsys, pictures, tmp_path):
    import pickle

    class Payload:
        def __reduce__(self):
            return (open, (str(tmp_path / "payload-ran"), "w"))

    out = tmp_path / "out"
    checkpoint = out / checkpointing.FOLDER / "0000001"
    checkpoint.mkdir(parents=True)
    (checkpoint / checkpointing.STATE).write_bytes(pickle.dumps(Payload()))
    checkpointing.write_checksums(checkpoint)
    assert "cannot resume" in refused(capsys, *tiny_training(pictures, out))
    assert not (tmp_path / "payload-ran").exists()


def test_classifier_needs_labels(capsys, tmp_path):
    (tmp_path / "data").mkdir()
    Image.new("L", (8, 8)).save(tmp_path / "data" / "0.png")
    arguments = ["train-classifier", "--data", tmp_path / "data", "--out", tmp_path / "out", "--image-size", 8]
    assert "has no labels" in refused(capsys, *arguments, "--channel-mult", "1,1", "--channels", 32)


def test_info(capsys, tiny_folders):
    code, out, _ = run(capsys, "info", tiny_folders["model"])
    assert code == 0 and "UNet" in out and "T-shirt/top" in out and "learned_range" in out
    code, out, _ = run(capsys, "info", tiny_folders["classifier"])
    assert code == 0 and "NoisyClassifier" in out and "attention" in out


@pytest.mark.thorough
def test_info_of_the_shipped_model_tells_where_it_comes_from(capsys):
    code, out, _ = run(capsys, "info", "fashion-mnist")
    commands = "admg train --config tools/models/fashion-mnist.toml", "admg train-classifier --config tools/models/"
    assert code == 0 and all(text in out for text in (*commands, "Ankle boot"))
    assert loading.load("fashion-mnist").label_names == loading.load_classifier("fashion-mnist").label_names


def test_help_shows_every_default_of_training(capsys):
    code, out, _ = run(capsys, "train", "--help")
    assert code == 0
    text = " ".join(out[out.index("Training:") :].split())
    for option, default in (
        ("--lr", "1e-3, or up to 2e-3 for a batch of more than 16"),
        ("--ema", "10%, or that of the resumed run"),
        ("--num-res-blocks", "1, or 2 from 20,000 images"),
    ):
        assert f"default: {default})" in text[text.index(option + " ") :][:550]


def test_no_command_and_version(capsys):
    assert "sample" in run(capsys)[1]
    assert run(capsys, "--version")[1].startswith("admg 0.")
    assert "did you mean 'sample'?" in refused(capsys, "smaple")


def test_warnings_of_libraries_are_one_line_without_control_characters(capsys, monkeypatch):
    """Such as those of Pillow for damaged files, whose texts have several lines."""
    from admg.cli import info

    texts = {"/x/site-packages/PIL/TiffImagePlugin.py": "note: PIL: Metadata\\x1b[31m is bad\n",
             "/x/site-packages/admg/data/scan.py": "note: Metadata\\x1b[31m is bad\n",
             "/x/lib/python3.12/zipfile.py": "note: zipfile: Metadata\\x1b[31m is bad\n"}  # fmt: skip
    for place, expected in texts.items():
        kind = UserWarning if "site-packages" in place else RuntimeWarning
        monkeypatch.setattr(
            info, "run", lambda options, p=place, k=kind: warnings.warn_explicit("Metadata\x1b[31m\n is bad", k, p, 1)
        )
        code, out, err = run(capsys, "info", "x")
        assert (code, out, err) == (0, "", expected)
