"""Measure the work and the memory of a network without computing anything."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from admg.checkpoints.networks import NETWORK_KINDS
from admg.models import SuperResConfig
from admg.models.unet import EncoderConfig

from .cost import Cost


def measure(network: EncoderConfig) -> Cost:
    """Return the cost of a network. Its tensors have shapes and no values, so that nothing is computed or stored.

    network: architecture of a U-Net, a super-resolution U-Net or a classifier
    """
    kind = next(kind for kind in NETWORK_KINDS.values() if type(network) is kind.config)
    with FakeTensorMode():
        module: nn.Module = kind.network(network)
        one, two = inputs_of(network, 1), inputs_of(network, 2)
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):  # others are not counted on CPUs
            module(*one)
        kept = {cast: (_kept(module, two, cast) - _kept(module, one, cast)) / 1e6 for cast in (False, True)}
    return Cost(
        parameters=sum(p.numel() for p in module.parameters()),
        gflops=counter.get_total_flops() / 1e9,
        activation_mb_fp32=kept[False],
        activation_mb_bf16=kept[True],
    )


def inputs_of(network: EncoderConfig, images: int) -> list[Tensor]:
    """Return images, timesteps and, for an upsampler, small images."""
    channels, size = network.image_channels, network.image_size
    inputs = [torch.empty(images, channels, size, size), torch.zeros(images)]
    if isinstance(network, SuperResConfig):
        inputs.append(torch.empty(images, channels, network.small_size, network.small_size))
    return inputs


def _kept(network: nn.Module, inputs: list[Tensor], cast: bool) -> int:
    """Return the bytes that a forward pass keeps for the backward pass, the weights and copies of them included.

    cast: whether matrix products are in bfloat16
    """
    kept: dict[int, torch.UntypedStorage] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage  # the reference keeps its address from being used again
        return tensor

    hooks = torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor)
    with hooks, torch.autocast("cpu", torch.bfloat16, enabled=cast):
        network(*inputs)
    return sum(storage.nbytes() for storage in kept.values())
