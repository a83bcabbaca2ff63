"""Folders of diffusers as models: the same outputs as diffusers' own forward, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import shutil

import pytest
import torch
from diffusers import DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers import randomised, refused, succeed
from reference import error
from safetensors.torch import load_file, save_file

import admg
from admg import samplers
from admg.checkpoints.diffusers.unet2d import time_table
from admg.checkpoints.diffusers.unet2d_config import UNet2D, multiple
from admg.checkpoints.diffusers.unet2d_state import from_table
from admg.checkpoints.export import to_diffusers
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.checkpoints.weights import CheckpointError
from admg.diffusion.config import DiffusionConfig
from admg.engine import accelerate
from admg.models import SuperResConfig, SuperResUNet, UNet, UNetConfig
from admg.models.blocks import timestep_embedding

TINY = {
    "sample_size": 16, "block_out_channels": (32, 64, 64), "layers_per_block": 1,
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "AttnUpBlock2D", "UpBlock2D"),
}  # fmt: skip
DDPM = {
    "norm_eps": 1e-6,
    "freq_shift": 1,
    "flip_sin_to_cos": False,
    "downsample_padding": 0,
    "attention_head_dim": None,
}
"""What google/ddpm-cifar10-32, ddpm-celebahq-256 and others have."""
RESNET = {"down_block_types": ("ResnetDownsampleBlock2D", "AttnDownBlock2D", "DownBlock2D"),
          "downsample_type": "resnet",
          "up_block_types": ("ResnetUpsampleBlock2D", "AttnUpBlock2D", "UpBlock2D"), "upsample_type": "resnet",
          "resnet_time_scale_shift": "scale_shift", "attn_norm_num_groups": 32}  # fmt: skip
FAMILIES = {
    "as in the tutorials of diffusers": {},
    "DDPM": DDPM,
    "ADM": {**RESNET, "num_class_embeds": 5, "attention_head_dim": 16, "out_channels": 6},
    "grey, sines first": {"in_channels": 1, "out_channels": 1, "flip_sin_to_cos": False, "dropout": 0.1},
    "odd widths": {"block_out_channels": (96, 128, 160), "layers_per_block": 2},
}


SMALL = UNetConfig(
    image_size=16, channels=32, channel_mult=(1, 2, 2), num_res_blocks=1, attention_resolutions=(8, 4), head_channels=16
)


def make(process: DiffusionConfig, **changes) -> Model:
    """A small model of ours with random weights."""
    config = dataclasses.replace(SMALL, **changes)
    return Model(randomised(UNet(config), 3), process.build(), (3, 16, 16), Labels(config.num_classes), process)


def batch(model: Model) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Noise, the first, a middle and the last step, and labels."""
    x = torch.randn(3, *model.shape, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([0, 17, len(model.diffusion) - 1])
    return x, steps, torch.tensor([0, 2, 1]) if model.conditional else None


def write(folder, **changes) -> UNet2DModel:
    """A UNet2DModel with random weights and DDPM's scheduler, in a folder."""
    torch.manual_seed(0)
    unet = UNet2DModel(**{**TINY, **changes}).eval()
    unet.save_pretrained(folder)
    kind = "learned_range" if unet.config.out_channels > unet.config.in_channels else "fixed_small"
    DDPMScheduler(variance_type=kind).save_config(folder)
    return unet


@torch.no_grad()
def outputs(unet: UNet2DModel, model: Model) -> tuple[torch.Tensor, torch.Tensor]:
    x, steps, y = batch(model)
    return unet(x, steps, class_labels=y).sample, model.network(x, model.diffusion.timestep(steps), y=y)


@pytest.mark.thorough
@pytest.mark.parametrize("family", FAMILIES)
def test_the_loaded_network_computes_the_same(family, tmp_path):
    unet = write(tmp_path, **FAMILIES[family])
    model = admg.load(tmp_path)
    theirs, ours = outputs(unet, model)
    assert theirs.std() > 0.02
    assert error(ours, theirs) < 2e-5
    assert model.shape == (unet.config.in_channels, 16, 16) and model.labels.count == (
        unet.config.num_class_embeds or 0
    )


@pytest.mark.thorough
def test_a_network_of_ddpm_stays_the_same_when_it_is_accelerated_saved_and_exported(tmp_path):
    unet = write(tmp_path / "theirs", **DDPM)
    model = admg.load(tmp_path / "theirs")
    x, steps, _ = batch(model)
    with torch.no_grad():
        assert error(accelerate(model.network, precision="fp32")(x, steps), model.network(x, steps)) < 2e-5
    model.save(tmp_path / "native")
    assert error(*outputs(unet, admg.load(tmp_path / "native"))) < 2e-5
    to_diffusers(model, tmp_path / "again")
    assert error(*outputs(UNet2DModel.from_pretrained(tmp_path / "again").eval(), model)) < 2e-5
    assert json.loads((tmp_path / "again" / "config.json").read_text())["downsample_padding"] == 0
    with pytest.raises(ValueError, match="guided-diffusion has no counterpart of ddpm_layers"):
        admg.export.export(model, "openai", tmp_path / "x.pt")


@pytest.mark.thorough
def test_a_pipeline_gives_the_same_images(tmp_path):
    """From the same noise, with the scheduler of the pipeline and with ours."""
    unet = write(tmp_path / "unet", **DDPM)
    DDPMPipeline(unet, DDPMScheduler(timestep_spacing="linspace")).save_pretrained(tmp_path / "pipeline")
    model = admg.load(tmp_path / "pipeline").respace(4)
    scheduler = DDPMScheduler.from_pretrained(tmp_path / "pipeline" / "scheduler")
    scheduler.set_timesteps(4)
    assert scheduler.timesteps.tolist() == model.diffusion.schedule.timesteps.tolist()[::-1]
    theirs = x_T = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    generator = torch.Generator().manual_seed(1)
    for t in scheduler.timesteps:
        with torch.no_grad():
            theirs = scheduler.step(unet(theirs, t).sample, t, theirs, generator=generator).prev_sample
    noises = torch.Generator().manual_seed(1)
    steps = samplers.ddpm(model, x_T, noise_sampler=lambda x, _: torch.randn(x.shape, generator=noises))
    assert error(list(steps)[-1].x, theirs) < 1e-3  # theirs has ᾱ in float32


@pytest.mark.thorough
@pytest.mark.parametrize(
    "changes",
    [
        {"num_classes": 5},
        {"rescale_timesteps": True},
        {"resblock_updown": False, "conv_resample": False},
        {"resblock_updown": False, "conv_resample": False, "ddpm_layers": True},
    ],
)
def test_an_export_comes_back(changes, tmp_path):
    process = DiffusionConfig(diffusion_steps=250, rescale_timesteps=bool(changes.get("rescale_timesteps")))
    model = make(process, **{name: value for name, value in changes.items() if name != "rescale_timesteps"})
    to_diffusers(model, tmp_path / "out")
    back = admg.load(tmp_path / "out")
    x, steps, y = batch(model)
    ours, again = (m.network(x, m.diffusion.timestep(steps), y=y) for m in (model, back))
    assert error(again, ours) < 2e-5
    assert back.config == process and torch.equal(back.diffusion.schedule.timesteps, model.diffusion.schedule.timesteps)


def test_names_of_labels_come_back(tmp_path):
    names = ("cat", "dog", "Crème brûlée")
    model = make(DiffusionConfig(diffusion_steps=50), num_classes=3)
    model.labels = Labels.of(names)
    to_diffusers(model, tmp_path / "out")
    back = admg.load(tmp_path / "out")
    assert back.label_names == names and back.labels.parse("dog") == 1
    assert UNet2DModel.from_pretrained(tmp_path / "out").config.num_class_embeds == 3
    path = tmp_path / "out" / "config.json"
    content = json.loads(path.read_text())
    for wrong, reason in ((["cat", "dog"], "there must be 3 label names, got 2"), ([1, 2, 3], "a list of names")):
        path.write_text(json.dumps({**content, "_admg_label_names": wrong}))
        with pytest.raises(CheckpointError, match=reason):
            admg.load(tmp_path / "out")


def test_names_of_labels_that_the_network_does_not_take_come_back(tmp_path):
    """As of an unconditional model that a classifier guides."""
    model = make(DiffusionConfig(diffusion_steps=50))
    model.labels = Labels.of(("cat", "dog"))
    to_diffusers(model, tmp_path / "out")
    back = admg.load(tmp_path / "out")
    assert back.label_names == ("cat", "dog") and not back.conditional


def test_a_flipped_bit_in_an_export_is_noticed(tmp_path):
    to_diffusers(make(DiffusionConfig(diffusion_steps=50)), tmp_path / "out")
    path = tmp_path / "out" / "diffusion_pytorch_model.safetensors"
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"safetensors is damaged: its SHA-256 differs from config\.json"):
        admg.load(tmp_path / "out")


