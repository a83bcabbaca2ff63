"""OpenAI's checkpoints: flags, inference from shapes and `.pt` files, compared with guided-diffusion's values."""

from __future__ import annotations

import dataclasses
import os
import pickle
import warnings
import zlib

import numpy as np
import pytest
import reference
import torch

import admg.checkpoints.openai as openai
from admg.checkpoints.model import Classifier, Model
from admg.checkpoints.networks import NETWORK_KINDS
from admg.checkpoints.openai import shapes as shape
from admg.checkpoints.openai import table
from admg.checkpoints.weights import CheckpointError, shapes_of
from admg.cli.main import main
from admg.diffusion.config import DiffusionConfig
from admg.models import ClassifierConfig, NoisyClassifier, SuperResConfig, SuperResUNet, UNet, UNetConfig

PUBLISHED = reference.table("published.json.gz")
SMALL = reference.table("forward.json") | reference.table("more.json")
VALUES = reference.arrays("forward.npz") | reference.arrays("more.npz")
ALL = PUBLISHED | SMALL

TINY = "--image_size 32 --channel_mult 1,2 --num_channels 32 --num_res_blocks 1 --attention_resolutions 16"
CLASSIFIER = "--image_size 64 --classifier_width 64 --classifier_depth 1"


def parsed(name: str) -> openai.OpenAIConfig:
    return openai.parse(ALL[name]["flags"], ALL[name]["kind"])


def shapes(name: str) -> dict[str, tuple[int, ...]]:
    """Return guided-diffusion's shapes if they are stored, or else those of the network that reference.py builds."""
    stored = ALL[name].get("parameters") or reference.table("forward-shapes.json").get(name)
    stored = stored or reference.shapes(meta(lambda: reference.build(ALL[name]["kind"], ALL[name]["flags"])))
    return {key: tuple(value) for key, value in stored.items()}


def meta(make):
    with torch.device("meta"):
        return make()


def filled(shapes: dict[str, tuple[int, ...]]) -> dict[str, torch.Tensor]:
    """Return guided-diffusion's parameters (tests/openai/README.md)."""
    state = {}
    for name, size in shapes.items():
        rng = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
        value = rng.standard_normal(size).astype(np.float32) * np.float32(0.05)
        state[name] = torch.from_numpy(value + 1 if name.endswith("weight") and value.ndim == 1 else value)
    return state


def zeros(flags: str, kind: str = "diffusion") -> dict[str, torch.Tensor]:
    config = openai.parse(flags, kind)
    return {name: torch.zeros(size) for name, size in shapes_of(NETWORK_KINDS[kind].network, config.network).items()}


@pytest.fixture
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


# -- flags -----------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("name", ALL)
def test_flags_give_the_names_and_shapes_of_guided_diffusion(name):
    kind, flags = ALL[name]["kind"], ALL[name]["flags"]
    config = openai.parse(flags, kind)
    ours = dataclasses.asdict(config.network)
    assert ours == dataclasses.asdict(reference.network_config(kind, flags))
    small = ours.get("small_size")
    assert config.diffusion == reference.diffusion_config(flags)
    assert small == {"openai/imagenet-64-to-256": 64, "openai/imagenet-128-to-512": 128}.get(
        name, 16 if kind == "upsampler" else None
    )
    assert shapes_of(NETWORK_KINDS[kind].network, config.network) == shapes(name)


@pytest.mark.parametrize("name", ALL)
def test_flags_of_is_the_inverse_of_parse(name):
    config = parsed(name)
    assert openai.parse(openai.flags_of(config), config.kind) == config


@pytest.mark.parametrize(
    "config",
    [
        openai.OpenAIConfig("diffusion", UNetConfig(channel_mult=(0.5, 1.5), num_classes=10), DiffusionConfig()),
        openai.OpenAIConfig(
            "diffusion",
            UNetConfig(
                image_size=28,
                image_channels=1,
                channels=64,
                channel_mult=(1, 1 / 3),
                attention_resolutions=(),
                num_heads=2,
                num_heads_upsample=8,
                head_channels=0,
                new_attention_order=True,
                scale_shift_norm=False,
                resblock_updown=False,
                conv_resample=False,
                dropout=0.15,
                checkpoint=True,
                learn_variance=False,
            ),
            DiffusionConfig(
                noise_schedule="cosine",
                diffusion_steps=4000,
                predict="x0",
                variance="fixed_small",
                rescale_timesteps=True,
            ),
        ),
        openai.OpenAIConfig(
            "upsampler",
            SuperResConfig(image_size=128, small_size=0, new_attention_order=True, num_classes=7),
            DiffusionConfig(diffusion_steps=4000),
        ),
        openai.OpenAIConfig(
            "classifier",
            ClassifierConfig(
                image_size=32, num_classes=10, head_channels=32, num_heads=1, dropout=0.1, pool="adaptive"
            ),
            DiffusionConfig(),
        ),
    ],
)
def test_flags_of_is_the_inverse_of_parse_for_patched_settings(config):
    assert openai.parse(openai.flags_of(config), config.kind) == config


