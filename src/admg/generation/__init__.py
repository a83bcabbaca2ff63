"""Sampling, editing, interpolation and upsampling, in memory or as resumable jobs that write a folder."""

from .batcher import Batcher
from .denoising import generate_denoising
from .edit import edit, encode
from .generate import generate, generate_edits, generate_interpolation, generate_upsampled, plan
from .guide_specs import GuideSet
from .interpolate import interpolate
from .job import Generated, Job, JobOptions
from .progress import JobProgress
from .recipe import Recipe
from .sample import sample
from .sampler_specs import Watched
from .samples import Samples
from .scale_sheet import generate_scale_sheet
from .upsample import upsample

__all__ = [
    "Batcher",
    "Generated",
    "GuideSet",
    "Job",
    "JobOptions",
    "JobProgress",
    "Recipe",
    "Samples",
    "Watched",
    "edit",
    "encode",
    "generate",
    "generate_denoising",
    "generate_edits",
    "generate_interpolation",
    "generate_scale_sheet",
    "generate_upsampled",
    "interpolate",
    "plan",
    "sample",
    "upsample",
]
