"""The parts of speed.py as diffusers and OpenAI's unmodified guided-diffusion run them, with the same weights."""

from __future__ import annotations

import sys
import tempfile
import types
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from cases import (
    EMA,
    LEARNING_RATE,
    SCALE,
    STEPS,
    TIMESTEP,
    Case,
    Serve,
    Setting,
    Unable,
    Work,
    again_and_again,
    build,
    last,
    to_train,
    training_batch,
)
from torch import Tensor, nn

from admg.checkpoints.diffusers.unet2d import unet2d_config, unet2d_state
from admg.diffusion.config import DiffusionConfig
from admg.engine.precision import DTYPES, autocast
from admg.models import NoisyClassifier

# -- diffusers -------------------------------------------------------------------------------------------------------


def import_diffusers() -> None:
    """Import the modules of diffusers that are used here."""
    import diffusers.models.unets.unet_2d
    import diffusers.training_utils  # noqa: F401


def unet2d(case: Case) -> nn.Module:
    """Return a UNet2DModel with the architecture and weights of the case. Raises Unable if it cannot express them."""
    from diffusers import UNet2DModel

    timesteps = case.model.diffusion.schedule.timesteps
    try:
        config = unet2d_config(case.model.network, timesteps)
    except ValueError as error:
        raise Unable(str(error)) from None
    with torch.device("meta"):
        network = UNet2DModel(**{key: value for key, value in config.items() if key != "_class_name"})
    network.load_state_dict(unet2d_state(case.model.network, timesteps), assign=True)
    return network.to(case.x.device).eval()


def diffusers_forward(setting: Setting, serve: Serve) -> None:
    """Serve the forward pass, compiled if the setting says so."""
    case, dtype = build(setting), DTYPES[setting.precision]
    network = unet2d(case).requires_grad_(False)
    network = network if dtype == torch.float32 else network.to(dtype)
    case.model.network = None  # type: ignore[assignment]
    call = torch.compile(network) if setting.compile_diffusers else network
    x, t, told = case.x.to(dtype), torch.tensor(TIMESTEP, device=case.x.device), class_labels(network, case.y)
    run = torch.no_grad()(lambda: call(x, t, **told).sample)
    serve(Work(run, run))


