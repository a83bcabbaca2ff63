"""Zero terminal SNR (Lin et al. 2023): the schedule, its spacing, training, sampling, and what is refused."""

from __future__ import annotations

import dataclasses
import json
import warnings

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr
from helpers import TRUNK, randomised, refused, succeed
from reference import error

import admg
from admg import samplers
from admg.checkpoints import openai
from admg.checkpoints.diffusers.export import scheduler_config
from admg.checkpoints.diffusers.readme import readme
from admg.checkpoints.export import to_openai
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Model
from admg.checksums import write_json
from admg.diffusion import DiffusionConfig, NoiseSchedule
from admg.diffusion.losses import prior_bpd
from admg.evaluation.diagnose import diagnose
from admg.models import UNet, UNetConfig
from admg.training import DiffusionTask, ObjectiveConfig, TrainConfig

V = DiffusionConfig(predict="v", zero_terminal_snr=True)
SMALL = ["--image-size", 8, "--channels", 32, "--channel-mult", "1,1", "--num-res-blocks", 1, "--head-channels", 32,
         "--diffusion-steps", 20, "--batch-size", 4, "--warmup", 1]  # fmt: skip


def by_algorithm_1(betas: np.ndarray) -> np.ndarray:
    """Betas of Lin et al. 2023, algorithm 1, line by line in NumPy."""
    alphas_bar_sqrt = np.sqrt(np.cumprod(1 - betas))
    alphas_bar_sqrt_0, alphas_bar_sqrt_T = alphas_bar_sqrt[0].copy(), alphas_bar_sqrt[-1].copy()
    alphas_bar_sqrt -= alphas_bar_sqrt_T
    alphas_bar_sqrt *= alphas_bar_sqrt_0 / (alphas_bar_sqrt_0 - alphas_bar_sqrt_T)
    alphas_bar = alphas_bar_sqrt**2
    alphas = np.concatenate([alphas_bar[:1], alphas_bar[1:] / alphas_bar[:-1]])
    return 1 - alphas


@pytest.mark.parametrize("name,steps", [("linear", 1000), ("linear", 50), ("cosine", 1000), ("cosine", 4)])
def test_the_schedule_is_that_of_algorithm_1(name, steps):
    config = DiffusionConfig(noise_schedule=name, diffusion_steps=steps, predict="v")
    plain, zero = config.build().schedule, dataclasses.replace(config, zero_terminal_snr=True).build().schedule
    np.testing.assert_allclose(zero.betas, by_algorithm_1(plain.betas.numpy()), rtol=1e-9)
    np.testing.assert_allclose(zero.betas, rescale_zero_terminal_snr(plain.betas), rtol=1e-9)  # diffusers
    assert zero.alpha_bar[-1] == 0 and zero.betas[-1] == 1 and zero.is_pure_noise(-1)
    assert zero.alpha_bar[0].item() == pytest.approx(plain.alpha_bar[0].item(), rel=1e-12)
    assert torch.equal(zero.timesteps, plain.timesteps) and not plain.is_pure_noise(-1)


def test_the_model_is_exactly_pure_noise_at_the_end():
    """The bound's prior term is 0, and x_T does not depend on the image."""
    x0, noise = torch.rand(2, 1, 4, 4), torch.randn(2, 1, 4, 4)
    diffusion = V.build()
    assert torch.equal(diffusion.q_sample(x0, 999, noise), noise)
    assert (prior_bpd(diffusion, x0) == 0).all()
    assert prior_bpd(DiffusionConfig(predict="v").build(), x0).min() > 0