def test_without_flags_the_defaults_of_guided_diffusion_hold():
    config = openai.parse("")
    assert config.network == UNetConfig(
        image_size=64,
        channels=128,
        channel_mult=(1, 2, 3, 4),
        num_res_blocks=2,
        attention_resolutions=(16, 8),
        num_heads=4,
        head_channels=0,
        scale_shift_norm=True,
        resblock_updown=False,
        num_classes=0,
        learn_variance=False,
    )
    assert config.diffusion == DiffusionConfig(variance="fixed_large")
    classifier = openai.parse("", "classifier").network
    assert (classifier.channels, classifier.num_res_blocks, classifier.attention_resolutions) == (128, 2, (32, 16, 8))
    upsampler = openai.parse("--large_size 512 --small_size 128", "upsampler").network
    assert upsampler.channel_mult == (1, 1, 2, 2, 4, 4)  # not that of a diffusion model of 512 pixels
    assert openai.parse("", "upsampler").network.small_size == 64


def test_a_pasted_script_is_read_as_a_shell_would():
    text = r"""
MODEL_FLAGS="--image_size=64 --num_channels 192
  --num_head_channels 64 --class_cond yes"
export SAMPLE_FLAGS='--batch_size 4 --num_samples 100 --timestep_respacing ddim25 --use_ddim True'
CUDA_VISIBLE_DEVICES=0 mpiexec -n 8 python scripts/classifier_sample.py $MODEL_FLAGS --learn_sigma 1 \
  --classifier_scale 1.0 --model_path "models/64x64 diffusion.pt" --use_scale_shift_norm f --num_res_blocks 1 \
  --num_res_blocks 3 --use_fp16 True --classifier_depth 4 --microbatch -1 ${SAMPLE_FLAGS}
"""
    network = openai.parse(text).network
    assert (network.channels, network.head_channels, network.num_res_blocks, network.num_classes) == (192, 64, 3, 1000)
    assert network.learn_variance and not network.scale_shift_norm
    assert openai.parse(text, "classifier").network.num_res_blocks == 4


DEFAULTS = {
    "image_size": 64, "num_channels": 128, "num_res_blocks": 2, "num_heads": 4, "num_heads_upsample": -1,
    "num_head_channels": -1, "attention_resolutions": "16,8", "channel_mult": "", "dropout": 0.0, "class_cond": False,
    "use_checkpoint": False, "use_scale_shift_norm": True, "resblock_updown": False, "use_fp16": False,
    "use_new_attention_order": False, "learn_sigma": False, "diffusion_steps": 1000, "noise_schedule": "linear",
    "timestep_respacing": "", "use_kl": False, "predict_xstart": False, "rescale_timesteps": False,
    "rescale_learned_sigmas": False,
}  # fmt: skip
"""What model_and_diffusion_defaults() of guided-diffusion returns."""


def test_flags_may_be_a_mapping(quiet):
    assert openai.parse(DEFAULTS) == openai.parse("")
    given = {"image_size": 32, "channel_mult": (1, 2), "num_channels": 32, "num_res_blocks": 1,
             "attention_resolutions": "16", "num_classes": None}  # fmt: skip
    text = f"{TINY} --rescale_timesteps False"
    model = openai.load_diffusion(zeros(TINY), DEFAULTS | given)
    assert model.network.config == openai.parse(text).network and model.training["flags"] == openai.flags_of(
        openai.parse(text)
    )
    for flags, message in (({"num_chanels": 3}, "did you mean --num_channels"),
                           ({"class_cond": "maybe"}, "--class_cond must be True or False, got 'maybe'")):  # fmt: skip
        with pytest.raises(ValueError, match=message):
            openai.load_diffusion(zeros(TINY), DEFAULTS | flags)


