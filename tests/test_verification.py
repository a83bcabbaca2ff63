"""`admg verify`: every bit that is flipped in any kind of file that is written and read again is found."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run, run_example, succeed

import admg
from admg.checkpoints.download import records
from admg.checksums import is_damaged, read_json, with_checksum, write_json
from admg.evaluation.features import Activations
from admg.evaluation.features.extraction import write as write_features
from admg.evaluation.metrics.statistics import Gaussian, save_statistics

TRAIN = ["train", "--image-size", "8", "--channels", "32", "--channel-mult", "1,1", "--num-res-blocks", "1",
         "--head-channels", "32", "--attention-resolutions", "4", "--diffusion-steps", "10", "--batch-size", "4",
         "--precision", "fp32", "--log", "none", "--log-every", "1"]  # fmt: skip


@pytest.fixture(scope="module")
def everything(tmp_path_factory, tiny_folders, digits) -> Path:
    """A folder with a training, samples that are finished and others that are not, features, statistics, a download."""
    from admg.cli.main import main

    root = tmp_path_factory.mktemp("everything")
    options = ["--steps", "2", "--ema-snapshots", "1", "--data", digits, "--out", str(root / "run")]
    assert main([*TRAIN, *options]) == 0
    sampling = ["sample", "--model", tiny_folders["model"], "--steps", "2", "--num", "4", "--shard-size", "2"]
    assert main([*sampling, "--out", str(root / "samples"), "--keep-shards"]) == 0
    write_features(root / "features" / "abc.npz", Activations(np.ones((3, 4), np.float32)))
    save_statistics(root / "statistics.npz", Gaussian(np.zeros(3), np.eye(3)))
    (root / "cache").mkdir()
    (root / "cache" / "model.pt").write_bytes(bytes(range(1, 200)))
    records.verify(root / "cache" / "model.pt")
    return root


def flip(path: Path, rng: np.random.Generator) -> None:
    content = bytearray(path.read_bytes())
    content[int(rng.integers(len(content)))] ^= 1 << int(rng.integers(8))
    path.write_bytes(bytes(content))


@pytest.mark.thorough
def test_what_was_not_touched_is_whole(capsys, everything):
    found = admg.verify(everything)
    states = {str(entry.path.relative_to(everything)): entry.state for entry in found}
    assert {name: state for name, state in states.items() if state != "whole"} == {
        "samples/images/dataset.json": "no checksum"  # in the format of others
    }
    names = {"run/checkpoints/0000002", "run/model", "run/run.json", "run/log.csv", "run/ema/step-0000001.safetensors",
             "samples/run.json", "samples/samples_4x8x8x1.npz", "samples/shards/0000000-0000001.npz",
             "samples/sheet.png", "features/abc.npz", "statistics.npz", "cache/model.pt"}  # fmt: skip
    assert names <= states.keys()
    assert f"{len(found) - 1} whole, 0 damaged, 1 without a checksum" in succeed(capsys, "verify", everything)


CONTENT = {  # file: where bits may be flipped without a change of the content, such as dates in a zip
    "run/checkpoints/0000002/state.pt": 0, "run/checkpoints/0000002/checksums.json": 0,
    "run/checkpoints/0000002/config.json": 0, "run/checkpoints/0000002/run.json": 0,
    "run/model/model.safetensors": 0, "run/model/config.json": 0, "run/run.json": 0, "samples/run.json": 0,
    "run/ema/step-0000001.safetensors": 0, "cache/model.pt": 0,
    "samples/samples_4x8x8x1.npz": 0.5, "samples/shards/0000000-0000001.npz": 0.5, "features/abc.npz": 0.5,
    "samples/sheet.png": 0,
}  # fmt: skip


@pytest.mark.thorough
@pytest.mark.parametrize("name", CONTENT)
def test_flipped_bits_are_found(everything, tmp_path, name):
    """In a .npz, bits of the dates and of other fields that nothing reads are left out: its arrays must be the same."""
    path = everything / name
    unit = path.parent if path.parent.name in ("0000002", "model") else path
    copy = tmp_path / unit.name
    shutil.copytree(unit, copy) if unit.is_dir() else shutil.copy(unit, copy)
    if name.startswith("cache"):
        shutil.copy(path.with_name("model.pt.json"), tmp_path)
    if name.startswith("run/ema"):
        copy = tmp_path / "ema" / path.name
        copy.parent.mkdir()
        shutil.move(tmp_path / path.name, copy)
    file = copy / path.name if copy.is_dir() else copy
    whole, rng, unnoticed = file.read_bytes(), np.random.default_rng(0), 0
    flips = 30 if len(whole) < 1 << 20 else 5
    for _ in range(flips):
        flip(file, rng)
        (found,) = (entry for entry in admg.verify(copy) if entry.path in (copy, file))
        if found.state != "damaged":
            unnoticed += 1
            same = path.suffix in (".npz", ".json") and content_of(file) == content_of(path)
            assert same or path.suffix not in (".npz", ".json"), (name, found)
        file.write_bytes(whole)
    assert unnoticed <= flips * CONTENT[name]


def content_of(path: Path) -> object:
    if path.suffix == ".json":
        return {name: value for name, value in json.loads(path.read_text()).items() if name in ("settings", "num")}
    with np.load(path) as file:
        return {name: file[name].tolist() for name in file.files}


def test_the_command_names_what_is_damaged_and_what_has_no_checksum(capsys, everything, tmp_path):
    shutil.copytree(everything / "run", tmp_path / "run")
    flip(tmp_path / "run" / "model" / "model.safetensors", np.random.default_rng(0))
    rows = (tmp_path / "run" / "log.csv").read_text().splitlines()
    (tmp_path / "run" / "log.csv").write_text("\n".join([*rows[:-1], rows[-1].replace("2,8,", "2,9,")]) + "\n")
    torch.save({"a": torch.ones(3)}, tmp_path / "run" / "old.pt", _use_new_zipfile_serialization=False)
    code, out, err = run(capsys, "verify", tmp_path / "run")
    assert code == 1 and not err
    assert f"damaged      {tmp_path}/run/model: " in out and "its SHA-256 differs from config.json" in out
    assert f"damaged      {tmp_path}/run/log.csv: its rows differ from metrics.jsonl" in out
    assert f"no checksum  {tmp_path}/run/old.pt" in out and ", 2 damaged, 1 without a checksum" in out
    assert run(capsys, "verify", tmp_path / "none")[0] == 2
    (tmp_path / "notes").mkdir()
    assert "holds no files that admg can verify" in run(capsys, "verify", tmp_path / "notes")[2]


def test_a_checksum_in_json_is_of_the_values(tmp_path):
    content = {"a": [1, 2.5, None, "é\ud800"], "b": {"1": True}}
    write_json(tmp_path / "a.json", content)
    assert read_json(tmp_path / "a.json") == content
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "a.json").write_text(json.dumps(json.loads(text), indent=7))  # as an editor may write it
    assert read_json(tmp_path / "a.json") == content
    assert not is_damaged(content) and not is_damaged(with_checksum(content))
    assert is_damaged(with_checksum(content) | {"b": {"1": False}})
    (tmp_path / "a.json").write_text(text.replace("2.5", "2.6"))
    with pytest.raises(ValueError, match=r"a\.json is damaged, or was changed by hand: .* remove its entry 'checksum'"):
        read_json(tmp_path / "a.json")


@pytest.mark.slow
def test_the_example(digits, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    small = {"channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "head_channels": 32}
    run_example(admg.verify, dataset=admg.data.open(digits, 8), small=small)


def test_the_shipped_models_have_checksums_of_weights_and_descriptions():
    folder = Path(admg.__file__).parent / "weights" / "fashion-mnist"
    found = [check for part in ("diffusion", "classifier") for check in admg.verify(folder / part)]
    assert [check.state for check in found] == ["whole", "whole"]


def test_the_weights_of_an_export_to_diffusers(tiny_model, tmp_path):
    """Their SHA-256 is in config.json, which `admg.load` compares, too."""
    admg.export.export(tiny_model, "diffusers", tmp_path / "out")
    weights = tmp_path / "out" / "diffusion_pytorch_model.safetensors"

    def state() -> str:
        return next(found.state for found in admg.verify(tmp_path / "out") if found.path == weights)

    assert state() == "whole"
    content = bytearray(weights.read_bytes())
    content[-5] ^= 1
    weights.write_bytes(content)
    assert state() == "damaged" and [found.state for found in admg.verify(weights)] == ["damaged"]
