"""`admg info`: what a model is."""

from __future__ import annotations

import argparse
import dataclasses

from .. import presets
from ..checkpoints import native
from ..model import Classifier, Model


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("model", metavar="MODEL", help="a name, a checkpoint folder, or the folder of a training run")


def run(args: argparse.Namespace) -> None:
    if args.model in presets.names():
        print(describe(presets.load(args.model), args.model))
        print()
        print(describe(presets.load_classifier(args.model), args.model))
        return
    folder = presets.find(args.model, "diffusion")
    kind = Classifier if native.read_config(folder)["kind"] == "classifier" else Model
    print(describe(kind.load(folder), args.model))


def describe(model: Model | Classifier, name: str) -> str:
    """Architecture, parameters, labels and provenance, as text."""
    kind = "noisy classifier" if isinstance(model, Classifier) else "diffusion model"
    count = sum(p.numel() for p in model.network.parameters())
    lines = [f"{name}: {kind}, {type(model.network).__name__}, {count:,} parameters", "architecture"]
    for part in (model.network.config, model.config):
        if dataclasses.is_dataclass(part):
            lines += [f"  {key:24} {shown(value)}" for key, value in dataclasses.asdict(part).items()]
    lines += [f"labels ({model.labels.count})"]
    lines += [f"  {i:3}  {label}" for i, label in enumerate(model.labels.names[:20])]
    lines += [f"  ... and {len(model.labels.names) - 20} more"] if len(model.labels.names) > 20 else []
    lines += ["training"]
    for key, value in model.training.items():
        if not isinstance(value, dict):
            lines.append(f"  {key:24} {shown(value)}")
    return "\n".join(lines)


def shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    return ",".join(map(str, value)) if isinstance(value, tuple | list) else str(value)
