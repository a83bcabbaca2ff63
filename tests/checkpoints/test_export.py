"""Export to other libraries: diffusers computes the same outputs, and OpenAI's format holds the same bits."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, DDPMPipeline, DDPMScheduler, UNet2DModel
from helpers import randomised
from reference import error
from safetensors.torch import load_file

from admg import samplers
from admg.checkpoints import loading, openai
from admg.checkpoints.diffusers import readme
from admg.checkpoints.diffusers.export import scheduler_config
from admg.checkpoints.diffusers.unet2d import blocks, converted, split_rows, time_table, unet2d_config
from admg.checkpoints.export import to_diffusers, to_openai
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Classifier, Model
from admg.cli.main import main
from admg.diffusion.config import DiffusionConfig
from admg.diffusion.gaussian import Diffusion
from admg.diffusion.schedule import NoiseSchedule
from admg.models import ClassifierConfig, NoisyClassifier, SuperResConfig, SuperResUNet, UNet, UNetConfig
from admg.models.blocks import AttentionBlock, split_heads, timestep_embedding

SMALL = UNetConfig(
    image_size=16, channels=32, channel_mult=(1, 2, 2), num_res_blocks=1, attention_resolutions=(8, 4), head_channels=16
)
RANGE, SMALL_VARIANCE = DiffusionConfig(), DiffusionConfig(variance="fixed_small")
FAMILIES = {
    "the paper's": {},
    "new attention order": {"new_attention_order": True},
    "no scale-shift": {"scale_shift_norm": False},
    "convolutions": {"resblock_updown": False},
    "no convolutions": {"resblock_updown": False, "conv_resample": False},
    "all of the older": {"scale_shift_norm": False, "resblock_updown": False, "learn_variance": False},
    "labels": {"num_classes": 5, "new_attention_order": True},
    "labels, older": {"num_classes": 5, "resblock_updown": False, "learn_variance": False},
    "fixed variance": {"learn_variance": False},
    "grey": {"image_channels": 1, "num_classes": 3},
    "grey, fixed variance": {"image_channels": 1, "learn_variance": False},
    "one head": {"head_channels": 0, "num_heads": 1, "channel_mult": (1, 1, 2)},
    "heads by count": {"head_channels": 0, "num_heads": 4},
    "three blocks, no attention but in the middle": {"num_res_blocks": 3, "attention_resolutions": ()},
    "attention everywhere": {"attention_resolutions": (16, 8, 4), "new_attention_order": True},
    "attention in the midst": {"attention_resolutions": (8,), "resblock_updown": False},
    "one level": {"channel_mult": (1,), "attention_resolutions": (16,), "head_channels": 32},
    "a wide first level": {"channel_mult": (2, 1, 2)},
}


def make(process: DiffusionConfig = RANGE, names: tuple[str, ...] = (), **changes) -> Model:
    """A small model with random weights."""
    config = dataclasses.replace(SMALL, **changes)
    if not config.learn_variance and process.variance == "learned_range":
        process = dataclasses.replace(process, variance="fixed_small")
    network = randomised(UNet(config), seed=3)
    labels = Labels(config.num_classes, names)
    return Model(network, process.build(), (config.image_channels, *(config.image_size,) * 2), labels, process)


def upsampler(**changes) -> Model:
    config = SuperResConfig(**dataclasses.asdict(dataclasses.replace(SMALL, **changes)), small_size=4)
    return Model(randomised(SuperResUNet(config), seed=4), RANGE.build(), (3, 16, 16), Labels(0), RANGE)


def classifier(**changes) -> Classifier:
    options = {"channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "attention_resolutions": (8,)}
    config = ClassifierConfig(**{"image_size": 16, "head_channels": 16, "num_classes": 7} | options | changes)
    network = randomised(NoisyClassifier(config), seed=5)
    return Classifier(network, RANGE.build(), Labels(config.num_classes), RANGE)


def batch(model: Model) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """Noise, the first, a middle and the last step, and labels."""
    x = torch.randn(3, *model.shape, generator=torch.Generator().manual_seed(0))
    steps = torch.tensor([0, 17, len(model.diffusion) - 1])
    return x, steps, torch.tensor([0, 2, 1]) if model.conditional else None


@torch.no_grad()
def both(model: Model, folder) -> tuple[torch.Tensor, torch.Tensor]:
    """The outputs of our network and of the UNet2DModel in the folder."""
    x, steps, y = batch(model)
    ours = model.network(x, model.diffusion.timestep(steps), y=y)
    return ours, UNet2DModel.from_pretrained(folder).eval()(x, steps, class_labels=y).sample


# -- diffusers: the network ------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_unet2d_computes_the_same(family, tmp_path):
    model = make(**FAMILIES[family])
    to_diffusers(model, tmp_path / "out")
    ours, theirs = both(model, tmp_path / "out")
    assert ours.std() > 0.05
    assert error(theirs, ours) < 2e-5  # far below 1e-4


@pytest.mark.thorough
def test_the_shipped_model_computes_the_same(tmp_path):
    model = loading.load("fashion-mnist")
    to_diffusers(model, tmp_path / "out")
    ours, theirs = both(model, tmp_path / "out")
    assert error(theirs, ours) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("new_order", [False, True])
def test_weights_are_the_same_bits(new_order, tmp_path):
    """Each tensor by its name there, taken back to ours by hand."""
    model = make(num_classes=5, new_attention_order=new_order)
    to_diffusers(model, tmp_path / "out")
    theirs, ours = load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors"), model.network.state_dict()
    assert sum(value.numel() for value in theirs.values()) == sum(value.numel() for value in ours.values())
    expected = {
        "conv_in.weight": ours["input_blocks.0.0.weight"],
        "time_embedding.linear_1.weight": ours["time_embed.0.weight"],
        "time_embedding.linear_2.bias": ours["time_embed.2.bias"],
        "class_embedding.weight": ours["label_emb.weight"],
        "down_blocks.0.resnets.0.conv1.weight": ours["input_blocks.1.0.in_layers.2.weight"],
        "down_blocks.0.downsamplers.0.time_emb_proj.weight": ours["input_blocks.2.0.emb_layers.1.weight"],
        "down_blocks.1.resnets.0.conv_shortcut.weight": ours["input_blocks.3.0.skip_connection.weight"],
        "down_blocks.1.attentions.0.to_out.0.weight": ours["input_blocks.3.1.proj_out.weight"][:, :, 0],
        "mid_block.resnets.1.norm2.weight": ours["middle_block.2.out_layers.0.weight"],
        "up_blocks.0.upsamplers.0.conv2.weight": ours["output_blocks.1.2.out_layers.3.weight"],
        "up_blocks.2.resnets.1.norm1.bias": ours["output_blocks.5.0.in_layers.0.bias"],
        "conv_out.bias": ours["out.2.bias"],
    }
    heads, dim = 4, 16
    for i in range(64):  # row i of q: head i // 16, channel i % 16
        head, channel = divmod(i, dim)
        for part, name in enumerate("qkv"):
            row = part * 64 + i if new_order else (head * 3 + part) * dim + channel
            key = f"mid_block.attentions.0.to_{name}"
            assert torch.equal(theirs[f"{key}.weight"][i], ours["middle_block.1.qkv.weight"][row, :, 0])
            assert theirs[f"{key}.bias"][i] == ours["middle_block.1.qkv.bias"][row]
    assert heads * dim == len(theirs["mid_block.attentions.0.to_q.bias"])
    for key, value in expected.items():
        assert torch.equal(theirs[key], value), key
    # and nothing else: the sorted values of both are the same bits
    flat = [torch.cat([v.flatten() for v in state.values()]).sort().values for state in (theirs, ours)]
    assert torch.equal(*flat)


def test_rows_of_qkv_are_those_that_attention_uses():
    for new_order in (False, True):
        attention = AttentionBlock(32, 2, new_order=new_order)
        qkv = torch.arange(96.0)
        expected = split_heads(qkv[None, None], 2, new_order)
        for rows, part in zip(split_rows(attention, qkv), expected):
            assert torch.equal(rows, part.flatten())


@pytest.mark.thorough
def test_upsampler_is_a_network_of_2c_channels(tmp_path):
    model = upsampler(num_classes=5)
    exported = to_diffusers(model, tmp_path / "out")
    assert not (tmp_path / "out" / "model_index.json").exists()
    assert any("bilinear" in note for note in exported.notes)
    x, steps, y = batch(model)
    low_res = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(1)) * 2 - 1
    ours = model.network(x, steps, low_res, y=y)
    enlarged = torch.nn.functional.interpolate(low_res, 16, mode="bilinear")
    with torch.no_grad():
        unet = UNet2DModel.from_pretrained(tmp_path / "out").eval()
        theirs = unet(torch.cat([x, enlarged], 1), steps, class_labels=y).sample
    assert error(theirs, ours) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", dict((k.flags, name) for name, k in openai.PUBLISHED_FLAGS.items() if k.kind != "classifier").values()
)
def test_published_models_fit_or_are_refused(name):
    """Names and shapes at full size, on the meta device."""
    known = openai.PUBLISHED_FLAGS[name]
    config = openai.parse(known.flags, known.kind)
    steps = config.diffusion.build().schedule.timesteps
    with torch.device("meta"):
        network = {"diffusion": UNet, "upsampler": SuperResUNet}[known.kind](config.network)
    if name in ("openai/imagenet-128", "openai/imagenet-64-to-256"):  # 4 heads at several widths
        with pytest.raises(ValueError, match="4 heads at every width"):
            unet2d_config(network, steps)
        return
    arguments = unet2d_config(network, steps)
    with torch.device("meta"):
        theirs = UNet2DModel.from_config(arguments).state_dict()
    if name == "openai/imagenet-512":  # sinusoids of 256 in 128 channels
        assert theirs.pop("time_proj.weight").shape == (1000, 128)
        assert theirs["time_embedding.linear_1.weight"].shape == (1024, 128)
        theirs["time_embedding.linear_1.weight"] = torch.empty(1024, 256)
    ours = {f"{block}.{key}": value.shape for block, module in blocks(network) for key, value in converted(module)}
    assert ours == {key: value.shape for key, value in theirs.items()}


def test_half_precision_layers_are_written_in_float32(tmp_path):
    model = make()
    plain = {name: value.clone() for name, value in model.network.state_dict().items()}
    model.network.middle_block.bfloat16()
    to_diffusers(model, tmp_path / "out")
    to_openai(model, tmp_path / "model.pt")
    assert {v.dtype for v in load_file(tmp_path / "out" / "diffusion_pytorch_model.safetensors").values()} == {
        torch.float32
    }
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(value.dtype == torch.float32 for value in state.values())
    assert torch.equal(state["out.2.weight"], plain["out.2.weight"])
    name = "middle_block.1.qkv.weight"
    assert torch.equal(state[name], plain[name].bfloat16().float())


# -- diffusers: the time embedding -----------------------------------------------------------------------------------


@pytest.mark.thorough
def test_rescaled_timesteps_become_a_table(tmp_path):
    model = make(DiffusionConfig(diffusion_steps=400, rescale_timesteps=True))
    exported = to_diffusers(model, tmp_path / "out")
    assert any("table" in note for note in exported.notes)
    assert json.loads((tmp_path / "out" / "config.json").read_text())["time_embedding_type"] == "learned"
    assert error(*reversed(both(model, tmp_path / "out"))) < 2e-5


def test_rescaling_1000_steps_changes_nothing(tmp_path):
    to_diffusers(make(DiffusionConfig(rescale_timesteps=True)), tmp_path / "out")
    assert json.loads((tmp_path / "out" / "config.json").read_text())["time_embedding_type"] == "positional"


@pytest.mark.thorough
def test_imagenet_512s_narrow_first_level(tmp_path):
    """128 channels there for sinusoids of 256: the embeddings of 1000 steps have a rank of less than 128."""
    model = make(channels=256, channel_mult=(0.5, 0.25, 0.25))
    to_diffusers(model, tmp_path / "out")
    assert error(*reversed(both(model, tmp_path / "out"))) < 1e-4


def test_time_table_holds_every_step():
    weight = torch.randn(1024, 256, generator=torch.Generator().manual_seed(0)) / 16
    steps = torch.arange(1000)
    table, matrix = time_table(steps, weight, 128)
    assert table.shape == (1000, 128) and matrix.shape == (1024, 128)
    assert error(table @ matrix.T, timestep_embedding(steps, 256) @ weight.T) < 1e-4


# -- diffusers: the scheduler ----------------------------------------------------------------------------------------

PROCESSES = [
    DiffusionConfig(),
    DiffusionConfig(noise_schedule="cosine", diffusion_steps=4000, variance="fixed_large"),
    DiffusionConfig(diffusion_steps=250, variance="fixed_small", predict="x0"),
    DiffusionConfig(noise_schedule="cosine", predict="v"),
]


def schedulers(model: Model) -> tuple[DDPMScheduler, DDIMScheduler]:
    diffusion = model.config.build() if model.config else model.diffusion
    ddpm, ddim = (scheduler_config(diffusion, name, model) for name in ("ddpm", "ddim"))
    return DDPMScheduler.from_config(ddpm), DDIMScheduler.from_config(ddim)


@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_schedulers_have_our_noise(process):
    model = make(process, learn_variance=process.variance == "learned_range")
    expected = model.diffusion.schedule.alpha_bar
    for scheduler in schedulers(model):
        assert len(scheduler.alphas_cumprod) == process.diffusion_steps
        assert (scheduler.alphas_cumprod.double() - expected).abs().max() < 1e-6


def test_custom_betas_are_listed():
    diffusion = Diffusion(NoiseSchedule.from_betas(torch.linspace(1e-3, 0.3, 30) ** 2))
    model = dataclasses.replace(make(), diffusion=diffusion, config=None)
    for scheduler in schedulers(model):
        assert (scheduler.alphas_cumprod.double() - diffusion.schedule.alpha_bar).abs().max() < 1e-6


def test_schedulers_space_their_steps_as_respace_does():
    model = make()
    ddpm, ddim = schedulers(model)
    for count in (10, 25, 50, 100, 250, 1000):
        ddpm.set_timesteps(count)
        assert ddpm.timesteps.flip(0).tolist() == model.respace(count).diffusion.schedule.timesteps.tolist()
        ddim.set_timesteps(count)
        assert ddim.timesteps.flip(0).tolist() == model.respace(f"ddim{count}").diffusion.schedule.timesteps.tolist()
    ddpm.set_timesteps(21)  # diffusers rounds halves differently
    assert (ddpm.timesteps.flip(0) - model.respace(21).diffusion.schedule.timesteps).abs().max() == 1


def steps_of(model: Model, trajectory, x):
    """At each step of our own trajectory from x: x_t, what the network says there, and x_{t-1}."""
    for step in trajectory:
        with torch.no_grad():
            output = model.network(x, torch.tensor([step.t]))
        yield step.t, x, output, step.x
        x = step.x


@pytest.mark.slow
@pytest.mark.parametrize("process", PROCESSES, ids=str)
def test_ddpm_steps_are_ours(process):
    """From the same x_t, output and noise, which comes from diffusers' generator.

    It gets ᾱ in float64 here: in its float32, the 1 - ᾱ of the last steps has 3 digits left, and so has the variance.
    """
    model = make(process, learn_variance=process.variance == "learned_range").respace(6)
    scheduler, _ = schedulers(model)
    scheduler.set_timesteps(6)
    scheduler.alphas_cumprod = process.build().schedule.alpha_bar
    x_T, _, _ = batch(model)
    noise = torch.randn(x_T.shape, generator=torch.Generator().manual_seed(7))
    trajectory = samplers.ddpm(model, x_T, noise_sampler=lambda x, i: noise)
    for t, x, output, after in steps_of(model, trajectory, x_T):
        theirs = scheduler.step(output, t, x, generator=torch.Generator().manual_seed(7)).prev_sample
        assert error(theirs, after) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("eta", [0.0, 1.0])
@pytest.mark.parametrize("process", [*PROCESSES[:1], *PROCESSES[2:]], ids=str)
def test_ddim_steps_are_ours(process, eta):
    model = make(process, learn_variance=process.variance == "learned_range").respace("ddim5")
    _, scheduler = schedulers(model)
    scheduler.set_timesteps(5)
    x_T, _, _ = batch(model)
    noise = torch.randn(x_T.shape, generator=torch.Generator().manual_seed(7))
    options = {"eta": eta, "use_clipped_model_output": True, "variance_noise": noise if eta else None}
    trajectory = samplers.ddim(model, x_T, eta=eta, noise_sampler=lambda x, i: noise)
    for t, x, output, after in steps_of(model, trajectory, x_T):
        assert error(scheduler.step(output[:, :3], t, x, **options).prev_sample, after) < 2e-5


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["ddpm", "ddim"])
def test_whole_trajectory_is_ours(scheduler, tmp_path):
    """Network, scheduler and spacing together, as its user would write the loop."""
    model = make(num_classes=3)
    to_diffusers(model, tmp_path / "out", scheduler)
    theirs = {"ddpm": DDPMScheduler, "ddim": DDIMScheduler}[scheduler].from_pretrained(tmp_path / "out")
    unet = UNet2DModel.from_pretrained(tmp_path / "out").eval()
    theirs.set_timesteps(5)
    x_T, _, y = batch(model)
    x, generator = x_T, torch.Generator().manual_seed(7)
    options = {"use_clipped_model_output": True} if scheduler == "ddim" else {"generator": generator}
    with torch.no_grad():
        for t in theirs.timesteps:
            x = theirs.step(unet(x, t, class_labels=y).sample, t, x, **options).prev_sample

    generator = torch.Generator().manual_seed(7)
    noises = {i: torch.randn(x_T.shape, generator=generator) for i in (4, 3, 2, 1)}
    spec, sampler = {"ddpm": (5, samplers.ddpm), "ddim": ("ddim5", samplers.ddim)}[scheduler]
    *_, last = sampler(model.respace(spec), x_T, y=y, noise_sampler=lambda x, i: noises[i])
    assert error(x, last.x) < 1e-3  # rounding, multiplied by 1/sqrt(ᾱ_T) = 158 at the first step


@pytest.mark.thorough
@pytest.mark.parametrize(("scheduler", "pipeline"), [("ddpm", DDPMPipeline), ("ddim", DDIMPipeline)])
def test_pipelines_load_and_run(scheduler, pipeline, tmp_path):
    to_diffusers(make(), tmp_path / "out", scheduler)
    loaded = pipeline.from_pretrained(tmp_path / "out")
    loaded.set_progress_bar_config(disable=True)
    images = loaded(batch_size=2, num_inference_steps=2, output_type="np").images
    assert images.shape == (2, 16, 16, 3) and images.std() > 0.01


# -- diffusers: the scripts of the README ----------------------------------------------------------------------------

EIGHTH_OF_A_GREY_LEVEL = 2 / 255 / 8
COSINE_X0 = DiffusionConfig(noise_schedule="cosine", predict="x0", variance="fixed_small")


def run_readme(model: Model, folder, change=lambda script: script) -> tuple[torch.Tensor, torch.Tensor]:
    """The images of the two scripts in the README of an export: diffusers', after a change, and ours."""
    theirs, ours = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    names = {"folder": folder, "model": model}
    exec(change(theirs), names)
    exec(ours.replace("x_T=x_T", "x_T=x_T, progress=False"), names)
    return names["x"], names["samples"].x


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpmpp_2m"])
def test_the_script_of_the_readme_makes_our_images(scheduler, tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "STEPS", 5)  # with 25, they differ by at most 1e-5
    model = loading.load("fashion-mnist")
    to_diffusers(model, tmp_path / "out", scheduler)
    theirs, ours = run_readme(model, tmp_path / "out")
    assert (theirs - ours).abs().max() < EIGHTH_OF_A_GREY_LEVEL


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["ddim", "dpmpp_2m"])
def test_the_defaults_of_diffusers_give_other_images(scheduler, tmp_path, monkeypatch):
    """Otherwise the README would have nothing to say."""
    monkeypatch.setattr(readme, "STEPS", 5)
    model = loading.load("fashion-mnist")
    to_diffusers(model, tmp_path / "out", scheduler)
    assert "gives other images than admg by default" in (tmp_path / "out" / "README.md").read_text()

    def with_defaults(script: str) -> str:
        changed = re.sub(r"timesteps=\[.*\]", "5", script.replace(", use_clipped_model_output=True", ""))
        assert changed != script
        return changed

    theirs, ours = run_readme(model, tmp_path / "out", with_defaults)
    assert (theirs - ours).abs().max() > 4 * EIGHTH_OF_A_GREY_LEVEL  # four times as far as with the README's arguments


