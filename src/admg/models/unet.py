"""ADM's U-Net (paper, section 3 and appendix)."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from .blocks import (
    AttentionBlock,
    Downsample,
    GroupNorm32,
    PaddedDownsample,
    ResBlock,
    TimestepSequential,
    Upsample,
    timestep_embedding,
    zero,
)

CHANNEL_MULT: dict[int, tuple[float, ...]] = {
    512: (0.5, 1, 1, 2, 2, 4, 4),
    256: (1, 1, 2, 2, 4, 4),
    128: (1, 1, 2, 3, 4),
    64: (1, 2, 3, 4),
    32: (1, 2, 2, 2),
}
"""Width of each level as a multiple of the base width, by image size: guided-diffusion's; Improved DDPM's for 32."""
ATTENTION = (32, 16, 8)
"""Sides in pixels at which the paper's networks have attention."""
DDPM_EPSILON = 1e-6
"""Epsilon of the group norms with `ddpm_layers`."""


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """Architecture of the encoder, shared by the U-Net and the classifier.

    image_size: side of the training images in pixels; it decides where attention is used
    image_channels: 1 for grey, 3 for RGB
    channels: base width, a multiple of 32
    channel_mult: width of each level, times `channels` (default: guided-diffusion's for this image size or the next
        smaller one, for levels whose sides are whole numbers of at least 4 pixels)
    num_res_blocks: residual blocks per level
    attention_resolutions: sides in pixels at which attention follows each residual block (default: 32, 16 and 8, or the
        nearest levels if none of these is one)
    num_heads: number of attention heads if `head_channels` is 0
    head_channels: channels per attention head; 0 for a fixed number of heads, `num_heads`
    new_attention_order: order of the rows of qkv: (q, k, v) x heads instead of heads x (q, k, v)
    scale_shift_norm: adaptive group norm (AdaGN); otherwise the embedding is added
    resblock_updown: BigGAN's residual blocks for up- and downsampling; otherwise plain layers
    conv_resample: a convolution in each of these plain layers; otherwise means and nearest neighbours
    dropout: dropout probability in every residual block
    checkpoint: recompute activations in the backward pass to save memory
    """

    RANGES: ClassVar[dict[str, tuple[float, float]]] = {
        "image_size": (1, 16_384),
        "image_channels": (1, 1024),
        "channels": (1, 8192),
        "num_res_blocks": (1, 64),
        "num_heads": (0, 1024),
        "head_channels": (0, 8192),
        "dropout": (0, 0.999),
        "num_classes": (0, 10_000_000),
        "num_heads_upsample": (0, 1024),
        "small_size": (0, 16_384),
    }
    """Smallest and largest value of each number; larger values are mistakes and would exhaust the memory."""

    image_size: int = 64
    image_channels: int = 3
    channels: int = 128
    channel_mult: tuple[float, ...] = ()
    num_res_blocks: int = 2
    attention_resolutions: tuple[int, ...] = ATTENTION
    num_heads: int = 4
    head_channels: int = 64
    new_attention_order: bool = False
    scale_shift_norm: bool = True
    resblock_updown: bool = True
    conv_resample: bool = True
    dropout: float = 0.0
    checkpoint: bool = False

    def __post_init__(self) -> None:
        if not self.channel_mult:
            object.__setattr__(self, "channel_mult", default_channel_mult(self.image_size))
        object.__setattr__(self, "channel_mult", tuple(self.channel_mult))
        object.__setattr__(self, "attention_resolutions", tuple(self.attention_resolutions))
        self._check_ranges()
        if self.head_channels < 0 or (self.head_channels == 0 and self.num_heads < 1):
            raise ValueError(f"head_channels must be positive, or 0 with num_heads >= 1, got {self.head_channels}")
        if min(self.attention_resolutions, default=1) < 1:
            raise ValueError(f"attention_resolutions must be positive, got {self.attention_resolutions}")
        if self.image_size <= 0 or self.image_size % self.downsampling:
            raise ValueError(
                f"image size {self.image_size} must be a positive multiple of {self.downsampling}: "
                f"{len(self.channel_mult)} levels halve it {len(self.channel_mult) - 1} times"
            )
        object.__setattr__(self, "attention_resolutions", self._attention())

    def _check_ranges(self) -> None:
        for name, (low, high) in self.RANGES.items():
            if not low <= getattr(self, name, low) <= high:
                raise ValueError(f"{name} must be at least {low:,} and at most {high:,}, got {getattr(self, name)}")
        if len(self.channel_mult) > 16 or not all(0 < factor <= 64 for factor in self.channel_mult):
            raise ValueError(f"channel_mult must have at most 16 factors above 0 and up to 64, got {self.channel_mult}")

    def _attention(self) -> tuple[int, ...]:
        """Return the sides with attention. Raises ValueError for a given side that no level has."""
        given, sizes = self.attention_resolutions, [self.image_size >> level for level in range(self.levels)]
        missing = [side for side in given if side not in sizes]
        if not missing or (given == ATTENTION and len(missing) < len(given)):
            return given
        if given == ATTENTION:
            return tuple(sorted({min(sizes, key=lambda size: abs(math.log(size / side))) for side in given}))[::-1]
        raise ValueError(
            f"attention_resolutions {','.join(map(str, given))}: no level has {missing[0]} pixels; the levels have "
            f"{', '.join(map(str, sizes))}"
        )

    @property
    def levels(self) -> int:
        return len(self.channel_mult)

    @property
    def downsampling(self) -> int:
        """Input pixels per pixel of the lowest level; height and width must be multiples of it."""
        return 1 << (len(self.channel_mult) - 1)

    @property
    def emb_dim(self) -> int:
        return 4 * self.channels

    def width(self, level: int) -> int:
        return int(self.channel_mult[level] * self.channels)

    def attends(self, level: int) -> bool:
        return 2**level in {self.image_size // resolution for resolution in self.attention_resolutions}

    @property
    def attention_levels(self) -> list[int]:
        """The levels with attention; the middle block, at the lowest level, always has it."""
        return [level for level in range(self.levels) if self.attends(level) or level == self.levels - 1]

    def heads(self, channels: int, count: int = 0) -> int:
        """Return the number of attention heads at this width: by head_channels, else `count` or num_heads."""
        heads = channels // self.head_channels if self.head_channels else count or self.num_heads
        if heads < 1 or channels % heads or channels % (self.head_channels or heads):
            own = self.head_channels
            into = f"attention heads of {own} channels" if own else f"{count or self.num_heads} attention heads"
            raise ValueError(
                f"{channels} channels cannot be divided into {into}: change head_channels, num_heads or channel_mult"
            )
        return heads


def effective_attention_resolutions(resolutions: Sequence[int], size: int, levels: int) -> tuple[int, ...]:
    """Return attention_resolutions with the same effect as in guided-diffusion, which ignores sides without a level.

    guided-diffusion compares size // resolution with the factor of each level, so that 30 means the level of 32 pixels
    in an image of 64. Sides that an EncoderConfig takes are returned unchanged.
    """
    given, sides = tuple(resolutions), {size >> level for level in range(levels)}
    if sides.issuperset(given) or (given == ATTENTION and sides & set(given)) or min(given) < 1:
        return given
    factors = {size // side for side in given}
    return tuple(size >> level for level in range(levels) if 2**level in factors)


def default_channel_mult(size: int) -> tuple[float, ...]:
    """Return the widths for an image size: those of the next smaller known size, for levels of at least 4 pixels.

    Raises ValueError if the size cannot be halved.
    """
    known = max((side for side in CHANNEL_MULT if side <= size), default=min(CHANNEL_MULT))
    levels = 1
    while levels < len(CHANNEL_MULT[known]) and size % 2**levels == 0 and size >> levels >= 4:
        levels += 1
    if levels == 1:
        raise ValueError(f"image_size must be a multiple of 2 (preferably 16) unless channel_mult is given, got {size}")
    return CHANNEL_MULT[known][:levels]


@dataclass(frozen=True, kw_only=True)
class UNetConfig(EncoderConfig):
    """Architecture of a U-Net; the defaults are the paper's best (section 3).

    num_classes: number of labels that the network can be conditioned on; 0 for an unconditional network
    learn_variance: learned variance: 2C output channels, the prediction and then v
    num_heads_upsample: number of attention heads in the decoder; 0 for `num_heads`
    ddpm_layers: the details of DDPM's own network (Ho et al. 2020), which some checkpoints of diffusers have: 1e-6 as
        epsilon of group norm, 1/10,000 as last time frequency, strided convolutions padded at the bottom and right
    """

    num_classes: int = 0
    learn_variance: bool = True
    num_heads_upsample: int = 0
    ddpm_layers: bool = False


class UNetEncoder(nn.Module):
    """The time embedding, the encoder and the middle block, shared by the U-Net and the classifier."""

    def __init__(self, config: EncoderConfig, in_channels: int):
        super().__init__()
        c = self.config = config
        self.time_embed = nn.Sequential(nn.Linear(c.channels, c.emb_dim), nn.SiLU(), nn.Linear(c.emb_dim, c.emb_dim))
        width = c.width(0)
        self.input_blocks = nn.ModuleList([self._stage(nn.Conv2d(in_channels, width, 3, padding=1))])
        self.skip_widths = [width]
        for level in range(len(c.channel_mult)):
            for _ in range(c.num_res_blocks):
                layers: list[nn.Module] = [self._res_block(width, c.width(level))]
                width = c.width(level)
                if c.attends(level):
                    layers.append(self._attention(width, c.heads(width)))
                self.input_blocks.append(self._stage(*layers))
                self.skip_widths.append(width)
            if level < len(c.channel_mult) - 1:
                self.input_blocks.append(self._stage(self._resample(width, Downsample)))
                self.skip_widths.append(width)
        self.middle_block = self._stage(
            self._res_block(width, width), self._attention(width, c.heads(width)), self._res_block(width, width)
        )
        self.width = width

    def _stage(self, *layers: nn.Module) -> TimestepSequential:
        return TimestepSequential(*layers, recompute=self.config.checkpoint)

    def _res_block(self, c_in: int, c_out: int, resample: type[Upsample] | type[Downsample] | None = None) -> ResBlock:
        c = self.config
        return ResBlock(
            c_in, c_out, c.emb_dim, dropout=c.dropout, scale_shift_norm=c.scale_shift_norm, resample=resample
        )

    def _attention(self, width: int, heads: int) -> AttentionBlock:
        return AttentionBlock(width, heads, new_order=self.config.new_attention_order)

    def _resample(self, width: int, kind: type[Upsample] | type[Downsample]) -> nn.Module:
        if self.config.resblock_updown:
            return self._res_block(width, width, kind)
        return kind(width, conv=self.config.conv_resample)

    @property
    def dtype(self) -> torch.dtype:
        """The dtype that the network computes in: that of its weights."""
        return next(self.time_embed.parameters()).dtype

    def embed(self, timesteps: Tensor) -> Float[Tensor, "n d"]:
        """Return the embedding of timesteps (N,), which conditions every residual block."""
        wide = torch.promote_types(self.dtype, torch.float32)
        endpoint = getattr(self.config, "ddpm_layers", False)
        embedding = timestep_embedding(timesteps, self.config.channels, dtype=wide, endpoint=endpoint)
        return self.time_embed(embedding.to(self.dtype))

    def encode(self, x: Tensor, emb: Tensor) -> list[Tensor]:
        """Return the features after each input block and, last, after the middle block."""
        (height, width), step = x.shape[2:], self.config.downsampling
        if height % step or width % step:
            raise ValueError(f"the height and width of an image must be multiples of {step}, got {height}x{width}")
        features: list[Tensor] = []
        h = x.to(self.dtype)
        for block in self.input_blocks:
            h = block(h, emb)
            features.append(h)
        return [*features, self.middle_block(h, emb)]


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
                self.output_blocks.append(self._stage(*layers))
        out_channels = c.image_channels * (2 if c.learn_variance else 1)
        self.out = nn.Sequential(GroupNorm32(width), nn.SiLU(), zero(nn.Conv2d(width, out_channels, 3, padding=1)))
        if c.ddpm_layers:
            for module in self.modules():
                if isinstance(module, GroupNorm32):
                    module.eps = DDPM_EPSILON

    def _resample(self, width: int, kind: type[Upsample] | type[Downsample]) -> nn.Module:
        c = self.config
        if c.ddpm_layers and kind is Downsample and c.conv_resample and not c.resblock_updown:
            return PaddedDownsample(width)
        return super()._resample(width, kind)

    def forward(
        self,
        x: Float[Tensor, "n c h w"],
        timesteps: Float[Tensor, " n"] | Int[Tensor, " n"],
        y: Int[Tensor, " n"] | None = None,
    ) -> Float[Tensor, "n c2 h w"]:
        """Return the raw output (N, C or 2C, H, W) in the dtype of x, for images x noised to `timesteps`.

        x: (N, C, H, W), in about [-1, 1]
        timesteps: (N,), or (1,) for all images, in [0, 1000)
        y: labels (N,) in [0, num_classes); -1 (or None for all) drops the label: only the time embedding conditions
        Raises ValueError if the levels do not divide the size, or if an unconditional network is given labels.
        """
        return self.denoise(x, self.embed(timesteps), y)

    def denoise(self, x: Tensor, emb: Tensor, y: Tensor | None) -> Tensor:
        """Return the output of forward() for all input channels, from the embedding of the timesteps."""
        if y is not None:
            if not self.config.num_classes:
                raise ValueError("y must be None: this network is unconditional")
            emb = emb + self.label_emb(y.clamp(min=0)) * (y >= 0)[:, None]
        h = self.decode(self.encode(x, emb), emb)
        with torch.autocast(x.device.type, enabled=False):  # as in guided-diffusion, the last layer is not in fp16
            return self.out(h.to(self.dtype)).to(x.dtype)

    def decode(self, features: list[Tensor], emb: Tensor) -> Tensor:
        """Return the features after the last output block, from those of encode()."""
        h = features.pop()
        for block in self.output_blocks:
            h = block(torch.cat([h, features.pop()], dim=1), emb)
        return h
