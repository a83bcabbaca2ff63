"""What run.json records of guides and samplers, and that a run is continued only with the same ones."""

from __future__ import annotations

import copy
import functools
import json
import math
from dataclasses import dataclass

import pytest
import torch

import admg
from admg import guidance, samplers
from admg.generation.guide_specs import guide_title
from admg.generation.identity import UnidentifiedError, fingerprint, identify, identify_sampler

PULL = 3.0


def pull(state):
    return -PULL * state.x


def helped(state):
    return pull(state)


@dataclass(frozen=True)
class Pull:
    strength: float
    target: torch.Tensor

    def __call__(self, state):
        return self.strength * (self.target - state.x)


class Idle:
    """A guide whose state cannot be read."""

    def __init__(self):
        self.generator = torch.Generator()

    def __call__(self, state):
        return None


class Stateful:
    def __init__(self, strength):
        self.strength = strength

    def __call__(self, state):
        return -self.strength * state.x


def captured(strength):
    return lambda state: -strength * state.x


def test_descriptions_are_json_and_differ_where_images_would(tiny_classifier, tiny_model):
    guides = [
        None,
        guidance.ClassifierGuidance(tiny_classifier, 2.0),
        guidance.ClassifierGuidance(tiny_classifier, 3.0),
        guidance.AutoGuidance(tiny_model, 2.0),
        guidance.Interval(guidance.ClassifierFreeGuidance(2.0), 0.3, math.inf),
        guidance.ClassifierFreeGuidance(2.0) + pull,
        guidance.ClassifierFreeGuidance(2.0) + captured(1.0),
        guidance.ClassifierFreeGuidance(2.0) + captured(2.0),
        pull,
        helped,
        captured(1.0),
        captured(2.0),
        functools.partial(pull),
        Pull(1.0, torch.zeros(2)),
        Pull(1.0, torch.ones(2)),
        Stateful(1.0),
        Stateful(2.0),
        Stateful(1.0).__call__,
    ]
    texts = [json.dumps(identify(guide)) for guide in guides]
    assert len(set(texts)) == len(guides)
    again = [identify(Pull(1.0, torch.zeros(2))), identify(captured(2.0)), identify(Stateful(1.0))]
    assert [json.dumps(text) for text in again] == [texts[13], texts[11], texts[15]]


class Scaled(torch.nn.Module):
    """A network with a setting, and a buffer that state_dict() leaves out."""

    def __init__(self, gain=1.0, offset=0.0, p=1.0):
        super().__init__()
        self.gain, self.p = gain, p
        self.layer = torch.nn.Conv2d(1, 1, 3, padding=1)
        torch.nn.init.ones_(self.layer.weight)
        torch.nn.init.zeros_(self.layer.bias)
        self.register_buffer("offset", torch.tensor(offset), persistent=False)

    def forward(self, x, timesteps):
        return torch.tanh(self.gain * self.layer(x) + self.offset) ** self.p


class Sigmoid(Scaled):
    def forward(self, x, timesteps):
        return torch.sigmoid(self.gain * self.layer(x) + self.offset)


@dataclass(repr=False)
class Doubled(admg.Model):
    factor: float = 2.0

    def predict(self, x, t, y=None, clip=True):
        return super().predict(self.factor * x, t, y, clip)


def hooked(factor):
    network = Scaled()
    network.layer.register_forward_hook(lambda layer, inputs, output: factor * output)
    return network


def circular(network):
    network = copy.deepcopy(network)
    network.input_blocks[0][0].padding_mode = "circular"
    return network


def test_networks_with_equal_weights_and_other_outputs_differ(tiny_model):
    """Neither a run nor a cached measurement of one of them is that of another."""
    noise = admg.Diffusion(admg.NoiseSchedule.linear(100), "eps", "fixed_small")
    networks = [Scaled(), Scaled(gain=2.0), Scaled(offset=1.0), Scaled(p=3.0), Sigmoid(), hooked(1.0), hooked(2.0),
                tiny_model.network, circular(tiny_model.network)]  # fmt: skip
    networks += [torch.nn.Sequential(torch.nn.Conv2d(1, 1, 1), after) for after in
                 (torch.nn.ReLU(), torch.nn.Tanh(), torch.nn.AvgPool2d(2), torch.nn.AvgPool2d(4))]  # fmt: skip
    for network in networks[-4:]:
        network.load_state_dict(networks[-1].state_dict())
    functions = [lambda x, t: x, lambda x, t: 2 * x]
    kinds = [Doubled, functools.partial(Doubled, factor=3.0)]
    models = [admg.Model(network, noise, (1, 8, 8)) for network in (*networks, *functions)]
    models += [kind(Scaled(), noise, (1, 8, 8)) for kind in kinds]
    for things in (networks, models):
        texts = [json.dumps(identify(thing)) for thing in things]
        assert len(set(texts)) == len(texts) and texts == [json.dumps(identify(thing)) for thing in things]
    assert identify(tiny_model.network).keys() == {"type", "weights"}  # its config says the rest


