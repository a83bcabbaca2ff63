"""The cost of training a network: memory and time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

TrainingFormat = Literal["fp32", "bf16"]
BYTES_PER_PARAMETER = 20
"""Bytes of a parameter in training: the weight, its gradient, AdamW's two moments and the average, each in float32."""
SECONDS_PER_DAY = 86_400


@dataclass(frozen=True, kw_only=True)
class Cost:
    """The work and the memory of a network, for one image.

    parameters: number of parameters
    gflops: operations of a forward pass in 10^9, two for each multiplication with addition
    activation_mb_fp32, activation_mb_bf16: tensors that a forward pass keeps for the backward pass in 10^6 bytes, for
        plain PyTorch without fused kernels, in float32 and under autocast to bfloat16
    """

    parameters: int
    gflops: float
    activation_mb_fp32: float
    activation_mb_bf16: float

    @property
    def training_flops(self) -> float:
        """Operations of a training step for one image; the backward pass takes twice those of the forward pass."""
        return 3e9 * self.gflops

    def memory(self, images: int, precision: TrainingFormat, shards: int = 1) -> float:
        """Return the bytes that training needs on each GPU, without those of CUDA and of the allocator.

        Weights, gradients, AdamW and the moving average are counted exactly, 20 bytes per parameter, and the weights
        that autocast keeps in bfloat16; the activations are estimated by their size for one image.

        images: images that a GPU computes at a time
        shards: number of GPUs among which the state is divided (--shard); 1 keeps all of it on each
        """
        cast = 2 * self.parameters if precision == "bf16" else 0
        activations = self.activation_mb_bf16 if precision == "bf16" else self.activation_mb_fp32
        return BYTES_PER_PARAMETER * self.parameters / shards + cast + images * activations * 1e6

    def days(self, images: int, gpus: int, tflops: float) -> float:
        """Return the days that training on this many images takes.

        tflops: 10^12 operations per second that each GPU achieves in training, well below the peak of its data sheet
        """
        return images * self.training_flops / (gpus * tflops * 1e12) / SECONDS_PER_DAY
