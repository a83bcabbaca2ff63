"""A guide that does not belong to the model is refused in Python and by the commands."""

from __future__ import annotations

from dataclasses import replace

import pytest
from helpers import refused, run
from torch import nn

import admg
from admg import guidance
from admg.checkpoints.labels import Labels


def test_guides_that_do_not_belong_to_the_model_are_refused_wherever_they_are(tiny_model, tiny_classifier):
    names = ("zero", "one", "two", "three", "four")
    foreign = replace(tiny_classifier, labels=Labels(5, names))
    calibrated = guidance.Calibrated(foreign, (0.0,), (1.0,))
    inner = guidance.ClassifierGuidance(foreign)
    options = {"steps": 1, "progress": False}
    for guide in (inner, guidance.ClassifierGuidance(calibrated), 2 * inner, guidance.Interval(inner + inner),
                  (lambda state: None) + inner, guidance.GradientFreeGuidance(foreign)):  # fmt: skip
        with pytest.raises(ValueError, match="label 3 is 'T-shirt/top' for the model and 'three' for the classifier"):
            admg.sample(tiny_model, [0], guide=guide, **options)
    admg.sample(tiny_model, [0], guide=guidance.ClassifierGuidance(lambda x, t: foreign(x, t)), **options)
    weights = guidance.ExtendedClassifierGuidance(foreign, labels={3: 1.0})  # whose labels are not the sampler's
    admg.sample(tiny_model, [0], guide=weights, **options)
    bad = replace(tiny_model, labels=Labels(5, names))
    with pytest.raises(ValueError, match="'T-shirt/top' for the model and 'three' for the bad model"):
        admg.sample(tiny_model, [0], guide=guidance.AutoGuidance(bad), **options)
    unlabelled = replace(tiny_model, labels=Labels(0), network=nn.Identity(), takes_labels=False)
    with pytest.raises(ValueError, match="do not belong together: label 3"):  # two classifiers of one label
        admg.sample(unlabelled, [0], guide=guidance.ClassifierGuidance(tiny_classifier) + inner, **options)


@pytest.mark.thorough
def test_commands_refuse_and_say_it_in_one_line(capsys, tmp_path, tiny_folders, tiny_classifier):
    config = replace(tiny_classifier.config, noise_schedule="cosine")
    replace(tiny_classifier, config=config, diffusion=config.build()).save(tmp_path / "cosine")
    sample = ["sample", "--model", tiny_folders["model"], "--steps", 1, "--num", 1, "--precision", "fp32", "--scale", 1]
    code, _, said = run(capsys, *sample, "--classifier", tmp_path / "cosine", "--out", tmp_path / "a")
    assert code == 0 and said.count("note: at timestep") == 1 and "so guidance is approximate" in said
    config = replace(config, diffusion_steps=1000)
    replace(tiny_classifier, config=config, diffusion=config.build()).save(tmp_path / "long")
    line = refused(capsys, *sample, "--classifier", tmp_path / "long", "--out", tmp_path / "b")
    assert "the model was trained on timesteps 0 to 99" in line and not (tmp_path / "b").exists()
