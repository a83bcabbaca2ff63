"""Acceleration of networks: precision, memory, kernels for CPUs and GPUs. The networks are in `admg.models`."""

from .acceleration import accelerate, accelerate_parts
from .process import adapt_threads, configure_process, follow_load

__all__ = ["accelerate", "accelerate_parts", "adapt_threads", "configure_process", "follow_load"]
