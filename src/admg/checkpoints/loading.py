"""Load models by name: shipped with the package, published by OpenAI, or the user's own folders and files."""

from __future__ import annotations

import dataclasses
import difflib
from importlib.resources import files
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, TypeVar

from . import hub, native, openai
from .diffusers import loading as diffusers
from .model import Classifier, Model
from .networks import NETWORK_KINDS, Kind
from .published import LICENSE, MODEL_CARD, PUBLISHED, PublishedModel, SamplingSettings

MORE_MODELS = ("emoji", "emoji-x2")
"""Models of the package admg-models, which need not be installed."""
ADMG_MODELS = "in a clone of admg: pip install ./models"
"""How to install it."""
SHIPPED_SETTINGS = SamplingSettings(scale=4.0, sampler="ddim", steps="25")
FILE_ENDINGS = (".pt", ".pth", ".ckpt", ".bin", ".tar", ".safetensors")
Part = Literal["diffusion", "classifier"]
AnyModel = TypeVar("AnyModel", Model, Classifier)
AnyPretrained = TypeVar("AnyPretrained", bound=hub.Pretrained)


def names() -> list[str]:
    """Return the names of the models of this package, then of those of admg-models if it is installed."""
    return list(shipped())


def missing() -> list[str]:
    """Return the names of the models of admg-models that are not installed."""
    return sorted(set(MORE_MODELS) - set(names()))


def shipped() -> dict[str, Path]:
    """Return the folder of each model of this package and of admg-models by its name."""
    roots = [Path(str(files("admg"))) / "weights"]
    if find_spec("admg_models"):
        roots.append(Path(str(files("admg_models"))))
    found = [path.parents[1] for root in roots for path in sorted(root.glob("*/diffusion/config.json"))]
    return {folder.name: folder for folder in found}


def load(name: str | Path, offline: bool = False) -> Model:
    """Load a diffusion model, in float32 and eval mode.

        >>> model = load("fashion-mnist")
        >>> model.shape
        (1, 32, 32)

    name: name of a shipped or published model, folder written by Model.save, run directory of a training run, a
        file of weights with any ending, in the format of torch.save or safetensors (its flags are inferred;
        admg.openai.load_diffusion takes them explicitly), or a model of the Hugging Face Hub: "hf:user/name",
        "hf:user/name/folder", each with or without "@revision". A folder may also be one of diffusers: a UNet2DModel,
        or a DDPMPipeline or DDIMPipeline with one
    offline: if True, nothing is downloaded

    Raises ValueError if there is no such model (the message suggests similar names) or the checkpoint cannot be used,
    and OSError if a published model cannot be downloaded.
    """
    if place := hub.named(name):
        return hub.loaded(place, load, hub.Access(offline))
    if model := published(name, "diffusion"):
        return _with_source(openai.load_diffusion(model.fetch(offline), flags=model.flags), model)
    if file := weights_file(name):
        loaded = openai.load(file)
        if isinstance(loaded, Classifier):
            raise ValueError(f"{name} is a classifier, not a diffusion model")
        return loaded
    return _load_folder(find(name, "diffusion"))


def load_classifier(name: str | Path, offline: bool = False) -> Classifier:
    """Load a noisy classifier. The arguments and errors are those of `load`.

    The name of a diffusion model that has a classifier of its own loads that classifier.
    """
    if place := hub.named(name):
        return hub.loaded(place, load_classifier, hub.Access(offline))
    if str(name) in PUBLISHED and (own := PUBLISHED[str(name)].classifier):
        name = own
    if model := published(name, "classifier"):
        return _with_source(openai.load_classifier(model.fetch(offline), flags=model.flags), model)
    if file := weights_file(name):
        return openai.load_classifier(file)
    return Classifier.load(find(name, "classifier"))


def load_upsampler(name: str | Path, offline: bool = False) -> Model:
    """Load an upsampler: a model whose `upsamples` is True. The arguments and errors are those of `load`."""
    if place := hub.named(name):
        return hub.loaded(place, load_upsampler, hub.Access(offline))
    if model := published(name, "upsampler"):
        return _with_source(openai.load_upsampler(model.fetch(offline), flags=model.flags), model)
    if file := weights_file(name):
        return openai.load_upsampler(file)
    loaded = _load_folder(find(name, "diffusion"))
    if not loaded.upsamples:
        raise ValueError(f"{name} generates images from noise: it is a diffusion model, not an upsampler")
    return loaded


def load_any(name: str | Path, part: Part | None = None, offline: bool = False) -> Model | Classifier:
    """Load a model of whichever kind the name or checkpoint has.

    part: diffusion or classifier, for a name that has both (default: diffusion)

    Raises ValueError if the checkpoint is not of the given part, and otherwise as `load` does.
    """
    loaded = _load_any(name, part or "diffusion", offline)
    if part and (part == "classifier") != isinstance(loaded, Classifier):
        raise ValueError(f"{name} is a {loaded.kind_name}, not a {NETWORK_KINDS[part].title}")
    return loaded


def load_kind(folder: Path, kind: type[AnyPretrained]) -> AnyPretrained:
    """Load the model in a folder as a Model or a Classifier. Raises ValueError if it is of another kind."""
    found = load_any(folder, "classifier" if issubclass(kind, Classifier) else "diffusion")
    assert isinstance(found, kind)
    return found


