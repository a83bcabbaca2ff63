"""ADM's U-Net (paper, section 3 and appendix), and the super-resolution U-Net of its upsampling stack."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor, nn

from admg.engine.norm import joined, norm_and_silu

from .blocks import AttentionBlock, Downsample, GroupNorm32, ResBlock, Upsample, timestep_embedding, zero

CHANNEL_MULT: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
"""Width of each level as a multiple of the base width, by image size: the reference's, and Improved DDPM's for 32."""

CHANNELS_LAST = 1 << 14
"""Pixels of a batch on a CPU from which on the faster layout outweighs that all weights are laid out anew."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """What the U-Net and the classifier have in common: the shape of their encoder.

    image_size: pixels of the side of the training images; it decides where attention stands
    image_channels: 1 for grey, 3 for RGB
    channels: base width, a multiple of 32
    channel_mult: width of each level, times `channels`; empty: by image size, as the reference has it
    num_res_blocks: residual blocks per level
    attention_resolutions: pixels of the side at which attention follows each residual block
    num_heads: attention heads, unless `head_channels` is given
    head_channels: channels per attention head (the paper's 64); 0: `num_heads` heads everywhere
    new_attention_order: order of the rows of qkv, see AttentionBlock
    scale_shift_norm: adaptive group norm; otherwise the embedding is added
    resblock_updown: residual blocks (BigGAN) for up- and downsampling; otherwise convolutions
    conv_resample: without resblock_updown: resample with a convolution; otherwise by mean and nearest neighbour
    dropout: probability, in every residual block
    checkpoint: recompute activations in the backward pass, for less memory
    """

    image_size: int = 64
    image_channels: int = 3
    channels: int = 128
    channel_mult: tuple[float, ...] = ()
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = (32, 16, 8)
    num_heads: int = 4
    head_channels: int = 64
    new_attention_order: bool = False
    scale_shift_norm: bool = True
    resblock_updown: bool = True
    conv_resample: bool = True
    dropout: float = 0.0
    checkpoint: bool = False

    def __post_init__(self):
        if not self.channel_mult:
            if self.image_size not in CHANNEL_MULT:
                sizes = ", ".join(map(str, sorted(CHANNEL_MULT)))
                raise ValueError(
                    f"channel_mult must be given for image size {self.image_size}: it is known for {sizes} only"
                )
            object.__setattr__(self, "channel_mult", CHANNEL_MULT[self.image_size])
        object.__setattr__(self, "channel_mult", tuple(self.channel_mult))
        object.__setattr__(self, "attention_resolutions", tuple(self.attention_resolutions))
        if self.head_channels < 0 or (self.head_channels == 0 and self.num_heads < 1):
            raise ValueError(
                f"attention heads: head_channels {self.head_channels} must be positive, or 0 with num_heads >= 1"
            )
        if min(self.attention_resolutions, default=1) < 1:
            raise ValueError(f"attention_resolutions {self.attention_resolutions} must be positive numbers of pixels")
        if self.image_size <= 0 or self.image_size % self.downsampling:
            raise ValueError(
                f"image size {self.image_size} must be a positive multiple of {self.downsampling}: "
                f"{len(self.channel_mult)} levels halve it {len(self.channel_mult) - 1} times"
            )

    @property
    def downsampling(self) -> int:
        """Pixels of the input per pixel of the lowest level: the height and width must be multiples of it."""
        return 2 ** (len(self.channel_mult) - 1)

    @property
    def emb_dim(self) -> int:
        return 4 * self.channels

    def width(self, level: int) -> int:
        return int(self.channel_mult[level] * self.channels)

    def attends(self, level: int) -> bool:
        return 2**level in {self.image_size // resolution for resolution in self.attention_resolutions}

    def heads(self, channels: int, count: int = 0) -> int:
        """Number of attention heads at this width: by head_channels, else `count` or num_heads."""
        heads = channels // self.head_channels if self.head_channels else count or self.num_heads
        if heads < 1 or channels % heads or channels % (self.head_channels or heads):
            raise ValueError(
                f"{channels} channels cannot be divided into attention heads of "
                f"{self.head_channels or channels / heads:g} channels: change head_channels, num_heads or channel_mult"
            )
        return heads


@dataclass(frozen=True, kw_only=True)
class UNetConfig(EncoderConfig):
    """Architecture of a U-Net; the defaults are the paper's best (section 3).

    num_classes: labels that the network can be conditioned on; 0: unconditional
    learn_variance: 2C output channels: the prediction, then v of the variance
    num_heads_upsample: heads on the way up, if other than num_heads (0: the same)
    """

    num_classes: int = 0
    learn_variance: bool = True
    num_heads_upsample: int = 0


@dataclass(frozen=True, kw_only=True)
class SuperResConfig(UNetConfig):
    """Architecture of a super-resolution U-Net; image_size is the large one.

    small_size: pixels of the side of the low-resolution images that it was trained on; 0: any
    """

    small_size: int = 0


class TimestepSequential(nn.Sequential):
    """Layers in a row; those that are conditioned get the embedding too."""

    def forward(self, h: Tensor, emb: Tensor) -> Tensor:
        for layer in self:
            h = layer(h, emb) if isinstance(layer, ResBlock) else layer(h)
        return h


class UNetEncoder(nn.Module):
    """The time embedding, the encoder and the middle block."""

    def __init__(self, config: EncoderConfig, in_channels: int):
        super().__init__()
        c = self.config = config
        self.time_embed = nn.Sequential(nn.Linear(c.channels, c.emb_dim), nn.SiLU(), nn.Linear(c.emb_dim, c.emb_dim))
        width = c.width(0)
        self.input_blocks = nn.ModuleList([TimestepSequential(nn.Conv2d(in_channels, width, 3, padding=1))])
        self.skip_widths = [width]
        for level in range(len(c.channel_mult)):
            for _ in range(c.num_res_blocks):
                layers: list[nn.Module] = [self._res_block(width, c.width(level))]
                width = c.width(level)
                if c.attends(level):
                    layers.append(self._attention(width, c.heads(width)))
                self.input_blocks.append(TimestepSequential(*layers))
                self.skip_widths.append(width)
            if level < len(c.channel_mult) - 1:
                self.input_blocks.append(TimestepSequential(self._resample(width, Downsample)))
                self.skip_widths.append(width)
        self.middle_block = TimestepSequential(
            self._res_block(width, width), self._attention(width, c.heads(width)), self._res_block(width, width)
        )
        self.width = width
        self.torso_dtype: torch.dtype | None = None

    def torso_to(self, dtype: torch.dtype) -> Self:
        """Store and compute the convolutions of all blocks in this dtype, as the reference's --use_fp16 does.

        Norms, embeddings, the first and the last layer's sums and the pooling head stay in float32.
        """
        for name in ("input_blocks", "middle_block", "output_blocks"):
            for module in getattr(self, name, nn.Identity()).modules():
                if isinstance(module, nn.Conv1d | nn.Conv2d):
                    module.to(dtype)
        self.torso_dtype = dtype
        return self

    def _res_block(self, c_in: int, c_out: int, resample: nn.Module | None = None) -> ResBlock:
        c = self.config
        return ResBlock(
            c_in,
            c_out,
            c.emb_dim,
            dropout=c.dropout,
            scale_shift_norm=c.scale_shift_norm,
            resample=resample,
            checkpoint=c.checkpoint,
        )

    def _attention(self, width: int, heads: int) -> AttentionBlock:
        c = self.config
        return AttentionBlock(width, heads, new_order=c.new_attention_order, checkpoint=c.checkpoint)

    def _resample(self, width: int, kind: type[Upsample] | type[Downsample]) -> nn.Module:
        if self.config.resblock_updown:
            return self._res_block(width, width, kind(width, conv=False))
        return kind(width, conv=self.config.conv_resample)

    def embed(self, timesteps: Tensor) -> Tensor:
        return self.time_embed(timestep_embedding(timesteps, self.config.channels))

    def encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """The features after each input block and, last, after the middle block."""
        size, step = tuple(x.shape[2:]), self.config.downsampling
        if size[0] % step or size[1] % step:
            raise ValueError(
                f"an image of {size[0]}x{size[1]} does not fit: height and width must be multiples of {step}"
            )
        x = x if self.torso_dtype is None else x.to(self.torso_dtype)
        features: list[Tensor] = []
        for block in self.input_blocks:
            x = block(x, emb)
            if not features and (x.is_cuda or (x.device.type == "cpu" and x[:, 0].numel() >= CHANNELS_LAST)):
                x = x.contiguous(memory_format=torch.channels_last)  # as its convolutions compute; the rest follows
            features.append(x)
        return [*features, self.middle_block(x, emb)]


class UNet(UNetEncoder):
    """ADM's U-Net: (x_t, t, y) -> the prediction, and v of the variance if it is learned."""

    config: UNetConfig

    def __init__(self, config: UNetConfig, in_channels: int | None = None):
        super().__init__(config, in_channels or config.image_channels)
        c = config
        if c.num_classes:
            self.label_emb = nn.Embedding(c.num_classes, c.emb_dim)
        width, skips = self.width, list(self.skip_widths)
        self.output_blocks = nn.ModuleList()
        for level in reversed(range(len(c.channel_mult))):
            for i in range(c.num_res_blocks + 1):
                layers: list[nn.Module] = [self._res_block(width + skips.pop(), c.width(level))]
                width = c.width(level)
                if c.attends(level):
                    layers.append(self._attention(width, c.heads(width, c.num_heads_upsample)))
                if level and i == c.num_res_blocks:
                    layers.append(self._resample(width, Upsample))
                self.output_blocks.append(TimestepSequential(*layers))
        out_channels = c.image_channels * (2 if c.learn_variance else 1)
        self.out = nn.Sequential(GroupNorm32(width), nn.SiLU(), zero(nn.Conv2d(width, out_channels, 3, padding=1)))

    def forward(
        self,
        x: Float[Tensor, "n c h w"],
        timesteps: Float[Tensor, " n"] | Int[Tensor, " n"],
        y: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n c2 h w"]:
        """The raw output (N, C or 2C, H, W) for noised images x in about [-1, 1] at `timesteps` in [0, 1000).

        timesteps: (N,), or (1,) for all images alike.
        y: labels in [0, num_classes); -1 (or None for all) drops the label: nothing is added to the time embedding.
        ValueError: a size that the levels do not divide; labels for an unconditional network.
        """
        emb = self.embed(timesteps)
        if y is not None:
            if not self.config.num_classes:
                raise ValueError("this network is unconditional and takes no labels y")
            emb = emb + self.label_emb(y.clamp(min=0)) * (y >= 0)[:, None]
        skips = self.encode(x, emb)
        h = skips.pop()
        for block in self.output_blocks:
            h = block(joined(h, skips.pop()), emb)
        with torch.autocast(x.device.type, enabled=False):  # as in the reference, the last layer is in float32
            norm, act, conv = self.out
            return conv(norm_and_silu(norm, act, h.to(x.dtype)))


class SuperResUNet(UNet):
    """A U-Net that also sees a low-resolution image, upsampled bilinearly and concatenated to x."""

    config: SuperResConfig

    def __init__(self, config: SuperResConfig):
        super().__init__(config, in_channels=2 * config.image_channels)

    def forward(
        self,
        x: Float[Tensor, "n c h w"],
        timesteps: Tensor,
        low_res: Float[Tensor, "n c h2 w2"],
        y: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n c2 h w"]:
        """As UNet.forward, for x of the large size, given low_res (N, C, h, w) in [-1, 1] of any smaller size."""
        upsampled = F.interpolate(low_res, x.shape[2:], mode="bilinear")
        return super().forward(torch.cat([x, upsampled.to(x.dtype)], dim=1), timesteps, y)
