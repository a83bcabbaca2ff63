"""Training losses of a diffusion model: L_simple, L_vlb and L_hybrid (Improved DDPM, section 3.1)."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor

from .gaussian import Diffusion, Images, Index, discretized_gaussian_log_likelihood, gaussian_kl
from .weighting import StepWeights

Objective = Literal["simple", "hybrid", "vlb"]
Network = Callable[..., Tensor]
VLB_WEIGHT = 0.001
"""λ of L_hybrid in Improved DDPM and guided-diffusion."""


def loss_terms(
    diffusion: Diffusion,
    network: Network,
    x0: Images,
    t: Tensor,
    noise: Images,
    *,
    objective: Objective = "hybrid",
    vlb_weight: float = VLB_WEIGHT,
    weights: StepWeights | None = None,
    **conditioning: Tensor | None,
) -> dict[str, Float[Tensor, " n"]]:
    """Return the loss (N,) of each image at its step, under "loss", and the terms it consists of, in float32.

    t: step of each image, (N,)
    objective: `simple` is the mean squared error of the network's prediction. `hybrid` is L_simple + λ·L_vlb, where
        L_vlb trains only the variance, which must be learned (the gradient of the mean is stopped). `vlb` is T·vb, with
        vb in bits per dimension
    vlb_weight: λ of `hybrid`; it multiplies T·vb, as in Improved DDPM
    weights: weights of the mean squared error in the loss; the term "mse" itself is not weighted. None: 1
    conditioning: further arguments of the network, for example y or low_res
    """
    x_t = diffusion.q_sample(x0, t, noise)
    output = network(x_t, diffusion.timestep(t, x_t.device, x_t.dtype), **conditioning)
    output = output.to(torch.promote_types(x_t.dtype, torch.float32))
    if objective == "vlb":
        vb = vb_bpd(diffusion, output, x0, x_t, t)
        return {"loss": len(diffusion) * vb, "vb": vb}

    prediction, v = output[:, : x0.shape[1]], output[:, x0.shape[1] :]
    mse = (target(diffusion, x0, t, noise) - prediction).square().flatten(1).mean(1)
    loss = mse if weights is None else weights.at(t, mse.dtype) * mse
    if objective == "simple" or not diffusion.learns_variance:
        return {"loss": loss, "mse": mse}
    vb = vb_bpd(diffusion, torch.cat([prediction.detach(), v], dim=1), x0, x_t, t)
    return {"loss": loss + vlb_weight * len(diffusion) * vb, "mse": mse, "vb": vb}


def target(diffusion: Diffusion, x0: Images, t: Index, noise: Images) -> Images:
    """Return the training target of the network's prediction."""
    if diffusion.predicts == "eps":
        return noise
    if diffusion.predicts == "x0":
        return x0
    return diffusion.q_sample(noise, t, -x0)  # v = sqrt(ᾱ) eps - sqrt(1 - ᾱ) x_0


def vb_bpd(
    diffusion: Diffusion, output: Tensor, x0: Images, x_t: Images, t: Tensor, clip: bool = False
) -> Float[Tensor, " n"]:
    """Return the term of the variational bound at step t, in bits per dimension (DDPM, equation 5).

    It is KL(q(x_{t-1} | x_t, x_0) || p(x_{t-1} | x_t)), and at t = 0 the discretised -log p(x_0 | x_1).
    """
    mean, _, log_variance = diffusion.posterior(x0, x_t, t)
    p = diffusion.predict(output, x_t, t, clip=clip)
    kl = gaussian_kl(mean, log_variance, p.mean, p.log_variance)
    nll = -discretized_gaussian_log_likelihood(x0, p.mean, 0.5 * p.log_variance)
    first = (t == 0).view(-1, 1, 1, 1)
    return torch.where(first, nll, kl).flatten(1).mean(1) / math.log(2)


def prior_bpd(diffusion: Diffusion, x0: Images) -> Float[Tensor, " n"]:
    """Return KL(q(x_T | x_0) || N(0, I)) in bits per dimension, which does not depend on the network."""
    alpha_bar = diffusion.schedule.alpha_bar[-1]
    mean = float(alpha_bar.sqrt()) * x0
    log_variance = torch.full_like(x0, float((1 - alpha_bar).log()))
    kl = gaussian_kl(mean, log_variance, torch.zeros_like(x0), torch.zeros_like(x0))
    return kl.flatten(1).mean(1) / math.log(2)
