"""`admg tune-steps`: steps are found, kept with the model, and used by the other commands; and what is refused."""

from __future__ import annotations

import dataclasses
import shutil

import pytest
from helpers import failed, refused, run, snapshot, succeed

import admg
from admg.checkpoints import native, tuned
from admg.cli import tune_steps

pytestmark = pytest.mark.thorough


@pytest.fixture
def model(tiny_folders, tmp_path) -> str:
    return shutil.copytree(tiny_folders["model"], tmp_path / "own")


@pytest.fixture
def search(model, tiny_folders):
    return ["tune-steps", "--model", model, "--classifier", tiny_folders["classifier"], "--scale", 1, "--steps", 2,
            "--num", 2, "--fine", 6, "--precision", "fp32"]  # fmt: skip


def test_found_steps_are_kept_with_the_model_and_used(capsys, search, model, tmp_path):
    before = native.read_about(model)
    out = succeed(capsys, *search)
    after = native.read_about(model)  # whose checksum is right
    found = after.training.pop(tuned.KEY)
    assert (after.training, after.sha256) == (before.training, before.sha256) and found.keys() == {"2"}
    entry = found["2"]
    assert entry["sampler"] == "unipc" and 0 < entry["distance"] <= entry["distance_of_known_spacing"]
    assert out.splitlines()[1].split()[:5] == [
        "2", entry["known_spacing"], f"{entry['distance_of_known_spacing']:.4f}", entry["steps"],
        f"{entry['distance']:.4f}",
    ]  # fmt: skip
    assert out.endswith(f"written to {model}: use them as --sampler unipc --steps tuned2\n")

    tuned.store(model, {3: {"steps": "at1+2+3"}})
    assert native.read_about(model).training[tuned.KEY] == {"2": entry, "3": {"steps": "at1+2+3"}}  # the others stay
    assert admg.load(model).respace("tuned3").diffusion.schedule.timesteps.tolist() == [1, 2, 3]
    sample = ["sample", "--model", model, "--steps", "tuned2", "--scale", 0, "--num", 2, "--no-images"]
    succeed(capsys, *sample, "--out", tmp_path / "samples")
    assert entry["steps"] in next((tmp_path / "samples").glob("*.json")).read_text()  # not "tuned2", which may change


def test_nothing_is_written_if_it_is_not_wanted_or_not_possible(capsys, search, model):
    before = snapshot(model)
    out = succeed(capsys, *search, "--no-store", "--steps", 2)
    assert snapshot(model) == before and "use them as --sampler unipc --steps at" in out
    assert "steps 'tuned2': this model has no tuned steps; `admg tune-steps` finds some" in refused(
        capsys, "sample", "--model", model, "--steps", "tuned2", "--scale", 0, "--out", model / "samples"
    )
    for steps in ("0", "3,0", "6", ""):
        assert "--steps must be numbers from 1 to 5, less than --fine" in refused(capsys, *search, "--steps", steps)
    assert "must not draw noise" in refused(capsys, *search, "--sampler", "ddpm")
    assert "cannot take 101 steps" in refused(capsys, *search, "--fine", 101)
    assert snapshot(model) == before


def test_steps_are_not_stored_with_weights_that_they_were_not_found_for(capsys, search, model, tiny_model, monkeypatch):
    """The model is trained on, and replaced, while the search runs."""
    searched = tune_steps.search_with_progress

    def slow(measure, count):
        found = searched(measure, count)
        dataclasses.replace(tiny_model, training={"steps": 14}).save(model)
        return found

    monkeypatch.setattr(tune_steps, "search_with_progress", slow)
    line = failed(capsys, *search)
    assert "was replaced during the search, so its steps are not stored: at" in line
    assert tuned.KEY not in native.read_about(model).training


def test_the_record_has_the_steps_that_were_found(capsys, search, model):
    succeed(capsys, *search)
    entry = native.read_about(model).training[tuned.KEY]["2"]
    assert entry["steps"] in entry["recipe"] and "25" not in entry["recipe"].split("seed")[0].replace(
        entry["steps"], ""
    )


def test_the_config_of_a_shipped_model_is_never_written_to(tmp_path, monkeypatch):
    """Not even if the current directory has a folder of that name."""
    (tmp_path / "fashion-mnist").mkdir()
    monkeypatch.chdir(tmp_path)
    assert tune_steps.folder_of("fashion-mnist") is None


def test_upsamplers_are_refused(capsys, tiny_upsampler, tmp_path):
    tiny_upsampler.save(tmp_path / "up")
    for command in (
        ["tune-steps", "--steps", 2, "--fine", 6, "--num", 2],
        ["interpolate", "--seeds", "0,1", "--steps", 2, "--frames", 2, "--out", tmp_path / "way"],
        ["sample", "--sheet", "cfg=1,2", "--steps", 2, "--num", 2, "--out", tmp_path / "sheet"],
    ):
        code, _, err = run(capsys, *command, "--model", tmp_path / "up", "--precision", "fp32")
        assert code == 2 and "upsample" in err.splitlines()[-1] and "bug" not in err, err
    assert not (tmp_path / "way").exists() and not (tmp_path / "sheet").exists()
    with pytest.raises(ValueError, match=r"steps 'tuned5': this upsampler has no tuned steps$"):
        tiny_upsampler.respace("tuned5")
