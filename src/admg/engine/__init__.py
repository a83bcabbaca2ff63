"""How fast networks run: precision, memory, kernels for CPUs and GPUs. What they compute is in `admg.models`."""

from .acceleration import accelerate, accelerate_parts
from .process import configure_process

__all__ = ["accelerate", "accelerate_parts", "configure_process"]
