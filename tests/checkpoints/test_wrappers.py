"""Weights are found in everything that training code puts around them, and the average is preferred and named."""

from __future__ import annotations

import argparse
import warnings

import helpers
import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import admg
from admg.checkpoints import openai
from admg.checkpoints.networks import NETWORK_KINDS
from admg.checkpoints.openai.wrappers import is_average
from admg.checkpoints.weights import CheckpointError
from admg.diffusion.config import DiffusionConfig
from admg.diffusion.schedule import NoiseSchedule
from admg.evaluation.diagnose import checkpoint as diagnose

TINY = "--image_size 16 --num_channels 32 --channel_mult 1,2 --num_res_blocks 1 --attention_resolutions 8 "
TINY += "--num_head_channels 32 --learn_sigma True"
CLASSIFIER = "--image_size 16 --classifier_width 64 --classifier_depth 1 --classifier_channel_mult 1,1 "
CLASSIFIER += "--classifier_attention_resolutions 8 --num_classes 4"
STEPS = 50


def state_of(seed: int = 0, flags: str = TINY, kind: str = "diffusion") -> dict[str, torch.Tensor]:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = NETWORK_KINDS[kind].network(openai.parse(flags, kind).network)
    return dict(network.state_dict())


RAW, EMA = state_of(0), state_of(1)