@pytest.mark.parametrize(
    ("text", "value"),
    [*((t, True) for t in ("yes", "True", "T", "y", "1")), *((t, False) for t in ("no", "false", "F", "n", "0"))],
)
def test_booleans_are_those_of_guided_diffusion(text, value):
    assert openai.parse(f"--class_cond {text}").network.num_classes == (1000 if value else 0)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--num_chanels 64", "unknown flag --num_chanels: did you mean --num_channels?"),
        ("--attention-resolutions 8", "unknown flag --attention-resolutions: did you mean --attention_resolutions?"),
        ("--xyzzy 3", "unknown flag --xyzzy"),
        ("--class_cond maybe", "--class_cond must be True or False, got 'maybe'"),
        ("--class_cond --num_channels 64", "--class_cond needs a value"),
        ("--num_channels", "--num_channels needs a value"),
        ("--num_channels 6.5", "--num_channels must be a whole number, got '6.5'"),
        ("--dropout x", "--dropout must be a number, got 'x'"),
        ("--attention_resolutions '16;8'", "--attention_resolutions must be numbers such as 16,8, got '16;8'"),
        ("--channel_mult 1,inf", "--channel_mult must be numbers"),
        ("--noise_schedule quadratic", "--noise_schedule must be linear or cosine, got 'quadratic'"),
        ("$MODEL_FLAGS --lr 1", "$MODEL_FLAGS was not expanded"),
        ("--image_size 64 128", "'128' is neither a flag (--name) nor the value of one"),
        ("--image_size '64", "invalid shell quoting: No closing quotation"),
        ("--image_size 96", "channel_mult is required for image size 96"),
    ],
)
def test_bad_flags_are_named(flags, message):
    with pytest.raises(ValueError) as caught:
        openai.parse(flags)
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_flags_of_refuses_what_has_no_flag():
    for diffusion in (DiffusionConfig(predict="v"), DiffusionConfig(variance="learned")):
        with pytest.raises(ValueError, match="no flag for"):
            openai.flags_of(openai.OpenAIConfig("diffusion", UNetConfig(), diffusion))


IMPROVED = "--image_size 64 --num_channels 128 --num_res_blocks 3 --learn_sigma True --diffusion_steps 4000"


@pytest.mark.parametrize(
    ("flags", "rescaled"),
    [
        (f"{IMPROVED} --noise_schedule cosine", True),  # improved-diffusion's recipe for ImageNet-64
        (f"{IMPROVED} --rescale_timesteps False", False),
        (f"{IMPROVED} --resblock_updown True", False),  # guided-diffusion's, and so is its default
        ("--image_size 32 --diffusion_steps 2000", True),
        ("--image_size 32 --channel_mult 1,2,2,2 --diffusion_steps 2000", False),
        ("--sigma_small True --diffusion_steps 2000", True),
        ("--diffusion_steps 2000", False),
    ],
)
def test_the_default_of_rescale_timesteps_in_improved_diffusion(flags, rescaled):
    assert openai.parse(flags).diffusion.rescale_timesteps == rescaled


def test_loading_says_when_the_default_of_rescale_timesteps_is_in_doubt(quiet):
    state = zeros(TINY.replace("--channel_mult 1,2", "").replace("32 --", "64 --", 1))
    flags = TINY.replace("--channel_mult 1,2", "").replace("32 --", "64 --", 1)
    openai.load(state, f"{flags} --diffusion_steps 4000 --rescale_timesteps True")
    with pytest.warns(UserWarning, match="rescale_timesteps is not among the flags: assumed True"):
        assert openai.load(state, f"{flags} --diffusion_steps 4000").diffusion.schedule.timesteps[-1] == 999.75


# -- shapes ----------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("name", ALL)
def test_shapes_alone_give_the_architecture_of_the_flags(name):
    inferred, config = openai.infer(shapes(name)), parsed(name)
    assert shape.same_architecture(inferred, config)
    assert inferred.diffusion.variance == config.diffusion.variance
    assert openai.parse(openai.flags_of(inferred), config.kind) == inferred
    if name != "openai/imagenet-128-to-512":  # its levels are those of 256 pixels
        assert inferred.network.image_size == config.network.image_size
    for field in ("channels", "channel_mult", "num_res_blocks", "scale_shift_norm", "num_classes", "image_channels"):
        assert getattr(inferred.network, field) == getattr(config.network, field)
    for field in ("pool", "learn_variance"):
        assert getattr(inferred.network, field, None) == getattr(config.network, field, None)


