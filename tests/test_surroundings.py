"""What surrounds a call changes nothing: autocast, default types, modes, and attributes of users' own objects."""

from __future__ import annotations

import abc
import functools
import sys
from dataclasses import dataclass, field, replace
from types import ModuleType

import numpy as np
import pytest
import torch
from torch import nn

import admg
from admg import guidance, samplers
from admg.data import from_arrays
from admg.diffusion import Diffusion, NoiseSchedule
from admg.engine import accelerate
from admg.evaluation import features
from admg.generation.identity import identify
from admg.generation.modes import evaluation_mode, modules_in
from admg.guidance.base import Guidance, Wrapper, begin

QUICK = {"steps": 3, "progress": False}


@pytest.mark.parametrize("count", [1, 2, 3])
def test_an_autocast_of_the_caller_does_not_change_samples(tiny_model, tiny_classifier, count):
    """Whatever the number of images, which two threads may divide."""
    guide = guidance.ClassifierGuidance(tiny_classifier, 2.0)
    expected = admg.sample(tiny_model, [1] * count, guide=guide, **QUICK).x
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(admg.sample(tiny_model, [1] * count, guide=guide, **QUICK).x, expected)


def test_features_are_float32_also_in_an_autocast():
    network = features.load(nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(4 * 36, 5)))
    images = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)
    expected = network(images).features
    with torch.autocast("cpu", torch.bfloat16):
        assert np.array_equal(network(images).features, expected)


@pytest.mark.parametrize("name", ["guide", "y", "noise_sampler", "unconditional"])
def test_what_every_run_passes_cannot_be_set_by_partial(tiny_model, name):
    sampler = functools.partial(samplers.ddim, **{name: None})
    with pytest.raises(ValueError, match=f"{name} cannot be set on a sampler by functools.partial"):
        admg.sample(tiny_model, [1], sampler=sampler, **QUICK)
    unclipped = functools.partial(samplers.ddim, clip=False, eta=0.5)
    assert len(admg.sample(tiny_model, [1], sampler=unclipped, **QUICK)) == 1


@dataclass(frozen=True)
class Doubled(Wrapper):
    """A guide of a user, whose field is changed after its initialisation, and which keeps a history."""

    factor: float = 1.0
    steps: list = field(default_factory=list, init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "factor", 2 * self.factor)
        object.__setattr__(self, "extra", 1.0)

    def __call__(self, state):
        self.steps.append(state.index)
        return self.factor * self.extra * torch.ones_like(state.x)


@dataclass
class Around:
    """A guide with a network, which acceleration replaces."""

    network: nn.Module
    factor: float

    def __post_init__(self) -> None:
        self.factor *= 3

    def __call__(self, state):
        return self.factor * self.scale * torch.ones_like(state.x)


def test_guides_keep_their_attributes_and_are_initialised_once(tiny_model, tiny_classifier):
    doubled = Doubled(lambda state: None, 2.0)
    object.__setattr__(doubled, "extra", 5.0)
    assert begin(doubled).factor == 4 and begin(doubled).extra == 5
    expected = admg.sample(tiny_model, [1], guide=lambda state: 20 * torch.ones_like(state.x), **QUICK).x
    assert torch.equal(admg.sample(tiny_model, [1], guide=doubled, **QUICK).x, expected)
    assert doubled.steps == [2, 1, 0]
    around = Around(tiny_classifier.network, 2.0)
    around.scale = 20 / 6
    found = admg.sample(tiny_model, [1], guide=around, precision="bf16", **QUICK).x
    other = admg.sample(tiny_model, [1], guide=lambda state: 20 * torch.ones_like(state.x), precision="bf16", **QUICK).x
    assert (found - other).abs().max() < 1e-4


class Setting(abc.ABC):  # noqa: B024 - has __slots__ = () by its base
    def __init__(self, gain: float) -> None:
        self.gain = gain


class Slotted:
    __slots__ = ("gain",)

    def __init__(self, gain: float) -> None:
        self.gain = gain


class Network(nn.Module):
    def __init__(self, setting: object) -> None:
        super().__init__()
        self.setting = setting


@dataclass
class Pulls:
    strength: float = 1.0

    def __call__(self, state):
        return -self.strength * self.other * state.x


class Darker:
    strength = 0.0

    def __call__(self, state):
        return -self.strength * state.x


