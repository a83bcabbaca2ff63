"""Runs that start from a model: what they take over, record and say, and parameters that stay as they are."""

from __future__ import annotations

import copy
import json
import shutil
import warnings

import numpy as np
import pytest
import torch
from helpers import TRUNK, refused, succeed
from PIL import Image

import admg
from admg.data import from_arrays
from admg.training import ClassifierTask, DiffusionTask, ObjectiveConfig, TrainConfig, UpsamplerTask
from admg.training.freezing import freeze

PIXELS = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 1), dtype=np.uint8)
ZOO = from_arrays(PIXELS, ["two", "fox", "zero"] * 2)
NETWORK = {name: value for name, value in TRUNK.items() if name not in ("image_size", "image_channels")}


@pytest.fixture(autouse=True)
def without_previews(monkeypatch):
    """Save the time of drawing pictures at the last step."""
    for task in (DiffusionTask, UpsamplerTask, ClassifierTask):
        monkeypatch.setattr(task, "preview", lambda *_: {})


def config(**changes) -> TrainConfig:
    return TrainConfig(**{"steps": 1, "batch_size": 2, "lr": 1e-12, "precision": "fp32"} | changes)


@pytest.mark.thorough
def test_a_diffusion_model_takes_over_the_architecture_the_process_and_labels_by_name(tiny_model, tmp_path):
    given = {"dropout": 0.1}
    run = admg.train_diffusion(ZOO, tmp_path / "a", config(), network=given, init=tiny_model)
    list(run)
    model, old = admg.load(tmp_path / "a"), tiny_model.network
    assert model.config == tiny_model.config and model.network.config.head_channels == TRUNK["head_channels"]
    assert model.network.config.dropout == 0.1 and model.label_names == ("fox", "two", "zero")
    assert torch.allclose(model.network.label_emb.weight[1:], old.label_emb.weight[[2, 0]], atol=1e-9)
    assert torch.allclose(model.network.label_emb.weight[0], old.label_emb.weight.mean(0), atol=1e-6)
    init = model.training["init"]
    assert init["model"] == "the given model" and list(init["start"]["remade"]) == ["label_emb.weight"]
    assert init["start"]["kept"] == len(old.state_dict()) - 1 and not init["start"]["dropped"]


def test_a_classifier_and_an_upsampler_start_from_theirs(tiny_classifier, tiny_upsampler, tmp_path):
    classifier = admg.train_classifier(ZOO, tmp_path / "a", config(), init=tiny_classifier).model
    head, old = classifier.network.out[2].c_proj, tiny_classifier.network.out[2].c_proj
    assert torch.equal(head.bias[1:], old.bias[[2, 0]]) and torch.allclose(head.bias[0], old.bias.mean())
    large = from_arrays(np.repeat(np.repeat(PIXELS, 3, 1), 3, 2))
    augment = admg.training.AugmentConfig(augment_noise=0.2)
    unlabelled = ObjectiveConfig(unlabelled=True)
    run = admg.train_upsampler(
        large, tmp_path / "b", config(), init=tiny_upsampler, augment=augment, objective=unlabelled
    )
    network = run.model.network.config
    assert (network.image_size, network.small_size, network.attention_resolutions) == (24, 12, (12,))
    assert network.augment_noise == 0.2 and run.provenance["init"]["start"]["dropped"] == ["label_emb.weight"]


@pytest.mark.thorough
def test_a_model_that_was_never_conditional_counts_as_trained_without_labels(tiny_model, tmp_path):
    unlabelled = ObjectiveConfig(unlabelled=True)
    first = admg.train_diffusion(ZOO, tmp_path / "a", config(), init=tiny_model, objective=unlabelled)
    list(first)
    never = ObjectiveConfig(label_dropout=0.0)
    second = admg.train_diffusion(ZOO, tmp_path / "b", config(), init=tmp_path / "a", objective=never).model
    assert second.conditional and second.label_dropout == 1.0 and not second.network.label_emb.weight.any()


