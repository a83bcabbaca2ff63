"""Guides in loops of diffusers: the same images as with our samplers, and diffusers' own modular denoiser."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
)
from diffusers.modular_pipelines.modular_pipeline import BlockState
from diffusers.modular_pipelines.stable_diffusion_xl.denoise import StableDiffusionXLLoopDenoiser
from reference import error

from admg import samplers
from admg.diffusion.gaussian import Diffusion
from admg.diffusion.schedule import NoiseSchedule
from admg.guidance import (
    APG,
    AutoGuidance,
    ClassifierFreeGuidance,
    ClassifierGuidance,
    ExtendedClassifierGuidance,
    Reused,
    SchedulerGuidance,
    diffusers_guider,
)
from admg.guidance.scheduler import schedule

SIZE = (1, 4, 4)


def network(x, t, y=None):
    """A denoiser in closed form: exact for images that are 0 or, with a label, y/4, up to a factor that is wrong."""
    return 0.9 * x - (0.0 if y is None else 0.1 * y.view(-1, 1, 1, 1)) + 0.0 * t


def logits(x, t=None):
    score = x.mean((1, 2, 3))
    return torch.stack([score, -3 * score], 1)


class Model:
    """The network as a model of admg."""

    conditional = True

    def __init__(self, schedule, predict):
        self.diffusion = Diffusion(schedule, predict, "fixed_small")

    def predict(self, x, t, y=None, clip=True):
        return self.diffusion.predict(network(x, self.diffusion.timestep(t, x.device, x.dtype), y), x, t, clip=clip)


GUIDES = {
    "classifier": lambda: ClassifierGuidance(logits, 20.0),
    "at x0": lambda: ExtendedClassifierGuidance(logits, 20.0, at="x0"),
    "classifier-free + classifier": lambda: ClassifierFreeGuidance(2.0) + ClassifierGuidance(logits, 5.0),
}


@pytest.mark.parametrize("guide", GUIDES)
@pytest.mark.parametrize("predict, theirs", [("eps", "epsilon"), ("x0", "sample"), ("v", "v_prediction")])
def test_a_ddim_loop_gives_the_images_of_our_sampler(guide, predict, theirs):
    scheduler = DDIMScheduler(clip_sample=False, prediction_type=theirs, timestep_spacing="linspace")
    scheduler.set_timesteps(10)
    x = x_T = torch.randn(3, *SIZE, generator=torch.Generator().manual_seed(0))
    y = torch.tensor([0, 1, 1])
    guided = SchedulerGuidance(GUIDES[guide](), scheduler, network, y=y, conditional=True, clip=True, bound=False)
    for t in scheduler.timesteps:
        x = scheduler.step(guided(x, t), t, x).prev_sample
    kept = scheduler.timesteps.flip(0).long()
    curve = NoiseSchedule.linear().keep(kept)
    ours = _ddim(Model(curve, predict), scheduler, x_T, y, GUIDES[guide]())
    assert error(x, ours) < 1e-4
    assert error(x, _ddim(Model(curve, predict), scheduler, x_T, y, None)) > 1e-2


def _ddim(model, scheduler, x, y, guide):
    """Our guided prediction at each step, and DDIM's step from t to t - 100, as DDIMScheduler takes it."""
    guided = samplers.base.guided_model(model, x, y, guide, True, False)
    for i, t in zip(guided.indices(), scheduler.timesteps.tolist()):
        p = guided.predict_guided(x, i)
        previous = scheduler.alphas_cumprod[t - 100].item() if t >= 100 else scheduler.final_alpha_cumprod.item()
        x = previous**0.5 * p.x0 + (1 - previous) ** 0.5 * p.eps
    return x


@pytest.mark.parametrize("guide", [APG(4.0), Reused(ClassifierFreeGuidance(4.0), 2)])
def test_guides_with_a_memory_forget_the_run_before(guide):
    """After runs of one step, at another timestep, of other images, and one that was stopped."""
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(40)
    a, b, y = torch.randn(2, *SIZE), torch.randn(2, *SIZE), torch.tensor([1, 3])
    t = scheduler.timesteps

    def guided():
        return SchedulerGuidance(guide, scheduler, network, y=y, conditional=True)

    for before, after in (((3,), 3), ((0, 1), 3), ((1,), 0), ((0, 1, 2, 3), 1)):
        used, alone = guided(), guided()
        for i in before:
            used(a, t[i])
        assert torch.equal(used(b, t[after]), alone(b, t[after]))
    used = guided()
    used(a, t[0])
    used.y, wide = y.repeat(2), b.repeat(2, 1, 1, 1)
    assert torch.equal(used(wide, t[1])[:2], guided()(b, t[1]))  # another number of images
    used.y = y
    used(a, t[0])
    used.begin()
    assert torch.equal(used(b, t[1]), guided()(b, t[1]))
    used(a, t[0])
    assert not torch.equal(used(b, t[1]), guided()(b, t[1]))  # a step that follows belongs to the run