@pytest.mark.thorough
def test_what_a_zero_terminal_snr_cannot_have_is_refused(digits, tmp_path, capsys):
    with pytest.raises(
        ValueError, match=r"zero_terminal_snr ends the noise schedule in pure noise.*: predict v or x0$"
    ):
        DiffusionConfig(zero_terminal_snr=True).build()
    with pytest.raises(ValueError, match="zero_terminal_snr needs at least 2 diffusion_steps"):
        DiffusionConfig(noise_schedule="cosine", diffusion_steps=1, predict="v", zero_terminal_snr=True).build()
    message = refused(capsys, "train", *SMALL, "--data", digits, "--zero-terminal-snr", "--predict", "eps",
                      "--noise-schedule", "cosine", "--out", tmp_path / "a")  # fmt: skip
    assert "--zero-terminal-snr ends the noise schedule in pure noise" in message and not (tmp_path / "a").exists()
    with pytest.raises(ValueError, match="guided-diffusion has no flag for a noise schedule with zero terminal SNR"):
        to_openai(small_model(dataclasses.replace(V, predict="x0")), tmp_path / "a.pt")
    assert openai.parse("--image_size 64").diffusion.zero_terminal_snr is False


def small_model(process: DiffusionConfig = V, **changes) -> Model:
    torch.manual_seed(0)
    network = randomised(UNet(UNetConfig(**TRUNK | {"learn_variance": process.build().learns_variance} | changes)), 0)
    return Model(network, process.build(), (1, 8, 8), Labels(0), process)


# -- spacing -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5, 7, 25, 30, 999, 1000])
def test_trailing_steps_are_those_of_diffusers(count):
    scheduler = DDIMScheduler(num_train_timesteps=1000, timestep_spacing="trailing")
    scheduler.set_timesteps(count)
    kept = NoiseSchedule.linear(1000).respace(f"trailing{count}").timesteps
    assert kept.tolist() == scheduler.timesteps.tolist()[::-1] and kept[-1] == 999


@pytest.mark.thorough
def test_spacings_that_keep_pure_noise_and_the_note_on_the_others():
    model = small_model(dataclasses.replace(V, variance="fixed_small"))
    for steps in (2, "trailing2", "uniform2", "karras2", "1,1,2"):
        assert model.respace(steps).diffusion.schedule.is_pure_noise(-1)
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            assert admg.sample(model, num=1, steps=steps, progress=False).x.isfinite().all()
    with pytest.warns(UserWarning, match="these steps leave out its last one, pure noise: .* 25 or trailing25"):
        admg.sample(model, num=1, steps="ddim2", progress=False)
    with pytest.raises(ValueError, match="steps 'trailing1001': cannot take 1001 steps from 1000"):
        model.respace("trailing1001")
    with pytest.raises(ValueError, match="steps 'trailing0': expected a number of steps"):
        model.respace("trailing0")


# -- training and the formats ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("objective", ["simple", "hybrid", "vlb"])
@pytest.mark.parametrize("predict", ["x0", "v"])
def test_losses_and_gradients_at_pure_noise_are_finite(predict, objective):
    """In the last step, v is -x0: with an output of 0, its error is that of the images."""
    model = small_model(dataclasses.replace(V, predict=predict), learn_variance=True)
    model.network.requires_grad_(True)
    for p in model.network.out[2].parameters():
        p.data.zero_()
    task = DiffusionTask(model, **ObjectiveConfig(objective=objective).task_options())
    x, noise = torch.rand(3, 1, 8, 8), torch.randn(3, 1, 8, 8)
    terms = task.loss(x, torch.full((3,), -1), torch.full((3,), 999), noise, torch.zeros(3).bool())
    terms["loss"].sum().backward()
    assert terms["loss"].isfinite().all() and all(p.grad.isfinite().all() for p in model.network.parameters())
    if objective != "vlb":
        np.testing.assert_allclose(terms["mse"].detach(), x.square().flatten(1).mean(1), rtol=1e-6)


