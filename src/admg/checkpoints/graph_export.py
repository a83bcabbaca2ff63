"""Export of a network alone as a graph: ONNX, for onnxruntime and others, and torch.export, for PyTorch alone."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import tempfile
import warnings
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from admg.files import atomic
from admg.models.modes import evaluating

from .exported import Exported
from .model import Classifier, Model, check_process
from .networks import unwrapped

GraphFormat = Literal["onnx", "torch-export"]
ENDINGS: dict[GraphFormat, str] = {"onnx": ".onnx", "torch-export": ".pt2"}
METADATA = "admg"
"""Name of the JSON entry of the file that describes the inputs: process, labels, network."""


def to_graph(model: Model | Classifier, path: Path | str, format: GraphFormat) -> Exported:
    """Write the graph of a network, for any number of images of the model's size.

    Inputs: x (N, C, H, W) float32, timesteps (N,) float32, and y (N,) int64 for a conditional network, where -1 means
    no label, or low_res (N, C, h, w) for an upsampler. The result is what the network returns, `output` (N, C or 2C, H,
    W), or the `logits` (N, K) of a classifier. Sampling is up to the program that loads it; the entry "admg" of the
    file has the diffusion process and the labels. ONNX files of more than 2 GB get a second file, PATH.data.

    Raises ValueError if the path does not end with .onnx or .pt2, if a package is missing, or if the network
    cannot be exported.
    """
    path = Path(path).expanduser()
    if format not in get_args(GraphFormat):
        raise ValueError(f"format must be {' or '.join(get_args(GraphFormat))}, got {format!r}")
    if path.suffix != ENDINGS[format] or path.is_dir():
        raise ValueError(f"the path must end with {ENDINGS[format]} for {format}, got {path}")
    if format == "onnx":
        _check_packages()
    network = unwrapped(model.network)
    check_process(model)
    inputs = example_inputs(model)
    text = json.dumps(about(model), ensure_ascii=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    with torch.no_grad(), _quiet(), evaluating(network):
        if format == "onnx":
            _write_onnx(network, inputs, path, text)
        else:
            program = torch.export.export(network, (), inputs, dynamic_shapes=_shapes(inputs))
            with atomic(path) as temporary:
                torch.export.save(program, temporary, extra_files={f"{METADATA}.json": text})
    return Exported(path, notes(model, inputs))


def example_inputs(model: Model | Classifier) -> dict[str, Tensor]:
    """Return inputs of the network for two images. Raises ValueError if the size of images is not known."""
    device = next((p.device for p in model.network.parameters()), torch.device("cpu"))
    config: Any = getattr(unwrapped(model.network), "config", None)
    if isinstance(model, Model):
        shape = model.shape
    elif config is None:
        raise ValueError("the size of the images of this classifier is not known, so its graph cannot be exported")
    else:
        shape = (config.image_channels, config.image_size, config.image_size)
    inputs = {"x": torch.zeros(2, *shape), "timesteps": torch.tensor([1.0, 2.0])}
    if isinstance(model, Model) and model.upsamples:
        if not config.small_size:
            raise ValueError("the size of the low-resolution images of this upsampler is not known")
        inputs["low_res"] = torch.zeros(2, shape[0], config.small_size, config.small_size)
        if config.augment_noise:
            inputs["level"] = torch.zeros(2)
    if isinstance(model, Model) and model.conditional:
        inputs["y"] = torch.tensor([0, -1])
    return {name: value.to(device) for name, value in inputs.items()}


def about(model: Model | Classifier) -> dict[str, Any]:
    """Return the facts that a program needs besides the graph, in JSON types."""
    config: Any = getattr(unwrapped(model.network), "config", None)
    return {
        "kind": model.kind_name,
        "diffusion": None if model.config is None else dataclasses.asdict(model.config),
        "network": dataclasses.asdict(config) if dataclasses.is_dataclass(config) else None,  # type: ignore[arg-type]
        "labels": list(model.labels.names) or model.labels.count,
    }


def notes(model: Model | Classifier, inputs: dict[str, Tensor]) -> tuple[str, ...]:
    """Return remarks for users of the file."""
    listed = ", ".join(f"{name} {_text(value)}" for name, value in inputs.items())
    result = "logits (N, K)" if isinstance(model, Classifier) else "output, as the network returns it"
    found = [f"inputs: {listed}; result: {result}"]
    if "y" in inputs:
        found.append("y is -1 for an image without a label")
    return (*found, "the file holds the network alone: sampling and guidance are up to the program that loads it")


def _text(value: Tensor) -> str:
    sizes = ", ".join(["N", *map(str, value.shape[1:])])
    return f"({sizes}{',' if value.ndim == 1 else ''}) {str(value.dtype).removeprefix('torch.')}"


def _shapes(inputs: dict[str, Tensor]) -> dict[str, Any]:
    batch = torch.export.Dim("batch")
    return {name: {0: batch} for name in inputs}


def _write_onnx(network: nn.Module, inputs: dict[str, Tensor], path: Path, text: str) -> None:
    result = "logits" if "Classifier" in type(network).__name__ else "output"
    program: Any = torch.onnx.export(
        network, (), kwargs=inputs, dynamo=True, dynamic_shapes=_shapes(inputs), input_names=list(inputs),
        output_names=[result], verbose=False,
    )  # fmt: skip
    program.model.metadata_props[METADATA] = text
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=f".{path.stem}.") as temporary:
        program.save(Path(temporary) / path.name)
        for written in sorted(Path(temporary).iterdir(), key=lambda file: file.name == path.name):
            written.replace(path.parent / written.name)  # the weights first, where they are a file of their own


def _check_packages() -> None:
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ValueError(f"the export to ONNX needs {' and '.join(missing)}: pip install 'admg[onnx]'")


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Hide irrelevant log messages of torch's exporters about packages and axes."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
