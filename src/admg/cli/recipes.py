"""`admg recipes`: the hyperparameters of published models, and the cost of training them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from admg.config import check, setting
from admg.training.recipes import TrainingRecipe, names, recipe

from .tables import table

EXAMPLES = """\
  admg recipes
  admg recipes adm-256 --gpus 64 --tflops 300
  admg train --recipe adm-256 --data imagenet/train --out runs/adm-256 --print-config"""
COLUMNS = ("recipe", "command", "pixels", "parameters", "GFLOPs", "batch", "steps", "memory", "time")
BATCHES = (1, 4, 16, 32, 64, 128, 256)


@dataclass(frozen=True, kw_only=True)
class Options:
    """List the recipes of training: the hyperparameters of published models. With a name, show one in full.

    GFLOPs are those of one forward pass per image; a training step costs as much as three. Memory is per GPU: weights,
    gradients, AdamW and the moving average (exactly 20 bytes per parameter), and the activations (measured in plain
    PyTorch, without fused kernels). The memory of CUDA itself is not included.

    name: recipe to show, with the source of each value and the memory by batch size
    gpus: number of GPUs
    tflops: throughput of each GPU in training, in TFLOP/s; well below the peak in its data sheet
    """

    name: str | None = setting(None, positional=True, metavar="NAME")
    gpus: int = setting(8, min=1)
    tflops: float = setting(100.0, above=0)

    def __post_init__(self) -> None:
        check(self)


def run(options: Options) -> None:
    if options.name:
        show(recipe(options.name), options)
        return
    print(table(COLUMNS, (cells(recipe(name), options) for name in names()), left=("recipe", "command")))
    print(f"\nmemory: per GPU in bf16, with the batch divided among {gpus(options)}; time: with {speed(options)}")
    print("admg recipes NAME shows the values of one with their sources, and its memory by batch.")


def cells(chosen: TrainingRecipe, options: Options) -> tuple[str, ...]:
    """Return the row of a recipe."""
    training, cost = chosen.training, chosen.cost
    share = -(-training.batch_size // options.gpus)
    small = chosen.values.get("small_size")
    return (
        chosen.name,
        chosen.command,
        f"{small} -> {chosen.values['image_size']}" if small else str(chosen.values["image_size"]),
        f"{cost.parameters / 1e6:.1f} M",
        f"{cost.gflops:.1f}",
        str(training.batch_size),
        f"{training.steps:,}",
        f"{cost.memory(share, 'bf16') / 1e9:.0f} GB",
        time_text(chosen, options),
    )


def show(chosen: TrainingRecipe, options: Options) -> None:
    """Print the file of a recipe, its memory by batch, and its time."""
    print(chosen.text)
    if chosen.published:
        print(f"The published model {chosen.published} has this architecture: admg info {chosen.published}\n")
    print("GB per GPU, by images computed at a time (batch / GPUs / accumulate); estimated activations:\n")
    sharded = () if options.gpus == 1 else (f"bf16, --shard on {options.gpus}", f"fp32, --shard on {options.gpus}")
    print(table(("images", "bf16", "fp32", *sharded), memory_rows(chosen, options)))
    images = chosen.training.steps * chosen.training.batch_size
    print(f"\n{images / 1e6:,.0f} million images: {time_text(chosen, options)} with {speed(options)}")
    print(f"admg {chosen.command} --recipe {chosen.name} --data PATH --out DIR")


def memory_rows(chosen: TrainingRecipe, options: Options) -> Iterator[tuple[str, ...]]:
    for images in BATCHES:
        if images <= chosen.training.batch_size:
            shards = (1,) if options.gpus == 1 else (1, options.gpus)
            memory = [chosen.cost.memory(images, p, shards=n) for n in shards for p in ("bf16", "fp32")]
            yield (str(images), *(f"{size / 1e9:.1f}" for size in memory))


def time_text(chosen: TrainingRecipe, options: Options) -> str:
    """Return the time of training in days, or in hours if it is short."""
    training = chosen.training
    days = chosen.cost.days(training.steps * training.batch_size, options.gpus, options.tflops)
    return f"{24 * days:.1f} hours" if days < 1 else f"{days:.1f} days"


def gpus(options: Options) -> str:
    return f"{options.gpus} GPU{'s' if options.gpus > 1 else ''}"


def speed(options: Options) -> str:
    return f"{gpus(options)} at {options.tflops:g} TFLOPS{' each' if options.gpus > 1 else ''}"
