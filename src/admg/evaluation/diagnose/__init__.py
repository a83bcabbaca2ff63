"""Infer the settings of a diffusion model that its state dict does not determine, from real images.

The settings are the attention heads and their order, the noise schedule, the number of steps, rescaled timesteps and
the predicted quantity. A checkpoint loads with any of them, but wrong ones give noisy images without an error. Each
candidate denoises real images at the same noise levels, and the right one has the smallest error.
"""

from .candidates import Attention, Candidate, attentions, processes
from .checkpoint import CheckpointDiagnosis, diagnose_checkpoint
from .denoising import LEVELS
from .search import Board, Diagnosis, Trial, conclude, diagnose, search

__all__ = [
    "LEVELS",
    "Attention",
    "Board",
    "Candidate",
    "CheckpointDiagnosis",
    "Diagnosis",
    "Trial",
    "attentions",
    "conclude",
    "diagnose",
    "diagnose_checkpoint",
    "processes",
    "search",
]