@pytest.mark.thorough
def test_an_upsampler_that_we_exported_comes_back(tmp_path):
    config = SuperResConfig(**dataclasses.asdict(SMALL), small_size=4)
    process = DiffusionConfig()
    model = Model(randomised(SuperResUNet(config), 4), process.build(), (3, 16, 16), config=process)
    to_diffusers(model, tmp_path / "out")
    back = admg.load_upsampler(tmp_path / "out")
    x, low_res = torch.randn(2, 3, 16, 16), torch.rand(2, 3, 4, 4)
    steps = torch.tensor([3, 700])
    assert error(back.network(x, steps, low_res), model.network(x, steps, low_res)) < 2e-5
    (tmp_path / "out" / "README.md").unlink()
    with pytest.raises(CheckpointError, match="in_channels 6 and out_channels 6 do not fit"):
        admg.load(tmp_path / "out")


def test_older_files_are_read(tmp_path):
    """A pickle with the names of attention layers before diffusers 0.15, as google/ddpm-cifar10-32 has."""
    unet = write(tmp_path, **DDPM)
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    state = {}
    for name, value in load_file(tmp_path / "diffusion_pytorch_model.safetensors").items():
        for new, before in old.items():
            name = name.replace(f".{new}.", f".{before}.")
        state[name] = value
    (tmp_path / "diffusion_pytorch_model.safetensors").unlink()
    torch.save(state, tmp_path / "diffusion_pytorch_model.bin")
    assert error(*outputs(unet, admg.load(tmp_path))) < 2e-5


