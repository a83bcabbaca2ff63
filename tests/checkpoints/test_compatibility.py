"""What belongs together: every fact of every pair is refused or said, and all published pairs fit."""

from __future__ import annotations

import dataclasses
import warnings
from dataclasses import replace

import pytest
import torch
from torch import nn

from admg import guidance
from admg.checkpoints.compatibility import Facts, check_pair, facts_in, facts_of
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Classifier, Model
from admg.checkpoints.openai import published_flags
from admg.checkpoints.openai.flags import parse
from admg.checkpoints.provenance import label_dropout
from admg.checkpoints.published import PUBLISHED
from admg.diffusion.config import DiffusionConfig
from admg.diffusion.schedule import NoiseSchedule

PETS = Labels(2, ("cat", "dog"))
BASE = Facts(
    "the first", PETS, True, 3, 64, NoiseSchedule.linear(100), "linear, 100", "eps", "learned_range", (64,), "1"
)
OTHERS = {
    "names": ({"labels": Labels(2, ("cat", "fox"))}, "label 1 is 'dog' for the first and 'fox' for the second"),
    "order": (
        {"labels": Labels(2, ("dog", "cat"))},
        r"label 0 is 'cat' .*\(the same names in another order\)",
    ),
    "count": ({"labels": Labels(3)}, "the second has 3 labels, the first 2"),
    "nameless": ({"labels": Labels(2)}, "the labels of the second have no names"),
    "channels": ({"channels": 1}, "the second expects images of 1 channels, the first of 3"),
    "size": ({"size": 32}, "the second expects images of 32 pixels, the first of 64"),
    "timesteps": ({"schedule": NoiseSchedule.linear(50)}, "timesteps 0 to 99 .*, the second on 0 to 49"),
    "noise": (
        {"schedule": NoiseSchedule.cosine(100)},
        "at timestep 40, 82 % of .* and 37 % for the second",
    ),
    "predict": ({"predict": "v"}, "the first predicts eps, the second v"),
    "variance": ({"variance": "learned"}, "the first has the variance learned_range, the second learned"),
    "attention": ({"attention": "2"}, "the first has 1, the second 2"),
}
EXPECTED = {  # r: refused, n: noted, -: not compared
    "classifier": "rrrnrrrn---",
    "bad model": "rrrnrrrr---",
    "upsampler": "rrrnr------",
    "init": "------nnrrr",
    "resume": "rrr-rrrrrrr",
}


@pytest.mark.parametrize("pair", EXPECTED)
def test_each_fact_of_each_pair_is_refused_or_said(pair):
    for kind, (changes, message) in zip(EXPECTED[pair], OTHERS.values(), strict=True):
        other = replace(BASE, title="the second", **changes)
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            if kind == "r":
                with pytest.raises(ValueError, match=f"the first and the second do not belong together: .*{message}"):
                    check_pair(pair, BASE, other)
            else:
                check_pair(pair, BASE, other)
        assert len(said) == (kind == "n"), (changes, [str(note.message) for note in said])
    nothing = Facts("the second")  # of a network of the user's, for example
    check_pair(pair, BASE, nothing)
    check_pair(pair, nothing, BASE)


def test_the_same_noise_by_other_timesteps_is_the_same_process():
    """4000 rescaled steps reach the noise of 1000 steps at the same timesteps; 4000 steps as they are do not."""
    thousand = replace(BASE, schedule=NoiseSchedule.linear(1000))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_pair("classifier", thousand, replace(thousand, schedule=NoiseSchedule.linear(4000).rescaled()))
        check_pair("classifier", thousand, replace(thousand, labels=Labels(2, ("cat", "dog"))))
    with pytest.raises(ValueError, match=r"timesteps 0 to 999 .*, the second on 0 to 3999"):
        check_pair("classifier", thousand, replace(thousand, title="the second", schedule=NoiseSchedule.linear(4000)))


def test_names_are_compared_in_one_form_of_unicode():
    composed, decomposed = Labels(1, ("caf\u00e9",)), Labels(1, ("cafe\u0301",))
    check_pair("classifier", replace(BASE, labels=composed), replace(BASE, labels=decomposed))


def published(name: str) -> Facts:
    flags = published_flags.PUBLISHED_FLAGS[name]
    config = parse(flags.flags, flags.kind)
    network: nn.Module = nn.Identity()
    object.__setattr__(network, "config", config.network)
    labels = Labels.imagenet() if config.network.num_classes else Labels(0)
    n, process = config.network, config.diffusion.build()
    if flags.kind == "classifier":
        return replace(
            facts_of(Classifier(lambda x, t: x, process, labels, config.diffusion), name),
            channels=n.image_channels, size=n.image_size,
        )  # fmt: skip
    return facts_of(
        Model(network, process, (n.image_channels, n.image_size, n.image_size), labels, config.diffusion), name
    )


