"""Weights in a network of other labels, channels or sizes: what stays exactly, and what the rest computes."""

from __future__ import annotations

import dataclasses

import pytest
import torch
import torch.nn.functional as F
from helpers import TRUNK, randomised

from admg.checkpoints.initial import Initial, inherited
from admg.checkpoints.labels import Labels
from admg.checkpoints.transfer import initialisation_text, matched, transfer
from admg.checkpoints.weights import CheckpointError
from admg.diffusion.config import DiffusionConfig
from admg.models import ClassifierConfig, NoisyClassifier, SuperResConfig, SuperResUNet, UNet, UNetConfig

PETS = Labels(3, ("cat", "dog", "cow"))
T = torch.tensor([3.0, 7.0], dtype=torch.float64)


def noise(*shape: int) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)


def network(config, seed: int = 0) -> torch.nn.Module:
    kind = {UNetConfig: UNet, SuperResConfig: SuperResUNet, ClassifierConfig: NoisyClassifier}[type(config)]
    return randomised(kind(config), seed).double()


def start(
    first: torch.nn.Module, labels: Labels = PETS, ours: Labels = PETS, **changes
) -> tuple[torch.nn.Module, dict]:
    """Return a network that starts from the first one, and the record."""
    initial = Initial("first", first.config, DiffusionConfig(), labels, {}, first.state_dict())
    changes = {"image_size": first.config.image_size, "num_classes": ours.count} | changes
    second = network(inherited(initial, type(first.config), {}, changes), 1)
    record = transfer(initial, second, ours).record()
    assert record["kept"] + len(record["remade"]) == len(second.state_dict())
    return second, record


def test_the_same_labels_and_images_keep_everything():
    first = network(UNetConfig(**TRUNK, num_classes=3))
    second, record = start(first)
    assert record == {"kept": len(first.state_dict()), "remade": {}, "dropped": []}
    assert all(torch.equal(value, first.state_dict()[name]) for name, value in second.state_dict().items())


def test_rows_of_labels_follow_their_names_and_others_start_from_the_mean():
    first = network(UNetConfig(**TRUNK, num_classes=3))
    ours = Labels(4, ("cow", "fox", "CAT", "dog"))
    second, record = start(first, ours=ours)
    rows, old = second.label_emb.weight, first.label_emb.weight
    assert torch.equal(rows[[0, 2, 3]], old[[2, 0, 1]]) and torch.allclose(rows[1], old.mean(0))
    x = noise(2, 1, 8, 8)
    new, same = second(x, T, torch.tensor([0, 2])), first(x, T, torch.tensor([2, 0]))
    assert torch.equal(new, same)
    assert record["remade"] == {"label_emb.weight": "3 of 4 labels by name, the others from the mean"}


def test_labels_begin_as_the_unconditional_prediction_or_are_dropped():
    x, first = noise(2, 1, 8, 8), network(UNetConfig(**TRUNK))
    second, record = start(first, Labels(0))
    assert torch.equal(second(x, T, torch.tensor([1, 2])), first(x, T))
    assert record["remade"] == {"label_emb.weight": "3 new labels from 0"}
    third, record = start(second, ours=Labels(0))
    assert torch.equal(third(x, T), first(x, T)) and record["dropped"] == ["label_emb.weight"]


@pytest.mark.thorough
@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_a_classifier_gives_a_new_label_the_mean_logit(pool):
    first = network(ClassifierConfig(**TRUNK, num_classes=3, pool=pool))
    second, record = start(first, ours=Labels(3, ("dog", "fox", "cat")))
    x = noise(2, 1, 8, 8)
    old, new = first(x, T), second(x, T)
    expected = torch.stack([old[:, 1], old.mean(1), old[:, 0]], dim=1)
    assert torch.allclose(new, expected, atol=1e-12) and len(record["remade"]) == 2


@pytest.mark.parametrize("kind", [UNetConfig, SuperResConfig])
def test_grey_and_colour_agree_on_grey_images(kind):
    given = {"low_res": noise(2, 1, 4, 4)} if kind is SuperResConfig else {}
    x, grey = noise(2, 1, 8, 8), network(kind(**TRUNK, num_classes=3))
    colour, record = start(grey, image_channels=3)
    rgb = {name: value.expand(-1, 3, -1, -1) for name, value in given.items()}
    ours, theirs = colour(x.expand(-1, 3, -1, -1), T, **rgb), grey(x, T, **given)
    assert torch.allclose(ours.unflatten(1, (2, 3)), theirs[:, :, None].expand(-1, -1, 3, -1, -1), atol=1e-12)
    texts = {"input_blocks.0.0.weight", "out.2.weight", "out.2.bias"}
    assert record["remade"] == dict.fromkeys(texts, "1 to 3 channels")
    grey, _ = start(randomised(colour, 5).double(), image_channels=1)
    ours, theirs = grey(x, T, **given), colour(x.expand(-1, 3, -1, -1), T, **rgb)
    assert torch.allclose(ours, theirs.unflatten(1, (2, 3)).mean(2), atol=1e-12)


