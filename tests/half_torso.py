"""Networks with convolutions in half precision, like guided-diffusion with --use_fp16."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from admg.models import with_replaced
from admg.models.blocks import Conv1x1
from admg.models.surgery import shallow_copy


class HalfConv2d(nn.Conv2d):
    """A convolution that casts its input to the dtype of its weight."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x.to(self.weight.dtype))


class HalfConv1x1(Conv1x1):
    """As HalfConv2d."""

    def forward(self, tokens: Tensor) -> Tensor:
        return super().forward(tokens.to(self.weight.dtype))


HALF: dict[type[nn.Module], type[nn.Module]] = {nn.Conv2d: HalfConv2d, Conv1x1: HalfConv1x1}
TORSO = "input_blocks", "middle_block", "output_blocks"


def with_half_torso(network: nn.Module, dtype: torch.dtype) -> nn.Module:
    """Return the network with the convolutions of all blocks stored and computed in this dtype.

    Norms, embeddings, the last layer and the pooling head stay in float32 and share their parameters with the network.
    """

    def replace(name: str, module: nn.Module) -> nn.Module:
        kind = HALF.get(type(module)) if name.split(".")[0] in TORSO else None
        if kind is None:
            return module
        half = shallow_copy(module, module._modules, kind)
        half._parameters = {  # type: ignore[assignment]
            key: None if p is None else nn.Parameter(p.detach().to(dtype), p.requires_grad)
            for key, p in module._parameters.items()
        }
        return half

    return with_replaced(network, replace)