own_settings = ModuleType("own_settings")
own_settings.__file__ = __file__
own_settings.strength = 0.0


def by_settings(state):
    return -own_settings.strength * state.x


def test_identities_count_all_that_determines_the_result(monkeypatch):
    monkeypatch.setitem(sys.modules, "own_settings", own_settings)
    for kind in (Setting, Slotted):
        assert identify(Network(kind(1.0))) == identify(Network(kind(1.0))) != identify(Network(kind(2.0)))
    one, other = Pulls(), Pulls()
    one.other, other.other = 1.0, 2.0
    assert identify(one) != identify(other)
    other.other = 1.0
    assert identify(one) == identify(other)
    for changed, guide in ((Darker, Darker()), (own_settings, by_settings)):
        before = identify(guide)
        monkeypatch.setattr(changed, "strength", 3.0)
        assert identify(guide) != before
        monkeypatch.setattr(changed, "strength", 0.0)
        assert identify(guide) == before


class Remembers:
    @functools.cached_property
    def cached(self) -> int:
        return 1

    def __call__(self, state):
        return None


def test_a_cached_value_does_not_change_an_identity():
    guide = Remembers()
    before = identify(guide)
    assert guide.cached == 1 and identify(guide) == before


class Modifies(Guidance):
    shared = nn.Dropout()

    def modify_prediction(self, state):
        return self.helper(state)

    def helper(self, state):
        return dropout(state.x), own_settings.network(state.x)


dropout = nn.Dropout(0.25)


def test_networks_in_any_method_of_a_guide_are_evaluated(monkeypatch):
    monkeypatch.setattr(own_settings, "network", nn.Dropout(0.75), raising=False)
    expected = {Modifies.shared, dropout, own_settings.network}
    assert expected <= set(modules_in([Modifies()]))
    with evaluation_mode(Modifies()):
        assert not any(module.training for module in expected)
    assert all(module.training for module in expected)