def diffusers_training(setting: Setting, serve: Serve) -> None:
    """Serve the training step of diffusers' unconditional example: error of eps alone, AdamW, clipping and EMAModel."""
    from diffusers.training_utils import EMAModel

    case = build(setting)
    network, diffusion = to_train(unet2d(case)), case.model.diffusion
    x, y, t, noise, _ = (tensor.to(case.x.device) for tensor in training_batch(case))
    told, channels = class_labels(network, y), x.shape[1]
    case.model.network = None  # type: ignore[assignment]
    optimizer = torch.optim.AdamW(network.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
    average = EMAModel(network.parameters(), decay=EMA)
    call = torch.compile(network) if setting.compile_diffusers else network

    def backward(t: Tensor, noise: Tensor) -> Tensor:
        with autocast(setting.precision, x.device):  # type: ignore[arg-type]
            eps = call(diffusion.q_sample(x, t, noise), diffusion.timestep(t, x.device), **told).sample[:, :channels]
        loss = F.mse_loss(eps.float(), noise)
        loss.backward()
        return loss.detach()

    def run() -> float:
        loss = backward(torch.randint(len(diffusion), (len(x),), device=x.device), torch.randn_like(x))
        nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        average.step(network.parameters())
        return loss.item()

    def check() -> Tensor:
        loss = backward(t, noise)
        optimizer.zero_grad()
        return loss[None]

    serve(Work(run, check))


def class_labels(network: nn.Module, y: Tensor) -> dict[str, Tensor]:
    """Return the keyword arguments that pass the labels to a UNet2DModel; empty if it is unconditional."""
    return {"class_labels": y} if network.config.num_class_embeds else {}


# -- OpenAI's guided-diffusion ---------------------------------------------------------------------------------------


def import_reference(folder: str) -> None:
    """Make `guided_diffusion` of this checkout importable, even if blobfile and mpi4py are not installed.

    These packages serve storage and multiple processes, neither of which is used here.
    """
    for name in ("blobfile", "mpi4py"):
        try:
            __import__(name)
        except ImportError:
            sys.modules[name] = types.ModuleType(name)
            sys.modules[name].MPI = None  # type: ignore[attr-defined]
    sys.path.insert(0, str(Path(folder).resolve()))
    import guided_diffusion.gaussian_diffusion
    import guided_diffusion.train_util
    import guided_diffusion.unet  # noqa: F401
    from guided_diffusion import logger

    logger.Logger.CURRENT = logger.Logger(dir=None, output_formats=[])


def check_reference(folder: str) -> None:
    """Raise ValueError if the folder is not a checkout of guided-diffusion."""
    if not (Path(folder) / "guided_diffusion" / "unet.py").is_file():
        raise ValueError(f"--reference {folder}: not a checkout of guided-diffusion (no guided_diffusion/unet.py)")


def reference_network(module: nn.Module, fp16: bool) -> nn.Module:
    """Return OpenAI's network with the architecture and the weights of a network of admg."""
    from guided_diffusion import unet

    c: Any = module.config
    levels = [c.image_size // size for size in c.attention_resolutions]
    common = {"image_size": c.image_size, "in_channels": c.image_channels, "model_channels": c.channels}
    common |= {"num_res_blocks": c.num_res_blocks, "attention_resolutions": tuple(levels), "dropout": c.dropout}
    common |= {"channel_mult": c.channel_mult, "use_fp16": fp16, "num_head_channels": c.head_channels or -1}
    common |= {"use_scale_shift_norm": c.scale_shift_norm, "resblock_updown": c.resblock_updown}
    common |= {"num_heads": c.num_heads, "use_new_attention_order": c.new_attention_order}
    common |= {"conv_resample": c.conv_resample}
    with torch.device("meta"):
        if isinstance(module, NoisyClassifier):
            network = unet.EncoderUNetModel(**common, out_channels=c.num_classes, pool=c.pool)
        else:
            out, heads = c.image_channels * (2 if c.learn_variance else 1), c.num_heads_upsample or -1
            classes = c.num_classes or None
            network = unet.UNetModel(**common, out_channels=out, num_classes=classes, num_heads_upsample=heads)
    network.load_state_dict(module.state_dict(), strict=True, assign=True)
    return network.eval()  # its parameters keep requires_grad=True, as in the scripts of guided-diffusion


def reference_diffusion(config: DiffusionConfig, spec: str):
    """Return OpenAI's SpacedDiffusion of a configuration; spec: respacing, "" for all steps."""
    from guided_diffusion import gaussian_diffusion as gd
    from guided_diffusion.respace import SpacedDiffusion, space_timesteps

    kinds = {"learned_range": "LEARNED_RANGE", "fixed_small": "FIXED_SMALL", "fixed_large": "FIXED_LARGE"}
    return SpacedDiffusion(
        use_timesteps=space_timesteps(config.diffusion_steps, spec or [config.diffusion_steps]),
        betas=gd.get_named_beta_schedule(config.noise_schedule, config.diffusion_steps),
        model_mean_type=gd.ModelMeanType.EPSILON,
        model_var_type=gd.ModelVarType[kinds[config.variance]],
        loss_type=gd.LossType.RESCALED_MSE,
        rescale_timesteps=config.rescale_timesteps,
    )


@dataclass(frozen=True)
class Reference:
    """OpenAI's networks, and the two functions that classifier_sample.py passes to a sampler."""

    case: Case
    unet: nn.Module
    classifier: nn.Module

    @classmethod
    def of(cls, setting: Setting) -> Reference:
        """Build the networks, in float32 on a CPU and in fp16 on a GPU, as the published flags say."""
        case, fp16 = build(setting), setting.device != "cpu"
        networks = [reference_network(part.network, fp16) for part in (case.model, case.classifier)]
        if fp16:
            for network in networks:
                network.convert_to_fp16()
        case.model.network = case.classifier.network = None  # type: ignore[assignment]
        return cls(case, *networks)

    def model_fn(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the output of the U-Net, conditioned on y if it is conditional."""
        return self.unet(x, t, y if self.unet.num_classes else None)

    def cond_fn(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """Return the scaled gradient of the classifier's log-probability of y."""
        with torch.enable_grad():
            x_in = x.detach().requires_grad_(True)
            log_probs = F.log_softmax(self.classifier(x_in, t), dim=-1)
            selected = log_probs[range(len(log_probs)), y.view(-1)]
            return torch.autograd.grad(selected.sum(), x_in)[0] * SCALE

    def samples(self, spec: str, name: str) -> Iterator[dict[str, Tensor]]:
        """Yield the states of the loop `{name}_sample_loop_progressive` over a respacing, starting at x_T."""
        assert self.case.model.config is not None
        diffusion = reference_diffusion(self.case.model.config, spec)
        x, y = self.case.x, self.case.y
        options = {"noise": x, "cond_fn": self.cond_fn, "model_kwargs": {"y": y}, "device": x.device}
        return getattr(diffusion, f"{name}_sample_loop_progressive")(self.model_fn, tuple(x.shape), **options)


def reference_forward(setting: Setting, serve: Serve) -> None:
    """Serve the forward pass of UNetModel."""
    r = Reference.of(setting)
    t = torch.full((len(r.case.x),), TIMESTEP, device=r.case.x.device)
    run = torch.no_grad()(lambda: r.model_fn(r.case.x, t, r.case.y))
    serve(Work(run, run))


def reference_gradient(setting: Setting, serve: Serve) -> None:
    """Serve cond_fn."""
    r = Reference.of(setting)
    run = partial(r.cond_fn, r.case.x, torch.full((len(r.case.x),), TIMESTEP, device=r.case.x.device), r.case.y)
    serve(Work(run, run))


def reference_step(setting: Setting, serve: Serve) -> None:
    """Serve one step of ddim_sample_loop_progressive; its result is the end of the trajectory."""
    start = partial(Reference.of(setting).samples, STEPS, "ddim")
    serve(Work(again_and_again(start), lambda: last(start())["sample"]))


def reference_sample(setting: Setting, serve: Serve) -> None:
    """Serve a whole sample with 250 steps of DDPM."""
    r = Reference.of(setting)
    serve(Work(lambda: last(r.samples("250", "p")), None))


def reference_training(setting: Setting, serve: Serve) -> None:
    """Serve TrainLoop.run_step."""
    import torch.distributed as dist
    from guided_diffusion.train_util import TrainLoop

    fp16, case = setting.device != "cpu", build(setting)
    network = to_train(reference_network(case.model.network, fp16))
    assert case.model.config is not None
    diffusion = reference_diffusion(case.model.config, "")
    x, y, t, noise, _ = (tensor.to(case.x.device) for tensor in training_batch(case))
    case.model.network = None  # type: ignore[assignment]
    told = {"y": y} if network.num_classes else {}
    with tempfile.TemporaryDirectory() as folder:
        dist.init_process_group("nccl" if fp16 else "gloo", init_method=f"file://{folder}/group", rank=0, world_size=1)
        options = {"lr": LEARNING_RATE, "ema_rate": EMA, "use_fp16": fp16, "microbatch": -1, "batch_size": len(x)}
        options |= {"data": None, "log_interval": 10, "save_interval": 10_000, "resume_checkpoint": ""}
        loop = TrainLoop(model=network, diffusion=diffusion, **options)

        def check() -> Tensor:
            terms = diffusion.training_losses(network, x, t, told, noise)
            terms["loss"].mean().backward()
            norm = nn.utils.get_total_norm([p.grad.float() for p in network.parameters()])
            network.zero_grad()
            return torch.stack([terms["mse"].mean(), terms["loss"].mean(), norm]).detach()

        serve(Work(lambda: loop.run_step(x, told), check))
        dist.destroy_process_group()


DIFFUSERS = {"forward": diffusers_forward, "training": diffusers_training}
REFERENCE = {
    "forward": reference_forward,
    "gradient": reference_gradient,
    "step": reference_step,
    "training": reference_training,
    "sample": reference_sample,
}
