"""Jobs that sample, edit, interpolate and upsample into a folder; an interrupted one continues."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from admg.checkpoints.compatibility import check_pair, facts_of
from admg.checkpoints.loading import as_model, name_of
from admg.checkpoints.model import Model
from admg.data.generated import BASE
from admg.data.value_range import check_array_8_bits
from admg.diffusion.gaussian import Images
from admg.engine.compiling import Compile
from admg.engine.precision import Precision
from admg.guidance import Guide
from admg.samplers import Sampler

from .augmentation import check_level
from .contact_sheet import edit_sheet, interpolation_sheet
from .edit import as_images, check_from_labels, check_images, label_tensor
from .images import to_uint8
from .interpolate import frame_noise
from .job import Generated, Job, JobOptions
from .labels import (
    MAX_IMAGES,
    LabelsArgument,
    check_num,
    choose_labels,
    label_list,
    label_table,
    no_effect,
    resolve_labels,
    uses_labels,
)
from .pairing import check_guide, check_null_label
from .progress import OnProgress
from .recipe import Recipe
from .shards import NpzImages
from .stage import Stage
from .starts import FromImages, FromNoise, Starts, checksum
from .upsample import base_labels, check_base, load_upsampler


def generate(
    model: Model | str | Path,
    labels: LabelsArgument = None,
    *,
    out: Path | str,
    num: int | None = None,
    guide: Guide | None = None,
    sampler: str | Sampler = "ddim",
    steps: int | str = 25,
    seed: int = 0,
    unconditional: bool = False,
    bound_guidance: bool = True,
    batch_size: int | None = None,
    precision: Precision = "auto",
    compile: Compile = "auto",
    init: Images | None = None,
    strength: float = 0.6,
    upsampler: Model | str | Path | None = None,
    upsampler_recipe: Recipe | None = None,
    shard_size: int | None = None,
    keep_shards: bool = False,
    disk_wait: float = 0.0,
    rank: int | None = None,
    world_size: int | None = None,
    images: bool | None = None,
    overwrite: bool = False,
    progress: bool | OnProgress = True,
) -> Generated:
    """Generate images into a folder, in shards: the job behind `admg sample`.

    The same call continues an interrupted run, and several processes can share one. run.json records everything that
    determines the images: fingerprints of the weights, the guide, the sampler, the labels. A folder with a run of
    other settings is refused. A guide or sampler that cannot be identified, such as an object with hidden state, is
    marked in run.json, and its run cannot be continued.

    model: a Model, or anything that admg.load accepts
    labels: as in sample(); or "balanced", equal shares of all labels; or "random", drawn with the seed. None: balanced,
        or random for fewer images than labels
    out: run directory; it gets samples_NxHxWxC.npz, sheet.png and images/
    num: number of images; by default one per given label, else 8 per label, or 64 if there are more than 20 labels
    guide, sampler, steps, seed, unconditional, bound_guidance, batch_size, compile: as in sample()
    precision: as in sample(), but "auto" by default: bf16 where it is native
    init: an image (1, C, H, W) in [-1, 1] to start from, as in edit(), with `strength`
    upsampler: an upsampling model that enlarges the images; the small images are then in out/base
    upsampler_recipe: how the upsampler is sampled; by default like the model, but with ddim in 25 steps and no guide
    shard_size: images per file in out/shards; None: at most 256 images and 64 MB
    keep_shards: keep out/shards after merging
    disk_wait: minutes to wait for space when the disk is full before the run fails
    rank, world_size: index of this process, from 0, and number of processes that share the run; None: those of
        torchrun, or 0 and 1
    images: write a PNG file per image; None: for up to 1,000 images
    overwrite: remove an existing run in the folder, and start again
    progress: True shows a bar; a function is called with a JobProgress after each step
    Raises ValueError for arguments that do not fit together, before anything is written.

    >>> import admg, tempfile
    >>> folder = tempfile.mkdtemp()
    >>> done = admg.generate("fashion-mnist", ["coat", "bag"], num=4, steps=2, out=folder, progress=False)
    >>> done.npz.name, done.finished, done.read().labels.tolist()
    ('samples_4x32x32x1.npz', True, [4, 8, 4, 8])
    >>> admg.generate("fashion-mnist", ["coat", "bag"], num=4, steps=2, out=folder, progress=False).resumed
    True
    """
    recipe = Recipe(
        guide=guide, sampler=sampler, steps=steps, seed=seed, unconditional=unconditional,
        bound_guidance=bound_guidance, batch_size=batch_size, precision=precision, compile=compile,
    )  # fmt: skip
    options = JobOptions(
        shard_size=shard_size, keep_shards=keep_shards, rank=rank, world_size=world_size, images=images,
        overwrite=overwrite, disk_wait=disk_wait,
    )  # fmt: skip
    stage = plan(model, labels, recipe, out=out, num=num, init=init, strength=strength)
    stages = (stage,) if upsampler is None else upsampling_stages(stage, upsampler, upsampler_recipe)
    return try_and_run(Job(stages, options), progress)


def generate_edits(
    model: Model | str | Path,
    images: Images,
    labels: LabelsArgument = None,
    *,
    out: Path | str,
    num: int = 4,
    strength: float = 0.6,
    invert: bool = False,
    from_labels: LabelsArgument = None,
    recipe: Recipe | None = None,
    options: JobOptions | None = None,
    progress: bool | OnProgress = True,
) -> Generated:
    """Edit each image towards each label, `num` times, into a folder: the job behind `admg edit`.

    images: (M, C, H, W) in [-1, 1]; their edits are ordered by image, then by label
    strength, invert, from_labels: as in edit(); from_labels has one label for all images, or one per image
    The other arguments are those of generate().
    Raises ValueError as edit() and generate() do.

    >>> import admg, tempfile, torch
    >>> shirt = torch.full((1, 1, 32, 32), -1.0)
    >>> done = admg.generation.generate_edits("fashion-mnist", shirt, "dress", num=2, out=tempfile.mkdtemp(),
    ...     recipe=admg.generation.Recipe(steps=2), progress=False)
    >>> done.npz.name
    'samples_2x32x32x1.npz'
    """
    model, recipe = as_model(model), recipe or Recipe(precision="auto")
    check_num(num)
    check_from_labels(model, from_labels, invert, recipe.unconditional)
    images = as_images(images)
    check_images(model, images, len(images))
    targets, count = target_labels(model, recipe, labels), len(images)
    if (total := num * count * len(targets)) > MAX_IMAGES:
        made = f"{num:,} edits of {count:,} images towards {len(targets):,} labels make {total:,} images"
        raise ValueError(f"{made}, more than the limit of {MAX_IMAGES:,} per run")
    from_y = None
    if from_labels is not None:
        source = label_list(from_labels)
        if len(source) not in (1, count):
            raise ValueError(f"from_labels must have one label or one per image, got {len(source)} for {count} images")
        from_y = label_tensor(model, source * (count if len(source) == 1 else 1), count)
    which = [i for i in range(count) for _ in range(len(targets) * num)]
    stage = Stage(
        out=Path(out).expanduser(), name=name_of(model), model=model, recipe=recipe,
        table=label_table(model, recipe.guide),
        labels=[label for _ in range(count) for label in targets for _ in range(num)],
        chosen={"each": targets, "edits": num}, layout=edit_sheet(to_uint8(images), num),
        starts=FromImages(images, which, strength, invert, from_y),
    )  # fmt: skip
    return try_and_run(Job((stage,), options or JobOptions()), progress)


def generate_interpolation(
    model: Model | str | Path,
    ends: Images | tuple[int, int],
    labels: LabelsArgument = None,
    *,
    out: Path | str,
    frames: int = 8,
    recipe: Recipe | None = None,
    options: JobOptions | None = None,
    progress: bool | OnProgress = True,
) -> Generated:
    """Interpolate between two images or seeds, once per label, into a folder: the job behind `admg interpolate`.

    ends, frames: as in interpolate()
    The other arguments are those of generate(). Raises ValueError as interpolate() and generate() do.

    >>> import admg, tempfile
    >>> recipe = admg.generation.Recipe(steps=2)
    >>> done = admg.generation.generate_interpolation("fashion-mnist", (0, 1), ["bag", "coat"], frames=3, recipe=recipe,
    ...     out=tempfile.mkdtemp(), progress=False)
    >>> done.read().labels.tolist()
    [8, 8, 8, 4, 4, 4]
    """
    model, recipe = as_model(model), recipe or Recipe(steps=100, precision="auto")
    targets = target_labels(model, recipe, labels)
    of_images = isinstance(ends, Tensor)
    options_of_noise: dict[str, Any] = {"steps": recipe.steps, "seed": recipe.seed, "precision": recipe.precision,
                                        "unconditional": recipe.unconditional}  # fmt: skip
    noise = [frame_noise(model, ends, label, frames=frames, **options_of_noise) for label in targets]
    record = {
        "images": checksum(ends) if isinstance(ends, Tensor) else None,
        "seeds": None if isinstance(ends, Tensor) else [*ends],
        "frames": frames,
    }
    stage = Stage(
        out=Path(out).expanduser(), name=name_of(model), model=model, recipe=recipe,
        table=label_table(model, recipe.guide),
        labels=[label for label in targets for _ in range(frames)], chosen=targets,
        starts=FromNoise(torch.cat(noise), record),
        layout=interpolation_sheet(to_uint8(ends) if of_images else None, frames),  # type: ignore[arg-type]
    )  # fmt: skip
    return try_and_run(Job((stage,), options or JobOptions()), progress)


def generate_upsampled(
    model: Model | str | Path,
    base: Path | str,
    *,
    out: Path | str,
    num: int | None = None,
    recipe: Recipe | None = None,
    options: JobOptions | None = None,
    progress: bool | OnProgress = True,
) -> Generated:
    """Enlarge the images of an .npz into a folder: the job behind `admg upsample`.

    model: an upsampling Model, or anything that admg.load_upsampler accepts
    base: .npz of small images, arr_0, and of their labels, arr_1
    num: only the first images; None: all
    The other arguments are those of generate().
    Raises ValueError as upsample() and generate() do.
    """
    stored = NpzImages(base)
    check_array_8_bits(stored, f"the images in {base}", "multiply them by 255")
    if num is not None and not 1 <= num <= len(stored):
        raise ValueError(f"num must be from 1 to {len(stored)}, the images of {base}, got {num}")
    loaded, recipe = load_upsampler(model), recipe or Recipe(precision="auto")
    check_base(loaded, name_of(loaded) or "this model", stored.shape[1:], str(base))
    table = label_table(loaded, recipe.guide)
    labels = base_labels(stored, table, num or len(stored))
    stage = Stage(
        out=Path(out).expanduser(), name=name_of(loaded), model=loaded, recipe=recipe, labels=labels, table=table,
        chosen="of the base", base=Path(base), origin=f"{Path(base).name}, checksum {stored.fingerprint}",
    )  # fmt: skip
    without = "it was never trained without" if loaded.label_dropout == 0 else "unconditional=True does without"
    check_base_labels(stage, without)
    return try_and_run(Job((stage,), options or JobOptions()), progress)


# -- stages ----------------------------------------------------------------------------------------------------------


def plan(
    model: Model | str | Path,
    labels: LabelsArgument,
    recipe: Recipe,
    *,
    out: Path | str,
    num: int | None = None,
    init: Images | None = None,
    strength: float = 0.6,
) -> Stage:
    """Return the stage that generate() runs, without running it. Raises ValueError as generate() does.

    >>> import admg
    >>> from admg.generation.generate import plan
    >>> stage = plan("fashion-mnist", "random", admg.generation.Recipe(), out="samples", num=100)
    >>> stage.shards().target.name, stage.steps
    ('samples_100x32x32x1.npz', 25)
    """
    loaded = as_model(model)
    if loaded.upsamples:
        raise ValueError(
            f"{name_of(loaded) or 'this model'} enlarges images: use admg upsample, or pass it as upsampler"
        )
    options: dict[str, Any] = {"unconditional": recipe.unconditional, "seed": recipe.seed}
    chosen, how = choose_labels(loaded, recipe.guide, labels, num, **options)
    loaded.respace(recipe.steps)  # errors must show before anything is written
    starts: Starts | None = None
    if init is not None:
        check_images(loaded, init, 1)
        starts = FromImages(init, [0] * len(chosen), strength)
    return Stage(
        out=Path(out).expanduser(), name=name_of(loaded), model=loaded, recipe=recipe, labels=chosen, chosen=how,
        table=label_table(loaded, recipe.guide), starts=starts,
    )  # fmt: skip


def upsampling_stages(stage: Stage, upsampler: Model | str | Path, recipe: Recipe | None = None) -> tuple[Stage, Stage]:
    """Return two stages: the given one, in OUT/base, and the upsampling of it. Raises ValueError if they do not fit.

    recipe: recipe of the upsampler; None: that of the stage, but with ddim in 25 steps and no guide, as in the paper
    """
    model = load_upsampler(upsampler)
    name = name_of(model)
    channels, height, width = stage.model.shape
    check_base(model, name or "the upsampler", (height, width, channels), stage.name or "the model")
    base = dataclasses.replace(facts_of(stage.model, "the model"), labels=stage.table, conditional=True)
    check_pair("upsampler", base, facts_of(model, "the upsampler"))
    if recipe is None:
        recipe = dataclasses.replace(stage.recipe, guide=None, sampler="ddim", steps=25, unconditional=False,
                                     batch_size=None)  # fmt: skip
    first = dataclasses.replace(stage, out=stage.out / BASE)
    second = Stage(
        out=stage.out, name=name, model=model, recipe=recipe, labels=stage.labels, table=stage.table,
        chosen="of the base", base=first.shards().target, origin=first.record,
    )  # fmt: skip
    model.respace(recipe.steps)  # errors must show before anything is written
    check_level(model, recipe.augment_level)
    check_guide(model, recipe.guide)
    check_base_labels(second, "sample with labels, or choose an upsampler without")
    check_null_label(model, stage.labels, recipe.unconditional)
    return first, second


def check_base_labels(stage: Stage, instead: str) -> None:
    """Raise ValueError if the model or the guide needs labels and an image has none. instead: advice for the error."""
    if None not in stage.labels:
        return
    if stage.model.conditional and not stage.recipe.unconditional:
        raise ValueError(f"{stage.name or 'this model'} needs a label for each base image ({instead})")
    if getattr(stage.recipe.guide, "classifier", None) is not None:
        raise ValueError("guidance needs a label for each base image")


def target_labels(model: Model, recipe: Recipe, labels: LabelsArgument) -> list[int | None]:
    """Return the numbers of labels, [None] for none. Raises ValueError for labels that would have no effect."""
    if labels is None or not label_list(labels):
        return [None]
    table = label_table(model, recipe.guide)
    if not uses_labels(model, recipe.guide, recipe.unconditional) or not table.count:
        raise no_effect(table)
    return resolve_labels(model, recipe.guide, labels)


def try_and_run(job: Job, progress: bool | OnProgress) -> Generated:
    """Run a job, after one step of its first stage to raise errors before anything is written."""
    job.try_out()
    return job.run(progress)
