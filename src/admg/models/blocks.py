"""The blocks that ADM's networks are made of.

Parameter names and shapes are those of OpenAI's state dicts, so that published checkpoints load as they are.
Everything computes in the memory format and the dtype of its input; group norms compute in float32.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from admg.engine.exchange import apart
from admg.engine.norm import GroupNorm32, add, norm_and_silu, resampled

M = TypeVar("M", bound=nn.Module)

FEW_TOKENS = 256
"""Up to which a CPU's backward pass of attention takes less time in float32 than in bf16."""


def timestep_embedding(timesteps: Tensor, dim: int, max_period: float = 10_000.0) -> Tensor:
    """Sinusoidal embedding of (N,) timesteps, fractional ones too -> (N, dim): cosines, then sines (DDPM, section B).

    Frequencies fall geometrically from 1 to 1/max_period; an odd `dim` ends with a zero.
    """
    half = dim // 2
    steps = torch.arange(half, dtype=torch.float32, device=timesteps.device)
    angles = timesteps.float()[:, None] * torch.exp(-math.log(max_period) * steps / half)[None]
    embedding = torch.cat([angles.cos(), angles.sin()], dim=-1)
    return F.pad(embedding, (0, dim % 2))


class Conv1x1(nn.Conv1d):
    """A linear layer on tokens (N, T, C), stored as the 1x1 convolution that the published checkpoints have."""

    def __init__(self, c_in: int, c_out: int):
        super().__init__(c_in, c_out, 1)

    def forward(self, tokens: Tensor) -> Tensor:
        return F.linear(tokens, self.weight[:, :, 0], self.bias)


def exchangeable(layer: nn.Module) -> bool:
    """Whether it is a plain convolution or linear layer, not exchanged, whose float32 weight lasts from call to call.

    One that computes in its own way (weight norm, standardised weights, low-rank additions) is left alone.
    """
    plain = nn.Conv2d.forward, Conv1x1.forward, nn.Linear.forward
    weight = layer._parameters.get("weight")
    if type(layer).forward not in plain or "forward" in vars(layer) or layer._forward_pre_hooks:
        return False
    if isinstance(layer, nn.Conv2d) and type(layer)._conv_forward is not nn.Conv2d._conv_forward:
        return False
    return weight is not None and weight.dtype == torch.float32 and not weight.is_inference()


def keeps_size(conv: nn.Conv2d) -> bool:
    """Whether its gradient is another of its kind: an odd kernel, zeros around, as many pixels out as in."""
    height, width = conv.kernel_size
    same = conv.stride == conv.dilation == (1, 1) and conv.padding == (height // 2, width // 2) and conv.groups == 1
    return same and conv.padding_mode == "zeros" and height % 2 == width % 2 == 1


class Upsample(nn.Module):
    """Nearest-neighbour doubling, then a 3x3 convolution if `conv`."""

    def __init__(self, channels: int, conv: bool):
        super().__init__()
        if conv:
            self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = resampled(x, up=True)
        return self.conv(x) if hasattr(self, "conv") else x


class Downsample(nn.Module):
    """Halving by a strided 3x3 convolution if `conv`, else by a 2x2 mean."""

    def __init__(self, channels: int, conv: bool):
        super().__init__()
        if conv:
            self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x) if hasattr(self, "op") else resampled(x, up=False)


