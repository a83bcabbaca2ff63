"""The command line and the Python code of the page make the same images, bit for bit."""

from __future__ import annotations

import shlex

import numpy as np
import pytest
import torch
from PIL import Image

from admg.cli.main import main
from admg.generation.edit import edit
from admg.studio.commands import sample_code, sample_command
from admg.studio.edit_commands import edit_code, edit_command
from admg.studio.editing import EditSettings, Pictures, run_edit
from admg.studio.sampling import run_sampling, run_sheet
from admg.studio.settings import Settings

CHOICES = {
    "plain": {"guidance": "none", "num": 6},
    "random": {"seed": 3},
    "classifier": {"labels": ("two", "Ankle boot"), "scale": 2.5, "num": 3, "spacing": "karras", "seed": 7},
    "interval": {"labels": ("two",), "low": 0.5, "eta": 0.5, "unconditional": True},
    "cfg": {"labels": ("T-shirt/top",), "guidance": "classifier-free", "scale": 2.0, "high": 10.0},
    "apg": {"labels": ("one",), "guidance": "apg", "scale": 3.0, "sampler": "unipc"},
    "gradient-free": {"labels": ("one",), "guidance": "gradient-free", "scale": 0.125, "sampler": "ddpm"},
}


def settings_for(entry, **changed):
    return Settings(**{"model": entry.name, "num": 2, "steps": 3} | changed)


def run_command(text, folder):
    """Run the command of a box in this process, with another folder. Return the images."""
    name, *parts = shlex.split(text)
    assert name == "admg"
    parts[parts.index("--out") + 1] = str(folder)
    assert main(parts) == 0
    (path,) = folder.glob("samples_*.npz")
    return np.load(path)["arr_0"]


def run_code(text, folder, monkeypatch):
    """Run the code of a box in a folder. Return its `samples`."""
    monkeypatch.chdir(folder)
    names: dict[str, object] = {}
    exec(compile(text, "box", "exec"), names)
    return names["samples"]


@pytest.mark.thorough
@pytest.mark.parametrize("choice", CHOICES)
def test_samples(choice, entry, job, tmp_path, monkeypatch):
    settings = settings_for(entry, **CHOICES[choice])
    result = run_sampling(entry, settings, job)
    assert np.array_equal(run_command(sample_command(settings, entry), tmp_path / "out"), result.samples.images)
    made = run_code(sample_code(settings, entry), tmp_path, monkeypatch)
    assert torch.equal(made.x, result.samples.x) and torch.equal(made.labels, result.samples.labels)
    assert len(np.load(*(tmp_path / "samples").glob("*.npz"))["arr_0"]) == settings.num


@pytest.mark.thorough
def test_a_scale_sheet(entry, job, tmp_path):
    settings = settings_for(entry, labels=("two",))
    sheet = run_sheet(entry, settings, [0.0, 8.0], job)
    parts = shlex.split(sample_command(settings, entry, sheet="scale=0,8"))[1:]
    parts[parts.index("--out") + 1] = str(tmp_path)
    assert main(parts) == 0
    with Image.open(tmp_path / "scale-sheet.png") as image:
        assert np.array_equal(np.asarray(image.convert("RGB")), np.asarray(sheet))


@pytest.fixture
def pictures():
    rng = np.random.default_rng(0)
    picture, second = (rng.integers(256, size=(8, 8, 1), dtype=np.uint8) for _ in range(2))
    painted = np.zeros((8, 8), bool)
    painted[2:6, 3:] = True
    return Pictures(picture, painted, second)


EDITS = {
    "repaint": ({"method": "repaint", "jump_length": 2, "resamplings": 2}, {"labels": ("two",), "guidance": "none"}),
    "dps": ({"method": "dps", "dps_scale": 0.5}, {"labels": ("two",), "sampler": "ddpm"}),
    "sdedit": ({"method": "sdedit", "strength": 0.7}, {"labels": ("two",)}),
    "inversion": ({"method": "inversion", "strength": 0.7, "from_label": "one"}, {"labels": ("two",)}),
    "pictures": ({"method": "interpolate"}, {"labels": ("two",), "num": 3}),
    "seeds": ({"method": "interpolate", "second_seed": 5}, {"num": 3, "guidance": "none"}),
}


@pytest.mark.thorough
@pytest.mark.parametrize("kind", EDITS)
def test_edits(kind, entry, job, pictures, tmp_path, monkeypatch):
    options, changed = EDITS[kind]
    own, settings = EditSettings(**options), settings_for(entry, steps=4, **changed)
    if own.method not in ("repaint", "dps"):
        pictures = Pictures(pictures.picture, None, pictures.second if kind == "pictures" else None)
    if kind == "seeds":
        pictures = Pictures()
    result = run_edit(entry, settings, own, pictures, job)
    for name, image in pictures.files().items():
        image.save(tmp_path / name)
    made = run_code(edit_code(settings, own, pictures, entry), tmp_path, monkeypatch)
    assert torch.equal(made.x, result.samples.x)
    command = edit_command(settings, own, pictures, entry)
    if own.method in ("repaint", "dps"):
        assert command.startswith("#")
        kept = torch.from_numpy(~pictures.painted)
        if own.method == "repaint":
            expected = torch.from_numpy(pictures.picture[..., 0]).float() / 127.5 - 1
            assert torch.allclose(result.samples.x[:, 0][:, kept], expected[kept].expand(2, -1), atol=1e-6)
    else:
        assert np.array_equal(run_command(command, tmp_path / "out"), result.samples.images)


@pytest.mark.thorough
def test_the_frames_end_with_the_images(entry, job):
    result = run_sampling(entry, settings_for(entry, labels=("two",), num=3), job)
    assert [frame.number for frame in result.frames] == [1, 2, 3]
    assert np.array_equal(result.frames[-1].x, result.samples.images)
    assert result.frames[-1].t == 0 and result.frames[0].t > result.frames[1].t
    x = result.samples.x
    expected = torch.softmax(entry.classifier(x, torch.zeros(3)), 1).numpy()
    assert np.allclose(result.frames[-1].probabilities, expected, atol=1e-6)


def test_what_edit_itself_draws(entry, job, pictures):
    """An independent call of the library with the same picture and seed gives the same images."""
    settings, own = settings_for(entry, labels=("two",), guidance="none", seed=3), EditSettings(method="sdedit")
    result = run_edit(entry, settings, own, Pictures(pictures.picture), job)
    x = torch.from_numpy(pictures.picture).permute(2, 0, 1)[None].float() / 127.5 - 1
    expected = edit(entry.model, x, ["two"] * 2, strength=0.6, steps=3, seed=3, progress=False,
                    precision=settings.recipe(entry).precision)  # fmt: skip
    assert torch.equal(result.samples.x, expected.x)