@pytest.mark.thorough
@pytest.mark.parametrize(
    "name", ["imagenet-64", "imagenet-128", "imagenet-64-to-256", "imagenet-128-to-512", "lsun-cat"]
)
def test_a_published_architecture_gets_all_its_flags(name):
    name = f"openai/{name}"
    known = [openai.parse(k.flags, k.kind) for k in openai.PUBLISHED_FLAGS.values()]
    found, config = openai.infer(shapes(name), known), parsed(name)
    assert dataclasses.replace(found.network, dropout=0) == dataclasses.replace(config.network, dropout=0)
    assert found.diffusion == config.diffusion


def test_the_published_flags_are_those_published():
    assert {name: (k.flags, k.kind) for name, k in openai.PUBLISHED_FLAGS.items()} == {
        name: (p["flags"], p["kind"]) for name, p in PUBLISHED.items()
    }


@pytest.mark.thorough
@pytest.mark.parametrize("updown", ["--resblock_updown True", "", "--conv_resample False"])
@pytest.mark.parametrize("mult", ["1", "1,1,1", "0.5,1.5,1"])
def test_inference_of_levels_and_attention(updown, mult):
    flags = f"--image_size 32 --num_channels 64 --num_res_blocks 2 {updown} --channel_mult {mult}"
    for attention in ("", "32", "16,8"):
        config = openai.parse(f"{flags} --attention_resolutions={attention}")
        found = openai.infer(shapes_of(UNet, config.network))
        assert shape.same_architecture(found, config)
        levels = range(len(config.network.channel_mult))
        assert [found.network.attends(i) for i in levels] == [config.network.attends(i) for i in levels]


def test_different_architectures_are_distinguished():
    changes = ["--num_res_blocks 2", "--class_cond True", "--learn_sigma True", "--use_scale_shift_norm False"]
    changes += ["--attention_resolutions 32", "--image_channels 1", "--channel_mult 2,2", "--resblock_updown True"]
    base = openai.parse(TINY)
    assert not any(shape.same_architecture(base, openai.parse(f"{TINY} {change}")) for change in changes)
    for same in ["--num_heads 2", "--use_new_attention_order True", "--dropout 0.5", "--noise_schedule cosine"]:
        assert shape.same_architecture(base, openai.parse(f"{TINY} {same}"))


@pytest.mark.thorough
def test_an_ambiguous_kind_is_loaded_as_requested():
    six = UNetConfig(image_size=32, image_channels=6, channel_mult=(1, 1), learn_variance=False)
    found = shapes_of(UNet, six)
    assert openai.infer(found).kind == "upsampler" and openai.infer(found).network.image_channels == 3
    assert openai.infer(found, kind="diffusion").network.image_channels == 6
    latent = dataclasses.replace(six, image_channels=4)
    assert openai.infer(shapes_of(UNet, latent)).kind == "diffusion"


def test_a_classifier_of_another_head_size_is_inferred():
    config = ClassifierConfig(image_size=28, channels=32, channel_mult=(1, 3), head_channels=32, num_classes=10)
    assert openai.infer(shapes_of(NoisyClassifier, config)).network.heads(96) == 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("time_embed.0.weight"), "time_embed.0.weight is missing"),
        (lambda s: s.pop("middle_block.1.qkv.weight"), "1 missing, first middle_block.1.qkv.weight"),
        (lambda s: s.update(extra=(3,)), "1 unexpected, first extra"),
        (lambda s: s.update({"out.2.weight": (5, 32, 3, 3)}), "from 3 to 5 channels is neither"),
        (lambda s: [s.pop(n) for n in list(s) if n.startswith("input_blocks.1.")], "do not form levels"),
        (lambda s: s.clear(), "input_blocks.0.0.weight is missing"),
    ],
)
def test_foreign_shapes_are_refused_in_a_line(change, message):
    found = shapes_of(UNet, openai.parse(TINY).network)
    change(found)
    with pytest.raises(CheckpointError) as caught:
        openai.infer(found)
    assert message in str(caught.value) and "\n" not in str(caught.value)