def test_all_published_pairs_belong_together():
    """The pair for 64 pixels alone has different schedules, which is said."""
    said = {}
    for name, model in PUBLISHED.items():
        for pair, other in (("classifier", model.classifier), ("upsampler", None)):
            if other:
                with warnings.catch_warnings(record=True) as notes:
                    warnings.simplefilter("always")
                    check_pair(pair, published(name), published(other))
                said[name] = [str(note.message) for note in notes]
        if model.base:
            check_pair("upsampler", published(model.base), published(name))
    assert {name for name, notes in said.items() if notes} == {"openai/imagenet-64"} and len(said) == 5
    assert "(cosine schedule, 1000 steps)" in said["openai/imagenet-64"][0]


def test_the_facts_of_a_folder_are_those_of_the_model(tiny_model, tiny_classifier, tmp_path):
    for part in (tiny_model, tiny_classifier):
        part.save(tmp_path / type(part).__name__)
        loaded, read = facts_of(part, "it"), facts_in(tmp_path / type(part).__name__, "it")
        for name in ("conditional", "channels", "size", "process", "predict", "variance", "widths", "attention"):
            assert getattr(loaded, name) == getattr(read, name), name
        assert loaded.labels.names == read.labels.names
        assert torch.equal(loaded.schedule.alpha_bar, read.schedule.alpha_bar)
    assert facts_of(tiny_model.respace(5), "it").schedule is tiny_model.diffusion.schedule  # at all its steps
    custom = replace(tiny_model, diffusion=DiffusionConfig(noise_schedule="cosine", diffusion_steps=100).build())
    assert facts_of(custom, "it").process == "custom schedule, 100 steps"  # whatever the config says


# -- images without a label ------------------------------------------------------------------------------------------


def test_what_training_knows_of_dropped_labels():
    train = "admg train --data d --out o"
    for training, expected in (
        ({}, None),
        ({"label_dropout": 0}, 0.0),
        ({"label_dropout": 0.25}, 0.25),
        ({"command": f"{train} --label-dropout 0.4"}, 0.4),
        ({"command": f"{train} --label-dropout=0"}, 0.0),
        ({"command": train}, 0.1),
        ({"command": f"{train} --config c.toml"}, None),
        ({"command": "admg train-classifier --data d"}, None),
        ({"label_dropout": 0, "init": {"label_dropout": 0.3}}, 0.3),  # it once was
        ({"label_dropout": 0, "init": {"label_dropout": 0}}, 0.0),
        ({"label_dropout": 0, "init": {"model": "x"}}, None),
        ({"label_dropout": 0.2, "init": {"label_dropout": 0}}, 0.2),
    ):
        assert label_dropout(training) == expected, training


def test_a_network_that_never_missed_its_label_has_no_unconditional_prediction(tiny_model):
    x, y = torch.zeros(2, 1, 8, 8), torch.tensor([0, 1])
    never = replace(tiny_model, training={"label_dropout": 0.0})
    never.predict(x, 0, y)
    for call in (lambda: never.predict(x, 0), lambda: never.predict_both(x, 0, y)):
        with pytest.raises(ValueError, match=r"never trained without labels.* use label dropout"):
            call()
    with pytest.warns(UserWarning, match="not known whether this model was ever trained without labels"):
        replace(tiny_model, training={}).predict(x, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        tiny_model.predict(x, 0)


# -- networks and what is said of them -------------------------------------------------------------------------------


def test_a_network_that_contradicts_what_is_said_of_it(tiny_model, tiny_classifier):
    with pytest.raises(ValueError, match="takes_labels=False contradicts the network: this UNet is conditioned on 5"):
        replace(tiny_model, takes_labels=False)
    unlabelled = type(tiny_model.network)(dataclasses.replace(tiny_model.network.config, num_classes=0))
    with pytest.raises(ValueError, match="takes_labels=True contradicts the network: this UNet takes no labels"):
        replace(tiny_model, network=unlabelled, takes_labels=True)
    plain = nn.Sequential()
    plain.forward = lambda x, timesteps: x
    with pytest.raises(ValueError, match=r"takes_labels=True .* Sequential.forward has no parameter y"):
        replace(tiny_model, network=plain, takes_labels=True)
    with pytest.raises(ValueError, match="the network is conditioned on 5 labels, but there are 6"):
        replace(tiny_model, labels=Labels(6))
    with pytest.raises(ValueError, match="the classifier has 5 classes, but there are 6 labels"):
        replace(tiny_classifier, labels=Labels(6))
    with pytest.raises(ValueError, match=r"called with \(x, timesteps\), but Linear takes \(input"):
        replace(tiny_classifier, network=nn.Linear(2, 2))
    with pytest.raises(ValueError, match="ExtendedClassifierGuidance"):
        guidance.ClassifierGuidance(nn.Linear(2, 2))