def test_autoguidance_with_the_levels_of_diffusers_in_float32():
    scheduler = DDIMScheduler(beta_schedule="squaredcos_cap_v2", clip_sample=False)
    assert scheduler.alphas_cumprod.dtype == torch.float32
    bad = SimpleNamespace(conditional=True, diffusion=Diffusion(NoiseSchedule.cosine(), "eps", "fixed_small"))

    class Bad:
        conditional, diffusion = True, bad.diffusion

        def predict(self, x, t, y=None, clip=True):
            return self.diffusion.predict(0.5 * x, x, t, clip=clip)

    for steps in (5, 50, 1000):
        scheduler.set_timesteps(steps)
        x, y = torch.randn(2, *SIZE), torch.tensor([1, 3])
        guided = SchedulerGuidance(AutoGuidance(Bad(), 3.0), scheduler, network, y=y, conditional=True)
        for t in scheduler.timesteps[1 :: max(1, steps // 5)]:
            expected = 0.5 * x + 3 * (network(x, t, y) - 0.5 * x)
            assert error(guided(x, t), expected) < 1e-4  # at t = 0, rounding over √(1 - ᾱ) = 0.006
    for other in (NoiseSchedule.linear(), NoiseSchedule.cosine().with_zero_terminal_snr()):
        Bad.diffusion = Diffusion(other, "eps", "fixed_small")
        guided = SchedulerGuidance(AutoGuidance(Bad(), 3.0), scheduler, network, y=y, conditional=True)
        with pytest.raises(ValueError, match="the same noise schedule"):
            guided(x, scheduler.timesteps[1])


def test_images_without_a_label_have_calls_of_their_own():
    """A network of diffusers takes class_labels or none; -1 would be the last row of an identity matrix."""
    scheduler = DDIMScheduler(clip_sample=False)
    scheduler.set_timesteps(5)
    x, y, t = torch.randn(3, *SIZE), torch.tensor([1, -1, 3]), scheduler.timesteps[1]
    called = []

    def labelled(x, t, y):
        called.append(None if y is None else y.tolist())
        return network(x, t, y)

    guide = ClassifierFreeGuidance(2.0)
    together = SchedulerGuidance(guide, scheduler, labelled, y=y, conditional=True)(x, t)
    assert called and all(labels is None or min(labels) >= 0 for labels in called)
    uncond = network(x, t)
    assert error(together[1], uncond[1]) < 1e-5
    assert error(together[::2], (2 * network(x, t, y) - uncond)[::2]) < 1e-5


def test_without_an_effect_the_output_is_the_networks_own():
    scheduler = DPMSolverMultistepScheduler()
    scheduler.set_timesteps(5)
    x = torch.randn(2, *SIZE)
    guided = SchedulerGuidance(lambda state: None, scheduler, lambda x, t, y: torch.cat([network(x, t), x], 1))
    t = scheduler.timesteps[0]
    assert error(guided(x, t), torch.cat([network(x, t), x], 1)) < 1e-5  # the variance as it is


def test_levels_between_timesteps_are_those_of_the_scheduler():
    """EulerDiscreteScheduler has timesteps such as 332.67, whose sigma it interpolates in the same way."""
    scheduler = EulerDiscreteScheduler(timestep_spacing="linspace")
    scheduler.set_timesteps(7)
    steps = tuple(sorted(scheduler.timesteps.tolist()))
    assert any(step != int(step) for step in steps)
    sigma = torch.tensor([schedule(tuple(scheduler.alphas_cumprod.tolist()), steps).sigma(i) for i in range(7)])
    assert (sigma / scheduler.sigmas[:-1].flip(0) - 1).abs().max() < 1e-4


def test_what_does_not_fit_is_refused():
    flow = FlowMatchEulerDiscreteScheduler()
    with pytest.raises(ValueError, match=r"FlowMatchEulerDiscreteScheduler .*: guides need variance-preserving noise"):
        SchedulerGuidance(ClassifierGuidance(logits), flow, network)
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(10)
    guided = SchedulerGuidance(ClassifierGuidance(logits), scheduler, network)
    with pytest.raises(ValueError, match=r"timestep 1 is not in scheduler.timesteps"):
        guided(torch.zeros(1, *SIZE), 1)
    with pytest.raises(ValueError, match="classifier guidance needs labels"):
        guided(torch.zeros(1, *SIZE), scheduler.timesteps[0])


class Denoiser(torch.nn.Module):
    """The network, called as a UNet2DConditionModel is. It counts its calls."""

    def __init__(self):
        super().__init__()
        self.calls, self.shift = [], torch.nn.Parameter(torch.zeros(1))

    def forward(self, sample, timestep, encoder_hidden_states=None, return_dict=True, **kwargs):
        self.calls.append(encoder_hidden_states)
        return (network(sample, timestep) + self.shift + encoder_hidden_states.mean(),)


@pytest.mark.parametrize("at, calls", [("x", 1), ("x0", 2)])
def test_the_denoiser_of_a_modular_pipeline_follows_the_guide(at, calls):
    """StableDiffusionXLLoopDenoiser of diffusers with our guider, against SchedulerGuidance."""
    scheduler = DDIMScheduler()
    scheduler.set_timesteps(4)
    guide, y = ExtendedClassifierGuidance(logits, 30.0, at=at), torch.tensor([1, 0])
    unet, embeds = Denoiser(), torch.full((2, 3, 5), 0.25)
    guider = diffusers_guider(guide, scheduler, y=y, stop=0.5)
    components = SimpleNamespace(guider=guider, unet=unet)
    x, t = torch.randn(2, *SIZE), scheduler.timesteps[1]
    state = BlockState(
        num_inference_steps=4, scaled_latents=x, prompt_embeds=embeds, negative_prompt_embeds=None,
        timestep_cond=None, cross_attention_kwargs=None,
    )  # fmt: skip
    block = StableDiffusionXLLoopDenoiser()
    _, state = block(components, state, 1, t)
    expected = SchedulerGuidance(guide, scheduler, lambda x, t, y: network(x, t) + 0.25, y=y)(x, t)
    assert error(state.noise_pred, expected) < 1e-6
    assert (state.noise_pred - network(x, t) - 0.25).abs().max() > 1e-3
    assert len(unet.calls) == calls and all(call is embeds for call in unet.calls)
    assert not unet._forward_pre_hooks
    _, state = block(components, state, 2, t)  # after half of the steps
    assert torch.equal(state.noise_pred, network(x, t) + unet.shift + 0.25)
