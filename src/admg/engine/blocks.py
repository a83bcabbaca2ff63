"""Fused blocks: ADM's blocks by the operations of ops.py. Each shares the parameters of a plain block."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from admg.models import NoisyClassifier, SuperResUNet, UNet
from admg.models.blocks import (
    Attention,
    Downsample,
    GroupNorm32,
    ResBlock,
    TimestepSequential,
    Upsample,
)
from admg.models.surgery import shallow_copy

from .layers import without_bias
from .ops import add, concatenate, group_norm, resampled

FEW_TOKENS = 256
"""Maximum number of tokens for which the gradient of attention on a CPU takes less time in float32 than in bf16."""
CHANNELS_LAST = 1 << 14
"""Minimum number of pixels per batch for which channels_last is faster on a CPU, even with weights that are not."""


def fused(name: str, module: nn.Module) -> nn.Module:
    """Return the fused block for a plain block of this qualified name, or the module itself if there is none."""
    kind: type[nn.Module] | None = FUSED.get(type(module))
    if "forward" in vars(module):  # a user-defined forward
        return module
    if isinstance(module, ResBlock) and not _is_usual(module):
        return module
    if type(module) is TimestepSequential and name == "input_blocks.0":
        kind = FirstBlock
    if type(module) is nn.Sequential and name == "out" and _types(module)[:2] == [FusedGroupNorm, nn.SiLU]:
        kind = FusedHead if len(module) == 3 and not _have_own_forward(module[1]) else None
    return module if kind is None else shallow_copy(module, module._modules, kind)


class FusedGroupNorm(GroupNorm32):
    """Group norm by the kernels of the device."""

    def forward(self, x: Tensor) -> Tensor:
        return group_norm(self, x)


class FusedUpsample(Upsample):
    """Upsampling by the kernels of the device."""

    def forward(self, x: Tensor) -> Tensor:
        x = resampled(x, up=True)
        return self.conv(x) if hasattr(self, "conv") else x


class FusedDownsample(Downsample):
    """Downsampling by the kernels of the device."""

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x) if hasattr(self, "op") else resampled(x, up=False)


class FusedAttention(Attention):
    """Attention in the fastest number format."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        differentiated = torch.is_grad_enabled() and q.requires_grad
        if q.device.type == "cpu" and q.dtype == torch.bfloat16 and differentiated and q.shape[2] <= FEW_TOKENS:
            with torch.autocast("cpu", enabled=False):
                return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)
        return F.scaled_dot_product_attention(q, k, v)


class FusedResBlock(ResBlock):
    """A residual block with fused norm, modulation and SiLU, whose biases are added by other fused operations."""

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        norm, act, conv = self.in_layers
        h = group_norm(norm, x, silu=True)
        if isinstance(act, nn.Sequential):
            h, x = act[1](h), self.resample(x)
        h, bias = without_bias(conv, h)

        norm, _, dropout, conv = self.out_layers
        y = self.emb_layers(emb)
        if self.scale_shift_norm:
            scale, shift = y.chunk(2, dim=1)
            h = group_norm(norm, h, scale, shift, bias, silu=True)  # AdaGN
        else:
            h = group_norm(norm, h + y.to(h.dtype)[:, :, None, None], offset=bias, silu=True)
        h, bias = without_bias(conv, dropout(h))
        x, skip_bias = without_bias(self.skip_connection, x)
        biases = [b for b in (bias, skip_bias) if b is not None]
        return add(x, h, sum(biases[1:], biases[0]) if biases else None)


class FirstBlock(TimestepSequential):
    """The first block of a network. Converts its output to channels-last where that makes convolutions faster."""

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        h = super().forward(h, emb)
        if h.is_cuda or (h.device.type == "cpu" and h[:, 0].numel() >= CHANNELS_LAST):
            return h.contiguous(memory_format=torch.channels_last)
        return h


class FusedHead(nn.Sequential):
    """The last layers of a U-Net: norm and SiLU in one, then a convolution."""

    def forward(self, h: Tensor) -> Tensor:
        norm, _, conv = self
        return conv(group_norm(norm, h, silu=True))


class FusedUNet(UNet):
    """A U-Net whose skip connections are concatenated by the kernels of the device."""

    def decode(self, features: list[Tensor], emb: Tensor) -> Tensor:
        h = features.pop()
        for block in self.output_blocks:
            h = block(concatenate(h, features.pop()), emb)
        return h


class FusedSuperResUNet(SuperResUNet):
    """As FusedUNet."""

    decode = FusedUNet.decode


FUSED: dict[type[nn.Module], type[nn.Module]] = {
    GroupNorm32: FusedGroupNorm,
    Upsample: FusedUpsample,
    Downsample: FusedDownsample,
    Attention: FusedAttention,
    ResBlock: FusedResBlock,
    UNet: FusedUNet,
    SuperResUNet: FusedSuperResUNet,
}
"""Fused blocks by the plain classes that they replace. Subclasses of these are left alone."""
OURS = UNet, SuperResUNet, NoisyClassifier


def has_fast_parts(network: nn.Module) -> bool:
    """Whether the module has blocks of ours or convolutions, which can be replaced by faster ones."""
    return any(type(module) in FUSED or isinstance(module, nn.Conv2d) for module in network.modules())


def _types(module: nn.Module) -> list[type[nn.Module]]:
    return [type(child) for child in module.children()]


def _is_usual(block: ResBlock) -> bool:
    """Whether norms, activations and resampling are those that FusedResBlock computes in their place."""
    acts = block.in_layers[1]
    resample = type(acts) is nn.Sequential and len(acts) == 2 and type(acts[0]) is nn.SiLU
    return (
        _types(block.in_layers)[:1] == _types(block.out_layers)[:1] == [FusedGroupNorm]
        and (type(acts) is nn.SiLU or resample)
        and type(block.out_layers[1]) is nn.SiLU
        and (len(block.in_layers), len(block.out_layers)) == (3, 4)
        and not _have_own_forward(block.in_layers, block.out_layers, *acts.modules(), block.out_layers[1])
    )


def _have_own_forward(*modules: nn.Module) -> bool:
    return any("forward" in vars(module) for module in modules)
