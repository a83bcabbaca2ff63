"""`admg diagnose`: how a checkpoint wants to be used, found on real images."""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import warnings
from pathlib import Path
from typing import cast

from tqdm.auto import tqdm

from admg.checkpoints import openai, presets
from admg.checkpoints.model import Classifier, DiffusionConfig, Model
from admg.checkpoints.openai import OpenAIConfig
from admg.checkpoints.openai.shapes import resolutions
from admg.data import open as open_dataset
from admg.evaluation.diagnose import Board, Candidate, Diagnosis, Trial, conclude, search
from admg.models import UNetConfig

from .measure import RealImages, add_image_arguments, device_of, header, open_images

SHOWN = 10
SAMPLED = 100

EPILOG = """examples:
  admg diagnose ema_0.9999_200000.pt --images photos
  admg diagnose ema_0.9999_200000.pt --images photos --flags "--image_size 64 --num_channels 128 --learn_sigma True"

What the weights cannot tell is tried on the images: heads and order of the attention, noise schedule, number of steps,
rescaled timesteps, and what is predicted. The images are noised to several levels. The error of a candidate is the
squared error of the images that it makes of them, over that of a guess from the mean and variance of all pixels: 1 is
to know nothing. The right one's stands out, unless the model is hardly trained or the images are of another kind."""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.epilog = EPILOG
    add = parser.add_argument
    add("checkpoint", metavar="CHECKPOINT", help="a .pt file of OpenAI's code, a checkpoint folder, or a name")
    add("--images", required=True, metavar="PATH", help="a few real images, such as it was trained on")
    add("--flags", metavar='"..."', help="as given to OpenAI's scripts: are they the right ones?")
    add(
        "--image-size",
        type=int,
        metavar="N",
        help="pixels of the side (default: as the flags, the images or the shapes say)",
    )
    add_image_arguments(parser, num=16)
    add("--unconditional", action="store_true", help="do not tell the network the labels of the images")
    add("--exhaustive", action="store_true", help="try all combinations first; takes some times as long")
    add("--seed", type=int, default=0, help="of the noise (default: 0)")


def run(args: argparse.Namespace) -> None:
    if args.seed < 0:
        raise ValueError(f"--seed must not be negative, got {args.seed}")
    model = load(args.checkpoint, args.flags)
    if args.image_size is None and args.flags is None and Path(args.checkpoint).expanduser().is_file():
        args.image_size = size_of_images(args.images, args.fit, model)
    model = resized(model, args.image_size, args.flags).to(device_of(args.device))
    images, note = find_images(args, model)
    x0, y = images.batch(slice(None))
    with tqdm(unit="pass", desc="diagnosing") as bar:
        for board in search(model, x0, y, seed=args.seed, exhaustive=args.exhaustive):
            show_progress(bar, board)
    diagnosis = conclude(board)
    print(f"{args.checkpoint}, {len(x0)} images of {x0.shape[-1]}x{x0.shape[-1]} pixels, {note}")
    print(table(diagnosis))
    print()
    print(verdict(diagnosis, args))
    if diagnosis.verdict != "none":
        print(advice(diagnosis, model, args))


def load(checkpoint: str, flags: str | None) -> Model:
    """The model with the settings that it comes with, or with the inferred ones of a .pt file."""
    path = Path(checkpoint).expanduser()
    with warnings.catch_warnings():  # of what was assumed: that is what is tried here
        warnings.simplefilter("ignore")
        if flags is not None or path.is_file():
            loaded = openai.load(path, flags)
        elif presets.PUBLISHED.get(checkpoint) and presets.PUBLISHED[checkpoint].kind == "upsampler":
            loaded = presets.load_upsampler(checkpoint)
        else:
            loaded = presets.load(checkpoint)
    if isinstance(loaded, Classifier):
        raise ValueError(f"{checkpoint} is a classifier: only diffusion models and upsamplers can be diagnosed")
    return loaded