@pytest.mark.thorough
@pytest.mark.parametrize("zero", [False, True])
@pytest.mark.parametrize(
    "given, config",
    [
        ({}, DiffusionConfig(variance="fixed_small")),
        ({"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"},
         DiffusionConfig(noise_schedule="cosine", predict="v", variance="fixed_small")),
        ({"num_train_timesteps": 100, "beta_start": 1e-3, "beta_end": 0.2, "variance_type": "fixed_large"},
         DiffusionConfig(diffusion_steps=100, variance="fixed_large")),
        ({"beta_schedule": "scaled_linear", "beta_start": 0.0015, "beta_end": 0.0195}, None),
        ({"beta_schedule": "sigmoid"}, None),
        ({"trained_betas": [0.1, 0.2, 0.3], "num_train_timesteps": 3, "prediction_type": "sample"}, None),
    ],
)  # fmt: skip
def test_the_process_is_that_of_the_scheduler(given, config, zero, tmp_path):
    if zero and given.get("prediction_type") is None:
        given = {**given, "prediction_type": "v_prediction"}
        config = config and dataclasses.replace(config, predict="v")
    write(tmp_path)
    scheduler = DDPMScheduler(rescale_betas_zero_snr=zero, **given)
    scheduler.save_config(tmp_path)
    if config is None:
        with pytest.warns(UserWarning, match="can be sampled from, but not saved or trained further"):
            model = admg.load(tmp_path)
    else:
        model = admg.load(tmp_path)
    assert model.config == (config and dataclasses.replace(config, zero_terminal_snr=zero))
    ours = model.diffusion.schedule.alpha_bar
    assert (ours - scheduler.alphas_cumprod.double()).abs().max() < 2e-6  # theirs are float32


def test_without_a_scheduler_ddpms_process_is_assumed_and_said(tmp_path):
    write(tmp_path)
    (tmp_path / "scheduler_config.json").unlink()
    with pytest.warns(UserWarning, match="has no scheduler_config.json: assuming DDPM's process"):
        model = admg.load(tmp_path)
    assert model.config == DiffusionConfig(variance="fixed_small")


REFUSED = [
    (
        {"down_block_types": ["DownBlock2D", "SkipDownBlock2D", "DownBlock2D"]},
        "got SkipDownBlock2D",
    ),
    ({"up_block_types": ["AttnUpBlock2D", "UpBlock2D", "UpBlock2D"]}, "attention at other levels of the decoder"),
    ({"time_embedding_type": "fourier"}, "time_embedding_type must be positional or learned, got fourier"),
    ({"norm_num_groups": 16}, "norm_num_groups must be 32, got 16"),
    ({"act_fn": "relu"}, "got relu"),
    ({"norm_eps": 1e-6}, "freq_shift 0, norm_eps 1e-06, downsample_padding 1: only"),
    ({"resnet_time_scale_shift": "scale_shift"}, "attn_norm_num_groups must be 32, got None"),
    ({"mid_block_type": None}, "got None"),
    ({"add_attention": False}, "got False"),
    ({"class_embed_type": "timestep"}, "got timestep"),
    ({"downsample_type": "resnet"}, "got conv and resnet"),
    ({"sample_size": [16, 32]}, "sample_size 16x32: only square images have a counterpart"),
    ({"sample_size": None}, "sample_size, the side of the images, is missing"),
    ({"time_embedding_dim": 64}, "time_embedding_dim must be 128, 4 times"),
    ({"in_channels": 4}, "in_channels 4 and out_channels 3 do not fit"),
    ({"layers_per_block": "two"}, "Expected `int`, got `str` - at `$.layers_per_block`"),
    ({"cross_attention": 1}, "unknown field `cross_attention`"),
    ({"block_out_channels": [32, 32, 64]}, "does not fit its architecture"),
    ({"_class_name": "UNet2DConditionModel"}, "a UNet2DConditionModel of diffusers has no counterpart"),
]


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    folder = tmp_path_factory.mktemp("plain")
    write(folder)
    return folder