@pytest.mark.slow
@pytest.mark.parametrize("scheduler", ["ddpm", "ddim", "dpmpp_2m"])
@pytest.mark.parametrize(
    "model",
    [
        lambda: make(num_classes=3),
        lambda: make(COSINE_X0, image_channels=1, learn_variance=False),
        lambda: make(DiffusionConfig(diffusion_steps=42)),  # 8 does not divide it, so 7 steps are taken
        upsampler,
    ],
    ids=["labels", "grey, cosine, x0", "42 steps", "upsampler"],
)
def test_the_scripts_fit_every_kind_of_model(model, scheduler, tmp_path, monkeypatch):
    monkeypatch.setattr(readme, "STEPS", 8)
    model = model()
    to_diffusers(model, tmp_path / "out", scheduler)
    theirs, ours = run_readme(model, tmp_path / "out")
    assert error(theirs, ours) < 1e-3  # rounding, multiplied by 1/sqrt(ᾱ_T) at the first step


# -- diffusers: what it cannot express --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"head_channels": 0, "num_heads": 2, "channel_mult": (1, 2, 4)}, "channels per attention head: 2 heads"),
        ({"head_channels": 0, "num_heads": 2, "num_heads_upsample": 4}, "num_heads_upsample: 4 heads"),
        ({"channels": 64, "channel_mult": (0.5, 1, 1)}, "embeds time in as many channels as the first level has, 32"),
    ],
)
def test_networks_that_unet2d_cannot_express(changes, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        to_diffusers(make(**changes), tmp_path / "out")
    assert not any(tmp_path.iterdir())


@pytest.mark.thorough
def test_other_refusals(tmp_path):
    with pytest.raises(ValueError, match="diffusers has no noisy classifier"):
        to_diffusers(classifier(), tmp_path / "out")
    with pytest.raises(ValueError, match="scheduler must be one of ddpm, ddim, dpmpp_2m, got 'pndm'"):
        to_diffusers(make(), tmp_path / "out", "pndm")
    with pytest.raises(ValueError, match="its logarithm"):
        to_diffusers(make(DiffusionConfig(variance="learned")), tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").write_text("years of work")
    with pytest.raises(ValueError, match="exists and is not an earlier export"):
        to_diffusers(make(), tmp_path / "mine")
    assert [path.name for path in tmp_path.iterdir()] == ["mine"]
    assert (tmp_path / "mine" / "thesis.tex").read_text() == "years of work"


def test_learned_log_variance_can_go_with_ddim(tmp_path):
    to_diffusers(make(DiffusionConfig(variance="learned")), tmp_path / "out", "ddim")
    assert UNet2DModel.from_pretrained(tmp_path / "out").config.out_channels == 3


@pytest.mark.thorough
def test_an_earlier_export_is_replaced(tmp_path):
    to_diffusers(make(), tmp_path / "out")
    to_diffusers(make(num_classes=5), tmp_path / "out", "ddim")
    assert UNet2DModel.from_pretrained(tmp_path / "out").config.num_class_embeds == 5


def test_a_pipeline_from_elsewhere_is_not_replaced(tmp_path):
    to_diffusers(make(), tmp_path / "out")
    (tmp_path / "out" / "README.md").write_text("# Cats\n")  # such as any published folder has
    with pytest.raises(ValueError, match="not an earlier export"):
        to_diffusers(make(), tmp_path / "out")


def test_a_file_of_another_kind_is_not_replaced(tmp_path):
    (tmp_path / "notes.txt").write_text("years of work")
    with pytest.raises(ValueError, match=r"exists and is not a \.pt file"):
        to_openai(make(), tmp_path / "notes.txt")
    assert (tmp_path / "notes.txt").read_text() == "years of work"
    to_openai(make(), tmp_path / "a.pt")
    to_openai(make(), tmp_path / "a.pt")  # one of its own is


def test_a_part_that_a_checkpoint_does_not_have(tmp_path, capsys):
    make().save(tmp_path / "model")
    target = tmp_path / "x.pt"
    arguments = ["export", str(tmp_path / "model"), "--part", "classifier", "--to", "openai", "--out", str(target)]
    assert main(arguments) == 2 and not target.exists()
    assert "is a diffusion model, not a noisy classifier" in capsys.readouterr().err


def test_a_respaced_model_is_exported_with_its_original_process():
    model = make().respace(10)
    assert scheduler_config(model.config.build(), "ddpm", model)["num_train_timesteps"] == 1000


def test_labels_are_described(tmp_path):
    exported = to_diffusers(make(num_classes=3, names=("a shirt", "a bag", "a boot")), tmp_path / "out")
    assert any("class_labels" in note and "0 to 2" in note and "left out" in note for note in exported.notes)
    assert "- 1: a bag" in (tmp_path / "out" / "README.md").read_text()


# -- openai ----------------------------------------------------------------------------------------------------------


def round_trip(part: Model | Classifier, path) -> Model | Classifier:
    exported = to_openai(part, path)
    return openai.load(path, exported.flags)


PARTS = {
    "diffusion": lambda: make(new_attention_order=True, num_classes=10),
    "grey": lambda: make(DiffusionConfig(noise_schedule="cosine", predict="x0"), image_channels=1),
    "fixed_small": lambda: make(
        SMALL_VARIANCE, learn_variance=False, resblock_updown=False, conv_resample=False, head_channels=0
    ),
    "upsampler": upsampler,
    "classifier": classifier,
    "classifier, spatial": lambda: classifier(pool="spatial_v2"),
}


@pytest.mark.thorough
@pytest.mark.parametrize("name", PARTS)
def test_openai_round_trip_is_exact(name, tmp_path):
    part = PARTS[name]()
    back = round_trip(part, tmp_path / "model.pt")
    ours, theirs = part.network.state_dict(), back.network.state_dict()
    assert list(theirs) == list(ours)
    assert all(torch.equal(theirs[key], ours[key]) for key in ours)
    assert type(back.network) is type(part.network)
    assert back.network.config == part.network.config
    assert back.config == part.config


def test_openai_file_is_a_plain_state_dict(tmp_path):
    """A zip file with an OrderedDict of contiguous float32 tensors, not larger than they are."""
    from collections import OrderedDict

    model = make()
    to_openai(model, tmp_path / "model.pt")
    assert (tmp_path / "model.pt").read_bytes()[:2] == b"PK"
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert type(state) is OrderedDict
    assert all(value.is_contiguous() and value.dtype == torch.float32 for value in state.values())
    weights = sum(value.nbytes for value in state.values())
    assert weights < (tmp_path / "model.pt").stat().st_size < weights + 300 * len(state) + 100_000


def test_openai_writes_no_more_than_the_tensors_of_a_mapped_file(tmp_path):
    """A network loaded from disk may hold views into one storage, of which torch.save would write the whole."""
    model = make()
    whole = torch.zeros(1_000_000)
    whole[:96] = 1
    model.network.out[0].weight.data = whole[:32]
    to_openai(model, tmp_path / "model.pt")
    size = sum(value.nbytes for value in model.network.state_dict().values())
    assert (tmp_path / "model.pt").stat().st_size < size + 300_000


@pytest.mark.thorough
def test_patches_are_named(tmp_path):
    exported = to_openai(make(image_channels=1, num_classes=10, names=tuple("abcdefghij")), tmp_path / "model.pt")
    text = "\n".join(exported.notes)
    assert "NUM_CLASSES = 10" in text
    assert "in_channels=1 and out_channels=2" in text
    assert "always needs a label" in text
    plain = to_openai(make(), tmp_path / "plain.pt")
    assert plain.notes == ()  # --channel_mult 1,2,2 is a flag there
    assert "--channel_mult 1,2,2" in plain.flags
    fraction = to_openai(make(channels=64, channel_mult=(0.5, 1, 1)), tmp_path / "fraction.pt")
    assert "channel_mult=(0.5, 1, 1)" in fraction.notes[0]
    small = to_openai(make(SMALL_VARIANCE, learn_variance=False), tmp_path / "small.pt")
    assert "sigma_small=True" in small.notes[0]
    head = to_openai(classifier(), tmp_path / "classifier.pt")
    assert any("EncoderUNetModel channel_mult=(1, 2) in create_classifier" in note for note in head.notes)
    assert any("out_channels=7 in create_classifier" in note for note in head.notes)


@pytest.mark.thorough
def test_openai_refusals(tmp_path):
    with pytest.raises(ValueError, match="predicts v"):
        to_openai(make(DiffusionConfig(predict="v")), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="variance 'learned'"):
        to_openai(make(DiffusionConfig(variance="learned")), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="DiffusionConfig"):
        to_openai(dataclasses.replace(make(), config=None), tmp_path / "model.pt")
    with pytest.raises(ValueError, match="is a folder"):
        to_openai(make(), tmp_path)
    assert not any(tmp_path.iterdir())


def test_a_classifier_needs_no_prediction(tmp_path):
    process = DiffusionConfig(predict="v", noise_schedule="cosine")
    part = dataclasses.replace(classifier(), diffusion=process.build(), config=process)
    assert round_trip(part, tmp_path / "model.pt").config.noise_schedule == "cosine"


# -- the command -----------------------------------------------------------------------------------------------------


def run(*arguments: object) -> int:
    """Run the command in this process and return its exit code."""
    return main(["export", *map(str, arguments)])


@pytest.mark.thorough
def test_command_exports_the_shipped_model(tmp_path, capsys):
    run("fashion-mnist", "--to", "diffusers", "--out", tmp_path / "out")
    assert UNet2DModel.from_pretrained(tmp_path / "out").config.num_class_embeds == 10
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"Saved {tmp_path / 'out'}"
    assert any(line.startswith("note: labels are numbers") for line in printed)


@pytest.mark.thorough
def test_command_exports_a_part_of_a_shipped_model_to_openai(tmp_path, capsys):
    run("fashion-mnist", "--to", "openai", "--out", tmp_path / "model.pt", "--part", "classifier")
    printed = capsys.readouterr().out
    flags = next(line for line in printed.splitlines() if line.startswith("flags: ")).removeprefix("flags: ")
    back, shipped = openai.load(tmp_path / "model.pt", flags), loading.load_classifier("fashion-mnist")
    ours = shipped.network.state_dict()
    assert all(torch.equal(value, ours[name]) for name, value in back.network.state_dict().items())
    assert back.config == shipped.config
    assert run("fashion-mnist", "--to", "openai", "--out", tmp_path / "other.pt", "--part", "diffusion") == 2
    assert "guided-diffusion has no flag for a network that predicts v" in capsys.readouterr().err


@pytest.mark.thorough
def test_command_recognises_the_kind_of_a_checkpoint(tmp_path, capsys):
    classifier().save(tmp_path / "classifier")
    upsampler().save(tmp_path / "upsampler")
    run(tmp_path / "classifier", "--to", "openai", "--out", tmp_path / "classifier.pt")
    run(tmp_path / "upsampler", "--to", "openai", "--out", tmp_path / "upsampler.pt")
    for name, parameter in (("classifier", "out.2.c_proj.bias"), ("upsampler", "output_blocks.0.0.in_layers.0.bias")):
        assert parameter in torch.load(tmp_path / f"{name}.pt", weights_only=True)
    assert run(tmp_path / "classifier", "--to", "diffusers", "--out", tmp_path / "out") == 2
    assert "no noisy classifier: a classifier can only be exported to openai" in capsys.readouterr().err
    assert run(tmp_path / "nothing", "--to", "openai", "--out", tmp_path / "out") == 2
    assert "unknown model" in capsys.readouterr().err


@pytest.mark.thorough
def test_command_takes_openais_files(tmp_path, capsys):
    torch.save(make().network.state_dict(), tmp_path / "model.pt")
    assert run(tmp_path / "model.pt", "--to", "diffusers", "--out", tmp_path / "out") == 0
    assert "note: " in (err := capsys.readouterr().err) and "the shapes do not determine all flags" in err
    assert UNet2DModel.from_pretrained(tmp_path / "out").config.block_out_channels == [32, 64, 64]


@pytest.mark.parametrize("to, name", [("openai", "a.pt"), ("torch-export", "a.pt2"), ("diffusers", "a")])
def test_the_command_replaces_nothing_without_overwrite(tmp_path, capsys, to, name):
    make().save(tmp_path / "model")
    out = tmp_path / name
    assert run(tmp_path / "model", "--to", to, "--out", out) == 0
    before = out.stat().st_ino
    capsys.readouterr()
    assert run(tmp_path / "model", "--to", to, "--out", out) == 2
    assert f"{out} exists: choose another --out, or --overwrite it" in capsys.readouterr().err
    assert out.stat().st_ino == before
    assert run(tmp_path / "model", "--to", to, "--out", out, "--overwrite") == 0
    assert out.stat().st_ino != before


def test_the_command_replaces_neither_links_nor_weights_beside_a_graph(tmp_path, capsys):
    make().save(tmp_path / "model")
    (tmp_path / "a.pt").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "a.onnx.data").write_text("mine")
    for to, name, found in (("openai", "a.pt", "a.pt"), ("onnx", "a.onnx", "a.onnx.data")):
        assert run(tmp_path / "model", "--to", to, "--out", tmp_path / name) == 2
        assert f"{tmp_path / found} exists" in capsys.readouterr().err
    assert run(tmp_path / "model", "--to", "openai", "--out", tmp_path / "model") == 2
    assert "is a folder" in capsys.readouterr().err