@pytest.mark.thorough
def test_any_changed_weight_changes_the_fingerprint(tiny_model):
    """The last number of every tensor, and no sum of them: two that are swapped count too."""
    tiny_model = copy.deepcopy(tiny_model)
    seen = {fingerprint(tiny_model)}
    for parameter in tiny_model.network.parameters():
        with torch.no_grad():
            last = parameter.flatten()[-1].item()
            parameter.view(-1)[-1] = last + 1e-3
            seen.add(fingerprint(tiny_model))
            parameter.view(-1)[-1] = last
    assert len(seen) == 1 + len(list(tiny_model.network.parameters()))
    weight = tiny_model.network.input_blocks[0][0].weight
    with torch.no_grad():
        weight.copy_(weight.flip(0))
    assert fingerprint(tiny_model) not in seen


def test_global_variables_that_a_function_uses_are_part_of_it(monkeypatch):
    before = identify(pull), identify(helped)
    monkeypatch.setitem(globals(), "PULL", 4.0)
    after = identify(pull), identify(helped)
    assert before[0]["captured"] == {"PULL": 3.0} and before[0] != after[0] and before[1] != after[1]


def test_an_object_without_readable_state_is_not_identified():
    with pytest.raises(UnidentifiedError, match="Generator"):
        identify(Pull(1.0, torch.Generator()))


def test_samplers():
    assert identify_sampler("unipc") == identify_sampler(samplers.unipc) == "unipc"
    assert identify_sampler(functools.partial(samplers.ddim, eta=0.5)) == "ddim"  # options are recorded beside it

    def mine(model, x_T, **options):
        yield from samplers.ddim(model, x_T, **options)

    assert identify_sampler(mine)["function"].endswith("mine")


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("first", "second", "message"),
    [
        (guidance.ClassifierFreeGuidance(2.0), guidance.ClassifierFreeGuidance(2.5), "guide.scale is 2.0 there, 2.5"),
        (captured(1.0), captured(2.0), "guide.captured.strength is 1.0 there, 2.0 here"),
        (pull, None, "guide.function is pull there, unset here"),
        (Idle(), Idle(), "cannot be continued: its guide cannot be identified: it holds Generator, whose source"),
    ],
)
def test_a_run_with_another_guide_is_refused(tiny_model, tmp_path, first, second, message):
    options = {"steps": 2, "precision": "fp32", "progress": False, "out": tmp_path}
    assert admg.generate(tiny_model, [0, 1], guide=first, **options).finished
    with pytest.raises(ValueError, match=message.replace(".", r"\.")):
        admg.generate(tiny_model, [0, 1], guide=second, **options)


@pytest.mark.thorough
def test_the_command_and_python_make_one_run(capsys, tiny_folders, tmp_path):
    """The same settings from Python find the finished run of the command."""
    from helpers import run

    folders, out = tiny_folders, tmp_path / "out"
    command = ["sample", "--model", folders["model"], "--classifier", folders["classifier"], "--label", "two", "--num",
               3, "--steps", 3, "--scale", 2, "--precision", "fp32", "--sampler", "ddim", "--eta", 0.5]  # fmt: skip
    code, said, err = run(capsys, *command, "--out", out)
    assert code == 0 and f"Saved 3 images to {out}/ (contact sheet: {out}/sheet.png)" in said, err
    guide = guidance.ClassifierGuidance(admg.load_classifier(folders["classifier"]), 2.0)
    sampler = functools.partial(samplers.ddim, eta=0.5)
    done = admg.generate(folders["model"], ["two"], num=3, out=out, guide=guide, sampler=sampler, steps=3,
                         precision="fp32", progress=False)  # fmt: skip
    assert done.resumed and done.finished and done.read().labels.tolist() == [2, 2, 2]


def test_titles():
    assert guide_title(guidance.ClassifierFreeGuidance(2.5) + pull) == "cfg 2.5, pull"
    assert guide_title(guidance.APG(4.0, eta=0.5)) == "apg 4 eta=0.5"
    assert guide_title(Pull(1.0, torch.zeros(2))) == "Pull"