@pytest.mark.parametrize("changes, reason", REFUSED)
def test_what_has_no_counterpart_is_refused_by_name(changes, reason, plain, tmp_path, capsys):
    folder = shutil.copytree(plain, tmp_path / "x")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | changes))
    assert reason in refused(capsys, "info", folder)


@pytest.mark.parametrize(
    "content, reason",
    [
        ({"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 1.0}, "the process of a FlowMatchEulerDiscrete"),
        ({"_class_name": "DDPMScheduler", "beta_schedule": "jsd"}, "got jsd"),
        ({"beta_schedule": "linear", "variance_type": "learned"}, "got learned"),
        ({"beta_schedule": "linear", "prediction_type": "flow"}, "got flow"),
        ({"beta_schedule": "linear", "num_train_timesteps": "many"}, "Expected `int`, got `str`"),
        ({"beta_schedule": "linear", "rescale_betas_zero_snr": True}, "predict v or x0"),
        ([], "Expected `object`, got `array`"),
    ],
)
def test_schedulers_without_a_counterpart(content, reason, plain, tmp_path, capsys):
    folder = shutil.copytree(plain, tmp_path / "x")
    (folder / "scheduler_config.json").write_text(json.dumps(content))
    assert reason in refused(capsys, "info", folder)


def test_other_pipelines_and_damaged_files(plain, tmp_path, capsys):
    folder = shutil.copytree(plain, tmp_path / "x")
    index = {"_class_name": "LDMPipeline", "unet": ["diffusers", "UNet2DModel"], "vqvae": ["diffusers", "VQModel"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    assert "a LDMPipeline with vqvae has no counterpart" in refused(capsys, "info", folder)
    (folder / "model_index.json").unlink()
    weights = folder / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-8])
    assert "is truncated or not a safetensors file" in refused(capsys, "info", folder)
    weights.unlink()
    assert "has no diffusion_pytorch_model.safetensors" in refused(capsys, "info", folder)


def test_a_learned_time_embedding_without_sinusoids(plain, tmp_path):
    to_diffusers(make(DiffusionConfig(diffusion_steps=250, rescale_timesteps=True)), tmp_path / "out")
    path = tmp_path / "out" / "diffusion_pytorch_model.safetensors"
    state = load_file(path)
    state["time_proj.weight"] = torch.randn_like(state["time_proj.weight"])
    save_file(state, path)
    config = tmp_path / "out" / "config.json"
    text = json.loads(config.read_text())
    del text["_admg_sha256"]  # that of the file as it was exported
    config.write_text(json.dumps(text))
    with pytest.raises(CheckpointError, match="learned time embedding is not a table of sinusoids"):
        admg.load(tmp_path / "out")


def test_half_as_many_channels_of_a_time_embedding_come_back():
    """As in imagenet-512, whose first level is narrower than the time embedding."""
    steps, weight = torch.arange(1000), torch.randn(16, 256, generator=torch.Generator().manual_seed(0))
    fit = from_table(*time_table(steps, weight, 128), steps, 256, endpoint=False)
    sinusoids = timestep_embedding(steps, 256)
    assert fit.error < 1e-3 and error(sinusoids @ fit.weight.T, sinusoids @ weight.T) < 1e-4
    assert from_table(*time_table(steps, weight, 128), steps * 2, 256, endpoint=False).error > 0.1


@pytest.mark.thorough
def test_the_command_line(plain, tmp_path, capsys):
    assert "UNet" in succeed(capsys, "info", plain)
    succeed(
        capsys, "sample", "--model", plain, "--num", 1, "--steps", 2, "--precision", "fp32", "--out", tmp_path / "s"
    )
    assert (tmp_path / "s" / "sheet.png").is_file()


def test_the_defaults_are_those_of_diffusers():
    theirs = {name: value for name, value in UNet2DModel(**TINY).config.items() if not name.startswith("_")}
    ours = {name: getattr(UNet2D(), name) for name in theirs}
    changed = {name for name in theirs if _listed(theirs[name]) != _listed(ours[name])}
    assert changed == set(TINY) and UNet2D().flip_sin_to_cos is True


def _listed(value: object) -> object:
    return list(value) if isinstance(value, tuple) else value


def test_factors_give_the_widths_back():
    for channels in (32, 96, 128, 160, 224):
        for width in range(32, 1025, 32):
            assert (
                UNetConfig(image_size=8, channels=channels, channel_mult=(multiple(width, channels),)).width(0) == width
            )


def test_a_ddim_scheduler_is_a_process_too(plain, tmp_path):
    folder = shutil.copytree(plain, tmp_path / "x")
    DDIMScheduler(prediction_type="v_prediction").save_config(folder)
    assert admg.load(folder).config == DiffusionConfig(predict="v", variance="fixed_small")
