"""`admg tune-steps`: steps are found, kept with the model, and used by the other commands; and what is refused."""

from __future__ import annotations

import shutil

import pytest
from helpers import refused, snapshot, succeed

import admg
from admg.checkpoints import native, tuned

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
    assert out.endswith(f"written to {model}: use them as --steps tuned2\n")

    tuned.store(model, {3: {"steps": "at1+2+3"}})
    assert native.read_about(model).training[tuned.KEY] == {"2": entry, "3": {"steps": "at1+2+3"}}  # the others stay
    assert admg.load(model).respace("tuned3").diffusion.schedule.timesteps.tolist() == [1, 2, 3]
    sample = ["sample", "--model", model, "--steps", "tuned2", "--scale", 0, "--num", 2, "--no-images"]
    succeed(capsys, *sample, "--out", tmp_path / "samples")
    assert entry["steps"] in next((tmp_path / "samples").glob("*.json")).read_text()  # not "tuned2", which may change


def test_nothing_is_written_if_it_is_not_wanted_or_not_possible(capsys, search, model):
    before = snapshot(model)
    out = succeed(capsys, *search, "--no-store", "--steps", 2)
    assert snapshot(model) == before and "use them as --steps at" in out
    assert "steps 'tuned2': this model has no tuned steps; `admg tune-steps` finds some" in refused(
        capsys, "sample", "--model", model, "--steps", "tuned2", "--scale", 0, "--out", model / "samples"
    )
    for steps in ("0", "3,0", "6", ""):
        assert "--steps must be numbers from 1 to 5, fewer than --fine" in refused(capsys, *search, "--steps", steps)
    assert "draws no noise" in refused(capsys, *search, "--sampler", "ddpm")
    assert "cannot take 101 steps" in refused(capsys, *search, "--fine", 101)
    assert snapshot(model) == before