# -- loading ---------------------------------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("name", SMALL)
def test_loaded_models_give_the_output_of_guided_diffusion(name, quiet):
    kind, flags, stride = SMALL[name]["kind"], SMALL[name]["flags"], SMALL[name]["stride"]
    load = {"diffusion": openai.load_diffusion, "upsampler": openai.load_upsampler}.get(kind, openai.load_classifier)
    model = load(filled(shapes(name)), flags)
    output = model.network(**reference.inputs(kind, flags, SMALL[name].get("size")))
    assert list(output.shape) == SMALL[name]["full_shape"]
    assert (
        reference.error_by_image(output[..., ::stride, ::stride] if output.ndim == 4 else output, VALUES[name]) < 1e-5
    )
    assert len(model.labels.names) == (1000 if "label_emb.weight" in shapes(name) or kind == "classifier" else 0)


@pytest.mark.thorough
def test_the_kind_follows_from_the_checkpoint(quiet):
    upsampler = "--large_size 64 --small_size 16 --num_channels 32 --num_res_blocks 1"
    model = openai.load(zeros(upsampler, "upsampler"), upsampler)
    assert isinstance(model, Model) and model.upsamples and model.network.config.small_size == 16
    assert isinstance(openai.load(zeros(CLASSIFIER, "classifier"), CLASSIFIER), Classifier)
    model = openai.load(zeros(TINY), TINY)
    assert type(model.network) is UNet and model.shape == (3, 32, 32) and model.labels.count == 0
    with pytest.raises(CheckpointError, match="is a classifier, not a diffusion model: use load_classifier"):
        openai.load_diffusion(zeros(CLASSIFIER, "classifier"))
    with pytest.raises(CheckpointError, match="is a diffusion model, not an upsampler: use load_diffusion"):
        openai.load_upsampler(zeros(TINY))


def test_without_flags_one_line_lists_the_assumptions():
    with pytest.warns(UserWarning) as caught:
        model = openai.load(zeros(f"{TINY} --learn_sigma True"))
    text = str(caught[0].message)
    assert len(caught) == 1 and "\n" not in text and "admg diagnose CHECKPOINT --images FOLDER" in text
    assert "--image_size 16 --num_heads 4 --use_new_attention_order False --noise_schedule linear" in text
    assert "--diffusion_steps 1000 --rescale_timesteps False --predict_xstart False" in text
    assert model.network.config.head_channels == 0 and model.config == DiffusionConfig()
    assert caught[0].filename == __file__


@pytest.mark.thorough
def test_a_published_architecture_needs_no_flags_and_is_named():
    state = {k: torch.zeros(v, device="meta") for k, v in shapes("openai/imagenet-64").items()}
    with pytest.warns(UserWarning) as caught:
        model = openai.load(state)
    text = str(caught[0].message)
    assert len(caught) == 1 and "its shapes are those of openai/imagenet-64; assumed --image_size 64" in text
    assert "--num_head_channels 64 --use_new_attention_order True --noise_schedule cosine" in text
    assert "its 1,000 labels are taken to be ImageNet's" in text
    assert model.network.config == parsed("openai/imagenet-64").network
    assert model.config.noise_schedule == "cosine" and model.network.config.new_attention_order
    assert model.labels.name(207) == "golden retriever"


LABELLED = f"{TINY} --class_cond True --num_classes 10"


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("built", "given", "parts"),
    [
        (
            LABELLED,
            f"{TINY} --class_cond True",
            [
                "contradicts the flags --num_classes 1000",
                "label_emb.weight: (10, 128) for (1000, 128)",
                "the checkpoint has 10 label embeddings: --class_cond True --num_classes 10?",
            ],
        ),
        (LABELLED, TINY, ["--class_cond False", "first label_emb.weight", "--class_cond True --num_classes 10?"]),
        (TINY, LABELLED, ["flags --class_cond True", "1 missing", "has no label embeddings: --class_cond False?"]),
        (TINY, TINY + " --num_channels 64", ["flags --num_channels 64 (", "suggest --num_channels 32"]),
        (TINY, TINY + " --num_res_blocks 3", ["flags --num_res_blocks 3 (", "suggest --num_res_blocks 1"]),
        (TINY, TINY + " --attention_resolutions 32,16", ["resolutions 32,16 (", "suggest --attention_resolutions 16"]),
        (TINY, TINY + " --resblock_updown True", ["flags --resblock_updown True (", "--resblock_updown False"]),
        (TINY, TINY + " --learn_sigma True", ["--learn_sigma True (", "out.2.bias: (3,) for (6,)", "sigma False"]),
        (TINY, TINY + " --use_scale_shift_norm False", ["norm False (", "suggest --use_scale_shift_norm True"]),
        (TINY, TINY + " --channel_mult 1,1", ["--channel_mult 1,1 (", "suggest --channel_mult 1,2"]),
        ("--num_channels 32", "--num_channels 32 --image_size 128", ["--image_size 128 (", "suggest --image_size 64"]),
        ("--num_channels 32", "", ["flags --num_channels 128 (", "shapes suggest --num_channels 32"]),
    ],
)
def test_flags_that_contradict_the_checkpoint_are_named(built, given, parts):
    with pytest.raises(CheckpointError) as caught:
        openai.load(zeros(built), given)
    message = str(caught.value)
    assert all(part in message for part in parts), message
    assert "\n" not in message and len(message) < 400


