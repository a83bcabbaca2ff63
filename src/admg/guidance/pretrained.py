"""Guidance by classifiers of clean images, and by texts, from timm, torchvision and transformers, at the predicted x0.

Bansal et al. 2023, "Universal guidance": the gradient goes through the resize and the denoiser.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any
from urllib.parse import urlparse

import torch
from torch import Tensor, nn

from admg.data import imagenet
from admg.diffusion.gaussian import Images
from admg.offline import hub_as_allowed, offline

from .base import Wrapper
from .classifier_options import ExtendedClassifierGuidance
from .embedding import EmbeddingDistance
from .loss import LossGuidance
from .numbers import Scale
from .preprocessing import Preprocessing
from .state import State

CLASSIFIER_SCALE, TEXT_SCALE = 10.0, 500.0


class PretrainedNetwork:
    """A network of another library as a function of images in [-1, 1], computed in float32 on their device.

    It is deliberately not a module: admg must not replace parts of an unknown network.

    module: network; it is put into evaluation mode, and its weights get no gradients
    preprocessing: images -> input of the network
    call: (module, input) -> output; None: module(input)
    """

    def __init__(
        self, module: nn.Module, preprocessing: Preprocessing, call: Callable[[Any, Tensor], Tensor] | None = None
    ) -> None:
        self.module = module.eval().requires_grad_(False)
        self.preprocessing, self.call = preprocessing, call

    def __call__(self, images: Images) -> Tensor:
        with torch.autocast(images.device.type, enabled=False):
            prepared = self.preprocessing(images.float())
            module = self.module.to(images.device)
            return module(prepared) if self.call is None else self.call(module, prepared)


@dataclass(frozen=True)
class PretrainedGuidance(Wrapper):
    """Guidance by a network of another library, with a text for titles of pictures.

    guide: the guidance itself
    title: short text, such as "clip: a red coat"
    classes: number of classes of a classifier that uses the sampler's labels; 0 for any other guide
    names: names of these classes, if they are known
    """

    title: str = ""
    classes: int = field(default=0, kw_only=True)
    names: tuple[str, ...] = field(default=(), kw_only=True)

    def __call__(self, state: State) -> Tensor | None:
        labels = getattr(state.model, "labels", None)
        count, ours = getattr(labels, "count", 0), tuple(getattr(labels, "names", ()))
        if self.classes and ours and (differing := differing_label(ours, self.names, self.classes)):
            raise ValueError(f"{self.title}: {differing}: name the target class, label=...")
        if self.classes and count and count != self.classes:
            raise ValueError(
                f"{self.title}: the model has {count} labels, but the classifier has {self.classes}: pass the target "
                "class, label=..."
            )
        return super().__call__(state)


# -- in one line -------------------------------------------------------------------------------------------------------


def from_timm(
    model: str | nn.Module, label: str | int | None = None, *, scale: Scale = CLASSIFIER_SCALE
) -> PretrainedGuidance:
    """Return guidance by a classifier of timm: `from_timm("resnet50.a1_in1k", "golden retriever")`.

    model: name of a model of timm, or a loaded one
    label: target class, by name or number; None: the sampler's labels, for a model with the same labels
    scale: guidance scale

    Raises ValueError if timm is not installed, or if there is no such model or class.
    """
    timm = library("timm")
    name = model if isinstance(model, str) else type(model).__name__
    if isinstance(model, str):
        source = getattr(timm, "get_pretrained_cfg", lambda name: None)(model)
        if not getattr(source, "hf_hub_id", None):  # older models, which torch.hub loads
            check_on_disk(f"timm:{name}", str(getattr(source, "url", None) or ""))
        network = loaded("timm", model, lambda: timm.create_model(model, pretrained=True))
    else:
        network = model
    config = import_module("timm.data").resolve_model_data_config(network)
    names = tuple((getattr(network, "pretrained_cfg", None) or {}).get("label_names") or ())
    return by_classifier(PretrainedNetwork(network, Preprocessing.of_timm(config)), label, scale, f"timm:{name}", names)


def from_torchvision(
    model: str | nn.Module, label: str | int | None = None, *, weights: Any = "DEFAULT", scale: Scale = CLASSIFIER_SCALE
) -> PretrainedGuidance:
    """Return guidance by a classifier of torchvision: `from_torchvision("resnet50", "golden retriever")`.

    model: name of a model of torchvision, or a loaded one; then `weights` are those it was loaded with
    weights: a name such as IMAGENET1K_V2, or an entry of torchvision's enumerations
    label, scale: see from_timm

    Raises ValueError if torchvision is not installed, or if there is no such model or class.
    """
    models = library("torchvision.models")
    name = model if isinstance(model, str) else type(model).__name__
    if isinstance(model, str):
        entry = (
            loaded("torchvision", model, lambda: models.get_model_weights(model)[weights])
            if isinstance(weights, str)
            else weights
        )
        check_on_disk(f"torchvision:{name}", str(getattr(entry, "url", "")))
        network = loaded("torchvision", model, lambda: models.get_model(model, weights=entry))
    else:
        entry, network = weights, model
    if not hasattr(entry, "transforms"):
        raise ValueError(f"torchvision:{name}: weights must be an entry of torchvision's enumerations, got {weights!r}")
    preprocessing = Preprocessing.of_torchvision(entry.transforms())
    names = tuple(entry.meta.get("categories", ()))
    return by_classifier(PretrainedNetwork(network, preprocessing), label, scale, f"torchvision:{name}", names)


def from_transformers(
    model: str | nn.Module,
    text: str | Sequence[str] | None = None,
    *,
    label: str | int | None = None,
    scale: Scale | None = None,
    processor: Any = None,
    tokenizer: Any = None,
) -> PretrainedGuidance:
    """Return guidance by a text, or by a classifier of images, of transformers.

        from_transformers("openai/clip-vit-base-patch32", "a red coat")
        from_transformers("google/vit-base-patch16-224", label="golden retriever")

    model: name or folder of a model of transformers, or a loaded one, with `processor` and, for texts, `tokenizer`
    text: target of a model of images and texts (CLIP, SigLIP): samples follow the angle between the embeddings of the
        image and of the text; of several texts, the mean embedding is the target
    label: target class of a classifier, see from_timm
    scale: guidance scale (default: 500 for a text, 10 for a classifier)
    processor: image processor, or the entries of its preprocessor_config.json

    Raises ValueError if transformers is not installed, or if there is no such model or class.
    """
    transformers = library("transformers")
    name = model if isinstance(model, str) else type(model).__name__
    if text is not None and label is not None:
        raise ValueError("pass a text or a label, not both")
    kind = transformers.AutoModelForImageClassification if text is None else transformers.AutoModel
    network = loaded("transformers", model, lambda: kind.from_pretrained(model)) if isinstance(model, str) else model
    if isinstance(model, str) and processor is None:
        processor = loaded("transformers", model, lambda: transformers.AutoImageProcessor.from_pretrained(model))
    if processor is None:
        raise ValueError(f"{name}: pass the image processor of the loaded model, processor=...")
    preprocessing = Preprocessing.of_transformers(entries(processor, transformers))
    if not isinstance(processor, dict):
        check_preprocessing(preprocessing, getattr(processor, "image_processor", processor))
    if text is None:
        config: Any = network.config
        names = tuple(str(config.id2label[i]) for i in range(len(config.id2label)))
        of_images = PretrainedNetwork(network, preprocessing, _logits)
        return by_classifier(
            of_images, label, CLASSIFIER_SCALE if scale is None else scale, f"transformers:{name}", names
        )
    if isinstance(model, str) and tokenizer is None:
        tokenizer = loaded("transformers", model, lambda: transformers.AutoTokenizer.from_pretrained(model))
    if tokenizer is None or not hasattr(network, "get_text_features"):
        raise ValueError(f"{name}: a text needs a model of images and texts such as CLIP, with its tokenizer")
    texts = [text] if isinstance(text, str) else list(text)
    target = text_embedding(network, tokenizer, texts)
    embed = PretrainedNetwork(network, preprocessing, _image_features)
    guide = LossGuidance(EmbeddingDistance(embed, target), TEXT_SCALE if scale is None else scale)
    return PretrainedGuidance(guide, f"clip: {', '.join(texts)}")


def by_classifier(
    classifier: PretrainedNetwork, label: str | int | None, scale: Scale, title: str, names: Sequence[str] = ()
) -> PretrainedGuidance:
    """Return guidance by a classifier of clean images at the predicted x0.

    classifier: images in [-1, 1] -> logits (N, K)
    label: target class, by name or number; None: the sampler's labels
    title: text for titles of pictures and messages
    names: names of the classes; for 1,000 classes without names, those of ImageNet

    Raises ValueError if there is no such class, or if the classifier is no PretrainedNetwork.
    """
    if not isinstance(classifier, PretrainedNetwork):
        raise ValueError(
            f"the classifier must be a PretrainedNetwork(module, Preprocessing(...)), got {type(classifier).__name__}: "
            "a network of images in [-1, 1] guides with ExtendedClassifierGuidance(network, scale, at='x0')"
        )
    classes = number_of_classes(classifier)
    if label is None:
        guide = ExtendedClassifierGuidance(classifier, scale, at="x0")
        return PretrainedGuidance(guide, title, classes=classes, names=tuple(names))
    target = class_number(label, classes, names, title)
    guide = ExtendedClassifierGuidance(classifier, scale, at="x0", labels={target: 1.0})
    return PretrainedGuidance(guide, f"{title}: {label}")


# -- parts -------------------------------------------------------------------------------------------------------------


@torch.no_grad()
def number_of_classes(classifier: PretrainedNetwork) -> int:
    """Return the number of logits. Raises ValueError if the network does not return (1, K) for an image."""
    weight = next(classifier.module.parameters(), torch.zeros(1))
    logits = classifier(torch.zeros(1, len(classifier.preprocessing.mean), 32, 32, device=weight.device))
    if not isinstance(logits, Tensor) or logits.ndim != 2:
        found = tuple(logits.shape) if isinstance(logits, Tensor) else type(logits).__name__
        raise ValueError(f"{type(classifier.module).__name__} must return logits (1, K) for an image, got {found}")
    return logits.shape[1]


def name_tables(names: Sequence[str], classes: int) -> list[dict[str, set[int]]]:
    """Return tables of classes by name, in lower case, in the order in which a name is looked up.

    The tables hold whole names; the first of several names in one ("crane, wading bird"); ImageNet's names, if there
    are 1,000 classes; and all further names and synonyms.
    """
    own = list(enumerate(names))
    ours = list(enumerate(imagenet.names())) if classes == 1000 else []
    synonyms = list(enumerate(imagenet.synonyms())) if classes == 1000 else []
    tables: list[list[tuple[int, list[str]]]] = [
        [(k, [name]) for k, name in own],
        [(k, name.split(", ")[:1]) for k, name in own],
        [(k, [name]) for k, name in ours],
        [(k, name.split(", ")) for k, name in (*own, *ours)]
        + [(k, [part for term in terms for part in (term, *term.split(", "))]) for k, terms in synonyms],
    ]
    found: list[dict[str, set[int]]] = []
    for rows in tables:
        table: dict[str, set[int]] = {}
        for k, terms in rows:
            for term in terms:
                table.setdefault(term.lower(), set()).add(k)
        found.append(table)
    return found


def classes_named(name: str, tables: Sequence[Mapping[str, set[int]]]) -> list[int]:
    """Return the classes with this name in the first table that has it; several if it is ambiguous."""
    return next((sorted(table[name.lower()]) for table in tables if name.lower() in table), [])


def class_number(label: str | int, classes: int, names: Sequence[str], title: str) -> int:
    """Return the number of a class. Names are compared regardless of case; ImageNet's have synonyms.

    Raises ValueError, with similar names, if there is none, and if several classes have the name.
    """
    if isinstance(label, int) or (label.isdecimal() and label not in names):
        if int(label) < classes and int(label) >= 0:
            return int(label)
        raise ValueError(f"{title}: classes are 0 to {classes - 1}, got {label}")
    tables = name_tables(names, classes)
    found = classes_named(label, tables)
    if len(found) == 1:
        return found[0]
    if found:
        raise ValueError(
            f"{title}: {label!r} is a name of the classes {' and '.join(map(str, found))}: pass the number"
        )
    similar = difflib.get_close_matches(label.lower(), {name for table in tables for name in table}, n=3, cutoff=0.5)
    hint = f"did you mean {' or '.join(map(repr, similar))}?" if similar else f"classes are 0 to {classes - 1}"
    raise ValueError(f"{title}: unknown class {label!r}: {hint}")


@cache
def differing_label(ours: tuple[str, ...], theirs: tuple[str, ...], classes: int) -> str | None:
    """Return how a model's labels differ from a classifier's classes of the same numbers; None if they do not.

    Names that the classifier does not have may be synonyms, unless none of the names is known.
    """
    if len(ours) != classes or not (theirs or classes == 1000):
        return None
    tables = name_tables(theirs, classes)
    found = [classes_named(name, tables) for name in ours]
    for k, numbers in enumerate(found):
        if numbers and k not in numbers:
            return f"label {k} of the model is {ours[k]!r}, which is class {numbers[0]} of the classifier"
    if not any(found):
        return f"the model's labels, such as {ours[0]!r}, are not among the classes of the classifier"
    return None


@torch.no_grad()
def text_embedding(network: Any, tokenizer: Any, texts: Sequence[str]) -> Tensor:
    """Return the mean of the normalised embeddings of texts (D,)."""
    kind = str(getattr(network.config, "model_type", ""))
    padding = "max_length" if kind.startswith("siglip") else True  # SigLIP was trained on padded texts, without a mask
    tokens = tokenizer(list(texts), padding=padding, truncation=True, return_tensors="pt").to(network.device)
    features = _features(network.get_text_features(**tokens)).float()
    return nn.functional.normalize(features, dim=-1).mean(0)


def check_preprocessing(preprocessing: Preprocessing, processor: Any) -> None:
    """Raise ValueError unless an image processor of transformers prepares a smooth image in the same way."""
    rows, columns = torch.meshgrid(torch.arange(48), torch.arange(64), indexing="ij")
    image = torch.stack([2 * rows + 40, 3 * columns + 20, 255 - 2 * rows - 2 * columns]).to(torch.uint8)
    theirs = torch.as_tensor(processor(image.permute(1, 2, 0).numpy(), return_tensors="pt")["pixel_values"])
    ours = preprocessing(image[None].float() / 127.5 - 1)
    if ours.shape != theirs.shape or (ours - theirs).abs().mean() > 0.1 * theirs.std():
        raise ValueError(f"{type(processor).__name__} does more than resize, crop and normalise: it is not supported")


def _image_features(network: Any, prepared: Tensor) -> Tensor:
    return _features(network.get_image_features(pixel_values=prepared))


def _features(output: Any) -> Tensor:
    """Return the features, which older versions of transformers return directly."""
    found: Tensor = output if isinstance(output, Tensor) else output.pooler_output
    return found


def _logits(network: Any, prepared: Tensor) -> Tensor:
    logits: Tensor = network(pixel_values=prepared).logits
    return logits


def entries(processor: Any, transformers: Any) -> dict[str, Any]:
    """Return the configuration of an image processor of transformers, or of one that holds it.

    The entries of a preprocessor_config.json are completed by the defaults of the class that they name.
    """
    if isinstance(processor, dict):
        kind = str(processor.get("image_processor_type") or processor.get("feature_extractor_type") or "")
        kind = kind.replace("FeatureExtractor", "ImageProcessor")
        known = getattr(transformers, kind, None) if kind else None
        if known is None:
            return processor
        complete = loaded("transformers", kind, lambda: known.from_dict(dict(processor)))
        return {**complete.to_dict(), "image_processor_type": kind}
    inner = getattr(processor, "image_processor", processor)
    return dict(inner.to_dict())


def library(name: str) -> Any:
    """Import a library. Raises ValueError, which names the extra, if it is not installed."""
    root = name.partition(".")[0]
    try:
        return import_module(name)
    except ImportError as error:
        missing = getattr(error, "name", None) or root
        reason = "" if missing.partition(".")[0] == root else f" ({missing} is missing)"
        raise ValueError(f"this guide needs {root}{reason}: pip install 'admg[{root}]'") from None


def check_on_disk(name: str, url: str) -> None:
    """Raise ValueError if downloads are off and torch.hub would download the file. url: "" if there is none"""
    path = Path(torch.hub.get_dir()) / "checkpoints" / Path(urlparse(url).path).name
    if offline() and url and not path.is_file():
        raise ValueError(f"{name}: {path} is not on disk, and downloads are off (--offline, ADMG_OFFLINE)")


def loaded(root: str, name: Any, load: Callable[[], Any]) -> Any:
    """Return the result of a loading function of a library. Its errors become a ValueError of one line."""
    try:
        with hub_as_allowed():
            return load()
    except Exception as error:  # libraries raise their own, and those of the Hub
        text = " ".join(str(error).split())
        raise ValueError(f"{root} cannot load {name!r}: {type(error).__name__}: {text[:300]}") from None
