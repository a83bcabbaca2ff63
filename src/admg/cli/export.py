"""`admg export`: write a model for another library, or its network as a graph."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from admg.checkpoints.export import Library, Scheduler, export
from admg.checkpoints.loading import Part
from admg.config import check, setting

EXAMPLES = """  admg export fashion-mnist --to diffusers --out fashion-mnist-diffusers
  admg export fashion-mnist --part classifier --to openai --out classifier.pt
  admg export runs/mine --to onnx --out mine.onnx
  admg export runs/mine-classifier --to torch-export --out classifier.pt2"""


@dataclass(frozen=True, kw_only=True)
class Options:
    """Write a model for diffusers or for guided-diffusion, or its network alone as a graph of ONNX or torch.export.

    model: model name, checkpoint folder, run directory or file of weights
    to: target library or format
    out: folder (diffusers) or file (.pt for openai, .onnx, .pt2 for torch-export) to write
    part: network to export, for a name that has both (default: diffusion)
    scheduler: scheduler configuration to write, for diffusers; ddim and dpmpp_2m omit a learned variance
    overwrite: replace a file, or the folder of an earlier export
    """

    model: str = setting(positional=True)
    to: Library = setting()
    out: Path = setting()
    part: Part | None = None
    scheduler: Scheduler = "ddpm"
    overwrite: bool = False

    def __post_init__(self) -> None:
        check(self)
        if self.to != "diffusers" and self.scheduler != "ddpm":
            raise ValueError("scheduler requires --to diffusers")


def run(options: Options) -> None:
    exported = export(
        options.model, options.to, options.out, part=options.part, scheduler=options.scheduler,
        overwrite=options.overwrite,
    )  # fmt: skip
    print(f"Saved {exported.path}")
    if exported.flags:
        print(f"flags: {exported.flags}")
    for note in exported.notes:
        print(f"note: {note}")
