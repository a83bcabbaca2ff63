"""`admg models`: the models that have a name, and which of them are on disk."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from safetensors import safe_open

from admg.checkpoints import download, native, presets
from admg.checkpoints.published import PUBLISHED


@dataclass(frozen=True)
class Row:
    name: str
    kind: str
    pixels: str
    parameters: int
    size: int
    classes: int
    on_disk: bool


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--on-disk", action="store_true", help="only those that are here")


def run(args: argparse.Namespace) -> None:
    rows = [row for row in [*shipped(), *published()] if row.on_disk or not args.on_disk]
    print(table(rows))
    print(f"\nPublished models are downloaded at first use, to {download.cache_folder() / 'openai'}")
    print("admg info NAME tells more of each.")


def shipped() -> Iterator[Row]:
    """Diffusion model and classifier of each model of the package, read off their checkpoints."""
    for name in presets.names():
        for part in sorted((presets.SHIPPED / name).iterdir(), reverse=True):
            if not (part / "config.json").is_file():
                continue
            config, weights = native.read_config(part), part / "model.safetensors"
            labels = config.get("labels", 0)
            yield Row(
                name=name,
                kind=config["kind"],
                pixels=str(config["network"]["image_size"]),
                parameters=count_parameters(str(weights)),
                size=weights.stat().st_size,
                classes=labels if isinstance(labels, int) else len(labels),
                on_disk=True,
            )


def published() -> Iterator[Row]:
    for name, model in PUBLISHED.items():
        pixels = f"{model.small_size} -> {model.image_size}" if model.small_size else str(model.image_size)
        yield Row(name, model.kind, pixels, model.parameters, model.size, model.classes, model.on_disk)


def count_parameters(path: str) -> int:
    """Numbers in a safetensors file, from its head alone."""
    total = 0
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  (it is no dictionary)
            count = 1
            for length in file.get_slice(key).get_shape():
                count *= length
            total += count
    return total


def table(rows: Sequence[Row]) -> str:
    """A line for each model, in columns."""
    head = ("name", "kind", "pixels", "parameters", "size", "classes", "on disk")
    cells = [
        (
            *(row.name, row.kind, row.pixels, f"{row.parameters / 1e6:.1f} M", size_text(row.size)),
            *(str(row.classes or "-"), "yes" if row.on_disk else "no"),
        )
        for row in rows
    ]
    widths = [max(len(line[i]) for line in [head, *cells]) for i in range(len(head))]
    left = (0, 1, 6)
    aligned = [
        "  ".join(text.ljust(w) if i in left else text.rjust(w) for i, (text, w) in enumerate(zip(line, widths)))
        for line in [head, *cells]
    ]
    return "\n".join(line.rstrip() for line in aligned)


def size_text(size: int) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"