@pytest.mark.thorough
def test_the_command_says_and_records_what_became_of_the_weights(tiny_folders, tmp_path, capsys):
    for i in range(4):
        folder = tmp_path / "data" / ("fox", "two")[i % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.random.default_rng(i).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(
            folder / f"{i}.png"
        )
    command = ["train", "--data", tmp_path / "data", "--image-size", 16, "--batch-size", 2, "--precision", "fp32",
               "--init", tiny_folders["model"]]  # fmt: skip
    said = succeed(capsys, *command, "--steps", 1, "--out", tmp_path / "a")
    (line,) = [line for line in said.splitlines() if line.startswith("started from")]
    assert "label_emb.weight (1 of 2 labels by name, the others from the mean)" in line
    assert "input_blocks.0.0.weight (1 to 3 channels); " in line and line.endswith("dropped none")
    stored = json.loads((tmp_path / "a/model/config.json").read_text())
    assert stored["network"]["attention_resolutions"] == [8] and stored["diffusion"]["diffusion_steps"] == 100
    assert len(stored["training"]["init"]["start"]["remade"]) == 4
    for more, message in (
        (["--channels", 64], "network: channels must be 32, as in"), (["--predict", "v"], "this run predicts v, "),
        (["--num-heads", 2, "--head-channels", 0], "2 attention heads"), (["--image-size", 15], "multiple of 2"),
        (["--init-flags", "--image_size 16"], "applies only to files in OpenAI's format"),
        (["--freeze", "x*"], "freeze 'x*' matches no parameter"),
    ):  # fmt: skip
        line = refused(capsys, *command, *more, "--steps", 1, "--out", tmp_path / "b")
        assert message in line and not list((tmp_path / "b").glob("*"))


@pytest.mark.thorough
def test_a_resumed_run_does_not_read_what_it_started_from(tiny_folders, tmp_path):
    first = shutil.copytree(tiny_folders["model"], tmp_path / "first")
    options = {"init": first, "objective": ObjectiveConfig(label_dropout=0.5)}
    whole = list(admg.train_diffusion(ZOO, tmp_path / "whole", config(steps=4, lr=1e-3), **options))
    list(admg.train_diffusion(ZOO, tmp_path / "a", config(steps=2, lr=1e-3), **options))
    shutil.rmtree(first)
    run = admg.train_diffusion(ZOO, tmp_path / "a", config(steps=4, lr=1e-3), **options)
    rest = list(run)
    assert [step["loss"] for step in rest] == pytest.approx([step["loss"] for step in whole[2:]], rel=1e-6)
    assert run.provenance["init"] == admg.load(tmp_path / "whole").training["init"]
    with pytest.warns(UserWarning, match="with its own weights: ignoring other"):
        admg.train_diffusion(ZOO, tmp_path / "a", config(steps=4), init="other")


def test_a_resumed_run_still_records_what_it_started_from(tiny_model, tmp_path):
    list(admg.train_diffusion(ZOO, tmp_path, config(), init=tiny_model))
    record = admg.load(tmp_path).training["init"]
    diffusion = admg.DiffusionConfig(diffusion_steps=100)
    list(admg.train_diffusion(ZOO, tmp_path, config(steps=2), network=NETWORK, diffusion=diffusion))
    assert admg.load(tmp_path).training["init"] == record and admg.load(tmp_path).training["steps"] == 2
    assert "began with the weights" in (tmp_path / "model" / "README.md").read_text()


def test_another_loaded_model_to_start_from_is_said_to_be_ignored(tiny_model, tiny_folders, tmp_path):
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        other.network.out[2].bias += 1
    for name, began in (("object", tiny_model), ("folder", tiny_folders["model"])):
        list(admg.train_diffusion(ZOO, tmp_path / name, config(), init=began))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            admg.train_diffusion(ZOO, tmp_path / name, config(steps=2), init=tiny_model).close()
        with pytest.warns(UserWarning, match="with its own weights: ignoring the given model"):
            admg.train_diffusion(ZOO, tmp_path / name, config(steps=2), init=other).close()
    list(admg.train_diffusion(ZOO, tmp_path / "none", config(), network=NETWORK))
    with pytest.warns(UserWarning, match="with its own weights: ignoring the given model"):
        admg.train_diffusion(ZOO, tmp_path / "none", config(steps=2), init=tiny_model).close()


@pytest.mark.thorough
def test_frozen_parameters_have_no_optimiser_state_and_stay_in_the_average_too(tiny_model, tmp_path):
    patterns = ("input_blocks.*", "middle_block.1.qkv.weight")
    options = {"init": tiny_model, "diffusion": {}}
    whole = admg.train_diffusion(ZOO, tmp_path / "a", config(steps=4, lr=1e-3, freeze=patterns, warmup=1), **options)
    losses = [step["loss"] for step in whole]
    run = admg.train_diffusion(ZOO, tmp_path / "b", config(steps=2, lr=1e-3, freeze=patterns, warmup=1), **options)
    again = [step["loss"] for step in run]
    run = admg.train_diffusion(ZOO, tmp_path / "b", config(steps=4, lr=1e-3, freeze=patterns, warmup=1), **options)
    assert again + [step["loss"] for step in run] == pytest.approx(losses, rel=1e-6)
    old, new = tiny_model.network.state_dict(), admg.load(tmp_path / "a").network.state_dict()
    for name, value in new.items():
        frozen = name.startswith("input_blocks.") or name == "middle_block.1.qkv.weight"
        assert torch.equal(value, old[name]) == frozen or name == "label_emb.weight", name
    for other in ((), ("input_blocks.*",), ("input_blocks.*", "middle_block.1.proj_out.weight")):
        with pytest.raises(ValueError, match=r"cannot resume from .*: the trained tensors differ .* \(see freeze\)"):
            admg.train_diffusion(ZOO, tmp_path / "b", config(steps=5, freeze=other), **options)
    trained = [p for p in whole.learner.network.parameters() if p.requires_grad]
    assert len(whole.learner.optimizer.state) == len(trained) == len(new) - sum(
        name.startswith("input_blocks.") for name in new
    ) - 1  # fmt: skip


def test_patterns_that_freeze_nothing_or_everything_are_refused(tiny_model):
    network = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    freeze(network, ["0.*"])
    assert [p.requires_grad for p in network.parameters()] == [False, False, True, True]
    with pytest.raises(ValueError, match=r"freeze 'bias' matches no parameter; their names begin with 0\., 1\."):
        freeze(network, ["bias"])
    with pytest.raises(ValueError, match=r"freeze '\*' leaves no parameter to train"):
        freeze(network, ["*"])


@pytest.mark.slow
def test_a_sharded_network_may_have_frozen_parameters(tiny_model, tmp_path):
    """With the losses of one that is not sharded up to rounding, which Adam amplifies, and the same after resuming."""

    def train(out: str, steps: int, shard: bool = True) -> list[float]:
        options = config(steps=steps, lr=1e-3, warmup=1, freeze=("time_embed.*", "*.qkv.*"), shard=shard)
        run = admg.train_diffusion(ZOO, tmp_path / out, options, init=tiny_model)
        found = [step["loss"] for step in run]
        run.close()
        return found

    whole = train("whole", 4)
    assert train("part", 2) + train("part", 4) == pytest.approx(whole, rel=1e-6)
    assert train("plain", 4, shard=False) == pytest.approx(whole, rel=1e-4)
