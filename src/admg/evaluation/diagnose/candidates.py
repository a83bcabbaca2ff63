"""The candidates: attention settings and diffusion processes, without duplicates that are equivalent."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import get_args

from admg.diffusion.config import DiffusionConfig, ScheduleName
from admg.diffusion.gaussian import Predict
from admg.models import UNet, UNetConfig
from admg.models.blocks import AttentionBlock

from .denoising import LEVELS, timesteps

HEAD_CHANNELS = (64, 32, 128, 16)
NUM_HEADS = (1, 2, 4, 8, 16)
STEPS = (1000, 4000, 2000, 500)
PREDICTIONS: tuple[Predict, ...] = get_args(Predict)
SAME_TIMESTEP = 2.0
"""Processes whose timesteps differ by less than this at every noise level look the same to a network."""


@dataclass(frozen=True)
class Attention:
    """Settings of all attention blocks; the fields are those of UNetConfig."""

    num_heads: int
    head_channels: int
    new_order: bool
    num_heads_upsample: int = 0

    @classmethod
    def of(cls, config: UNetConfig) -> Attention:
        """Return the settings of an architecture."""
        return cls(config.num_heads, config.head_channels, config.new_attention_order, config.num_heads_upsample)

    def on(self, config: UNetConfig) -> UNetConfig:
        """Return the architecture with these settings."""
        return dataclasses.replace(
            config,
            num_heads=self.num_heads,
            head_channels=self.head_channels,
            new_attention_order=self.new_order,
            num_heads_upsample=self.num_heads_upsample,
        )


@dataclass(frozen=True)
class Candidate:
    """A process and an attention that a network may have been trained with; `variance` is determined separately."""

    process: DiffusionConfig
    attention: Attention

    @property
    def predict(self) -> Predict:
        """What the network predicts."""
        return self.process.predict


def blocks(network: UNet) -> list[tuple[AttentionBlock, bool]]:
    """Return the attention blocks, and whether each is in the decoder."""
    found = [(name, block) for name, block in network.named_modules() if isinstance(block, AttentionBlock)]
    return [(block, name.startswith("output_blocks.")) for name, block in found]


def heads_by_block(network: UNet, attention: Attention) -> tuple[int, ...]:
    """Return the number of heads of each block. Raises ValueError if these settings do not divide its channels."""
    config = attention.on(network.config)
    return tuple(
        config.heads(block.qkv.weight.shape[1], attention.num_heads_upsample if up else 0)
        for block, up in blocks(network)
    )


def attentions(network: UNet) -> list[Attention]:
    """Return the settings that the network's widths allow, with its own first.

    With one head in each block both orders are the same.
    """
    own = Attention.of(network.config)
    by_channels = [Attention(own.num_heads, channels, new) for channels in HEAD_CHANNELS for new in (False, True)]
    by_count = [Attention(count, 0, new) for count in NUM_HEADS for new in (False, True)]
    splits: dict[tuple[tuple[int, ...], bool], Attention] = {}
    for attention in [own, *by_channels, *by_count]:
        try:
            heads = heads_by_block(network, attention)
        except ValueError:
            continue
        splits.setdefault((heads, attention.new_order and max(heads, default=1) > 1), attention)
    return list(splits.values())


def processes(own: DiffusionConfig, levels: Sequence[float] = LEVELS) -> list[tuple[DiffusionConfig, ...]]:
    """Return groups of processes that look the same to a network; `own` comes first in the first group."""
    groups: list[tuple[DiffusionConfig, ...]] = []
    every = itertools.product((False, True), STEPS, get_args(ScheduleName))
    tried = [
        dataclasses.replace(own, noise_schedule=schedule, diffusion_steps=steps, rescale_timesteps=rescaled)
        for rescaled, steps, schedule in every
        if not (rescaled and steps == 1000)  # rescaling has no effect for 1000 steps
    ]
    for process in dict.fromkeys([own, *tried]):
        found_timesteps = timesteps(process, levels)
        for i, group in enumerate(groups):
            if (timesteps(group[0], levels) - found_timesteps).abs().max() <= SAME_TIMESTEP:
                groups[i] = (*group, process)
                break
        else:
            groups.append((process,))
    return groups


@contextmanager
def restoring_attention(network: UNet) -> Iterator[None]:
    """Context manager that restores the settings of the attention blocks."""
    before = [(block, block.heads, block.new_order) for block, _ in blocks(network)]
    try:
        yield
    finally:
        for block, heads, new_order in before:
            block.heads, block.new_order = heads, new_order


def use(network: UNet, attention: Attention) -> None:
    """Set the settings of all attention blocks in place; the weights do not change."""
    for (block, _), heads in zip(blocks(network), heads_by_block(network, attention), strict=True):
        block.heads, block.new_order = heads, attention.new_order
