"""Model and Classifier: networks inside wrappers, whether they take labels, and their repr."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import prune

import admg
from admg.checkpoints.diffusers.export import to_diffusers
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Classifier, Model
from admg.checkpoints.openai.export import to_openai
from admg.checkpoints.weights import CheckpointError
from admg.diffusion.config import DiffusionConfig


class Forwarding(nn.Module):
    """A user's wrapper that passes everything on."""

    def __init__(self, network: nn.Module):
        super().__init__()
        self.inner = network

    def forward(self, *args, **kwargs):
        return self.inner(*args, **kwargs)


class Named(Forwarding):
    """A user's wrapper with the parameters of a conditional network."""

    def forward(self, x, timesteps, y=None):
        return self.inner(x, timesteps, y=y)


class WithoutLabels(Forwarding):
    """A user's wrapper that takes no labels."""

    def forward(self, x, timesteps):
        return self.inner(x, timesteps)


@pytest.fixture
def ddp(tmp_path):
    """DistributedDataParallel in a group of this process alone."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'group'}", rank=0, world_size=1)
    yield lambda network: nn.parallel.DistributedDataParallel(network.requires_grad_(True))
    torch.distributed.destroy_process_group()


def unconditional(model: Model) -> Model:
    """The model with a network of the same architecture without labels; its labels are for a guide."""
    config = replace(model.network.config, num_classes=0)
    return replace(model, network=type(model.network)(config).eval())


def labels_seen_by(model: Model, monkeypatch, **options) -> list[list[int] | None]:
    """The labels that our network inside the model gets at each step of sample()."""
    seen = []
    plain = admg.models.UNet.forward

    def forward(self, x: Tensor, timesteps: Tensor, y: Tensor | None = None) -> Tensor:
        seen.append(None if y is None else y.tolist())
        return plain(self, x, timesteps, y)

    monkeypatch.setattr(admg.models.UNet, "forward", forward)
    admg.sample(model, [1, 4], steps=2, progress=False, **options)
    return seen


WRAPPERS = {
    "DataParallel": nn.DataParallel,
    "compiled": lambda network: torch.compile(network, backend="eager"),
    "forwarding": Forwarding,
    "with y": Named,
    "twice": lambda network: Forwarding(Named(network)),
}


@pytest.mark.thorough
@pytest.mark.parametrize("wrapper", WRAPPERS)
def test_a_network_inside_a_wrapper_stays_conditional(wrapper, tiny_model, monkeypatch):
    model = replace(tiny_model, network=WRAPPERS[wrapper](tiny_model.network))
    assert model.conditional and Model(model.network, model.diffusion, model.shape, model.labels).conditional
    if wrapper != "compiled":  # whose graph would be traced through the recorder
        assert labels_seen_by(model, monkeypatch) == [[1, 4]] * 2


@pytest.mark.process
def test_a_network_inside_ddp_stays_conditional(ddp, tiny_model, tmp_path, monkeypatch):
    network = type(tiny_model.network)(tiny_model.network.config).eval()
    model = replace(tiny_model, network=ddp(network))
    assert labels_seen_by(model, monkeypatch) == [[1, 4]] * 2
    model.save(tmp_path / "saved")
    saved = Model.load(tmp_path / "saved").network.state_dict()
    assert all(torch.equal(value, saved[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("wrapper", ["DataParallel", "compiled", "forwarding"])
def test_an_unconditional_network_inside_a_wrapper_stays_unconditional(wrapper, tiny_model):
    model = unconditional(tiny_model)
    assert not model.conditional and not replace(model, network=WRAPPERS[wrapper](model.network)).conditional


def test_an_upsampler_inside_a_wrapper_stays_an_upsampler(tiny_upsampler):
    model = replace(tiny_upsampler, network=nn.DataParallel(tiny_upsampler.network))
    assert model.upsamples and model.conditional and model.kind_name == "upsampler"


class Foreign(nn.Module):
    def forward(self, x, timesteps, y=None):
        return x


class ForeignWithoutLabels(nn.Module):
    def forward(self, x, timesteps):
        return x


class ForeignWithAnyKeyword(nn.Module):
    def forward(self, x, timesteps, **kwargs):
        return x


@pytest.mark.parametrize("network, expected", [(Foreign(), True), (ForeignWithoutLabels(), False)])
def test_a_foreign_network_is_conditional_if_its_forward_takes_y(network, expected):
    assert Model(network, DiffusionConfig().build(), (3, 8, 8), Labels(5)).conditional is expected


def test_what_cannot_be_known_is_refused_and_the_message_says_what_to_do(tiny_model):
    diffusion, shape = tiny_model.diffusion, tiny_model.shape
    uncertain = [
        ForeignWithAnyKeyword(),
        WithoutLabels(tiny_model.network),  # the network takes labels, its wrapper does not
        Named(unconditional(tiny_model).network),  # the wrapper takes labels, its network does not
    ]
    for network in uncertain:
        with pytest.raises(ValueError, match=r"cannot tell whether \w+ takes labels: pass takes_labels=True to Model"):
            Model(network, diffusion, shape, Labels(5))
        for stated in (True, False):
            assert Model(network, diffusion, shape, Labels(5), takes_labels=stated).conditional is stated
        assert not Model(network, diffusion, shape).conditional  # without labels there is nothing to decide


def test_replacing_the_network_decides_anew(tiny_model):
    plain = unconditional(tiny_model)
    assert not plain.conditional and replace(plain, network=tiny_model.network).conditional


def test_a_users_wrapper_is_not_saved_as_if_it_were_the_network(tiny_model, tmp_path):
    with pytest.raises(ValueError, match=r"a native checkpoint needs a UNet or SuperResUNet, got a Forwarding"):
        replace(tiny_model, network=Forwarding(tiny_model.network)).save(tmp_path / "model")


def test_a_network_with_other_parameters_than_its_architecture_is_not_saved(tiny_model, tmp_path):
    """Adapters that were not merged, say: the folder could not be loaded."""
    network = copy.deepcopy(tiny_model.network)
    network.time_embed[0] = nn.Sequential(network.time_embed[0])
    with pytest.raises(CheckpointError, match=r"to save .* 2 missing, first time_embed.0.bias; 2 unexpected"):
        replace(tiny_model, network=network).save(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.thorough
def test_repr_is_one_short_line(tiny_model, tiny_classifier, tiny_upsampler):
    assert repr(admg.load("fashion-mnist")) == (
        "Model(diffusion model, grey images of 32x32, 10 labels, conditional, 6.1 M parameters, "
        "cosine schedule, 1000 steps)"
    )
    assert repr(admg.load_classifier("fashion-mnist")) == (
        "Classifier(noisy classifier, grey images of 32x32, 10 labels, 1.7 M parameters, cosine schedule, 1000 steps)"
    )
    assert "linear schedule, 10 of 100 steps" in repr(tiny_model.respace(10))
    assert repr(tiny_upsampler).startswith("Model(upsampler, grey images of 8x8, 5 labels")
    assert "custom schedule, 100 steps" in repr(replace(tiny_model, config=None))
    assert "Classifier(noisy classifier, 3 labels" in repr(
        Classifier(lambda x, t: x, DiffusionConfig().build(), Labels(3))
    )


def test_float64_stays_float64_up_to_the_network(tiny_model):
    """Model gives the network x in its own dtype."""
    seen = []

    class Recorder(nn.Module):
        def forward(self, x, timesteps):
            seen.append(x.dtype)
            return torch.zeros(len(x), 2, 8, 8, dtype=x.dtype)

    model = Model(Recorder(), tiny_model.diffusion, tiny_model.shape)
    for dtype in (torch.float32, torch.float64):
        model.predict(torch.zeros(1, 1, 8, 8, dtype=dtype), 3)
    assert seen == [torch.float32, torch.float64]


def change_padding(network):
    for layer in network.modules():
        if isinstance(layer, nn.Conv2d):
            layer.padding_mode = "circular"


def change_forward(network):
    forward = network.middle_block[0].forward
    network.middle_block[0].forward = lambda *arguments: 2 * forward(*arguments)


def change_activation(network):
    network.out[1] = nn.GELU()


def append_layer(network):
    network.out.append(nn.Tanh())


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        (change_padding, r"its layer 'input_blocks\.0\.0' has padding_mode='circular', and its config 'zeros'"),
        (change_forward, r"its layer 'middle_block\.0' has a forward function of its own"),
        (change_activation, r"its layer 'out\.1' is a GELU, and a SiLU in its config"),
        (append_layer, r"the layer 'out\.3' is not part of its config"),
    ],
)
def test_a_network_that_its_config_does_not_describe_is_not_stored(tiny_model, tmp_path, change, expected):
    """Loading would build another network with the same weights."""
    model = replace(tiny_model, network=copy.deepcopy(tiny_model.network))
    change(model.network)
    for store in (model.save, lambda path: to_openai(model, path), lambda path: to_diffusers(model, path)):
        with pytest.raises(ValueError, match=f"^the network cannot be stored: {expected}"):
            store(tmp_path / "model")
        assert not any(tmp_path.iterdir())


def test_a_model_of_another_shape_than_its_network_is_not_stored(tiny_model, tmp_path):
    """Loading would build a model of square images."""
    wide = replace(tiny_model, shape=(1, 8, 16))
    for store in (wide.save, lambda path: to_openai(wide, path), lambda path: to_diffusers(wide, path)):
        with pytest.raises(ValueError, match=r"must be that of its network, \(1, 8, 8\), got \(1, 8, 16\)"):
            store(tmp_path / "model")
        assert not any(tmp_path.iterdir())


def test_weights_that_would_not_load_are_not_stored(tiny_model, tmp_path):
    model = replace(tiny_model, network=copy.deepcopy(tiny_model.network).double())
    with torch.no_grad():
        model.network.out[2].weight[0, 0, 0, 0] = 1e200  # finite, but not as float32
    for store in (model.save, lambda path: to_openai(model, path), lambda path: to_diffusers(model, path)):
        with pytest.raises(ValueError, match=r"has NaN or infinite numbers in out\.2\.weight$"):
            store(tmp_path / "model")
        assert not any(tmp_path.iterdir())


def test_pruned_networks_are_not_stored(tiny_model, tmp_path):
    """Their weights have other names, and are computed in a hook."""
    model = replace(tiny_model, network=copy.deepcopy(tiny_model.network))
    prune.l1_unstructured(model.network.out[2], "weight", 0.5)
    for store in (model.save, lambda path: to_openai(model, path), lambda path: to_diffusers(model, path)):
        with pytest.raises(ValueError, match=r"does not fit its architecture: 1 missing, first out\.2\.weight"):
            store(tmp_path / "model")
        assert not any(tmp_path.iterdir())


def test_tied_weights_are_stored_twice(tiny_model, tmp_path):
    network = copy.deepcopy(tiny_model.network)
    norm = network.out[0]
    norm.weight = norm.bias
    replace(tiny_model, network=network).save(tmp_path / "model")
    loaded = admg.load(tmp_path / "model").network.state_dict()
    assert all(torch.equal(loaded[name], value) for name, value in network.state_dict().items())
