"""Pictures of the denoising: the images of the run, all its steps, and the files."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from helpers import refused, succeed
from PIL import Image

from admg.generation import Recipe, generate, generate_denoising
from admg.generation.denoising import Denoising, frames, write_animation
from admg.generation.images import to_uint8
from admg.samplers import Step


@pytest.mark.thorough
def test_the_steps_of_a_run_are_drawn(tiny_model, tmp_path, monkeypatch):
    """The last step has the images of the run itself."""
    seen = []
    monkeypatch.setattr("admg.generation.denoising.frames", lambda steps, names: seen.append((steps, names)) or
                        [Image.new("RGB", (4, 4))])  # fmt: skip
    recipe = Recipe(steps=5, precision="fp32")
    run = generate(tiny_model, ["two", "one"], num=4, out=tmp_path, progress=False, steps=5, precision="fp32")
    paths = generate_denoising(
        tiny_model, ["two", "one"], num=4, out=tmp_path, recipe=recipe, animate="gif", trajectory=True
    )
    ((steps, names),) = seen
    assert np.array_equal(steps.x[-1], run.read()[0:4])
    assert len(steps.x) == len(steps.x0) == 5 and steps.t == [99.0, 74.0, 50.0, 25.0, 0.0]
    assert list(names) == ["two", "one", "two", "one"]
    assert [path.name for path in paths] == ["denoising.gif", "trajectory.png"]
    with Image.open(paths[1]) as picture:
        assert picture.height > 8 * 64 and picture.width > 5 * 64  # two rows of each of four images


def steps(count: int) -> Denoising:
    found = Denoising()
    for i in range(count):
        x = torch.full((2, 1, 8, 8), 2 * i / count - 1)
        found.add(Step(x, -x, count - 1 - i, count - 1 - i))
    return found


@pytest.mark.thorough
def test_frames_and_their_times(tmp_path):
    made = steps(100)
    assert [made.title(i) for i in (0, 50, 99)] == ["99→98", "49→48", "0→0"]
    assert made.some(3) == [0, 50, 99] and made.some(200) == [*range(100)] and steps(1).some(9) == [0]
    pictures = frames(made, ["a", "b"])
    assert len(pictures) == 60 and len({picture.size for picture in pictures}) == 1
    path = write_animation(pictures, tmp_path / "x.gif")
    with Image.open(path) as animation:
        assert animation.n_frames == 60 and animation.info["loop"] == 0
        times = []
        for i in range(60):
            animation.seek(i)
            times.append(animation.info["duration"])
    assert sum(times[:-1]) == pytest.approx(4000, rel=0.15) and times[-1] == pytest.approx(1500 + times[0], abs=20)
    last = np.asarray(pictures[-1].convert("L"))
    assert (last == to_uint8(torch.full((1, 1, 1, 1), 0.98)).item()).sum() in range(
        2 * 96 * 96, 2 * 96 * 96 + 20
    )  # x_t of both images; letters


@pytest.mark.thorough
def test_an_mp4_file(tmp_path):
    path = write_animation(frames(steps(5), ["a"]), tmp_path / "x.mp4")
    assert path.read_bytes()[4:8] == b"ftyp" and len([*tmp_path.iterdir()]) == 1


def test_what_cannot_be_drawn_is_refused(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("shutil.which", lambda name: None)
    monkeypatch.setattr("admg.generation.denoising.find_spec", lambda name: None)
    line = refused(capsys, "sample", "--animate", "mp4", "--out", tmp_path / "out")
    assert line.endswith("MP4 files need ffmpeg: install it, or pip install 'admg[video]'; a GIF needs nothing")
    assert "trajectory requires a single process, and cannot be combined with --sheet" in refused(
        capsys, "sample", "--trajectory", "--sheet", "scale=0,1", "--out", tmp_path / "out"
    )
    assert "'webp'" in refused(capsys, "sample", "--animate", "webp", "--out", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ValueError, match="choose an animation, a trajectory or both"):
        generate_denoising("fashion-mnist", out=tmp_path, recipe=Recipe())


@pytest.mark.thorough
def test_the_command(tiny_folders, tmp_path, capsys):
    arguments = ["--model", tiny_folders["model"], "--num", 2, "--steps", 3, "--out", tmp_path / "out"]
    text = succeed(capsys, "sample", *arguments, "--animate", "gif", "--trajectory")
    assert f"Saved {tmp_path / 'out' / 'denoising.gif'} and {tmp_path / 'out' / 'trajectory.png'}" in text
    assert "holds the finished run" in succeed(capsys, "sample", *arguments, "--animate", "gif")
