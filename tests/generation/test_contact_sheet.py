"""Contact sheets, and samples saved to a folder."""

from __future__ import annotations

import numpy as np
import pytest
from helpers import arrays

import admg
from admg.generation import contact_sheet


@pytest.mark.thorough
def test_contact_sheets_of_many_labels_and_many_images():
    """Few labels get a row each, many get captions; a sheet has at most 200 images and 16 megapixels."""
    rng = np.random.default_rng(0)
    images = rng.integers(256, size=(1000, 8, 8, 1), dtype=np.uint8)
    rows = contact_sheet.contact_sheet(images, [f"name {i % 10}" for i in range(1000)], "title")
    assert 20 * 68 < rows.width < 20 * 68 + 120 and 10 * 68 < rows.height < 10 * 68 + 60  # 10 labels, 20 of each
    grid = contact_sheet.contact_sheet(images, [f"name {i}" for i in range(1000)], "title")
    assert grid.width == 14 * 100 + 4 and 15 * 116 < grid.height < 15 * 116 + 60  # 96 pixels and a caption
    square = contact_sheet.contact_sheet(images[:9], [""] * 9, "t")
    assert square.width == 3 * 68 + 4
    huge = np.zeros((20, 1024, 1024, 1), np.uint8)
    assert contact_sheet.contact_sheet(huge, [""] * 20, "t").width == 4 * 1028 + 4


def test_samples_are_saved_as_a_job_writes_them(tiny_model, tmp_path):
    samples = admg.sample(tiny_model, ["two", "Ankle boot"], steps=1, progress=False)
    for _ in range(2):  # the demo may be repeated
        path = samples.save(tmp_path, "title")
    assert np.array_equal(arrays(path)[0], samples.images) and arrays(path)[1].tolist() == [2, 4]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["images", "samples_2x8x8x1.npz", "sheet.png"]
    assert sorted(p.name for p in (tmp_path / "images").iterdir()) == [
        "Ankle-boot_000001.png",
        "dataset.json",
        "two_000000.png",
    ]


def files(folder):
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_saving_samples_replaces_no_files_of_others(tiny_model, tmp_path):
    samples = admg.sample(tiny_model, ["two"], steps=1, progress=False)
    (mine := tmp_path / "mine").mkdir()
    for name in ("shards/train-000.tar", "images/dataset.json", "images/holiday.jpg"):
        (mine / name).parent.mkdir(exist_ok=True)
        (mine / name).write_bytes(b"mine")
    kept = files(mine)
    with pytest.raises(ValueError, match=r"images holds holiday\.jpg, which is not a sample: move it, or choose"):
        samples.save(mine)
    assert files(mine) == kept
    (mine / "images" / "holiday.jpg").unlink()
    samples.save(mine)
    assert (mine / "shards" / "train-000.tar").read_bytes() == b"mine"
    admg.generate(tiny_model, ["two"], out=tmp_path / "run", steps=1, progress=False)
    kept = files(tmp_path / "run")
    with pytest.raises(ValueError, match=r"holds a run \(run\.json\): choose another folder"):
        samples.save(tmp_path / "run")
    assert files(tmp_path / "run") == kept


def test_captions_are_cut_to_fit():
    image = np.full((8, 8, 1), 100, np.uint8)
    short, long = (
        contact_sheet.captioned(image, "cat"),
        contact_sheet.captioned(image, "a very long name of a label indeed"),
    )
    assert short.shape == long.shape == (112, 96, 3)
    assert (short[:96] == 100).all() and (short[96:] < 128).any() and (long[96:, [0, -1]] == 255).all()


def test_column_titles_share_a_baseline_and_do_not_overlap():
    image = np.full((8, 8, 1), 255, np.uint8)
    drawn = np.asarray(contact_sheet.sheet([[image, image]], column_titles=["no", "go"]).convert("L"))
    (no, go) = (np.flatnonzero((half < 128).any(axis=1)) for half in np.array_split(drawn, 2, axis=1))
    assert no[0] == go[0] and go[-1] >= no[-1] + 2  # g is below the line
    long = contact_sheet.sheet([[image, image]], column_titles=["mmmmmmmmmmmm"] * 2)
    ink = (np.asarray(long.convert("L")) < 128).any(axis=0)
    assert long.width > 250 and not ink[long.width // 2 - 1 : long.width // 2 + 1].any()