def _load_any(name: str | Path, part: Part, offline: bool) -> Model | Classifier:
    if place := hub.named(name):
        return hub.loaded(place, lambda folder: _load_any(folder, part, offline), hub.Access(offline))
    if model := PUBLISHED.get(str(name)):
        kind: Kind = "classifier" if part == "classifier" else model.kind
        if kind == "classifier":
            return load_classifier(name, offline)
        return load_upsampler(name, offline) if kind == "upsampler" else load(name, offline)
    if file := weights_file(name):
        return openai.load_classifier(file) if part == "classifier" else openai.load(file)
    folder = find(name, part)
    if diffusers.is_folder(folder):
        return diffusers.load(folder)
    return Classifier.load(folder) if native.read_config(folder)["kind"] == "classifier" else Model.load(folder)


def _load_folder(folder: Path) -> Model:
    """Load a diffusion model or an upsampler from a native checkpoint or a folder of diffusers."""
    return diffusers.load(folder) if diffusers.is_folder(folder) else Model.load(folder)


def default_classifier(name: str | Path) -> str | None:
    """Return the name of the classifier that belongs to this model, or None if it has none of its own."""
    if folder := shipped().get(str(name)):
        return str(name) if (folder / "classifier").is_dir() else None
    return PUBLISHED[str(name)].classifier if str(name) in PUBLISHED else None


def recommended(name: str | Path) -> SamplingSettings:
    """Return the guidance scale, sampler and steps to start with; for a published model those of OpenAI's README.

    The settings of the paper's best FID are `published.PUBLISHED[name].best`.
    """
    model = PUBLISHED.get(str(name))
    if model and (settings := model.guided or model.best):
        return settings
    own = str(name) in names() and default_classifier(name)
    return SHIPPED_SETTINGS if own else SamplingSettings(scale=0.0, sampler="ddim", steps="25")


def published(name: str | Path, kind: Kind) -> PublishedModel | None:
    """Return the published model of this name, or None. Raises ValueError if it is of another kind."""
    model = PUBLISHED.get(str(name))
    if model and model.kind != kind:
        use = {"diffusion": "admg sample", "upsampler": "admg upsample", "classifier": "--classifier"}[model.kind]
        raise ValueError(
            f"expected a model of kind {kind!r}, but {name} is a published {NETWORK_KINDS[model.kind].title}: "
            f"use it with {use}"
        )
    return model


def find(name: str | Path, part: str) -> Path:
    """Return the native checkpoint folder of a name.

    part: diffusion or classifier, for a shipped model

    Raises ValueError if there is none, or if the name is that of a published model, which has no such folder.
    """
    if place := hub.named(name):
        return hub.fetch(place, hub.Access())
    if known := shipped().get(str(name)):
        check_only_shipped(name)
        if not (known / part).is_dir():
            raise ValueError(f"the model {name} has no {part} of its own")
        return known / part
    folder = Path(name).expanduser()
    if (folder / "model" / "config.json").is_file():  # a run directory
        return folder / "model"
    if folder.exists():
        return _native_folder(folder) or folder
    if str(name) in PUBLISHED:
        raise ValueError(f"{name} is not a native checkpoint: convert its .pt file with admg import-openai first")
    if folder.suffix.lower() in FILE_ENDINGS:
        raise ValueError(f"{name}: no such file")
    if str(name) in MORE_MODELS:
        raise ValueError(f"the model {name} is in the package admg-models, which is not installed ({ADMG_MODELS})")
    similar = _similar(str(name))
    hint = f"did you mean {' or '.join(map(repr, similar))}? " if similar else ""
    raise ValueError(
        f"unknown model {str(name)!r}: {hint}shipped models are {', '.join(names())}; `admg models` lists the "
        "published ones; checkpoint folders, files of weights and hf:user/name (Hugging Face Hub) are also accepted"
    )


def check_only_shipped(name: Path | str) -> None:
    """Raise ValueError if the name of a shipped model is also that of a model's folder in the current directory."""
    folder = Path(name)
    if any((folder / part).is_file() for part in ("config.json", "model/config.json", "model_index.json")):
        raise ValueError(
            f"{name} is a shipped model, but the folder ./{name} also holds a model: pass ./{name}, or rename it"
        )


def as_model(model: Model | str | Path) -> Model:
    """Return the model. If it is a name or a path, load it, and record the name in its provenance."""
    return named(load(model), model) if isinstance(model, str | Path) else model


def named(model: Model, name: str | Path) -> Model:
    """Return the model with the name that it was loaded by in its provenance."""
    return dataclasses.replace(model, training={**model.training, "name": str(name)})


def name_of(model: Model) -> str:
    """Return the name that a model was loaded by, or ""."""
    return str(model.training.get("name", ""))


def _similar(name: str) -> list[str]:
    """Return the most similar name, with or without the prefix `openai/`."""
    full = {known.removeprefix("openai/"): known for known in [*names(), *MORE_MODELS, *PUBLISHED]}
    close = difflib.get_close_matches(name.lower().removeprefix("openai/"), full, n=1, cutoff=0.5)
    return [full[short] for short in close]


def weights_file(name: str | Path) -> Path | None:
    """Return the path of a file of weights with any ending, or None for a name, a folder or a file of its own."""
    path = Path(name).expanduser()
    named = str(name) in names() or str(name) in PUBLISHED
    return None if named or not path.is_file() or _native_folder(path) else path


def _native_folder(path: Path) -> Path | None:
    """Return the native checkpoint that a file belongs to, or None."""
    return path.parent if native.is_part(path) else None


def _with_source(loaded: AnyModel, model: PublishedModel) -> AnyModel:
    """Record where the model comes from."""
    source: dict[str, Any] = {"name": model.name, "url": model.url, "license": LICENSE, "card": MODEL_CARD}
    if model.kind != "classifier" and model.classes:
        source["label_dropout"] = 0.0  # guided-diffusion trains each image with its label
    loaded.training = {**loaded.training, **source}
    return loaded
