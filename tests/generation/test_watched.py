"""Samplers that are watched: what the function sees, that the images stay the same, that it can end the sampling."""

from __future__ import annotations

import functools

import pytest
import torch

import admg
from admg import samplers
from admg.generation import Watched
from admg.generation.identity import identify_sampler
from admg.generation.sampler_specs import sampler_name, sampler_options, set_options


@pytest.mark.thorough
def test_each_step_of_each_batch_is_seen_with_its_images(tiny_model):
    seen, x = [], {}

    def on_step(step, images):
        seen.append((step.index, images))
        x[images] = step.x.clone()

    watched = Watched("ddpm", on_step)
    samples = admg.sample(tiny_model, "two", num=5, sampler=watched, steps=3, batch_size=2, progress=False)
    assert seen == [(i, images) for images in (range(0, 2), range(2, 4), range(4, 5)) for i in (2, 1, 0)]
    assert torch.equal(torch.cat([*x.values()]), samples.x)
    plain = admg.sample(tiny_model, "two", num=5, sampler="ddpm", steps=3, batch_size=2, progress=False)
    assert torch.equal(plain.x, samples.x)


def test_an_exception_ends_the_sampling_at_that_step(tiny_model):
    seen = []

    def on_step(step, images):
        seen.append(step.index)
        if len(seen) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        admg.sample(tiny_model, "two", sampler=Watched("ddim", on_step), steps=5, progress=False)
    assert seen == [4, 3]


def test_a_batch_that_ran_out_of_memory_begins_again_at_its_first_image(tiny_model):
    seen, failed = [], []

    def on_step(step, images):
        if len(images) == 4 and step.index == 0 and not failed:
            failed.append(images)
            raise torch.OutOfMemoryError("out of memory")
        if step.index == 0:
            seen.append(images)

    admg.sample(tiny_model, "two", num=4, sampler=Watched("ddim", on_step), steps=2, progress=False)
    assert failed == [range(0, 4)] and seen == [range(0, 2), range(2, 4)]


def test_watching_changes_no_name_and_no_record(tiny_model):
    noisy = functools.partial(samplers.ddim, eta=0.5)
    watched = Watched(noisy, print)
    assert sampler_name(watched) == "ddim" and set_options(watched) == {"eta": 0.5}
    assert identify_sampler(watched) == "ddim" and sampler_options(watched) == {"eta": 0.5}
    with pytest.raises(ValueError, match="unknown sampler 'ddin'"):
        Watched("ddin", print)