def under(prefix: str, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {prefix + name: value for name, value in state.items()}


def lit_ema(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """As latent-diffusion's LitEma registers the parameters of `model`, a DiffusionWrapper."""
    return {"model_ema." + f"diffusion_model.{name}".replace(".", ""): value for name, value in state.items()}


def checkpointed(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {
        name.replace("input_blocks.1.0.", "input_blocks.1.0._checkpoint_wrapped_module."): v
        for name, v in state.items()
    }


BUFFERS = {
    "betas": NoiseSchedule.linear(STEPS).betas.float(),
    "sqrt_one_minus_alphas_cumprod": torch.ones(STEPS),
    "posterior_mean_coef1": torch.ones(STEPS),
    "logvar": torch.zeros(STEPS),
}
ALONE = {
    "plain": RAW,
    "DDP": under("module.", RAW),
    "torch.compile": under("_orig_mod.", RAW),
    "DDP of torch.compile": under("module._orig_mod.", RAW),
    "FSDP and activation checkpointing": under("_fsdp_wrapped_module.", checkpointed(RAW)),
    "Lightning": {"state_dict": under("model.", RAW), "epoch": 1, "hyper_parameters": {"lr": 1e-4}},
    "latent-diffusion": {"state_dict": under("model.diffusion_model.", RAW), "global_step": 5},
    "any prefix": under("net.unet.", RAW),
    "AveragedModel": {"n_averaged": torch.tensor(3), **under("module.", RAW)},
    "ema alone": {"ema": RAW, "step": 3},
    "params_ema": {"params_ema": RAW},
    "in a list": [{"network": RAW}, 3],
    "buffers of the process": {**RAW, **BUFFERS},
    "buffers under the prefix": {"state_dict": under("model.", {**RAW, **BUFFERS})},
    "another network": {"state_dict": {**under("model.", RAW), "loss.vgg.0.weight": torch.ones(3)}},
    "an optimizer": {"model": RAW, "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}, "param_groups": []}},
    "a NumPy number": {"state_dict": RAW, "best_loss": np.float64(0.1)},
    "argparse": {"model": RAW, "args": argparse.Namespace(lr=1e-4)},
    "a lucidrains trainer": {"model": under("model.", RAW), "step": 1, "opt": {"state": {}, "param_groups": []}},
}  # fmt: skip


def loaded(path, flags: str | None = TINY):
    """The model of a file, and the notes."""
    with warnings.catch_warnings(record=True) as notes:
        warnings.simplefilter("always")
        model = openai.load(path, flags)
    return model, [str(note.message) for note in notes]


def equal(model, state: dict[str, torch.Tensor]) -> bool:
    own = model.network.state_dict()
    return own.keys() == state.keys() and all(torch.equal(value, state[name]) for name, value in own.items())


@pytest.mark.parametrize("kind", ALONE)
def test_weights_are_found(tmp_path, kind):
    torch.save(ALONE[kind], tmp_path / "a.pt")
    model, notes = loaded(tmp_path / "a.pt", f"{TINY} --diffusion_steps {STEPS} --rescale_timesteps False")
    assert equal(model, RAW) and notes == []


AVERAGED = {
    "ema": {"model": RAW, "ema": EMA},
    "model_ema": {"model": RAW, "model_ema": EMA, "optimizer": {}},
    "params_ema": {"params": RAW, "params_ema": EMA},
    "ema_state_dict.module": {"state_dict": RAW, "ema_state_dict": under("module.", EMA)},
    "ema.ema_model": {
        "model": under("model.", RAW),
        "ema": {**under("online_model.", RAW), **under("ema_model.", EMA), "initted": torch.ones(1)},
    },
    "state_dict.ema_model": {"state_dict": {**under("model.", RAW), **under("ema_model.", EMA)}},
    "state_dict.model_ema": {
        "state_dict": under("model.diffusion_model.", RAW) | lit_ema(EMA) | {"model_ema.decay": torch.tensor(0.9)}
    },
    "ema.shadow_params": {"model": RAW, "ema": {"decay": 0.999, "shadow_params": list(EMA.values())}},
    "callbacks.EMA.ema_weights": {"state_dict": under("model.", RAW), "callbacks": {"EMA": {"ema_weights": EMA}}},
    "ema_0.9999": {"model": RAW, "ema_0.99": RAW, "ema_0.9999": EMA, "ema_0.999": RAW},
}  # fmt: skip


@pytest.mark.parametrize("where", AVERAGED)
def test_the_average_is_preferred_and_said(tmp_path, where):
    torch.save(AVERAGED[where], tmp_path / "a.pt")
    model, notes = loaded(tmp_path / "a.pt")
    assert equal(model, EMA)
    assert len(notes) == 1 and f"took the averaged weights (EMA), {where!r}, and not those under" in notes[0]
    assert model.training["weights"] == f"{where} (average)"


@pytest.mark.parametrize(
    ("where", "average"),
    [
        *((name, True) for name in ("ema", "model_ema", "netG_ema", "ema-0.99", "EMA", "UNetEMA", "modelEma", "swa.m")),
        *((name, False) for name in ("model", "schema", "cinema.model", "ema.online_model", "demand", "hyperema_x")),
    ],
)  # fmt: skip
def test_names_of_averages(where, average):
    assert is_average(where) == average


@pytest.mark.parametrize(
    "average", [{"decay": 0.9, "shadow_params": list(EMA.values())[1:]}, torch.nn.Linear(1, 1)], ids=["list", "object"]
)
def test_an_average_that_cannot_be_read_is_said(tmp_path, average):
    torch.save({"model": RAW, "ema": average}, tmp_path / "a.pt")
    model, notes = loaded(tmp_path / "a.pt")
    assert equal(model, RAW) and len(notes) == 1 and "its average (EMA) under 'ema" in notes[0]


def test_diagnose_says_which_weights_it_takes_and_not_what_it_will_try(tmp_path):
    torch.save({"model": RAW, "ema": EMA}, tmp_path / "a.ckpt")
    with pytest.warns(UserWarning) as notes:
        model = diagnose.load(str(tmp_path / "a.ckpt"), None)
    assert equal(model, EMA) and len(notes) == 1 and "took the averaged weights (EMA), 'ema'" in str(notes[0].message)


@pytest.mark.thorough
def test_two_networks_are_refused_unless_the_kind_decides(tmp_path):
    classifier = state_of(2, CLASSIFIER, "classifier")
    torch.save({"model": RAW, "classifier": classifier, "copy": RAW}, tmp_path / "a.pt")
    assert equal(loaded(tmp_path / "a.pt")[0], RAW)
    assert equal(openai.load_classifier(tmp_path / "a.pt", CLASSIFIER), classifier)
    torch.save({"unet1": RAW, "unet2": EMA}, tmp_path / "b.pt")
    with pytest.raises(CheckpointError, match=r"weights of several networks, under 'unet1', 'unet2': save one"):
        openai.load(tmp_path / "b.pt", TINY)


def test_a_latent_diffusion_model_is_refused(tmp_path):
    state = under("model.diffusion_model.", RAW) | {"first_stage_model.encoder.conv_in.weight": torch.ones(1)}
    torch.save({"state_dict": state}, tmp_path / "a.ckpt")
    with pytest.raises(CheckpointError, match="latent diffusion model: its network denoises the latents"):
        openai.load(tmp_path / "a.ckpt")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("extra", "1 unexpected, first extra"),
        ("lora.weight", "1 unexpected, first lora.weight"),
        ("out.3.weight", "1 unexpected, first out.3.weight"),
    ],
)
def test_parameters_of_another_network_are_not_ignored(tmp_path, name, message):
    torch.save({**RAW, name: torch.ones(2)}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=message):
        openai.load(tmp_path / "a.pt", TINY)


def test_a_network_of_diffusers_is_named(tmp_path):
    save_file({"down_blocks.0.resnets.0.norm1.weight": torch.ones(2)}, tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="holds a network of diffusers"):
        openai.load(tmp_path / "a.safetensors")


def test_weights_in_integers_are_refused(tmp_path):
    state = RAW | {"out.2.bias": RAW["out.2.bias"].to(torch.int8)}
    torch.save(state, tmp_path / "a.pt")
    with pytest.raises(
        CheckpointError, match=r"holds out\.2\.bias as a tensor of int8: weights must be plain floating"
    ):
        openai.load(tmp_path / "a.pt", TINY)


# -- the schedule that a checkpoint holds ------------------------------------------------------------------------------


@pytest.mark.thorough
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16])
@pytest.mark.parametrize("process", [DiffusionConfig(noise_schedule="cosine", diffusion_steps=400), DiffusionConfig()])
def test_betas_of_a_checkpoint_give_its_schedule(tmp_path, process, dtype):
    torch.save({**RAW, "betas": process.build().schedule.betas.to(dtype)}, tmp_path / "a.pt")
    assert loaded(tmp_path / "a.pt", None)[0].config == process


