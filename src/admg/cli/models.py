"""`admg models`: list the shipped and the published models."""

from __future__ import annotations

from dataclasses import dataclass

from admg.checkpoints import loading
from admg.checkpoints.describe import ListedModel, list_models
from admg.files import cache_folder

from .tables import size_text, table

EXAMPLES = """  admg models
  admg models --on-disk"""
COLUMNS = ("name", "kind", "pixels", "parameters", "size", "classes", "on disk")


@dataclass(frozen=True, kw_only=True)
class Options:
    """List the shipped and the published models.

    on_disk: list only models that need no download
    """

    on_disk: bool = False


def run(options: Options) -> None:
    print(table(COLUMNS, map(cells, list_models(options.on_disk)), left=("name", "kind", "on disk")))
    print(f"\nPublished models are downloaded at first use, to {cache_folder() / 'openai'}")
    if missing := loading.missing():
        print(f"The package admg-models adds {', '.join(missing)} ({loading.ADMG_MODELS})")
    print("admg info NAME describes one of them.")


def cells(model: ListedModel) -> tuple[str, ...]:
    """Return the row of a model."""
    pixels = f"{model.small_size} -> {model.image_size}" if model.small_size else str(model.image_size)
    numbers = (pixels, f"{model.parameters / 1e6:.1f} M", size_text(model.size), str(model.classes or "-"))
    return (model.name, model.kind, *numbers, "yes" if model.on_disk else "no")