class ResBlock(nn.Module):
    """BigGAN's residual block, conditioned on an embedding; optionally it doubles or halves the resolution.

    With `scale_shift_norm` the embedding modulates the second norm, AdaGN(h, y) = y_s GroupNorm(h) + y_b
    (paper, section 3; here y_s = 1 + scale); without it, it is added to h before that norm.
    """

    def __init__(
        self,
        c_in: int,
        c_out: int,
        emb_dim: int,
        *,
        dropout: float = 0.0,
        scale_shift_norm: bool = True,
        resample: nn.Module | None = None,
        checkpoint: bool = False,
    ):
        super().__init__()
        self.scale_shift_norm = scale_shift_norm
        self.checkpoint = checkpoint
        self.resample = resample  # has no parameters
        self.in_layers = nn.Sequential(GroupNorm32(c_in), nn.SiLU(), nn.Conv2d(c_in, c_out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_dim, (2 if scale_shift_norm else 1) * c_out))
        self.out_layers = nn.Sequential(
            GroupNorm32(c_out), nn.SiLU(), nn.Dropout(dropout), zero(nn.Conv2d(c_out, c_out, 3, padding=1))
        )
        self.skip_connection = nn.Identity() if c_in == c_out else nn.Conv2d(c_in, c_out, 1)

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        return run(self._forward, self.checkpoint, x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, act, conv = self.in_layers
        h = norm_and_silu(norm, act, x)
        if self.resample is not None:
            h, x = self.resample(h), self.resample(x)
        h, bias = apart(conv, h)

        norm, act, dropout, conv = self.out_layers
        y = self.emb_layers(emb)
        if self.scale_shift_norm:
            scale, shift = y.chunk(2, dim=1)
            h = norm_and_silu(norm, act, h, scale, shift, bias)  # AdaGN
        else:
            h = norm_and_silu(norm, act, h + y.to(h.dtype)[:, :, None, None], offset=bias)
        h, bias = apart(conv, dropout(h))
        x, of_skip = apart(self.skip_connection, x)
        biases = [b for b in (bias, of_skip) if b is not None]
        return add(x, h, sum(biases[1:], biases[0]) if biases else None)


class AttentionBlock(nn.Module):
    """Multi-head self-attention over the pixels, with a residual connection.

    The rows of `qkv` are ordered (q | k | v) x heads x channels with `new_order`, else heads x (q | k | v) x channels.
    The shapes agree, so a checkpoint loads silently with the wrong order and gives noise: the order must be known.
    """

    def __init__(self, channels: int, heads: int, *, new_order: bool = False, checkpoint: bool = False):
        super().__init__()
        self.heads = heads
        self.new_order = new_order
        self.checkpoint = checkpoint
        self.identity = False  # see identity_attention()
        self.norm = GroupNorm32(channels)
        self.qkv = Conv1x1(channels, 3 * channels)
        self.proj_out = zero(Conv1x1(channels, channels))

    def forward(self, x: Tensor) -> Tensor:
        return run(self._forward, self.checkpoint, x)

    def _forward(self, x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        tokens = self.norm(x).flatten(2).transpose(1, 2)  # (N, HW, C)
        q, k, v = split_heads(self.qkv(tokens), self.heads, self.new_order)
        a = v if self.identity else attention(q, k, v)
        a = a.transpose(1, 2).reshape(n, h * w, c)
        return x + self.proj_out(a).transpose(1, 2).reshape(n, c, h, w)


def attention(
    q: Float[Tensor, "n heads t c"], k: Float[Tensor, "n heads t c"], v: Float[Tensor, "n heads t c"]
) -> Float[Tensor, "n heads t c"]:
    """softmax(q kᵀ / sqrt(c)) v for each head."""
    differentiated = torch.is_grad_enabled() and q.requires_grad
    if q.device.type == "cpu" and q.dtype == torch.bfloat16 and differentiated and q.shape[2] <= FEW_TOKENS:
        with torch.autocast("cpu", enabled=False):
            return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
    return F.scaled_dot_product_attention(q, k, v)


@contextmanager
def identity_attention(module: nn.Module) -> Iterator[None]:
    """Within it, each pixel attends to itself alone in every AttentionBlock of the module: the map is the identity."""
    blocks = [block for block in module.modules() if isinstance(block, AttentionBlock)]
    for block in blocks:
        block.identity = True
    try:
        yield
    finally:
        for block in blocks:
            block.identity = False


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
            raise ValueError(f"the attention pool takes {self.size}x{self.size} features, got {tuple(x.shape[2:])}")
        tokens = x.flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(dim=1, keepdim=True), tokens], dim=1)
        tokens = tokens + self.positional_embedding.T.to(tokens.dtype)
        q, k, v = split_heads(self.qkv_proj(tokens), self.heads, new_order=True)
        pooled = F.scaled_dot_product_attention(q[:, :, :1], k, v)  # only the mean pixel's answer is used
        return self.c_proj(pooled.flatten(1)[:, None])[:, 0]


def split_heads(qkv: Float[Tensor, "n t 3c"], heads: int, new_order: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values, each (N, heads, T, C / heads)."""
    n, t, c3 = qkv.shape
    dim = c3 // (3 * heads)
    if new_order:
        q, k, v = qkv.view(n, t, 3, heads, dim).unbind(2)
    else:
        q, k, v = qkv.view(n, t, heads, 3, dim).unbind(3)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


def zero(module: M) -> M:
    """The module with all its parameters set to zero, so that its block begins as the identity."""
    for parameter in module.parameters():
        nn.init.zeros_(parameter)
    return module


def run(forward, recompute: bool, *inputs: Tensor) -> Tensor:
    """forward(*inputs); with `recompute` its activations are dropped and computed again in the backward pass."""
    if recompute and torch.is_grad_enabled():
        return checkpoint(forward, *inputs, use_reentrant=False)
    return forward(*inputs)