def test_betas_of_another_schedule_are_refused_without_flags_and_said_with_them(tmp_path):
    scaled = torch.linspace(0.0015**0.5, 0.0195**0.5, 1000, dtype=torch.float64) ** 2  # latent-diffusion's "linear"
    torch.save({**RAW, "betas": scaled}, tmp_path / "a.pt")
    with pytest.raises(CheckpointError, match=r"betas \(1000 from 0\.0015 to 0\.0195\) that are those of neither"):
        openai.load(tmp_path / "a.pt")
    _, notes = loaded(tmp_path / "a.pt", TINY)
    assert (
        len(notes) == 1 and "differ from those of the flags --noise_schedule linear --diffusion_steps 1000" in notes[0]
    )


# -- formats and endings -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ending", ["PT", "bin", "pth.tar", "ckpt", "weights", "safetensors", "no-ending"])
@pytest.mark.filterwarnings("ignore")  # of assumptions
def test_any_ending_is_read(tmp_path, ending):
    path = tmp_path / f"a.{ending}" if ending != "no-ending" else tmp_path / "a"
    if ending == "safetensors":
        save_file(RAW, path)
    else:
        torch.save(RAW, path)
    assert equal(admg.load(path), RAW)


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
def test_the_commands_take_any_ending(tmp_path, capsys):
    path = tmp_path / "a.pth.tar"
    torch.save({"ema": RAW}, path)
    code, out, _ = helpers.run(capsys, "info", path)
    assert code == 0 and "diffusion model, UNet" in out
    assert helpers.run(capsys, "export", path, "--to", "openai", "--out", tmp_path / "out.pt")[0] == 0
    assert helpers.run(capsys, "import-openai", path, "--out", tmp_path / "native")[0] == 0


