"""Options of the commands that sample: sampling and guidance; the progress and the result of a job."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from admg.checkpoints import loading
from admg.checkpoints.model import Model
from admg.config import check, setting
from admg.engine.compiling import Compile
from admg.engine.device import choose_device
from admg.engine.precision import Precision
from admg.generation import Generated, JobOptions, JobProgress, Recipe
from admg.generation.guide_specs import GuideSet, guide_kinds, load_guides, parse_interval
from admg.generation.progress import ProgressBars
from admg.generation.sampler_specs import SAMPLERS, parse_sampler_options, sampler_options, with_options
from admg.guidance import Guide
from admg.warn import warn

from .measure import note_missing_kernels

NAMES = ", ".join(sorted(SAMPLERS))
OF_SAMPLERS = "; ".join(f"{name}: {', '.join(own)}" for name in sorted(SAMPLERS) if (own := sampler_options(name)))
PUBLISHED = "that of the published model, else"


@dataclass(frozen=True, kw_only=True)
class SamplingOptions:
    __doc__ = f"""Sampling.

    sampler: {NAMES}, or path/to/file.py:name
    steps: number of steps, ddimN, counts per section such as 10,15,20, or uniformN, quadN, logsnrN, karrasN, trailingN,
        tunedN (found by admg tune-steps), or a list such as at20+310+999. All spacings except ddimN, tunedN, lists
        and 1 include the last timestep, which models with zero terminal SNR require
    eta: randomness of ddim, from 0 (deterministic) to 1 (that of ddpm)
    sampler_option: option of the sampler ({OF_SAMPLERS})
    seed: seed of the noise; image i of a seed is always the same
    precision: number format of matrix products; auto is bf16 where the processor or GPU supports it natively, else fp32
    compile: whether to compile networks by torch.compile first, which takes minutes; auto is off
    unconditional: do not condition the network on the labels; the guide still uses them
    no_bound_guidance: do not limit the gradients of guides to the range possible for images in [-1, 1], to reproduce
        guided-diffusion; on a cosine schedule, classifier guidance may then destroy the images
    batch_size: images per batch
    device: cpu or cuda
    """

    sampler: str | None = setting(None, metavar="NAME", default_text=f"{PUBLISHED} ddim")
    steps: str | None = setting(None, metavar="STEPS", default_text=f"{PUBLISHED} 25")
    eta: float = setting(0.0, min=0, max=1)
    sampler_option: tuple[str, ...] = setting((), repeat=True, metavar="NAME=VALUE")
    seed: int = setting(0, min=0)
    precision: Precision = "auto"
    compile: Compile = "auto"
    unconditional: bool = False
    no_bound_guidance: bool = False
    batch_size: int | None = setting(None, min=1, default_text="what fits in memory, at most 64")
    device: str = setting("auto", default_text="cuda if there is a GPU")

    def __post_init__(self) -> None:
        check(self)

    def recipe(
        self, guide: Guide | None, *, model: str, sampler: str | None = None, steps: str | None = None
    ) -> Recipe:
        """Return the recipe. Raises ValueError for options that the sampler does not have.

        sampler, steps: defaults of a command; None: the published settings of the model
        """
        usual = loading.recommended(model)
        name = self.sampler or sampler or usual.sampler
        chosen = self.steps or steps or (usual.steps if name == usual.sampler else "25")
        if self.eta and name != "ddim":
            raise ValueError(f"--eta applies only to the sampler ddim, not to {name}")
        options = parse_sampler_options(name, self.sampler_option)
        if self.eta and "eta" in options:
            raise ValueError("--eta and --sampler-option eta cannot be combined")
        if self.eta:
            options["eta"] = self.eta
        return Recipe(
            guide=guide, sampler=with_options(name, options), steps=chosen, seed=self.seed, batch_size=self.batch_size,
            unconditional=self.unconditional, bound_guidance=not self.no_bound_guidance, precision=self.precision,
            compile=self.compile,
        )  # fmt: skip

    @property
    def of_sweep(self) -> dict[str, Any]:
        """The arguments of `admg.sweep`, without the samplers and steps."""
        eta = [f"eta={self.eta}"] if self.eta else []
        return {
            "sampler_options": [*self.sampler_option, *eta],
            "seed": self.seed,
            "unconditional": self.unconditional,
            "bound_guidance": not self.no_bound_guidance,
            "sample_batch_size": self.batch_size,
            "precision": self.precision,
            "compile": self.compile,
            "device": self.device,
        }

    def to_device(self, model: Model, guides: GuideSet | None = None) -> None:
        """Move the networks to the chosen device. Raises ValueError if it cannot be used."""
        device = choose_device(self.device)
        note_missing_kernels(device)
        model.to(device)
        if guides is not None and guides.classifier is not None:
            guides.classifier.to(device)


@dataclass(frozen=True, kw_only=True)
class GuidanceOptions:
    __doc__ = f"""Guidance.

    classifier: noisy classifier that guides the sampling: name, folder or file of weights
    scale: guidance scale of the classifier; 0 is no guidance, and a negative scale steers away from the label
    cfg: guidance scale of classifier-free guidance, where 1 is the conditional model; it replaces the classifier unless
        --scale is given too
    guide: another kind of guidance, which replaces the classifier unless --scale is given too, such as apg:4,eta=0.5
        ({", ".join(guide_kinds())}), or a network of another library, timm:MODEL,label=NAME,scale=S
        (torchvision:, transformers:) or clip:TEXT,scale=S; or path/to/file.py:name, a custom guide, which is
        added, or path/to/file.py:name:SCALE, SCALE times it
    interval: noise levels σ, in units of the image, between which guidance acts; σ is about 0.01 to 150 on the linear
        schedule, and 0.01 to 20,000 on the cosine one
    reuse: evaluate the guides at every N-th step and where the noise level has fallen by half, and extrapolate their
        effect in between; 3 halves their cost in 25 steps
    """

    classifier: str | None = setting(None, metavar="NAME", default_text="that of the model")
    scale: float | None = setting(
        None, metavar="S", default_text="that of a published model, else 4; 0 without a classifier"
    )
    cfg: float | None = setting(None, metavar="W")
    guide: tuple[str, ...] = setting((), repeat=True, metavar="NAME:SCALE")
    interval: str | None = setting(None, metavar="LOW,HIGH", default_text="none")
    reuse: int = setting(1, min=1, metavar="N")

    def __post_init__(self) -> None:
        if self.interval:
            parse_interval(self.interval)

    def load(
        self, model: Model, name: str, default_scale: float | None = None, keep_classifier: bool = False
    ) -> GuideSet:
        """Load the guides.

        name: name of the model, whose own classifier is the default
        default_scale: None: the published guidance scale of the model, or 4
        keep_classifier: load the classifier even at scale 0
        """
        classifier = self.classifier or loading.default_classifier(name)
        if default_scale is None:
            default_scale = (loading.recommended(name).scale or 4.0) if classifier else 0.0
        found = load_guides(
            model, classifier=classifier, scale=self.scale, cfg=self.cfg, specs=self.guide, interval=self.interval,
            reuse=self.reuse, default_scale=default_scale, keep_classifier=keep_classifier,
        )  # fmt: skip
        if self.guide and found.scale and self.scale is None and self.classifier is None:  # guides of one's own alone
            warn(
                f"{', '.join(self.guide)} is added to the classifier, which guides at scale {found.scale:g}; --scale 0 "
                f"leaves the classifier out"
            )
        return found


class ShowProgress:
    """Show the progress of a job: a bar in the first process, and a line when a run continues or waits."""

    def __init__(self, job: JobOptions) -> None:
        self.bars, self.first = ProgressBars(), job.process == 0
        self.speaks = job.merges  # of processes that a launcher started together, the first one prints
        self.said: set[Any] = set()

    def __call__(self, progress: JobProgress) -> None:
        key = (progress.folder, progress.activity)
        if key not in self.said:
            self.said.add(key)
            if progress.activity == "waiting" and self.speaks:
                how = "Ctrl-C stops; the same command continues"
                print(f"waiting for the other processes to finish {progress.folder} ({how})")
            elif progress.reused and self.first:
                print(f"continuing {progress.folder}: {progress.reused:,} of {progress.total:,} images are there")
        if self.first:
            self.bars(progress)

    def close(self) -> None:
        self.bars.close()


def print_result(done: Generated, job: JobOptions) -> None:
    """Print the files that a job has written, or the remaining work of other processes."""
    if not job.merges:
        return
    if not done.finished:
        left = f"{done.missing} shards are not"
        print(f"process {job.process} of {job.processes} is done, {left}: the last process merges them")
        return
    if done.resumed:
        print(f"{done.folder} holds the finished run with these settings")
    count = f"{done.num:,} image{'s' if done.num != 1 else ''}"
    print(f"Saved {count} to {folder(done.folder)} (contact sheet: {done.sheet})")


def folder(path: Path) -> str:
    return f"{path}/"
