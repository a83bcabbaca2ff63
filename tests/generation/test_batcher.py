"""Requests that are sampled together: their images, the calls that they share, and what happens to errors."""

from __future__ import annotations

import threading
from concurrent.futures import CancelledError
from dataclasses import replace

import pytest
import torch
from torch import nn

import admg
from admg import guidance
from admg.generation import Batcher
from admg.generation.batching import Call, CallBatcher


class Counted(nn.Module):
    """A network that records the number of images of each call, and may be stopped before a call."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network, self.sizes, self.config = network, [], network.config
        self.go = threading.Event()
        self.go.set()

    def forward(self, x, timesteps, **labels):
        self.go.wait(20)
        self.sizes.append(len(x))
        return self.network(x, timesteps, **labels)


@pytest.fixture
def double(tiny_model, tiny_classifier):
    """The small model and classifier in float64, in which batches differ by 1e-15."""
    tiny_model, tiny_classifier = (
        replace(part, network=type(part.network)(part.network.config).double())
        for part in (tiny_model, tiny_classifier)
    )
    for part, seed in ((tiny_model, 0), (tiny_classifier, 1)):
        generator = torch.Generator().manual_seed(seed)
        for p in part.network.requires_grad_(False).parameters():
            p.copy_(0.1 * torch.randn(p.shape, generator=generator, dtype=p.dtype))
    return tiny_model, tiny_classifier


def counted(part):
    return replace(part, network=Counted(part.network))


def requests(classifier) -> list[dict]:
    guided = guidance.ClassifierGuidance(classifier, 2.0)
    return [
        {"labels": 1, "steps": 3},
        {"labels": [0, 4], "steps": 5, "guide": guided, "sampler": "ddpm", "seed": 3},
        {"labels": [2, None, 3], "steps": 4, "guide": guided + guidance.ClassifierFreeGuidance(2.0), "sampler": "heun"},
        {"labels": 2, "steps": 6, "guide": guidance.Reused(0.5 * guided), "unconditional": True, "sampler": "dpmpp_2m"},
        {"labels": 3, "steps": 3, "guide": guidance.PerturbedAttentionGuidance(3.0)},
        {"labels": 3, "steps": 3, "guide": guidance.LossGuidance(lambda x0: x0.square().flatten(1).sum(1), 0.1)},
        {"labels": [4] * 5, "steps": 3, "guide": guidance.ExtendedClassifierGuidance(classifier, 2.0, temperature=2.0)},
        {"labels": None, "num": 3, "steps": 2, "bound_guidance": False},
    ]


@pytest.mark.thorough
def test_images_are_those_of_each_request_alone(double):
    model, classifier = double
    with Batcher(model, max_images=4) as batcher:
        futures = [batcher.submit(**request) for request in requests(classifier)]
        found = [future.result() for future in futures]
    for request, samples in zip(requests(classifier), found):
        alone = admg.sample(model, progress=False, **request)
        assert samples.label_names == alone.label_names and torch.equal(samples.labels, alone.labels)
        assert samples.x.dtype == torch.float64 and (samples.x - alone.x).abs().max() < 1e-10, request


def test_equal_requests_share_every_call(double):
    model, classifier = map(counted, double)
    with Batcher(model) as batcher:
        model.network.go.clear()
        guide = guidance.ClassifierGuidance(classifier, 2.0)
        futures = [batcher.submit(label, steps=4, seed=label, guide=guide) for label in range(5)]
        model.network.go.set()
        assert all(len(future.result()) == 1 for future in futures)
    calls = model.network.sizes
    assert sum(calls) == 20 and len(calls) <= 4 + 1  # one more if a thread came late to the first call
    assert sum(classifier.network.sizes) == 20 and len(classifier.network.sizes) <= 4 + 1


def test_guidance_in_an_empty_interval_is_noted(double):
    model, classifier = double
    guide = guidance.Interval(guidance.ClassifierGuidance(classifier, 2.0), 1e-9, 1e-8)
    with Batcher(model) as batcher, pytest.warns(UserWarning, match="limited to this interval has no effect"):
        batcher.submit(1, steps=2, guide=guide).result()


def test_a_call_has_no_more_images_than_allowed_and_a_large_request_is_divided(double):
    model = counted(double[0])
    with Batcher(model, max_images=3, max_requests=2) as batcher:
        futures = [batcher.submit([label] * count, steps=2) for label, count in ((1, 5), (2, 2), (3, 1))]
        assert [len(future.result()) for future in futures] == [5, 2, 1]
    assert max(model.network.sizes) <= 3 and sum(model.network.sizes) == 2 * (5 + 2 + 1)


def test_images_with_and_without_labels_share_calls_of_our_networks(double):
    model, _ = double
    sizes = []
    handle = model.network.register_forward_pre_hook(lambda module, given: sizes.append(len(given[0])))
    guide = guidance.ClassifierFreeGuidance(2.0)
    with Batcher(model) as batcher:
        first = batcher.submit([1, None], steps=3, guide=guide)
        second = batcher.submit(None, num=1, steps=3, unconditional=True)
        found = first.result(), second.result()
    handle.remove()
    assert sum(sizes) == 3 * (2 + 2 + 1) and len(sizes) <= 2 * 3 + 1
    for samples, options in zip(found, ({"labels": [1, None], "guide": guide}, {"num": 1, "unconditional": True})):
        alone = admg.sample(model, **options, steps=3, progress=False)
        assert (samples.x - alone.x).abs().max() < 1e-10


def call(key: str, images: int = 1) -> Call:
    x = torch.zeros(images, 1)
    return Call((key,), x, torch.zeros(images), None, {}, lambda x, t, y, given: x)


def test_the_largest_group_is_called_first_and_no_other_is_passed_over_twice():
    batcher = CallBatcher(max_images=8)
    few, many = call("a"), [call("b", 2), call("b", 3)]
    batcher.calls = [few, *many]
    assert batcher._select_batch() == many and few.skipped
    batcher.calls = [few, *(again := [call("b", 3), call("b", 3)])]
    assert batcher._select_batch() == [few] and all(c.skipped for c in again)
    batcher.close()


def test_an_error_is_that_of_its_request_alone(double):
    model, _ = double

    class Fragile(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.network, self.config = model.network, model.network.config

        def forward(self, x, timesteps, y=None):
            if y is not None and bool((y == 4).any()):
                raise RuntimeError("label 4 breaks")
            return self.network(x, timesteps, y=y)

    def broken(state):
        raise ValueError("no gradient")

    with Batcher(replace(model, network=Fragile())) as batcher:
        good = [batcher.submit(label, steps=3, seed=label) for label in range(3)]
        bad = batcher.submit(4, steps=3), batcher.submit(1, steps=3, guide=broken)
        found = [future.result() for future in good]
        with pytest.raises(RuntimeError, match="label 4 breaks"):
            bad[0].result()
        with pytest.raises(ValueError, match="no gradient"):
            bad[1].result()
    for label, samples in enumerate(found):
        assert (samples.x - admg.sample(model, label, steps=3, seed=label, progress=False).x).abs().max() < 1e-10


def test_what_is_wrong_is_said_when_it_is_asked_for(double):
    model, _ = double
    with pytest.raises(ValueError, match="max_images must be at least 1, got 0"):
        Batcher(model, max_images=0)
    with Batcher(model) as batcher:
        for wrong, message in (
            ({"labels": 5}, "5"),
            ({"labels": 1, "steps": 0}, "step"),
            ({"labels": 1, "sampler": "euler"}, "euler"),
            ({"labels": 1, "seed": -1}, "seed must be at least 0"),
        ):
            with pytest.raises(ValueError, match=message):
                batcher.submit(**wrong)


def test_an_upsampler_is_refused_without_small_images(tiny_upsampler):
    with Batcher(tiny_upsampler) as batcher, pytest.raises(ValueError, match="needs low_res, the small images"):
        batcher.submit(1, steps=2)


def test_networks_are_in_evaluation_mode_until_the_end(double):
    model, classifier = double
    model.network.train()
    classifier.network.train()
    with Batcher(model) as batcher:
        done = batcher.submit(1, steps=2, guide=guidance.ClassifierGuidance(classifier, 1.0))
        assert not model.network.training and not classifier.network.training
        done.result()
        assert not model.network.training
    assert model.network.training and classifier.network.training


def test_an_exception_gives_up_what_is_not_done(double):
    model = counted(double[0])
    with pytest.raises(KeyboardInterrupt), Batcher(model, max_requests=1) as batcher:
        model.network.go.clear()
        futures = [batcher.submit(1, steps=50) for _ in range(3)]
        threading.Timer(0.1, model.network.go.set).start()
        raise KeyboardInterrupt
    assert all(future.cancelled() or isinstance(future.exception(), CancelledError) for future in futures)
    assert len(model.network.sizes) < 50
