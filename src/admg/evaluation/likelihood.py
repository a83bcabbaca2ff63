"""Log-likelihood: the variational bound of images in bits per dimension, summed over all steps of the process.

-log2 p(x_0) / D <= total = prior + Σ_t vb_t (DDPM, equation 5). The squared errors of the predicted image and noise at
each step are computed too, as in guided-diffusion.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, fields

import torch
from jaxtyping import Float
from torch import Tensor

from admg.checkpoints.model import Model
from admg.diffusion.gaussian import Images
from admg.diffusion.losses import prior_bpd, vb_bpd
from admg.diffusion.noise import SeededNoise
from admg.diffusion.signed import check_signed
from admg.engine.acceleration import accelerate_parts
from admg.engine.precision import Precision
from admg.generation.modes import evaluation_mode
from admg.generation.recipe import checked_noise
from admg.warn import warn

OFF_LEVEL = 0.1
"""Tolerance for values of 8-bit images, in levels. Two roundings to float16 change a value by up to 0.1."""

NoiseAt = Callable[[Images, int], Images]
"""Maps (x_0, t) to the noise (N, C, H, W) that is added to x_0 at step t."""


@dataclass(frozen=True)
class Term:
    """One term of the bound, for N images.

    t: the step
    vb: the term in bits per dimension, (N,)
    x0_mse, mse: mean squared errors of the predicted image and of the noise, (N,)
    """

    t: int
    vb: Float[Tensor, " n"]
    x0_mse: Float[Tensor, " n"]
    mse: Float[Tensor, " n"]


@dataclass(frozen=True)
class BitsPerDim:
    """The bound of N images and its terms for t = 0 .. T-1, on the CPU.

    prior: (N,), KL(q(x_T | x_0) || N(0, I)) in bits per dimension
    vb: (N, T), terms in bits per dimension; the discretised -log2 p(x_0 | x_1) at t = 0, and KL divergences after it
    x0_mse: (N, T), mean squared errors of the predicted images, which are in [-1, 1]
    mse: (N, T), mean squared errors of the corresponding noise
    """

    prior: Float[Tensor, " n"]
    vb: Float[Tensor, "n t"]
    x0_mse: Float[Tensor, "n t"]
    mse: Float[Tensor, "n t"]

    @property
    def total(self) -> Float[Tensor, " n"]:
        """prior + Σ_t vb_t, an upper bound of -log2 p(x_0) per dimension."""
        return self.prior + self.vb.double().sum(1).float()

    def __len__(self) -> int:
        return len(self.prior)

    @classmethod
    def join(cls, parts: Sequence[BitsPerDim]) -> BitsPerDim:
        """Return the bounds of several batches as one."""
        return cls(*(torch.cat([getattr(part, field.name) for part in parts]) for field in fields(cls)))


def bits_per_dim(
    model: Model,
    x0: Images,
    y: Tensor | None = None,
    *,
    seed: int = 0,
    images: Sequence[int] | None = None,
    noise: NoiseAt | None = None,
    clip: bool = True,
    precision: Precision = "fp32",
) -> BitsPerDim:
    """Return the bound of images x0 (N, C, H, W) over all steps of `model.diffusion`.

    The images must be 8-bit values k / 127.5 - 1, k = 0 .. 255; for others there is a warning, since the bound is not
    meaningful.
    Respace the model for fewer steps. Arguments and errors are those of `terms`; to show progress, iterate over `terms`
    and pass the result to `gather`.

    >>> model = admg.load("fashion-mnist").respace(4)
    >>> bound = bits_per_dim(model, torch.full((2, *model.shape), -1.0))
    >>> bound.vb.shape, bool((bound.total > 0).all())
    (torch.Size([2, 4]), True)
    """
    steps = terms(model, x0, y, seed=seed, images=images, noise=noise, clip=clip, precision=precision)
    return gather(model, x0, steps)


def terms(
    model: Model,
    x0: Images,
    y: Tensor | None = None,
    *,
    seed: int = 0,
    images: Sequence[int] | None = None,
    noise: NoiseAt | None = None,
    clip: bool = True,
    precision: Precision = "fp32",
) -> Iterator[Term]:
    """Yield the terms of the bound for t = T-1 .. 0, each with new noise.

    y: labels (N,) that the network is conditioned on, or None
    seed: seed of the noise
    images: indices of the images, by default 0 .. N-1; image i of a seed has the same noise in any batch
    noise: a function of (x0, t) that returns the noise of a step, instead of the seed's
    clip: whether the predicted image is clipped to [-1, 1], as in published results
    precision: precision of matrix products
    Raises ValueError if the images do not have the model's shape, or if an upsampling model lacks its small images, or
        if images have no label and the network was never trained without them, or unless there is one index and one
        noise per image.
    """
    _check(model, x0, y)
    if images is not None and len(images) != len(x0):
        raise ValueError(f"images must hold one index per image, got {len(images)} for {len(x0)} images")
    model = accelerate_parts(model, precision=precision)
    x0 = x0.to(model.device, torch.float32)
    y = None if y is None else y.to(model.device)
    drawn = checked_noise(noise or SeededNoise(seed, range(len(x0)) if images is None else images))
    for t in reversed(range(len(model.diffusion))):
        with evaluation_mode(model.network):
            term = _term(model, x0, y, t, drawn(x0, t), clip)
        yield term


def gather(model: Model, x0: Images, steps: Iterable[Term]) -> BitsPerDim:
    """Return the terms of all steps, in any order, together with the prior."""
    by_t = sorted(steps, key=lambda term: term.t)
    vb, x0_mse, mse = (torch.stack([getattr(term, name) for term in by_t], 1).cpu() for name in ("vb", "x0_mse", "mse"))
    return BitsPerDim(prior_bpd(model.diffusion, x0.float()).cpu(), vb, x0_mse, mse)


@torch.no_grad()
def _term(model: Model, x0: Images, y: Tensor | None, t: int, noise: Images, clip: bool) -> Term:
    diffusion = model.diffusion
    ts = torch.full((len(x0),), t, device=x0.device)
    x_t = diffusion.q_sample(x0, t, noise)
    output = model.output(x_t, diffusion.timestep(t, x0.device), y, **model.given)
    p = diffusion.predict(output, x_t, t, clip=clip)
    vb = vb_bpd(diffusion, output.float(), x0, x_t, ts, clip=clip)
    return Term(t, vb, _mean_square(p.x0 - x0), _mean_square(p.eps - noise))


def _mean_square(difference: Images) -> Float[Tensor, " n"]:
    return difference.square().flatten(1).mean(1)


def _check(model: Model, x0: Images, y: Tensor | None) -> None:
    """Raise ValueError if the images or labels do not fit the model."""
    if model.upsamples and "low_res" not in model.given:
        raise ValueError("this model upsamples: its likelihood needs the small images, as Model.given['low_res']")
    if x0.ndim != 4 or tuple(x0.shape[1:]) != model.shape:
        raise ValueError(f"images must have shape (N, {', '.join(map(str, model.shape))}), got {tuple(x0.shape)}")
    if len(x0) == 0:
        raise ValueError("no images")
    if model.upsamples and len(model.given["low_res"]) != len(x0):
        raise ValueError(
            f"Model.given['low_res'] must have a small image for each of {len(x0)} images, got "
            f"{len(model.given['low_res'])}"
        )
    if y is not None:
        _check_labels(model, y, len(x0))
    if y is None or bool((y < 0).any()):
        model.check_unconditional()
    check_signed(x0)
    levels = (x0.double() + 1) * 127.5
    if not torch.allclose(levels, levels.round(), rtol=0, atol=OFF_LEVEL):
        warn("some images do not have 8-bit values k / 127.5 - 1: the bound is not meaningful for them")


def _check_labels(model: Model, y: Tensor, count: int) -> None:
    """Raise ValueError unless there is one label number of the model, or -1 for none, per image."""
    if not isinstance(y, Tensor) or y.is_floating_point() or y.dtype == torch.bool:
        raise ValueError("labels must be a tensor of integers (N,)")
    if y.shape != (count,):
        raise ValueError(f"labels must have shape ({count},), one per image, got {tuple(y.shape)}")
    for number in set(y[y >= 0].tolist()):
        model.labels.number(number)
