"""The blocks that ADM's networks are made of (paper, section 3).

Names and shapes of the parameters are those of OpenAI's state dicts, so that published checkpoints load as they are.
"""

from __future__ import annotations

import math
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

M = TypeVar("M", bound=nn.Module)


def timestep_embedding(
    timesteps: Tensor,
    dim: int,
    max_period: float = 10_000.0,
    dtype: torch.dtype = torch.float32,
    endpoint: bool = False,
) -> Tensor:
    """Return the sinusoidal embedding (N, dim) of timesteps (N,): cosines, then sines (DDPM, appendix B).

    Frequencies fall geometrically from 1 to 1/max_period. Timesteps may be fractional. An odd `dim` ends with a zero.

    endpoint: whether the last frequency is 1/max_period itself, as in DDPM's own code; otherwise it is the one before
    """
    half = dim // 2
    steps = torch.arange(half, dtype=dtype, device=timesteps.device)
    intervals = max(half - 1, 1) if endpoint else half
    angles = timesteps.to(dtype)[:, None] * torch.exp(-math.log(max_period) * steps / intervals)[None]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, dim % 2))


class GroupNorm32(nn.GroupNorm):
    """Group norm over 32 groups. Computes in float32 at least, and returns the dtype of the input."""

    def __init__(self, channels: int):
        if channels % 32:
            raise ValueError(f"every width of the network must be a multiple of 32 (group norm), got {channels}")
        super().__init__(32, channels)

    def forward(self, x: Float[Tensor, "n c *s"]) -> Float[Tensor, "n c *s"]:
        dtype = torch.promote_types(x.dtype, torch.float32)
        y = F.group_norm(x.to(dtype), self.num_groups, self.weight.to(dtype), self.bias.to(dtype), self.eps)
        return y.to(x.dtype)


class Conv1x1(nn.Conv1d):
    """A linear layer on tokens (N, T, C), stored as the 1x1 convolution that the published checkpoints have."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__(c_in, c_out, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(tokens, self.weight[:, :, 0], self.bias)


class Upsample(nn.Module):
    """Nearest-neighbour doubling of height and width, then a 3x3 convolution if `conv`."""

    def __init__(self, channels: int, conv: bool):
        super().__init__()
        if conv:
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = F.interpolate(x, scale_factor=2, mode="nearest")
        return self.conv(x) if hasattr(self, "conv") else x


class Downsample(nn.Module):
    """Halving of height and width: by a strided 3x3 convolution if `conv`, else by 2x2 means."""

    def __init__(self, channels: int, conv: bool):
        super().__init__()
        if conv:
            self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x) if hasattr(self, "op") else F.avg_pool2d(x, 2)


class PaddedDownsample(Downsample):
    """Halving by a strided 3x3 convolution that pads at the bottom and right alone, as TensorFlow does (DDPM)."""

    def __init__(self, channels: int):
        super().__init__(channels, conv=False)
        self.op = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(F.pad(x, (0, 1, 0, 1)))


class ModulatedSequential(nn.Sequential):
    """Layers in a row; scale and shift, if given, modulate the output of the first, a norm."""

    def forward(self, h: Tensor, scale: Tensor | None = None, shift: Tensor | None = None) -> Tensor:
        norm, *layers = self
        h = norm(h)
        if scale is not None and shift is not None:
            h = h * (1 + scale) + shift  # AdaGN
        for layer in layers:
            h = layer(h)
        return h


class TimestepBlock(nn.Module):
    """A block whose forward takes the embedding of timestep and label along with the image."""


class ResBlock(TimestepBlock):
    """BigGAN's residual block, conditioned on an embedding; it may change the resolution by Upsample or Downsample.

    With `scale_shift_norm` the embedding modulates the second norm: AdaGN(h, y) = y_s GroupNorm(h) + y_b (paper,
    section 3; here y_s = 1 + scale, y_b = shift). Without it, the embedding is added to h before that norm.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        emb_dim: int,
        *,
        dropout: float = 0.0,
        scale_shift_norm: bool = True,
        resample: type[Upsample] | type[Downsample] | None = None,
    ):
        super().__init__()
        self.scale_shift_norm = scale_shift_norm
        self.resample = resample(c_in, conv=False) if resample else nn.Identity()
        act = nn.Sequential(nn.SiLU(), resample(c_in, conv=False)) if resample else nn.SiLU()
        self.in_layers = nn.Sequential(GroupNorm32(c_in), act, nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, (2 if scale_shift_norm else 1) * c_out))
        self.out_layers = ModulatedSequential(
            GroupNorm32(c_out), nn.SiLU(), nn.Dropout(dropout), zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        )
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)
        y = self.emb_layers(emb).to(h.dtype)[:, :, None, None]
        if self.scale_shift_norm:
            scale, shift = y.chunk(2, dim=1)
            h = self.out_layers(h, scale, shift)
        else:
            h = self.out_layers(h + y)
        return self.skip_connection(self.resample(x)) + h


