"""What a state dict cannot tell of a diffusion model, found by trying it on real images.

Heads and order of the attention, noise schedule, T, rescaled timesteps and what is predicted: a checkpoint loads with
any of them, and with a wrong one gives noisy images without an error. Each candidate denoises real images that were
noised to the same levels, and the right one errs least.
"""

from .candidates import Attention, Candidate, attentions, processes
from .denoising import LEVELS
from .search import Board, Diagnosis, Trial, conclude, diagnose, search

__all__ = [
    "LEVELS",
    "Attention",
    "Board",
    "Candidate",
    "Diagnosis",
    "Trial",
    "attentions",
    "conclude",
    "diagnose",
    "processes",
    "search",
]
