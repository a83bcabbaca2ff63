"""How fast networks run: precision, memory, kernels for CPUs and GPUs. What they compute is in `admg.models`."""