class AttentionBlock(nn.Module):
    """Multi-head self-attention over the pixels, with a residual connection.

    The rows of `qkv` are ordered (q | k | v) x heads x channels with `new_order`, else heads x (q | k | v) x channels.
    Both orders have the same shapes, so a checkpoint loaded with the wrong one gives noise without an error.
    """

    def __init__(self, channels: int, heads: int, *, new_order: bool = False):
        super().__init__()
        self.heads = heads
        self.new_order = new_order
        self.norm = GroupNorm32(channels)
        self.qkv = Conv1x1(channels, 3 * channels)
        self.attention = Attention()
        self.proj_out = zero(Conv1x1(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (N, HW, C)
        a = self.attention(*split_heads(self.qkv(tokens), self.heads, self.new_order))
        a = a.transpose(1, 2).reshape(n, h * w, c)
        return x + self.proj_out(a).transpose(1, 2).reshape(n, c, h, w)


class Attention(nn.Module):
    """softmax(q kᵀ / sqrt(c)) v for each head, of q, k and v (N, heads, T, c)."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v)


class AttentionPool(nn.Module):
    """Attention of the mean pixel to all pixels, with a learned position embedding -> (N, out_dim) (after CLIP)."""

    def __init__(self, size: int, channels: int, heads: int, out_dim: int):
        super().__init__()
        self.size = size
        self.heads = heads
        self.positional_embedding = nn.Parameter(torch.randn(channels, size**2 + 1) / channels**0.5)
        self.qkv_proj = Conv1x1(channels, 3 * channels)
        self.c_proj = Conv1x1(channels, out_dim)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[2:] != (self.size, self.size):
            raise ValueError(f"the attention pool expects {self.size}x{self.size} features, got {tuple(x.shape[2:])}")
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.T.to(tokens.dtype)
        q, k, v = split_heads(self.qkv_proj(tokens), self.heads, new_order=True)
        pooled = F.scaled_dot_product_attention(q[:, :, :1], k, v)  # only the mean pixel's result is used
        return self.c_proj(pooled.flatten(1)[:, None])[:, 0]


class TimestepSequential(nn.Sequential):
    """Layers in a row; blocks that are conditioned get the embedding too.

    recompute: drop the activations of each block and compute them again in the backward pass
    """

    def __init__(self, *layers: nn.Module, recompute: bool = False):
        super().__init__(*layers)
        self.recompute = recompute

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            inputs = (h, emb) if isinstance(layer, TimestepBlock) else (h,)
            if self.recompute and torch.is_grad_enabled() and isinstance(layer, TimestepBlock | AttentionBlock):
                h = checkpoint(layer, *inputs, use_reentrant=False)
            else:
                h = layer(*inputs)
        return h


def split_heads(qkv: Float[Tensor, "n t 3c"], heads: int, new_order: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values, each (N, heads, T, C / heads)."""
    n, t, c3 = qkv.shape
    dim = c3 // (3 * heads)
    if new_order:
        q, k, v = qkv.view(n, t, 3, heads, dim).unbind(2)
    else:
        q, k, v = qkv.view(n, t, heads, 3, dim).unbind(3)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def zero(module: M) -> M:
    """Set all parameters of the module to zero, so that its block begins as the identity, and return it."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module
