"""The layers of a network with their parameters and operations, and the memory that batches of images need."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from admg.checkpoints.networks import NETWORK_KINDS
from admg.models.unet import EncoderConfig

from .measure import inputs_of


@dataclass(frozen=True)
class Layer:
    """A block of a network, for one image.

    name: name of the block, as in the state dict
    kind: classes of its parts
    shape: of its output, without the batch, such as (64, 32, 32)
    parameters: number of parameters
    gflops: operations of a forward pass in 10^9, two for each multiplication with addition
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    parameters: int
    gflops: float


def layers(network: EncoderConfig) -> list[Layer]:
    """Return the blocks of a network in the order in which they run. Nothing is computed or stored.

    network: architecture of a U-Net, a super-resolution U-Net or a classifier
    """
    kind = next(kind for kind in NETWORK_KINDS.values() if type(network) is kind.config)
    with FakeTensorMode():
        module: nn.Module = kind.network(network)
        named = dict(_blocks(module))
        order: list[str] = []
        shapes: dict[str, tuple[int, ...]] = {}
        handles = [block.register_forward_hook(_noted(name, order, shapes)) for name, block in named.items()]
        with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH):
            module(*inputs_of(network, 1))
        for handle in handles:
            handle.remove()
    counts, root = counter.get_flop_counts(), type(module).__name__
    rest = [name for name in named if name not in order]  # the embedding of labels, which did not run
    return [
        Layer(name, _kind(named[name]), shapes.get(name, ()), sum(p.numel() for p in named[name].parameters()),
              sum(counts.get(f"{root}.{name}", {}).values()) / 1e9)
        for name in [*order, *rest]
    ]  # fmt: skip


def _blocks(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield the children of a network, and the parts of those that are lists."""
    for name, child in module.named_children():
        if isinstance(child, nn.ModuleList):
            yield from ((f"{name}.{i}", part) for i, part in enumerate(child))
        else:
            yield name, child


def _noted(name: str, order: list[str], shapes: dict[str, tuple[int, ...]]) -> Any:
    def note(block: nn.Module, inputs: Any, output: Tensor) -> None:
        order.append(name)
        shapes[name] = tuple(output.shape[1:])

    return note


def _kind(block: nn.Module) -> str:
    parts = [type(part).__name__ for part in block.children()] or [type(block).__name__]
    return " + ".join(part for part in parts if part not in ("SiLU", "Flatten"))
