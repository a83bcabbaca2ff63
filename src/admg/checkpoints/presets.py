"""Models by name: those that come with the package, OpenAI's published ones, and files and folders of one's own."""

from __future__ import annotations

import difflib
from importlib.resources import files
from pathlib import Path
from typing import Any

from . import openai
from .model import KIND_NAMES, Classifier, Model
from .published import CARD, LICENSE, PUBLISHED, Published, Settings

SHIPPED = Path(str(files("admg"))) / "weights"
SHIPPED_SETTINGS = Settings(scale=4.0, sampler="ddim", steps="25")
PICKLES = (".pt", ".pth", ".ckpt")


def names() -> list[str]:
    """The models that come with the package."""
    return sorted(folder.name for folder in SHIPPED.iterdir() if folder.is_dir()) if SHIPPED.is_dir() else []


def published_names() -> list[str]:
    """OpenAI's models, which are downloaded at first use."""
    return list(PUBLISHED)


def load(name: str | Path, offline: bool = False) -> Model:
    """A diffusion model, in float32 and evaluation mode.

    name: of a shipped or published model, a folder that Model.save wrote, the folder of a training run, or an OpenAI
        .pt file (whose flags are inferred: admg.openai.load_diffusion takes them)
    offline: do not download
    ValueError: no such model (near names are suggested), or a checkpoint that cannot be used.
    OSError: a published model that cannot be downloaded.
    """
    if model := published(name, "diffusion"):
        return _from(openai.load_diffusion(model.fetch(offline), flags=model.flags), model)
    if is_pickle(name):
        return _model(openai.load(Path(name).expanduser()), name)
    return Model.load(find(name, "diffusion"))


def load_classifier(name: str | Path, offline: bool = False) -> Classifier:
    """A noisy classifier, found as load() finds a model. The name of a model that has its own gives that one."""
    if str(name) in PUBLISHED and (own := PUBLISHED[str(name)].classifier):
        name = own
    if model := published(name, "classifier"):
        return _from(openai.load_classifier(model.fetch(offline), flags=model.flags), model)
    if is_pickle(name):
        return openai.load_classifier(Path(name).expanduser())
    return Classifier.load(find(name, "classifier"))


def load_upsampler(name: str | Path, offline: bool = False) -> Model:
    """An upsampling model, found as load() finds a model; `model.upsamples` is True."""
    if model := published(name, "upsampler"):
        return _from(openai.load_upsampler(model.fetch(offline), flags=model.flags), model)
    if is_pickle(name):
        return openai.load_upsampler(Path(name).expanduser())
    loaded = Model.load(find(name, "diffusion"))
    if not loaded.upsamples:
        raise ValueError(f"{name} makes images from noise: it is a diffusion model, not an upsampler")
    return loaded


def default_classifier(name: str | Path) -> str | None:
    """The name of the classifier that guides this model unless another is asked for; None: it has none of its own."""
    if str(name) in names():
        return str(name) if (SHIPPED / str(name) / "classifier").is_dir() else None
    return PUBLISHED[str(name)].classifier if str(name) in PUBLISHED else None


def recommended(name: str | Path) -> Settings:
    """Guidance scale, sampler and steps to begin with: of a published model those of its README.

    The settings of the paper's best FID are `published.PUBLISHED[name].best`.
    """
    model = PUBLISHED.get(str(name))
    if model and (settings := model.guided or model.best):
        return settings
    return SHIPPED_SETTINGS if str(name) in names() else Settings(scale=0.0, sampler="ddim", steps="25")


def published(name: str | Path, kind: str) -> Published | None:
    """The published model of this name. ValueError: it is of another kind than the one asked for."""
    model = PUBLISHED.get(str(name))
    if model and model.kind != kind:
        use = {"diffusion": "admg sample", "upsampler": "admg upsample", "classifier": "--classifier"}[model.kind]
        raise ValueError(
            f"{name} is a published {KIND_NAMES[model.kind]} where a model of kind {kind!r} is needed: it is for {use}"
        )
    return model


def find(name: str | Path, part: str) -> Path:
    """The native checkpoint folder of a name; part: "diffusion" or "classifier", of the shipped ones.

    ValueError: there is none, or the name is of a published model, which is no such folder.
    """
    if str(name) in names():
        return SHIPPED / str(name) / part
    folder = Path(name).expanduser()
    if (folder / "model" / "config.json").is_file():  # the folder of a training run
        return folder / "model"
    if folder.exists():
        return folder
    if str(name) in PUBLISHED:
        raise ValueError(f"{name} is not a folder of this package's format: admg import-openai makes one of its file")
    if folder.suffix in PICKLES:
        raise ValueError(f"{name}: no such file")
    near = _near(str(name))
    hint = f"did you mean {' or '.join(map(repr, near))}? " if near else ""
    raise ValueError(
        f"unknown model {str(name)!r}: {hint}shipped are {', '.join(names())}; published ones are listed by admg "
        "models; or give a checkpoint folder or an OpenAI .pt file"
    )


def _near(name: str) -> list[str]:
    """The nearest name, with or without the `openai/` before it."""
    full = {known.removeprefix("openai/"): known for known in [*names(), *PUBLISHED]}
    close = difflib.get_close_matches(name.lower().removeprefix("openai/"), full, n=1, cutoff=0.5)
    return [full[short] for short in close]


def is_pickle(name: str | Path) -> bool:
    """Whether this is the path of an OpenAI checkpoint."""
    path = Path(name).expanduser()
    return path.is_file() and path.suffix in PICKLES


def _model(loaded: Model | Classifier, name: str | Path) -> Model:
    if isinstance(loaded, Classifier):
        raise ValueError(f"{name} is a classifier, not a diffusion model")
    return loaded


def _from(loaded: Any, model: Published) -> Any:
    """With where it comes from."""
    loaded.training = {**loaded.training, "name": model.name, "url": model.url, "license": LICENSE, "card": CARD}
    return loaded