def test_a_classifier_is_calibrated_in_evaluation_mode(tiny_classifier):
    class Noisy(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm, self.drop = nn.BatchNorm2d(1), nn.Dropout(0.5)

        def forward(self, x, timesteps):
            return self.drop(self.norm(x)).flatten(1)[:, :5]

    network = Noisy().train()
    images, labels = torch.rand(20, 1, 8, 8) * 2 - 1, torch.arange(20) % 5
    mean = network.norm.running_mean.clone()
    found = guidance.calibrated(network, tiny_classifier.diffusion, images, labels, levels=2)
    again = guidance.calibrated(network.eval(), tiny_classifier.diffusion, images, labels, levels=2)
    assert found.temperatures == again.temperatures and torch.equal(network.norm.running_mean, mean)
    network.train()
    guidance.calibrated(network, tiny_classifier.diffusion, images, labels, levels=1)
    assert all(module.training for module in network.modules())


@pytest.mark.parametrize("name", ["ddpm", "ddim", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m", "unipc"])
def test_a_sample_has_no_gradient_rather_than_a_wrong_one(tiny_model, name):
    x_T = torch.randn(1, 1, 8, 8, requires_grad=True)
    *_, last = getattr(samplers, name)(tiny_model.respace(3), x_T, y=torch.tensor([1]))
    with pytest.raises(RuntimeError, match="does not require grad"):
        last.x.sum().backward()


def test_items_of_a_data_set_are_augmented_at_random():
    images = np.zeros((40, 8, 8), np.uint8)
    images[:, :, 0] = 255
    flipping = from_arrays(images, flip=True)
    torch.manual_seed(0)
    flipped = [bool(x[0, 0, -1] > 0) for x, _ in torch.utils.data.DataLoader(flipping, batch_size=None)]
    assert 8 <= sum(flipped) <= 32  # of 40; fair coins leave this range once in 10,000 times
    assert not any(bool(x[0, 0, -1] > 0) for x, _ in map(from_arrays(images).__getitem__, range(40)))
    rng = torch.get_rng_state()
    assert flipping.get(0)[0][0, 0, 0] > 0 and torch.equal(torch.get_rng_state(), rng)


def test_gradients_in_parts_do_not_wait_for_each_other_in_anomaly_detection(tiny_classifier):
    fast = accelerate(tiny_classifier.network)
    x, t = torch.randn(4, 1, 8, 8), torch.zeros(4)
    with torch.autograd.set_detect_anomaly(True):
        leaf = x.clone().requires_grad_()
        found = torch.autograd.grad(fast(leaf, t).sum(), leaf)[0]
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(found, torch.autograd.grad(fast(leaf, t).sum(), leaf)[0])


def test_a_guide_that_changes_x_in_place_is_refused(tiny_model):
    x_T = torch.randn(1, 1, 8, 8)
    kept = x_T.clone()
    with pytest.raises(ValueError, match=r"the guide has changed state\.x in place"):
        admg.sample(tiny_model, [1], x_T=x_T, guide=lambda state: state.x.mul_(0.5), **QUICK)
    assert torch.equal(x_T, kept)


def test_a_rescaled_schedule_keeps_its_origin():
    schedule = NoiseSchedule.linear(500)
    one, other = schedule.rescaled().respace(5), schedule.respace(5).rescaled()
    assert one.timesteps.tolist() == other.timesteps.tolist() == [0, 250, 500, 748, 998]
    assert torch.equal(one.origin.timesteps, other.origin.timesteps)
    with pytest.raises(ValueError, match="rescaled already"):
        one.rescaled()


def test_the_schedule_of_a_process_is_fixed():
    """Its tables would remain those of the first one."""
    with pytest.raises(AttributeError):
        Diffusion(NoiseSchedule.linear(50)).schedule = NoiseSchedule.cosine(50)


def test_tables_made_in_inference_mode_serve_gradients_later(tiny_model, tiny_classifier):
    process = tiny_model.config.build()
    model = replace(tiny_model, diffusion=process)
    with torch.inference_mode():
        admg.sample(model, [1], **QUICK)
        next(samplers.ddim(model, torch.zeros(1, 1, 8, 8), y=torch.tensor([1])))
    loss = guidance.LossGuidance(lambda x0: x0.square().flatten(1).sum(1), 0.1)
    next(samplers.ddim(model, torch.zeros(1, 1, 8, 8), y=torch.tensor([1]), guide=loss))


class AddsContext(nn.Module):
    def forward(self, x, timesteps, context=None):
        return context.view(-1, 1, 1, 1).expand(-1, *x.shape[1:])


@pytest.mark.parametrize("batch_size", [1, 3, 4])
def test_arguments_with_a_row_per_image_follow_the_batch(batch_size):
    process = admg.DiffusionConfig(diffusion_steps=20, variance="fixed_small", predict="x0", noise_schedule="cosine")
    given = {"context": torch.tensor([-0.5, 0.0, 0.25, 0.5])}
    model = admg.Model(AddsContext(), process.build(), (1, 8, 8), given=given, takes_labels=False)
    found = admg.sample(model, None, num=4, batch_size=batch_size, **QUICK).x
    torch.testing.assert_close(found.mean((1, 2, 3)), given["context"])
    wrong = replace(model, given={"context": torch.zeros(8)})
    with pytest.raises(ValueError, match=r"must have the shape of x, \(2, 1, 8, 8\), got \(8, 1, 8, 8\)"):
        admg.sample(wrong, None, num=2, **QUICK)


def test_labels_that_get_no_image_are_named(tiny_model):
    with pytest.warns(UserWarning, match="2 images for 3 labels: the last labels get none"):
        admg.sample(tiny_model, [0, 1, 2], num=2, **QUICK)


def test_metrics_of_one_name_are_refused():
    images = np.zeros((4, 8, 8, 3), np.uint8)
    metrics = [lambda samples, reference: 1.0, lambda samples, reference: 2.0]
    with pytest.raises(ValueError, match="metrics must have different names, but two are '<lambda>'"):
        admg.evaluate(images, images, metrics, features=nn.Flatten(), cache=False, progress=False)


def test_training_does_not_depend_on_the_default_type(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (8, 8, 8), dtype=np.uint8)
    small = {"channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "head_channels": 32}

    def losses(out: str) -> list[float]:
        config = admg.TrainConfig(steps=2, batch_size=4, precision="fp32", log=("none",), preview_every=10)
        run = admg.train_diffusion(from_arrays(images), tmp_path / out, config, network=small)
        assert {p.dtype for p in run.learner.network.parameters()} == {torch.float32}
        return [row["loss"] for row in run]

    expected = losses("a")
    torch.set_default_dtype(torch.float64)
    try:
        assert losses("b") == pytest.approx(expected, rel=1e-5)
    finally:
        torch.set_default_dtype(torch.float32)