def test_other_channels_have_new_first_and_last_layers():
    first = network(UNetConfig(**TRUNK | {"image_channels": 2}, num_classes=3))
    second, record = start(first, image_channels=3)
    texts = {"input_blocks.0.0.weight", "out.2.weight", "out.2.bias"}
    assert record["remade"] == dict.fromkeys(texts, "new for 3 channels")
    assert torch.equal(second.middle_block[1].qkv.weight, first.middle_block[1].qkv.weight)


def test_another_size_keeps_every_weight_and_resizes_the_positions_of_a_pool():
    first = network(UNetConfig(**TRUNK, num_classes=3))
    second, record = start(first, image_size=16)
    x = noise(2, 1, 16, 16)
    assert record["remade"] == {} and torch.equal(first(x, T), second(x, T))
    first = network(ClassifierConfig(**TRUNK, num_classes=3))
    second, record = start(first, image_size=16)
    old, new = (net.out[2].positional_embedding for net in (first, second))
    assert old.shape[1] == 4**2 + 1 and new.shape[1] == 8**2 + 1 and torch.equal(new[:, 0], old[:, 0])
    grid = F.interpolate(old[None, :, 1:].unflatten(2, (4, 4)), 8, mode="bilinear")
    assert torch.equal(new[:, 1:].unflatten(1, (8, 8)), grid[0]) and second(x, T).shape == (2, 3)
    assert record["remade"] == {"out.2.positional_embedding": "4 to 8 positions"}


def test_an_upsampler_may_learn_levels_of_noise_or_forget_them():
    first = network(SuperResConfig(**TRUNK, num_classes=3, small_size=4))
    second, record = start(first, augment_noise=0.5, small_size=2)
    assert set(record["remade"]) == {f"level_embed.{k}.{name}" for k in (0, 2) for name in ("weight", "bias")}
    third, record = start(second, augment_noise=0.0)
    assert len(record["dropped"]) == 4 and third.config.small_size == 2
    x, low_res = noise(2, 1, 8, 8), noise(2, 1, 4, 4)
    assert torch.equal(third(x, T, low_res), first(x, T, low_res))


def test_labels_without_common_names_are_taken_in_order_if_names_are_unknown():
    first = network(UNetConfig(**TRUNK, num_classes=3))
    for labels in (Labels(3), PETS):
        initial = Initial("f.pt", first.config, DiffusionConfig(), labels, {}, first.state_dict(), by_number=True)
        second = network(first.config, 1)
        with pytest.warns(UserWarning, match="are those of this run, in the same order"):
            done = transfer(initial, second, Labels(3, ("x", "y", "z")))
        assert not done.remade and torch.equal(second.label_emb.weight, first.label_emb.weight)
    second, _ = start(first, ours=Labels(3, ("x", "y", "z")))  # both are known by name
    assert torch.allclose(second.label_emb.weight, first.label_emb.weight.mean(0).expand(3, -1))


def test_names_are_matched_exactly_then_in_another_case_then_as_aliases():
    theirs = Labels(4, ("Crane", "crane", "dog", "Cat"), (("bird",), ("machine",), ("hound", "pet"), ("pet",)))
    ours = Labels(6, ("crane", "CRANE", "cat", "hound", "pet", "fox"))
    assert matched(ours, theirs) == [1, None, 3, 2, None, None]


def test_weights_of_another_network_are_refused():
    first = network(UNetConfig(**TRUNK, num_classes=3))
    state = {name: value for name, value in first.state_dict().items() if not name.startswith("out.0")}
    for changed in (state, first.state_dict() | {"more.weight": torch.zeros(1)}):
        initial = Initial("first", first.config, DiffusionConfig(), PETS, {}, changed)
        with pytest.raises(CheckpointError, match=r"first does not fit this network: .*(missing|unexpected)"):
            transfer(initial, network(first.config, 1), PETS)
    fixed = dataclasses.replace(first.config, learn_variance=False, image_channels=3)
    initial = Initial("first", first.config, DiffusionConfig(), PETS, {}, first.state_dict())
    with pytest.raises(CheckpointError, match=r"first does not fit this network: .* of another shape"):
        transfer(initial, network(fixed, 1), PETS)


def test_the_line_for_people_says_all():
    assert initialisation_text({}) == ""
    line = initialisation_text({"model": "a", "start": {"kept": 5, "remade": {"x": "new"}, "dropped": ["y", "z"]}})
    assert line == "started from a: kept 5 tensors, remade x (new), dropped y, z"