@pytest.mark.thorough
@pytest.mark.filterwarnings("ignore")
def test_classifiers_and_upsamplers_take_any_ending(tmp_path):
    classifier = state_of(2, CLASSIFIER, "classifier")
    save_file(under("module.", classifier), tmp_path / "c.safetensors")
    assert equal(admg.load_classifier(tmp_path / "c.safetensors"), classifier)
    flags = TINY.replace("--image_size 16", "--large_size 16 --small_size 8")
    upsampler = state_of(3, flags, "upsampler")
    torch.save({"state_dict": under("net.", upsampler)}, tmp_path / "u.bin")
    assert equal(admg.load_upsampler(tmp_path / "u.bin"), upsampler)


def test_safetensors_with_an_average(tmp_path):
    save_file(under("model.", RAW) | under("ema.", EMA), tmp_path / "a.safetensors")
    model, notes = loaded(tmp_path / "a.safetensors")
    assert equal(model, EMA) and len(notes) == 1
    (tmp_path / "a.safetensors").write_bytes((tmp_path / "a.safetensors").read_bytes()[:-100])
    with pytest.raises(CheckpointError, match="safetensors file that is truncated or damaged"):
        openai.load(tmp_path / "a.safetensors", TINY)


def test_a_file_of_a_native_checkpoint_stands_for_its_folder(tmp_path, tiny_model):
    tiny_model.save(tmp_path / "model")
    for name in ("model.safetensors", "config.json"):
        assert admg.load(tmp_path / "model" / name).config == tiny_model.config


def test_a_missing_file_is_said_to_be_missing():
    for ending in ("PT", "safetensors", "pth.tar", "bin"):
        with pytest.raises(ValueError, match=f"nothing.{ending}: no such file"):
            admg.load(f"nothing.{ending}")


@pytest.mark.parametrize("command", ["sample --model", "import-openai", "info", "sample --classifier"])
def test_the_checkpoint_of_a_training_run_names_the_model(tmp_path, capsys, command):
    (tmp_path / "run" / "model").mkdir(parents=True)
    state = tmp_path / "run" / "checkpoints" / "0000001" / "state.pt"
    state.parent.mkdir(parents=True)
    torch.save({"step": 1, "optimizer": {}, "network": RAW, "average": EMA}, state)
    arguments = [
        *command.split(),
        state,
        *(() if command == "info" else ("--out", tmp_path / "out")),
    ]
    message = helpers.refused(capsys, *arguments)
    assert f"the model is {tmp_path / 'run' / 'model'}" in message and not (tmp_path / "out").exists()


def test_the_position_in_a_list_is_not_the_rate_of_an_average(tmp_path):
    other = state_of(7)
    for content in ({"ema": [EMA, other], "ema_rates": [0.9999, 0.99]}, {"ema_1.5": EMA, "ema_2.5": other}):
        with pytest.raises(CheckpointError, match="holds the weights of several networks, under 'ema"):
            openai.load_diffusion(content, TINY)
    with pytest.warns(UserWarning, match=r"took the averaged weights \(EMA\), 'ema_0.9999_step_1.5', and not those"):
        model = openai.load_diffusion({"ema_0.9999_step_1.5": EMA, "ema_0.99_step_2.5": other}, TINY)
    assert equal(model, EMA)


def test_a_model_shares_no_memory_with_the_mapping_that_it_came_from():
    state = {name: value.clone() for name, value in RAW.items()}
    model = openai.load_diffusion(state, TINY)
    for value in state.values():
        value.zero_()
    assert equal(model, RAW)


def test_numbers_that_are_not_finite_are_not_blamed_on_the_flags():
    state = {**RAW, "out.2.bias": torch.full_like(RAW["out.2.bias"], float("nan"))}
    for flags in (TINY, None):
        with pytest.raises(CheckpointError, match=r"^state dict has NaN or infinite numbers in out.2.bias$"):
            openai.load_diffusion(state, flags)