def size_of_images(path: str, fit: str | None, model: Model) -> int | None:
    """The side of the images, where all are squares smaller than what the shapes suggest; None: they do not tell.

    With a border (fit: pad) it is the next size that the network's levels divide.
    """
    config = cast(UNetConfig, model.network.config)
    dataset = open_dataset(path, 1, labels=False, verify=False)
    sides = {side for image in dataset.images[:SAMPLED] for side in header(image)[:2]}
    if len(sides) != 1 or (side := sides.pop()) >= config.image_size:
        return None
    padded = -(-side // config.downsampling) * config.downsampling
    return padded if padded == side or fit == "pad" else None


def resized(model: Model, size: int | None, flags: str | None) -> Model:
    """For images of this size, with the attention at the same levels."""
    config = cast(UNetConfig, model.network.config)
    if size is None or size == config.image_size:
        return model
    if flags is not None:
        raise ValueError(f"the flags have image size {config.image_size} and --image-size is {size}: leave one out")
    changed = dataclasses.replace(config, image_size=size, attention_resolutions=resolutions(config, size))
    model.network.config = changed  # type: ignore[assignment]
    return dataclasses.replace(model, shape=(config.image_channels, size, size))


def find_images(args: argparse.Namespace, model: Model) -> tuple[RealImages, str]:
    """The images, with labels if there are some that the network knows, and what to say of them."""
    channels, size = model.shape[:2]
    if not model.conditional or args.unconditional:
        return open_images(args, args.images, channels, size, None), "no labels"
    try:
        images = open_images(args, args.images, channels, size, model.labels)
    except ValueError as error:
        images = open_images(args, args.images, channels, size, None)
        return images, f"told no labels: {str(error).removesuffix('; --unconditional leaves labels out')}"
    return images, "told no labels, as they have none" if images.labels is None else "told their labels"


def show_progress(bar: tqdm, board: Board) -> None:
    bar.total = max(board.planned, board.done)
    if board.best:
        bar.set_postfix_str(f"best so far: {', '.join(described(board.best))}", refresh=False)
    bar.update(board.done - bar.n)


# -- text ------------------------------------------------------------------------------------------------------------


def described(candidate: Candidate) -> tuple[str, str, str, str]:
    """Process, prediction, heads and order."""
    process, attention = candidate.process, candidate.attention
    rescaled = " rescaled" if process.rescale_timesteps else ""
    heads = f"heads of {attention.head_channels}" if attention.head_channels else f"{attention.num_heads} heads"
    heads += f", {attention.num_heads_upsample} up" if attention.num_heads_upsample else ""
    order = "new" if attention.new_order else "old"
    return f"{process.noise_schedule} {process.diffusion_steps}{rescaled}", process.predict, heads, order


def table(diagnosis: Diagnosis) -> str:
    """The best candidates, a line each."""
    levels = "".join(f"{f'{level:g} dB':>9}" for level in diagnosis.levels)
    head = (
        f"{'ratio':>8} {'error':>9}  {'process':22} {'predicts':8}  {'attention':16} {'order':5} {'rows':>6} {levels}"
    )
    lines = ["", head]
    shown = [*diagnosis.trials[:SHOWN]]
    shown += [diagnosis.stated] if diagnosis.stated not in shown else []
    for trial in shown:
        process, predict, heads, order = described(trial.candidate)
        by_level = "".join(f"{error:9.3f}" for error in trial.by_level)
        errors = f"{trial.ratio:8.3f} {trial.error:9.4f}"
        lines.append(f"{errors}  {process:22} {predict:8}  {heads:16} {order:5} {0 - trial.rows:6.0f} {by_level}")
    tried = f"{len(diagnosis.trials)} candidates were tried; ratio: of the errors, on the images that both saw"
    rows = "rows: nats of likelihood of the rows of qkv"
    return "\n".join([*lines, f"({tried}; {rows}; dB: signal to noise)"])


def verdict(diagnosis: Diagnosis, args: argparse.Namespace) -> str:
    best = diagnosis.best
    if diagnosis.verdict == "none":
        size = "" if args.flags else ", and of the right --image-size"
        return (
            f"None fits: the best one's error is {best.error:.2f}, near that of knowing nothing (1). Are these images "
            f"like those that it was trained on{size}, and is it trained? --exhaustive tries all combinations."
        )
    lines = []
    if diagnosis.verdict == "tied":
        others = "; ".join(", ".join(described(trial.candidate)) for trial in diagnosis.rivals[:5])
        lines.append(f"Best is {', '.join(described(best.candidate))}, but these cannot be told from it: {others}.")
        lines.append(f"More images may tell: --num {4 * args.num}.")
    else:
        lines.append(
            f"Clear: {', '.join(described(best.candidate))}. Its error is {best.error:.3f}; {margin(diagnosis)}"
        )
    if diagnosis.by_rows:
        nats = min(trial.rows for trial in diagnosis.trials if trial.rows > diagnosis.best.rows)
        lines.append(
            "Heads and order hardly change the error of this model, but the rows of its qkv weights tell: those of "
            "queries, of keys and of values are each alike in this arrangement, which makes it likelier by "
            f"{nats:.0f} nats than those that were ruled out."
        )
    return "\n".join([*lines, *stated(diagnosis, args)])


def margin(diagnosis: Diagnosis) -> str:
    """By how much the best is ahead: of other processes and predictions, and of other attentions."""
    best = diagnosis.best.candidate
    others = [t for t in diagnosis.trials[1:] if t.candidate.process != best.process]
    attention = [t for t in diagnosis.trials[1:] if t.candidate.process == best.process]
    said = [f"{times(t)} with the next process or prediction" for t in others[:1]]
    said += [f"{times(t)} with the next attention" for t in attention[:1] if not diagnosis.by_rows]
    return ", ".join(said) + "."


def times(trial: Trial) -> str:
    if trial.ratio < 1.1:
        return f"{100 * (trial.ratio - 1):.2g} % more"
    return f"{trial.ratio:.2g} times as much"


def stated(diagnosis: Diagnosis, args: argparse.Namespace) -> list[str]:
    """Whether the flags, or the settings of a native checkpoint, are the right ones."""
    if args.flags is None and Path(args.checkpoint).expanduser().is_file():
        return []
    what = "The flags" if args.flags is not None else "The settings that it comes with"
    if diagnosis.as_stated:
        return [f"{what} are right." if diagnosis.verdict == "clear" else f"{what} are among them."]
    pairs = zip(described(diagnosis.stated.candidate), described(diagnosis.best.candidate), ("", "", "", " order"))
    wrong = [f"{said}{noun}, but {found} fits" for said, found, noun in pairs if said != found]
    return [f"{what} are wrong: they say {'; '.join(wrong)}. Their error is {times(diagnosis.stated)}."]


def advice(diagnosis: Diagnosis, model: Model, args: argparse.Namespace) -> str:
    """What cannot be told and does not matter, the variance, and how to import it."""
    lines = []
    if diagnosis.equivalent:
        same = ", ".join(f"{p.noise_schedule} {p.diffusion_steps}{' rescaled' * p.rescale_timesteps}"
                         for p in diagnosis.equivalent)  # fmt: skip
        lines.append(f"The same to the network: {same}.")
    if diagnosis.variance:
        bits = ", ".join(f"{kind} {value:.3g}" for kind, value in diagnosis.variance.items())
        fits = diagnosis.variance["learned_range"] < 1.05 * min(diagnosis.variance.values())
        lines.append(f"The learned range of its variance {'fits' if fits else 'does not fit'} (bits per dim: {bits}).")
    if args.flags is None and Path(args.checkpoint).expanduser().is_file() and not args.image_size:
        lines.append(f"The image size {model.shape[1]} is what the shapes suggest, not what was tried (--image-size).")
    return "\n".join([*lines, *how_to_import(diagnosis, model, args)])


def how_to_import(diagnosis: Diagnosis, model: Model, args: argparse.Namespace) -> list[str]:
    config = OpenAIConfig("upsampler" if model.upsamples else "diffusion", diagnosis.network, diagnosis.process)
    try:
        flags = openai.flags_of(config)
    except ValueError as error:
        return [
            f"OpenAI's flags cannot say so: {error}. Import it without, and set it in config.json: {in_words(config)}"
        ]
    if Path(args.checkpoint).expanduser().is_file():
        return ["", f'admg import-openai {shlex.quote(args.checkpoint)} --flags "{flags}" --out MODEL']
    return ["", f"flags: {flags}"]


def in_words(config: OpenAIConfig) -> str:
    process: DiffusionConfig = config.diffusion
    fields = ("noise_schedule", "diffusion_steps", "predict", "rescale_timesteps")
    return ", ".join(f"{name} {getattr(process, name)}" for name in fields)
