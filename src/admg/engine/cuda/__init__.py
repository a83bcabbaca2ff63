"""Triton kernels, CUDA graphs and half-precision weights for GPUs."""
