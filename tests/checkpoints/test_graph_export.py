"""Graphs of networks: other programs compute the same from them, for any number of images."""

from __future__ import annotations

import json
import logging
import sys

import pytest
import torch
from helpers import refused, succeed

from admg.checkpoints import graph_export
from admg.checkpoints.export import export
from admg.checkpoints.model import Classifier, Model

ROUNDING = 2e-5  # of values of about 0.5: other orders of sums in float32


def inputs(model, count: int) -> dict[str, torch.Tensor]:
    """Random inputs for another number of images than the export was made with."""
    torch.manual_seed(0)
    shapes = graph_export.example_inputs(model)
    made = {name: torch.randn(count, *value.shape[1:]) for name, value in shapes.items()}
    made["timesteps"] = torch.linspace(0, 99, count)
    if "y" in made:
        made["y"] = torch.arange(count) % 4 - 1  # -1 is no label
    return made


def expected(model, given) -> torch.Tensor:
    with torch.no_grad():
        return model.network(**given)


KINDS = ["tiny_model", "tiny_classifier", "tiny_upsampler"]


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_onnxruntime_computes_the_same(kind, request, tmp_path):
    import onnx
    import onnxruntime

    model = request.getfixturevalue(kind)
    exported = export(model, "onnx", tmp_path / "model.onnx")
    onnx.checker.check_model(str(exported.path))
    session = onnxruntime.InferenceSession(str(exported.path), providers=["CPUExecutionProvider"])
    for count in (1, 5):
        given = inputs(model, count)
        (got,) = session.run(None, {name: value.numpy() for name, value in given.items()})
        assert (torch.from_numpy(got) - expected(model, given)).abs().max() < ROUNDING
    metadata = session.get_modelmeta().custom_metadata_map
    about = json.loads(metadata["admg"])
    assert about["labels"] == list(model.label_names) and about["diffusion"]["diffusion_steps"] == 100
    assert [output.name for output in session.get_outputs()] == ["logits" if kind == "tiny_classifier" else "output"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.onnx"]


@pytest.mark.parametrize("kind", [
    pytest.param("tiny_model", marks=pytest.mark.slow),
    pytest.param("tiny_classifier", marks=pytest.mark.thorough),
    pytest.param("tiny_upsampler", marks=pytest.mark.slow),
])  # fmt: skip
def test_torch_export_computes_the_same(kind, request, tmp_path):
    model = request.getfixturevalue(kind)
    exported = export(model, "torch-export", tmp_path / "model.pt2")
    extra = {"admg.json": ""}
    loaded = torch.export.load(exported.path, extra_files=extra).module()
    for count in (1, 5):
        given = inputs(model, count)
        assert (loaded(**given) - expected(model, given)).abs().max() < ROUNDING
    assert json.loads(extra["admg.json"])["kind"] == model.kind_name
    assert "the file holds the network alone" in exported.notes[-1]
    assert any(("y is -1" in note) == model_takes_y(model) for note in exported.notes[1:])


def model_takes_y(model: Model | Classifier) -> bool:
    return isinstance(model, Model) and model.conditional


def test_notes_name_the_inputs(tiny_model, tiny_classifier):
    made = graph_export.example_inputs(tiny_model)
    first, labels, _ = graph_export.notes(tiny_model, made)
    assert first.startswith("inputs: x (N, 1, 8, 8) float32, timesteps (N,) float32, y (N,) int64; result: output")
    assert labels == "y is -1 for an image without a label"
    assert "y" not in graph_export.example_inputs(tiny_classifier)


@pytest.mark.parametrize(
    "to, out, reason",
    [
        ("onnx", "model.pt", "the path must end with .onnx for onnx"),
        ("torch-export", "model", "the path must end with .pt2 for torch-export"),
        ("tflite", "model", "onnx"),
    ],
)
def test_what_cannot_be_written_is_refused(to, out, reason, tiny_folders, tmp_path, capsys):
    assert reason in refused(capsys, "export", tiny_folders["model"], "--to", to, "--out", tmp_path / out)
    assert not list(tmp_path.iterdir())


def test_missing_packages_are_named(tiny_folders, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(graph_export, "find_spec", lambda name: None)
    line = refused(capsys, "export", tiny_folders["model"], "--to", "onnx", "--out", tmp_path / "m.onnx")
    assert line.endswith("the export to ONNX needs onnx and onnxscript: pip install 'admg[onnx]'")


@pytest.mark.slow
def test_the_command(tiny_folders, tmp_path, capsys):
    arguments = tiny_folders["classifier"], "--part", "classifier", "--to", "onnx", "--out", tmp_path / "c.onnx"
    text = succeed(capsys, "export", *arguments)
    assert f"Saved {tmp_path / 'c.onnx'}" in text and "result: logits (N, K)" in text
    assert "torchvision" not in text and logging.getLogger("torch.onnx").level == logging.NOTSET
    assert "onnx" in sys.modules
