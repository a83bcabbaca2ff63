"""The model that a run starts from, and the architecture that it takes over."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from helpers import TRUNK

from admg.checkpoints import openai
from admg.checkpoints.initial import Initial, inherited, load_initial
from admg.checkpoints.labels import Labels
from admg.checkpoints.weights import CheckpointError
from admg.diffusion.config import DiffusionConfig
from admg.models import ClassifierConfig, SuperResConfig, UNet, UNetConfig

FLAGS = "--image_size 16 --num_channels 32 --channel_mult 1,2 --num_res_blocks 1 --attention_resolutions 8 "
FLAGS += "--num_head_channels 32 --learn_sigma True"


@pytest.fixture(scope="module")
def file(tmp_path_factory) -> str:
    """Weights in OpenAI's format, raw and averaged."""
    raw, average = UNet(openai.parse(FLAGS).network), UNet(openai.parse(FLAGS).network)
    path = tmp_path_factory.mktemp("openai") / "a.pth.tar"
    torch.save({"model": raw.state_dict(), "ema": average.state_dict()}, path)
    return str(path)


@pytest.mark.thorough
def test_a_file_without_flags_has_an_architecture_but_unknown_heads_and_process(file):
    with pytest.warns(UserWarning) as notes:
        found = load_initial(file, "diffusion")
    assert any("shapes do not determine all flags" in str(note.message) for note in notes)
    weights = torch.load(file)["ema"]
    assert all(torch.equal(value, weights[name]) for name, value in found.state.items())
    assert found.training["weights"] == "ema (average)" and found.architecture.channel_mult == (1, 2)
    facts = found.facts("diffusion")
    assert not found.is_known and facts.attention is facts.predict is facts.schedule is None
    given = inherited(found, UNetConfig, {"head_channels": 32}, {"image_size": 16})
    assert [given.heads(width) for width in (32, 64)] == [1, 2]


@pytest.mark.thorough
def test_a_file_with_flags_or_of_a_known_model_has_heads_and_process(file, monkeypatch):
    with pytest.warns(UserWarning, match="averaged"):
        found = load_initial(file, "diffusion", FLAGS + " --diffusion_steps 50 --rescale_timesteps False")
    assert found.is_known and found.architecture.head_channels == 32 and found.diffusion.diffusion_steps == 50
    flags = dict(zip(*[iter(FLAGS.replace("--", "").split())] * 2)) | {"diffusion_steps": 50}
    with pytest.warns(UserWarning, match="averaged"):
        assert load_initial(file, "diffusion", flags).diffusion.diffusion_steps == 50
    known = openai.families.known_settings() | {"openai/tiny": openai.parse(FLAGS + " --noise_schedule cosine")}
    monkeypatch.setattr(openai.families, "known_settings", lambda: known)
    with pytest.warns(UserWarning, match="are those of openai/tiny"):
        found = load_initial(file, "diffusion")
    assert found.is_known and found.facts("diffusion").attention == "2 attention heads in old order"
    assert found.diffusion.noise_schedule == "cosine"


def test_what_is_not_a_model_of_this_kind_is_refused(file, tiny_folders, tiny_classifier, tiny_model):
    with pytest.raises(CheckpointError, match="is a diffusion model, not a classifier"), pytest.warns(UserWarning):
        load_initial(file, "classifier")
    with pytest.raises(CheckpointError, match=r"expected a 'diffusion' checkpoint, but .* holds a 'classifier' one"):
        load_initial(tiny_folders["classifier"], "diffusion")
    with pytest.raises(ValueError, match="unknown model 'no/such'"):
        load_initial("no/such", "diffusion")
    for model in (tiny_classifier, dataclasses.replace(tiny_model, config=None)):
        with pytest.raises(ValueError, match="cannot start from the given model: it is not a diffusion model"):
            load_initial(model, "diffusion")
    with pytest.raises(ValueError, match="init_flags applies only to files"):
        load_initial(tiny_folders["model"], "diffusion", FLAGS)


def initial(config) -> Initial:
    return Initial("first", config, DiffusionConfig(), Labels(0), {})


@pytest.mark.parametrize(("size", "sides"), [(64, (32, 8)), (32, (16, 4)), (128, (64, 16))])
def test_attention_keeps_its_levels_at_another_size(size, sides):
    theirs = UNetConfig(channels=32, attention_resolutions=(32, 8), head_channels=32)
    ours = inherited(initial(theirs), UNetConfig, {}, {"image_size": size})
    assert ours.attention_resolutions == sides and ours.channel_mult == theirs.channel_mult
    assert [ours.attends(k) for k in range(4)] == [theirs.attends(k) for k in range(4)] == [False, True, False, True]
    with pytest.raises(ValueError, match="image size 100 must be a positive multiple of 8"):
        inherited(initial(theirs), UNetConfig, {}, {"image_size": 100})


def test_what_is_typed_must_agree_or_wins_where_it_may_differ():
    theirs = SuperResConfig(**TRUNK, num_classes=3, small_size=4)
    derived = {"image_size": 8, "num_classes": 5}
    ours = inherited(initial(theirs), SuperResConfig, {"dropout": 0.2, "channels": 32, "channel_mult": (1, 1)}, derived)
    assert ours == dataclasses.replace(theirs, num_classes=5, dropout=0.2)
    assert inherited(initial(theirs), SuperResConfig, {"attention_resolutions": (4,)}, derived).attends(1)
    for given, message in (
        ({"channels": 64}, "channels must be 32, as in first, got 64"),
        ({"channel_mult": (1, 2)}, "channel_mult must be 1,1, as in first, got 1,2"),
        ({"attention_resolutions": (8,)}, "attention_resolutions must be 4, as in first, got 8"),
        ({"attention_resolutions": ()}, "attention_resolutions must be 4, as in first, got none"),
        ({"resblock_updown": False}, "resblock_updown must be True, as in first, got False"),
    ):
        with pytest.raises(ValueError, match=message):
            inherited(initial(theirs), SuperResConfig, given, derived)
    classifier = initial(ClassifierConfig(**TRUNK, num_classes=3))
    with pytest.raises(ValueError, match="pool must be attention, as in first, got adaptive"):
        inherited(classifier, ClassifierConfig, {"pool": "adaptive"}, derived)