@pytest.mark.parametrize(
    ("change", "parts"),
    [
        ("--image_size 128", ["--image_size 128 ", "suggest --image_size 64"]),
        ("--classifier_pool spatial", ["--classifier_pool spatial ", "suggest --classifier_pool attention"]),
        ("--num_classes 10", ["--num_classes 10 ", "the checkpoint has 1000 classes: --num_classes 1000?"]),
        ("--classifier_depth 2", ["--classifier_depth 2 ", "suggest --classifier_depth 1"]),
    ],
)
def test_flags_that_contradict_a_classifier_are_named(change, parts):
    with pytest.raises(CheckpointError) as caught:
        openai.load_classifier(zeros(CLASSIFIER, "classifier"), f"{CLASSIFIER} {change}")
    assert all(part in str(caught.value) for part in parts), str(caught.value)


def test_a_foreign_network_is_recognised_whatever_the_flags():
    state = zeros(TINY) | {"extra": torch.zeros(3)}
    with pytest.raises(
        CheckpointError, match=r"does not fit the flags \(1 unexpected, first extra\): no network of guided"
    ):
        openai.load(state, TINY)
    for bad in ({}, {"a": 1}, {1: torch.zeros(1)}):
        with pytest.raises(CheckpointError, match="the mapping does not hold a state dict"):
            openai.load(bad)


# -- files -----------------------------------------------------------------------------------------------------------


def random_state() -> dict[str, torch.Tensor]:
    return {name: torch.randn(value.shape) for name, value in zeros(TINY).items()}


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize(
    "wrap",
    [
        lambda s: s,
        lambda s: {"state_dict": s, "step": 3},
        lambda s: {f"module.{name}": value for name, value in s.items()},
        lambda s: {"state_dict": {f"module.{name}": value for name, value in s.items()}},
    ],
)
def test_a_file_loads_bit_for_bit(tmp_path, legacy, wrap, quiet):
    state, path = random_state(), tmp_path / "ema_0.9999_000100.pt"
    torch.save(wrap(state), path, _use_new_zipfile_serialization=not legacy)
    loaded = openai.load(path, TINY)
    assert loaded.training["source"] == str(path)
    for name, value in loaded.network.state_dict().items():
        assert value.dtype == torch.float32 and torch.equal(value, state[name])


def test_half_precision_becomes_float32(tmp_path):
    torch.save({"a": torch.tensor([0.1], dtype=torch.float16)}, tmp_path / "half.pt")
    state = openai.read_state(tmp_path / "half.pt")
    assert state["a"].dtype == torch.float32 and state["a"].item() == np.float32(np.float16(0.1))


def test_a_file_is_memory_mapped(tmp_path):
    torch.save({"a": torch.zeros(1_000_000)}, tmp_path / "big.pt")
    state = openai.read_state(tmp_path / "big.pt")
    with open("/proc/self/maps") as maps:
        assert any("big.pt" in line for line in maps)
    assert state["a"].sum() == 0


