"""Functions that read or write files take ~ for the home folder, as the command line does."""

from __future__ import annotations

import pytest

import admg


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A home folder beside an empty current directory."""
    here, home = tmp_path / "here", tmp_path / "home"
    here.mkdir(), home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(here)
    yield home
    assert not list(here.iterdir())  # a folder named ~, for instance


@pytest.mark.filterwarnings("ignore:fewer than")
def test_models_and_samples(home, tiny_model, tiny_folders):
    tiny_model.save("~/model")
    tiny_model.save_pretrained("~/pretrained")
    assert admg.load("~/model").label_names == admg.load("~/pretrained").label_names == tiny_model.label_names
    samples = admg.sample("~/model", [0, 1], steps=2, progress=False)
    samples.save("~/samples")
    assert admg.verify("~/samples")
    admg.generate("~/model", [0, 1], out="~/generated", steps=2, progress=False)
    with pytest.raises(ValueError, match="exists: choose another"):
        admg.export.export(tiny_model, "diffusers", "~/samples")
    admg.export.export(tiny_model, "diffusers", "~/diffusers")
    admg.export.to_diffusers(tiny_model, "~/diffusers-2")
    admg.export.to_openai(tiny_model, "~/model.pt")
    names = {"model", "pretrained", "samples", "generated", "diffusers", "diffusers-2", "model.pt"}
    assert {path.name for path in home.iterdir() if not path.name.startswith(".")} == names


def test_training_and_evaluation(home, digits):
    small = {"channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "head_channels": 32}
    config = admg.TrainConfig(steps=2, batch_size=4, log=("none",), ema_snapshots=1)
    assert len(list(admg.train_diffusion(digits, "~/run", config, network=small))) == 2
    assert not list(admg.train_diffusion(digits, "~/run", config, network=small))  # resumes, and nothing is left to do
    admg.reconstruct_ema("~/run", "10%")
    task, dataset = admg.training.DiffusionTask(admg.load("~/run")), admg.data.open(digits, 8)
    with pytest.raises(ValueError, match="no parameter of the network requires a gradient, as in"):
        admg.TrainingRun(task, dataset, "~/another", config)
    task.network.requires_grad_(True)
    assert len(list(admg.TrainingRun(task, dataset, "~/another", config))) == 2 and (home / "another").is_dir()
    report = admg.nll("~/run", digits, num=2, steps=4, progress=False)
    assert {path.name for path in report.save("~/bits")} >= {"nll.json", "nll.csv"}
    report.to_csv("~/bits.csv")
    assert (home / "run" / "log.csv").is_file() and (home / "bits.csv").is_file()
