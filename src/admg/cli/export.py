"""`admg export`: a model for another library."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path

from admg.checkpoints import native, openai, presets
from admg.checkpoints.export import Exported, to_diffusers, to_openai
from admg.checkpoints.model import Classifier, Model
from admg.checkpoints.published import PUBLISHED


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a name, a folder, or an OpenAI .pt file")
    parser.add_argument("--to", required=True, choices=("diffusers", "openai"), help="the library that is to load it")
    parser.add_argument(
        "--out",
        required=True,
        type=Path,
        metavar="PATH",
        help="to write: a folder for diffusers, a .pt file for openai",
    )
    parser.add_argument(
        "--part",
        choices=("diffusion", "classifier"),
        help="which network of a name that has both (default: diffusion)",
    )
    parser.add_argument(
        "--scheduler",
        choices=("ddpm", "ddim"),
        default="ddpm",
        help="for diffusers: whose configuration to write; ddim leaves out a learned variance (default: ddpm)",
    )


def run(args: argparse.Namespace) -> None:
    part = load(args.model, args.part)
    if args.to == "openai":
        report(to_openai(part, args.out))
    elif isinstance(part, Classifier):
        raise ValueError("diffusers has no noisy classifier: a classifier can only be exported with --to openai")
    else:
        report(to_diffusers(part, args.out, args.scheduler))


def report(exported: Exported) -> None:
    print(f"wrote {exported.path}")
    if exported.flags:
        print(f"flags: {exported.flags}")
    for note in exported.notes:
        print(f"note: {note}")


def load(name: str, part: str | None) -> Model | Classifier:
    """The named part of a model that has several; otherwise whatever the checkpoint holds. ValueError: another."""
    loaded = load_part(name, part or "diffusion")
    if part and (part == "classifier") != isinstance(loaded, Classifier):
        raise ValueError(f"--part {part}: {name} is a {loaded.kind_name}")
    return loaded


def load_part(name: str, part: str) -> Model | Classifier:
    if name in PUBLISHED:
        kind = "classifier" if part == "classifier" else PUBLISHED[name].kind
        load_kind: dict[str, Callable[[str], Model | Classifier]] = {
            "diffusion": presets.load,
            "upsampler": presets.load_upsampler,
            "classifier": presets.load_classifier,
        }
        return load_kind[kind](name)
    if presets.is_pickle(name):
        return openai.load(Path(name).expanduser())
    folder = presets.find(name, part)
    return Classifier.load(folder) if native.read_config(folder)["kind"] == "classifier" else Model.load(folder)