class Payload:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("form", ["zip", "legacy", "pickle", "within"])
def test_a_malicious_pickle_is_refused_and_does_not_run(tmp_path, form):
    payload, path = Payload(tmp_path / "it-ran"), tmp_path / "model.pt"
    if form == "pickle":
        path.write_bytes(pickle.dumps(payload))
    else:
        content = {"a": torch.zeros(1), "b": payload} if form == "within" else payload
        torch.save(content, path, _use_new_zipfile_serialization=form != "legacy")
    with pytest.raises(CheckpointError) as caught:
        openai.load(path)
    assert not (tmp_path / "it-ran").exists()
    assert "refused" in str(caught.value) and "\n" not in str(caught.value)
    assert "mkdir" in str(caught.value) or form == "pickle"
    pickle.loads(pickle.dumps(payload))  # unpickling would have run it
    assert (tmp_path / "it-ran").exists()


def test_a_whole_module_is_refused_and_named(tmp_path):
    torch.save(meta(lambda: torch.nn.Linear(2, 2)), tmp_path / "model.pt")
    with pytest.raises(CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear.*save only its state_dict\(\)"):
        openai.load(tmp_path / "model.pt")


def save_whole(path) -> bytes:
    torch.save(random_state(), path)
    return path.read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda p: save_whole(p)[:-1000], "is truncated, damaged or not a .pt file"),
        (lambda p: save_whole(p)[:5000], "is truncated, damaged or not a .pt file"),
        (lambda p: b"", "is an empty file"),
        (lambda p: b"\n<!DOCTYPE html><html>404</html>", "is a web page (a failed download?)"),
        (lambda p: b"version https://git-lfs.github.com/spec/v1\n", "is a Git LFS pointer"),
        (lambda p: (50).to_bytes(8, "little") + b'{"a":{}}' + b" " * 42, "is a safetensors file"),
        (lambda p: b"\x89PNG\r\n\x1a\n" + bytes(100), "damaged or not a .pt file"),
        (lambda p: b"just words", "damaged or not a .pt file"),
        (lambda p: pickle.dumps({"a": 1}), "damaged or not a .pt file"),
    ],
)
def test_a_damaged_or_foreign_file_is_refused_in_a_line(tmp_path, content, message):
    path = tmp_path / "bad.pt"
    path.write_bytes(content(path))
    with pytest.raises(CheckpointError) as caught:
        openai.load(path)
    assert message in str(caught.value) and str(path) in str(caught.value) and "\n" not in str(caught.value)


def test_a_truncated_legacy_file_is_refused(tmp_path):
    path = tmp_path / "legacy.pt"
    torch.save(random_state(), path, _use_new_zipfile_serialization=False)
    path.write_bytes(path.read_bytes()[:-5000])
    with pytest.raises(CheckpointError, match="truncated, damaged"):
        openai.load(path)


def test_a_missing_file_a_folder_and_other_contents_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match="cannot be read: no such file"):
        openai.load(tmp_path / "none.pt")
    with pytest.raises(CheckpointError, match="is a folder, not a file of weights"):
        openai.load(tmp_path)
    for content, message in (([1, 2], "it holds a list"), ({}, "an empty dict"), ({"a": 1}, "'a' is a int")):
        torch.save(content, tmp_path / "other.pt")
        with pytest.raises(CheckpointError, match=message):
            openai.load(tmp_path / "other.pt")


def test_the_state_of_an_optimizer_is_refused_and_the_ema_recommended(tmp_path):
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(2))])
    torch.save(optimizer.state_dict(), tmp_path / "opt000200.pt")
    with pytest.raises(CheckpointError, match=r"is the state of an optimizer, not a model: load the ema_\*\.pt"):
        openai.load(tmp_path / "opt000200.pt")
    for name in ("ema_0.9999_000300", "ema_0.99_000200", "ema_0.9999_000200", "ema_0.9999_000100", "ema_best"):
        (tmp_path / f"{name}.pt").touch()
    with pytest.raises(CheckpointError, match=r"load ema_0\.9999_000200\.pt next to it"):
        openai.load(tmp_path / "opt000200.pt")


def test_a_raw_model_warns_that_there_is_an_ema(tmp_path, quiet):
    torch.save(random_state(), tmp_path / "model000200.pt")
    openai.load(tmp_path / "model000200.pt", TINY)  # there is no EMA to recommend
    (tmp_path / "ema_0.9999_000100.pt").touch()
    with pytest.warns(UserWarning, match=r"ema_0\.9999_000100\.pt next to it holds the averaged weights"):
        openai.load(tmp_path / "model000200.pt", TINY)


