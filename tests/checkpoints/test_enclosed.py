"""The flags and names that an export to OpenAI's format encloses in its file."""

from __future__ import annotations

import warnings
import zipfile

import pytest
import torch

import admg
from admg.checkpoints.openai.enclosed import ENTRY
from admg.checkpoints.weights import CheckpointError


@pytest.fixture
def exported(tiny_model, tmp_path):
    return admg.export.to_openai(tiny_model, tmp_path / "model.pt")


def test_an_export_comes_back_without_its_flags(exported, tiny_model):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # nothing is assumed
        back = admg.openai.load(exported.path)
        by_name = admg.load(exported.path)
    assert back.config == by_name.config == tiny_model.config
    assert back.network.config == tiny_model.network.config
    assert back.label_names == by_name.label_names == tiny_model.label_names
    x, t, y = torch.randn(2, 1, 8, 8), torch.tensor([3, 50]), torch.tensor([0, 4])
    assert torch.equal(back.network(x, t, y), tiny_model.network(x, t, y))


def test_a_classifier_comes_back(tiny_classifier, tmp_path):
    path = admg.export.to_openai(tiny_classifier, tmp_path / "classifier.pt").path
    back = admg.openai.load_classifier(path)
    assert back.config == tiny_classifier.config and back.label_names == tiny_classifier.label_names


def test_torch_reads_the_weights_as_before(exported, tiny_model):
    for mmap in (False, True):
        state = torch.load(exported.path, weights_only=True, mmap=mmap)
        own = tiny_model.network.state_dict()
        assert state.keys() == own.keys() and all(torch.equal(state[name], own[name]) for name in own)


def test_given_flags_take_precedence(exported):
    flags = exported.flags.replace("--diffusion_steps 100", "--diffusion_steps 200")
    assert flags != exported.flags
    back = admg.openai.load(exported.path, flags)
    assert len(back.diffusion) == 200 and back.label_names == ()


@pytest.mark.parametrize(
    "content, reason",
    [
        (b'{"flags": 3}', "admg.json in it cannot be read"),
        (b"{", "admg.json in it cannot be read"),
        (b'{"flags": "%s", "label_names": ["a"]}', "names 1 labels, but its network has 5"),
        (b" " * (1 << 20) + b"{}", "it has 1,048,578 bytes"),
    ],
)
def test_a_damaged_entry_is_refused(exported, content, reason):
    with zipfile.ZipFile(exported.path) as file:
        members = {entry.filename: file.read(entry) for entry in file.infolist()}
    (name,) = [name for name in members if name.endswith(ENTRY)]
    members[name] = content.replace(b"%s", exported.flags.encode())
    with zipfile.ZipFile(exported.path, "w") as file:
        for name, value in members.items():
            file.writestr(name, value)
    with pytest.raises(CheckpointError, match=reason):
        admg.openai.load(exported.path)
