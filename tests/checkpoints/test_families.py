"""Checkpoints of well-known models get the settings of these models, and a note that names them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from admg.checkpoints import openai
from admg.checkpoints.networks import NETWORK_KINDS
from admg.checkpoints.openai.families import OTHERS, family_of, known_settings
from admg.checkpoints.weights import shapes_of
from admg.diffusion.config import DiffusionConfig

IMPROVED = DiffusionConfig(noise_schedule="cosine", diffusion_steps=4000, rescale_timesteps=True)
# image size, parameters in millions, heads of the lowest level, process
EXPECTED = {
    "512x512_diffusion_uncond_finetune": (512, 558.0, 16, DiffusionConfig(rescale_timesteps=True)),
    "ffhq_10m (ILVR) and ffhq_p2 (P2 weighting)": (256, 93.6, 8, DiffusionConfig()),
    "improved-diffusion's ImageNet-64": (64, 121.1, 4, IMPROVED),
    "improved-diffusion's CIFAR-10": (32, 52.5, 4, IMPROVED),
    "improved-diffusion's LSUN": (256, 113.7, 1, DiffusionConfig()),
}


def inferred(config: openai.OpenAIConfig, **changes) -> openai.OpenAIConfig:
    """What shapes alone say of the network of this configuration with these changes."""
    network = dataclasses.replace(config.network, **changes)
    return openai.infer(shapes_of(NETWORK_KINDS[config.kind].network, network), kind=config.kind)


@pytest.mark.thorough
@pytest.mark.parametrize("name", OTHERS)
def test_known_models_are_recognised_by_their_shapes(name):
    size, millions, heads, process = EXPECTED[name]
    found = family_of(inferred(known_settings()[name]))
    assert (found.name, found.relabelled, found.config.diffusion) == (name, False, process)
    network, last = found.config.network, len(found.config.network.channel_mult) - 1
    assert network.image_size == size and network.heads(network.width(last)) == heads
    with torch.device("meta"):
        count = sum(p.numel() for p in NETWORK_KINDS["diffusion"].network(network).parameters())
    assert count / 1e6 == pytest.approx(millions, abs=0.06)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("name", "classes"),
    [("imagenet-64", 10), ("imagenet-128", 0), ("imagenet-256-classifier", 37), ("imagenet-64-to-256", 5)],
)
def test_a_fine_tune_with_other_labels_has_the_settings_of_the_published_model(name, classes):
    published = known_settings()[f"openai/{name}"]
    found = family_of(inferred(published, num_classes=classes))
    assert found.name == f"openai/{name}" and found.relabelled
    assert found.config.network == dataclasses.replace(published.network, num_classes=classes)
    assert found.config.diffusion == published.diffusion


@pytest.mark.thorough
def test_a_fine_tune_of_lsun_is_the_unconditional_network_of_256_pixels():
    found = family_of(inferred(known_settings()["openai/lsun-cat"]))
    assert found.name == "openai/imagenet-256-uncond" and not found.relabelled
    lsun, settings = known_settings()["openai/lsun-cat"], found.config
    assert dataclasses.replace(settings.network, dropout=0.1) == lsun.network and settings.diffusion == lsun.diffusion


@pytest.mark.thorough
def test_the_note_names_the_model_and_that_the_labels_differ():
    config = dataclasses.replace(known_settings()["openai/imagenet-64"].network, num_classes=7)
    state = {n: torch.empty(s, device="meta") for n, s in shapes_of(NETWORK_KINDS["diffusion"].network, config).items()}
    with pytest.warns(UserWarning) as notes:
        model = openai.load(state)
    assert len(notes) == 1 and "its shapes except for the labels are those of openai/imagenet-64" in str(
        notes[0].message
    )
    assert model.labels.count == 7 and model.network.config.new_attention_order
    assert model.config.noise_schedule == "cosine"