@pytest.mark.slow
def test_trained_and_sampled_by_the_commands(digits, tmp_path, capsys):
    """A model and a classifier, whose config.json says so; a run is not resumed without it."""
    common = [*SMALL, "--data", digits, "--noise-schedule", "cosine", "--steps", 2]
    zero = ["--zero-terminal-snr"]
    succeed(capsys, "train", *common, *zero, "--predict", "v", "--out", tmp_path / "d")
    succeed(capsys, "train-classifier", *common, *zero, "--out", tmp_path / "c")
    for name in ("d", "c"):
        assert json.loads((tmp_path / name / "model" / "config.json").read_text())["diffusion"]["zero_terminal_snr"]
    model, classifier = admg.load(tmp_path / "d"), admg.load_classifier(tmp_path / "c")
    assert model.diffusion.schedule.is_pure_noise(-1) and classifier.diffusion.schedule.is_pure_noise(-1)
    assert "cosine zero-terminal-SNR schedule" in repr(model)
    out = [
        "sample",
        "--model",
        tmp_path / "d",
        "--classifier",
        tmp_path / "c",
        "--scale",
        2,
        "--label",
        3,
        "--steps",
        4,
    ]
    succeed(capsys, *out, "--out", tmp_path / "s")
    assert (tmp_path / "s" / "sheet.png").exists()

    more = ["train", *common, "--predict", "v", "--steps", 3, "--out", tmp_path / "d"]
    message = refused(capsys, *more, "--no-zero-terminal-snr")
    assert "was trained up to pure noise (cosine zero-terminal-SNR schedule, 20 steps), this run not" in message
    succeed(capsys, *more)  # a run that is resumed keeps its process
    assert json.loads((tmp_path / "d" / "model" / "config.json").read_text())["diffusion"]["zero_terminal_snr"]


def test_an_older_config_has_no_zero_terminal_snr(tmp_path):
    model = small_model(DiffusionConfig())
    model.save(tmp_path / "m")
    path = tmp_path / "m" / "config.json"
    config = json.loads(path.read_text())
    assert config["diffusion"].pop("zero_terminal_snr") is False
    write_json(path, config)
    assert admg.load(tmp_path / "m").config == DiffusionConfig()


def test_weightings_that_do_not_train_pure_noise_are_noted(digits, tmp_path):
    small = {"channels": 32, "channel_mult": (1, 1), "num_res_blocks": 1, "head_channels": 32}
    data = admg.data.open(digits, 8)
    with pytest.warns(UserWarning, match="weighting min-snr gives the last step, pure noise, the weight 0"):
        admg.train_diffusion(data, tmp_path / "a", TrainConfig(steps=1), network=small, diffusion=V,
                             objective=ObjectiveConfig(weighting="min-snr"))  # fmt: skip


@pytest.mark.thorough
@torch.no_grad()
def test_ddim_of_diffusers_makes_our_images():
    """DDIMScheduler with our scheduler_config, which has rescale_betas_zero_snr and trailing timesteps."""
    model = small_model(dataclasses.replace(V, variance="fixed_small"), learn_variance=False)
    config = scheduler_config(model.diffusion, "ddim", model)
    assert config["rescale_betas_zero_snr"] is True and config["timestep_spacing"] == "trailing"
    scheduler = DDIMScheduler.from_config(config)
    np.testing.assert_allclose(scheduler.alphas_cumprod, model.diffusion.schedule.alpha_bar, rtol=1e-3, atol=1e-7)
    scheduler.set_timesteps(5)
    x = x_T = torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    for t in scheduler.timesteps:
        x = scheduler.step(model.network(x, t[None]), t, x, use_clipped_model_output=True).prev_sample
    *_, last = samplers.ddim(model.respace("trailing5"), x_T)
    assert error(x, last.x) < 1e-4
    assert 'steps="trailing25"' in readme(model, "ddim", 1000, ())
    assert (
        scheduler_config(DiffusionConfig().build(), "ddim", small_model(DiffusionConfig()))["timestep_spacing"]
        == "leading"
    )


@pytest.mark.slow
def test_a_model_with_zero_terminal_snr_is_diagnosed():
    """eps, which it cannot predict, is no candidate of its own process."""
    x0 = torch.rand(2, 1, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    found = diagnose(small_model(learn_variance=True), x0, None)
    assert all(not (t.candidate.process.zero_terminal_snr and t.candidate.predict == "eps") for t in found.trials)
    assert found.stated.candidate.process.zero_terminal_snr
