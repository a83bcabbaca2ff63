"""The hyperparameters of published models as TOML files, with the source of each value beside it."""

from __future__ import annotations

import functools
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any, Literal

from admg.config import build, did_you_mean, flat
from admg.data import DataConfig
from admg.diffusion.config import DiffusionConfig
from admg.models import ClassifierConfig, SuperResConfig, UNetConfig
from admg.training.config import ObjectiveConfig, ResolvedConfig

from .cost import Cost

Command = Literal["train", "train-classifier", "train-upsampler"]
NETWORKS: dict[Command, type[UNetConfig] | type[ClassifierConfig]] = {
    "train": UNetConfig,
    "train-classifier": ClassifierConfig,
    "train-upsampler": SuperResConfig,
}


@dataclass(frozen=True)
class TrainingRecipe:
    """The hyperparameters of a model.

    name: name of the recipe
    command: command that it applies to
    title: description of the model
    values: options of the command by name
    classes: number of labels of its data; 0 without labels
    cost: parameters and work of the network
    published: name of the published model that was trained with it, or None
    text: the TOML file, which cites the source of every value

    Example::

        >>> recipe = admg.training.recipe("small-32")
        >>> recipe.training.batch_size, recipe.diffusion.noise_schedule, recipe.network["channels"]
        (128, 'cosine', 128)
        >>> # admg.train_diffusion(recipe.data("photos"), "runs/photos", recipe.training, **recipe.parts)
    """

    name: str
    command: Command
    title: str
    values: Mapping[str, Any]
    classes: int
    cost: Cost
    published: str | None
    text: str

    def data(self, path: str) -> DataConfig:
        """Return these images with the size and the augmentation of the recipe."""
        return build(DataConfig, self.values, data=path)

    @property
    def training(self) -> ResolvedConfig:
        return build(ResolvedConfig, self.values)

    @property
    def diffusion(self) -> DiffusionConfig:
        return build(DiffusionConfig, self.values)

    @property
    def objective(self) -> ObjectiveConfig:
        return build(ObjectiveConfig, self.values)

    @property
    def network(self) -> dict[str, Any]:
        """The fields of the architecture that do not follow from the data."""
        derived = ("image_size", "small_size")
        fields = NETWORKS[self.command].__dataclass_fields__
        return {name: value for name, value in self.values.items() if name in fields and name not in derived}

    @property
    def architecture(self) -> UNetConfig | ClassifierConfig:
        """The network for RGB images with the recipe's number of classes."""
        return build(NETWORKS[self.command], self.values, num_classes=self.classes)

    @property
    def parts(self) -> dict[str, Any]:
        """The remaining arguments of the function that trains, such as `admg.train_diffusion`."""
        parts: dict[str, Any] = {"network": self.network, "diffusion": self.diffusion}
        if self.command != "train-classifier":
            parts["objective"] = self.objective
        if self.command == "train-upsampler":
            parts["small_size"] = self.values["small_size"]
        return parts | {"provenance": {"recipe": self.name}}


def names() -> tuple[str, ...]:
    """Return the names of all recipes."""
    found = (path.name for path in files(__name__).iterdir())
    return tuple(sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml")))


@functools.cache
def recipe(name: str) -> TrainingRecipe:
    """Return a recipe. Raises ValueError if there is no recipe of this name."""
    if name not in names():
        hint = did_you_mean(name, names()) or f"choose one of {', '.join(names())}"
        raise ValueError(f"unknown recipe {name!r}: {hint}")
    text = files(__name__).joinpath(f"{name}.toml").read_text(encoding="utf-8")
    tables = tomllib.loads(text)
    about, cost = tables.pop("recipe"), Cost(**tables.pop("cost"))
    return TrainingRecipe(
        name=name,
        command=about["command"],
        title=about["title"],
        values=flat(tables, f"the recipe {name}"),
        classes=about["classes"],
        cost=cost,
        published=about.get("published"),
        text=text,
    )


def recipe_for(command: Command, name: str) -> TrainingRecipe:
    """Return a recipe of a command. Raises ValueError if it does not exist, or belongs to another command."""
    found = recipe(name)
    if found.command != command:
        own = ", ".join(other for other in names() if recipe(other).command == command)
        raise ValueError(f"recipe {name} belongs to admg {found.command}; the recipes of admg {command} are {own}")
    return found
