"""`admg sweep`: samples, metrics and curves over guidance scales, samplers and steps."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from admg.checkpoints.loading import as_model
from admg.checkpoints.model import Model
from admg.config import check, group, setting
from admg.engine.device import choose_device
from admg.evaluation.cells import SCALES, Cell
from admg.evaluation.sweep import METRICS, Metrics, plan_sweep
from admg.generation import JobOptions
from admg.generation.labels import MAX_IMAGES
from admg.generation.sampler_specs import SAMPLERS

from .feature_options import FeatureOptions
from .label_options import Labels, chosen_labels
from .measure import note_missing_kernels
from .sampling_options import GuidanceOptions, SamplingOptions, ShowProgress

EXAMPLES = """  admg sweep --scale 0,0.5,1,2,4,8 --sampler ddim,ddpm --steps 25,250 --reference VIRTUAL_imagenet64.npz
  admg sweep --scale 0,4 --sampler ddim:25,ddpm:250 --reference data/fashion-mnist --fit pad \\
      --network efficientnet-lite0 --label-classifier tests/label_classifier/label_classifier.py:LabelClassifier \\
      --out sweep
  admg sweep --cfg 1,1.5,2,4 --interval 0.3,5 --reference data/fashion-mnist --fit pad --out sweep
  torchrun --nproc-per-node 8 -m admg sweep --scale 0,1,2,4 --reference reference.npz --out sweep"""


@dataclass(frozen=True, kw_only=True)
class Options:
    __doc__ = f"""Sample and evaluate over guidance scales, samplers and steps.

    Every list is an axis, and all combinations are sampled, each into its own folder in OUT, as with admg sample. Since
    the two kinds of guidance add up, --scale and --cfg are combined as well. The same command continues an interrupted
    sweep, and longer lists only add cells. OUT/sweep.csv, table.md and curves.png hold the cells of this command, and
    are updated after each cell.

    model: name, folder or file of weights of a diffusion model
    num: number of samples per cell
    label: name of a label, or else its number; in a TOML file, an integer is always its number
    labels: balanced, random, or a list, as for admg sample
    sampler: samplers ({", ".join(sorted(SAMPLERS))}), or pairs such as ddim:25,ddpm:250 without --steps
    steps: numbers of steps, or respacings without a comma such as karras10
    scale: guidance scales of the classifier; 0 is no guidance
    cfg: scales of classifier-free guidance
    out: folder of the cells, sweep.csv, table.md and curves.png
    dry_run: print the cells and the number of missing samples, and exit
    reference: an .npz, a folder of images, or a data set
    num_reference: number of reference images, spread over all (default: all)
    label_classifier: classifier for the label accuracy: name or folder of a noisy classifier, or file.py:name
    metrics: metrics as for admg evaluate (default: {",".join(METRICS)}, where possible)
    no_interval: do not compute 95 % intervals
    feature_batch_size: number of images per batch of the feature network
    split: part of the reference data, if there are both a train and a test part
    """

    model: str = setting("fashion-mnist", metavar="NAME")
    num: int = setting(10_000, min=2, max=MAX_IMAGES)
    label: tuple[int | str, ...] = setting((), repeat=True, metavar="LABEL")
    labels: Labels | None = setting(
        None, metavar="WHICH", default_text="balanced, or random for fewer samples than labels"
    )
    sampler: tuple[str, ...] | None = setting(None, default_text="that of the model, or ddim")
    steps: tuple[str, ...] | None = setting(None, default_text="that of the model, or 25")
    scale: tuple[float, ...] | None = setting(
        None, default_text=f"{','.join(f'{s:g}' for s in SCALES)} with a classifier, unless --cfg or --guide is given"
    )
    cfg: tuple[float, ...] | None = None
    out: Path = setting(Path("sweep"), metavar="DIR")
    dry_run: bool = False
    reference: str = setting(metavar="DATA")
    num_reference: int | None = setting(None, min=2)
    label_classifier: str | None = setting(None, metavar="NAME")
    metrics: tuple[str, ...] | None = None
    no_interval: bool = False
    feature_batch_size: int = setting(50, min=1)
    split: Literal["train", "test"] = "test"
    sampling: SamplingOptions = group(SamplingOptions, omit=("sampler", "steps"))
    guidance: GuidanceOptions = group(GuidanceOptions, omit=("scale", "cfg"))
    features: FeatureOptions = group(FeatureOptions, omit=("batch_size", "device", "background"))
    job: JobOptions = group(JobOptions, chosen={"images": "no"})

    def __post_init__(self) -> None:
        check(self)
        for name in ("sampler", "steps", "scale", "cfg"):
            if getattr(self, name) == ():
                raise ValueError(f"{name} must be a list such as A,B,C")
        if self.label and self.labels is not None:
            raise ValueError("label cannot be combined with --labels")

    def plan(self, model: Model) -> dict[str, Any]:
        """Return the arguments of `plan_sweep`."""
        return self.sampling.of_sweep | {
            "out": self.out, "scales": self.scale, "cfgs": self.cfg, "classifier": self.guidance.classifier,
            "guide_specs": self.guidance.guide, "guide_interval": self.guidance.interval,
            "guide_reuse": self.guidance.reuse, "samplers": self.sampler or (), "steps": self.steps,
            "labels": chosen_labels(model, None, self.label, self.labels), "num": self.num, "options": self.job,
        }  # fmt: skip

    def evaluation(self) -> Metrics:
        """Return the options for evaluating the cells."""
        return Metrics(
            metrics=self.metrics,
            label_classifier=self.label_classifier,
            num_reference=self.num_reference,
            split=self.split,
            interval=not self.no_interval,
            batch_size=self.feature_batch_size,
            **self.features.of_sweep,
        )


def run(options: Options) -> None:
    """Print the table, or with --dry-run the missing samples."""
    note_missing_kernels(choose_device(options.sampling.device))
    model = as_model(options.model)
    sweep = plan_sweep(model, **options.plan(model))
    if options.dry_run:
        print(sweep)
        return
    first = options.job.process == 0

    def on_cell(position: int, cells: int, cell: Cell | None) -> None:
        if first:
            done = f"{position} of {cells} cells are done"
            print(done if cell is None else f"cell {position + 1} of {cells}: {cell.title}")

    table = sweep.run(options.reference, options.evaluation(), ShowProgress(options.job), on_cell)
    if first:
        print(table)
        written = [sweep.out / name for name in ("curves.png", "table.md", "sweep.csv")]
        print("   ".join(str(path) for path in written if path.exists()))