# -- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.thorough
def test_the_command_writes_a_native_checkpoint(tmp_path, capsys):
    state, out = random_state(), tmp_path / "out"
    torch.save(state, tmp_path / "ema_0.9999_000100.pt")
    arguments = ["import-openai", str(tmp_path / "ema_0.9999_000100.pt"), "--out", str(out)]
    assert main([*arguments, "--flags", f"{TINY} --noise_schedule cosine"]) == 0
    printed = capsys.readouterr()
    assert "diffusion model, RGB images of 32x32, no labels" in printed.out and printed.err == ""
    model = Model.load(out)
    assert model.config.noise_schedule == "cosine"
    assert all(torch.equal(value, state[name]) for name, value in model.network.state_dict().items())
    size = (out / "model.safetensors").stat().st_size

    assert main([*arguments, "--float16"]) == 0
    printed = capsys.readouterr()
    assert "note: " in printed.err and "--noise_schedule linear" in printed.err and "--num_heads 4" in printed.out
    assert (out / "model.safetensors").stat().st_size < 0.55 * size


@pytest.mark.thorough
def test_the_command_imports_upsamplers_and_classifiers(tmp_path, capsys):
    upsampler = "--large_size 64 --small_size 16 --num_channels 32 --num_res_blocks 1"
    for kind, flags, text in (
        ("upsampler", upsampler, "upsampler, RGB images of 64x64"),
        ("classifier", f"{CLASSIFIER} --num_classes 10", "noisy classifier, RGB images of 64x64, 10 labels"),
    ):
        torch.save(zeros(flags, kind), tmp_path / f"{kind}.pt")
        assert (
            main(["import-openai", str(tmp_path / f"{kind}.pt"), f"--flags={flags}", "--out", str(tmp_path / kind)])
            == 0
        )
        assert text in capsys.readouterr().out
    assert type(Model.load(tmp_path / "upsampler").network) is SuperResUNet
    assert Classifier.load(tmp_path / "classifier").labels.count == 10


@pytest.mark.parametrize(
    "pasted",
    [
        "--image_size 64; ",
        "--image_size 64 | tee --output_error warn log.txt",
        "--image_size 64 > log.txt 2>&1 &",
        "--image_size 64  # the small one",
        "cd guided-diffusion && python scripts/image_sample.py --image_size 64 2> errors.txt",
    ],
)
def test_shell_syntax_around_the_flags_is_ignored(pasted):
    assert openai.parse(pasted) == openai.parse("--image_size 64")


def test_a_contradiction_shows_only_given_values(tmp_path, capsys):
    torch.save(random_state(), tmp_path / "a.pt")
    assert (
        main(["import-openai", str(tmp_path / "a.pt"), "--flags", "--image_size=64", "--out", str(tmp_path / "b")]) == 2
    )
    line = capsys.readouterr().err
    assert "contradicts the flags" in line and "--channel_mult 128" not in line


def test_the_command_replaces_only_checkpoints(tmp_path, capsys):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("years of work")
    torch.save(random_state(), tmp_path / "a.pt")
    assert main(["import-openai", str(tmp_path / "a.pt"), "--out", str(tmp_path / "mine")]) == 2
    assert "not (only) an admg checkpoint" in capsys.readouterr().err
    (tmp_path / "mine" / "config.json").write_text('{"model_type": "bert"}')  # as other libraries' folders have it
    assert main(["import-openai", str(tmp_path / "a.pt"), "--out", str(tmp_path / "mine")]) == 2
    assert "not (only) an admg checkpoint" in capsys.readouterr().err
    (tmp_path / "mine" / "thesis.txt").rename(tmp_path / "mine" / "model.safetensors")
    assert main(["import-openai", str(tmp_path / "a.pt"), "--out", str(tmp_path / "mine")]) == 2
    assert "does not belong to an admg checkpoint" in capsys.readouterr().err
    assert (tmp_path / "mine" / "model.safetensors").read_text() == "years of work"
    assert main(["import-openai", str(tmp_path / "a.pt"), "--flags", "--wrong 1", "--out", str(tmp_path / "new")]) == 2
    assert "unknown flag --wrong" in capsys.readouterr().err and not (tmp_path / "new").exists()


def test_every_flag_is_written_or_ignored():
    names = {field.name for field in dataclasses.fields(table.Flags)}
    written = {name for by_kind in (table.REFERENCE, table.EXTRA) for listed in by_kind.values() for name in listed}
    assert written == names and not names & table.IGNORED
