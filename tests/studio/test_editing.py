"""Pictures of a browser at the size of a model, and edits that lack something."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from admg.studio.edit_tab import edit_settings, input_picture, read_pictures
from admg.studio.editing import METHODS, EditSettings, Pictures, check_edit, painted, prepared
from admg.studio.settings import Settings


def layer(box=None):
    """A transparent layer of 80x80 pixels, painted white within a box."""
    image = Image.new("RGBA", (80, 80), (0, 0, 0, 0))
    if box is not None:
        image.paste((255, 255, 255, 255), box)
    return image


def test_a_picture_is_cropped_scaled_and_converted(entry):
    image = Image.new("RGB", (120, 80), (255, 0, 0))
    image.paste((255, 255, 255), (20, 0, 60, 80))  # the left half of the square in the middle
    found = prepared(image, entry.model)
    assert found.shape == (8, 8, 1) and (found[:, 1] == 255).all() and (found[:, 6] == 76).all()  # luma of red
    assert prepared(Image.new("RGBA", (9, 9), (255, 255, 255, 0)), entry.model).max() == 0  # transparent is black
    assert prepared(Image.new("L", (3, 3), 200), entry.model).tolist() == [[[200]] * 8] * 8
    assert prepared(None, entry.model) is None
    ramp = np.tile(np.array([0, 257 * 100, 65535] * 3, np.uint16), (9, 1))  # of 16 bits
    assert np.unique(prepared(Image.fromarray(ramp).crop((0, 0, 8, 8)), entry.model)).tolist() == [0, 100, 255]


def test_a_mask_is_where_the_layers_are_painted(entry):
    found = painted([layer((0, 0, 20, 80)), layer((60, 0, 80, 80))], entry.model)
    assert found[:, :2].all() and found[:, 6:].all() and not found[:, 3:5].any()
    assert painted([layer()], entry.model) is None and painted([], entry.model) is None


def test_what_is_painted_is_the_mask_or_part_of_the_picture(entry):
    background, both = Image.new("RGB", (80, 80), (0, 0, 0)), Image.new("RGB", (80, 80), (255, 255, 255))
    drawn = {"background": background, "layers": [layer((0, 0, 40, 80))], "composite": both}
    inpaint, change = EditSettings(method="repaint"), EditSettings(method="sdedit")
    masked = read_pictures(drawn, None, inpaint, entry)
    assert masked.picture.max() == 0 and masked.painted[:, :3].all() and not masked.painted[:, 5:].any()
    changed = read_pictures(drawn, None, change, entry)
    assert changed.picture.min() == 255 and changed.painted is None
    for empty in (None, {"background": None, "layers": [layer()], "composite": both}):
        assert read_pictures(empty, None, change, entry).picture is None
    sketch = {"background": None, "layers": [layer((0, 0, 40, 80))], "composite": both}
    assert read_pictures(sketch, None, change, entry).picture is not None
    assert read_pictures(sketch, None, inpaint, entry).picture is None  # a mask alone is no picture


def test_a_second_picture_alone_is_not_dropped(entry):
    for editor in (None, {}, {"background": None, "layers": [], "composite": None}):
        found = read_pictures(editor, Image.new("L", (8, 8), 7), EditSettings(method="interpolate"), entry)
        assert found.picture is None and found.second.max() == 7
        with pytest.raises(ValueError, match="needs two pictures"):
            check_edit(Settings(model=entry.name), EditSettings(method="interpolate"), found, entry)


def test_the_region_to_inpaint_is_shown_in_red():
    mask = np.zeros((8, 8), bool)
    mask[0, 0] = True
    shown = input_picture(Pictures(np.full((8, 8, 1), 50, np.uint8), mask))
    assert shown.getpixel((10, 10)) == (220, 40, 40) and shown.getpixel((100, 100)) == (50, 50, 50)
    assert shown.getpixel((0, 0)) == (255, 255, 255)  # the margin
    assert input_picture(Pictures()) is None


PICTURE, PART = np.zeros((8, 8, 1), np.uint8), np.eye(8, dtype=bool)


@pytest.mark.parametrize(
    ("method", "pictures", "changed", "message"),
    [
        ("sdedit", Pictures(), {}, "this edit needs a picture"),
        ("repaint", Pictures(PICTURE), {}, "paint over the region"),
        ("dps", Pictures(PICTURE, np.ones((8, 8), bool)), {}, "the whole picture is painted over"),
        ("interpolate", Pictures(PICTURE), {}, "needs two pictures"),
        ("interpolate", Pictures(), {"num": 1}, "at least 2, got 1"),
        ("sdedit", Pictures(PICTURE), {"labels": ("one", "two")}, "one label or none"),
        ("repaint", Pictures(PICTURE, PART), {"eta": 0.5}, "eta has no effect on inpainting"),
    ],
)
def test_edits_that_lack_something(method, pictures, changed, message, entry):
    with pytest.raises(ValueError, match=message):
        check_edit(Settings(model=entry.name, **changed), EditSettings(method=method), pictures, entry)


def test_options_of_a_page_are_checked():
    page = {"strength": 0.5, "from_label": "", "resamplings": 4, "jump_length": 5, "dps_scale": 1, "second_seed": 1}
    assert edit_settings("Interpolate", page) == EditSettings(method="interpolate", strength=0.5)
    for name, value in (("strength", 0), ("strength", None), ("resamplings", 1.5), ("resamplings", 10**6)):
        with pytest.raises(ValueError, match=name):
            edit_settings(next(iter(METHODS)), page | {name: value})
    with pytest.raises(ValueError, match="the kind of edit must be one of Inpaint"):
        edit_settings("rm -rf", page)
