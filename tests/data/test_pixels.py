"""What pixels mean: value ranges, depths, transparency, colour spaces, frames and channels of files and arrays."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import run, write_npz
from PIL import Image

from admg import data
from admg.data import DataError, from_arrays, from_dataset
from admg.data import open as open_dataset
from admg.data.folder import read_kind

RAMP = [0, 85, 170, 255]
UNIT = np.array([[0, 1 / 3, 2 / 3, 1]] * 4)


def tiff(path: Path, array: np.ndarray, photometric: int = 1) -> Path:
    """Write an uncompressed TIFF of one channel, in the type of the array, as scanners of medicine do."""
    height, width = array.shape
    raw, bits = array.tobytes(), 8 * array.itemsize
    kind = {"u": 1, "i": 2, "f": 3}[array.dtype.kind]
    tags = [(256, 3, width), (257, 3, height), (258, 3, bits), (259, 3, 1), (262, 3, photometric), (273, 4, 8),
            (277, 3, 1), (278, 3, height), (279, 4, len(raw)), (339, 3, kind)]  # fmt: skip
    entries = b"".join(struct.pack("<HHII", tag, kind, 1, value) for tag, kind, value in tags)
    header = b"II*\0" + struct.pack("<I", 8 + len(raw))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(header + raw + struct.pack("<H", len(tags)) + entries + bytes(4))
    return path


def chunk(name: bytes, content: bytes) -> bytes:
    """Return a chunk of a PNG file."""
    return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))


def png_of_16_bits(path: Path, array: np.ndarray, colour_type: int = 2) -> Path:
    """Write a PNG of 16 bits, RGB by default."""
    lines = b"".join(b"\0" + line.astype(">u2").tobytes() for line in array)
    header = struct.pack(">IIBBBBB", array.shape[1], array.shape[0], 16, colour_type, 0, 0, 0)
    path.parent.mkdir(parents=True, exist_ok=True)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(lines)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


def levels(dataset, index: int = 0) -> list[int]:
    """The first row of the first channel of an image, as 8-bit values."""
    return ((dataset.batch([index])[0][0, 0, 0] + 1) * 127.5).round().int().tolist()


TYPES = [  # values of black and white, the type, and whether these are clear without being stated
    ((0, 1), np.float32, True),
    ((-1, 1), np.float32, True),
    ((0, 255), np.float32, False),
    ((0, 1400), np.float32, False),
    ((0, 255), np.int32, False),
    ((-1000, 2999), np.int32, False),
    ((-1000, 2999), np.int16, False),
    ((0, 4095), np.uint16, False),
    ((0, 65535), np.uint16, True),
]


def ramp(value_range, dtype) -> np.ndarray:
    low, high = value_range
    return (UNIT * (high - low) + low).round(0 if np.issubdtype(dtype, np.integer) else 6).astype(dtype)


def sources(folder: Path, value_range, dtype, *, clear: bool):
    """A ramp from black to white in every form: files, an .npz, an .npy, arrays, tensors, items of a data set."""
    array = ramp(value_range, dtype)
    tiff(folder / "files" / "a.tif", array)
    write_npz(folder / "a.npz", array[None])
    np.save(folder / "a.npy", array[None])
    options = {} if clear else {"value_range": value_range}
    yield "files", lambda: open_dataset(folder / "files", **options)
    yield "files, resized", lambda: open_dataset(folder / "files", 4, crop="random", **options)
    yield ".npz", lambda: open_dataset(folder / "a.npz", **options)
    yield ".npy", lambda: open_dataset(folder / "a.npy", **options)
    yield "array", lambda: from_arrays(array[None], **options)
    yield "resampled array", lambda: from_arrays(array[None], crop="random", **options)
    yield "tensor", lambda: from_arrays(torch.from_numpy(array[None]), **options)
    yield "items", lambda: from_dataset([(array[None], 0)], **options)
    if dtype != np.int16:  # Pillow has no such mode
        yield "pictures", lambda: from_dataset([Image.fromarray(array)], **options)


@pytest.mark.parametrize("value_range, dtype, clear", TYPES)
def test_a_ramp_is_right_or_refused(tmp_path, value_range, dtype, clear):
    for name, opened in sources(tmp_path, value_range, dtype, clear=clear):
        assert levels(opened()) == RAMP, name
    if not clear:
        low, high = ramp(value_range, dtype)[0, [0, -1]].tolist()
        for name, opened in sources(tmp_path, value_range, dtype, clear=True):
            with pytest.raises(DataError, match=rf"from {low:g} to {high:g}\b.*value_range=\(LOW, HIGH\)"):
                opened()
                raise AssertionError(name)


def test_one_range_holds_for_the_whole_data_set(tmp_path):
    """Stretching each image to its own extremes would make air in one scan as bright as bone in another."""
    scan = np.array([[-1000, 0, 400, 3000]] * 4, np.int16)
    tiff(tmp_path / "a.tif", scan)
    tiff(tmp_path / "b.tif", (scan + 1000) // 4)
    dataset = open_dataset(tmp_path, value_range=(-1000, 3000))
    assert levels(dataset, 0) == [0, 64, 89, 255]  # (v + 1000) 255 / 4000
    assert levels(dataset, 1) == [64, 80, 86, 128]
    with pytest.raises(DataError, match=r"from -1000 to 3000, outside \[-1000, 2000\]"):
        open_dataset(tmp_path, value_range=(-1000, 2000))


def test_dark_images_do_not_hide_the_range_of_16_bits(tmp_path):
    Image.fromarray(ramp((0, 3000), np.uint16)).save(tmp_path / "a.png")
    with pytest.raises(DataError, match=r"uint16 with values from 0 to 3000,.*such as 0,4095 or 0,65535"):
        open_dataset(tmp_path)
    Image.fromarray(ramp((0, 65535), np.uint16)).save(tmp_path / "b.png")
    assert levels(open_dataset(tmp_path), 0) == [0, 4, 8, 12] and levels(open_dataset(tmp_path), 1) == RAMP


def test_other_forms_of_16_bits(tmp_path):
    (tmp_path / "pgm").mkdir()
    Image.fromarray(ramp((0, 65535), np.uint16)).save(tmp_path / "pgm" / "a.pgm")
    assert levels(open_dataset(tmp_path / "pgm")) == RAMP
    array = torch.from_numpy(ramp((0, 1), np.float32)).bfloat16()[None]
    assert levels(from_arrays(array)) == RAMP  # 1/3 is 0.3340 in bfloat16, and 85.2 of 255
    transparent = ramp((0, 65535), np.uint16)
    (tmp_path / "hole").mkdir()
    Image.fromarray(transparent).save(tmp_path / "hole" / "a.png", transparency=21845)
    assert levels(open_dataset(tmp_path / "hole")) == [0, 255, 170, 255]


def test_big_endian_values(tmp_path):
    big = ramp((0, 65535), np.uint16).astype(">u2")
    Image.frombytes("I;16B", big.shape[::-1], big.tobytes()).save(tmp_path / "a.tif")
    assert levels(open_dataset(tmp_path)) == RAMP
    Image.fromarray(big.astype(np.uint16)).save(tmp_path / "b.tif")  # both byte orders in one data set
    assert levels(open_dataset(tmp_path), 0) == levels(open_dataset(tmp_path), 1) == RAMP
    assert levels(open_dataset(write_npz(tmp_path / "a.npz", big[None]))) == RAMP
    assert levels(from_arrays(ramp((0, 1), np.float32).astype(">f4")[None])) == RAMP


def test_images_of_several_depths(tmp_path):
    Image.fromarray(ramp((0, 255), np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(ramp((0, 65535), np.uint16)).save(tmp_path / "b.png")
    both = open_dataset(tmp_path)
    assert levels(both, 0) == levels(both, 1) == RAMP
    with pytest.raises(DataError, match=r"8 bits, such as a\.png, and of more, such as b\.png"):
        open_dataset(tmp_path, value_range=(0, 4095))
    tiff(tmp_path / "c.tif", ramp((0, 1), np.float32))
    with pytest.raises(DataError, match="one type, got float32 and uint16"):
        open_dataset(tmp_path)


def test_a_stated_range_is_that_of_8_bits_too(tmp_path):
    masks = np.array([[0, 1, 2, 3]] * 4, np.uint8)
    Image.fromarray(masks).save(tmp_path / "a.png")
    write_npz(tmp_path / "a.npz", masks[None])
    for dataset in (
        open_dataset(tmp_path / "a.npz", value_range=(0, 3)),
        from_arrays(masks[None], value_range=(0, 3)),
        from_dataset([masks[None]], value_range=(0, 3)),
    ):
        assert levels(dataset) == RAMP
    (tmp_path / "a.npz").unlink()
    assert levels(open_dataset(tmp_path, value_range=(0, 3))) == RAMP
    assert levels(open_dataset(tmp_path, wide_range=(0, 3))) == [0, 1, 2, 3]  # not for 8 bits
    with pytest.raises(DataError, match=r"a\.png: values of its pixels range from 0 to 3, outside \[0, 2\]"):
        open_dataset(tmp_path, value_range=(0, 2)).batch([0])


@pytest.mark.parametrize(("colour_type", "depth", "colour"), [(2, 16, (21845,) * 3), (0, 2, (1,)), (0, 4, (5,))])
def test_transparent_colours_that_pillow_overlooks_are_refused(tmp_path, colour_type, depth, colour):
    """It compares them, as they are in the file, with pixels of 8 bits."""
    header = struct.pack(">IIBBBBB", 4, 4, depth, colour_type, 0, 0, 0)
    transparent = struct.pack(f">{len(colour)}H", *colour)
    chunks = chunk(b"IHDR", header) + chunk(b"tRNS", transparent) + chunk(b"IDAT", zlib.compress(bytes(100)))
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + chunks + chunk(b"IEND", b""))
    with pytest.raises(DataError, match=r"a\.png.*transparent colour \(tRNS\).*convert it to 8-bit RGBA"):
        open_dataset(tmp_path)


def test_depths_that_pillow_misreads_are_refused(tmp_path):
    tiff(tmp_path / "inverted" / "a.tif", ramp((0, 65535), np.uint16), photometric=0)
    with pytest.raises(DataError, match=r"a\.tif.*WhiteIsZero"):
        open_dataset(tmp_path / "inverted")
    tiff(tmp_path / "signed" / "a.tif", np.array([[-128, 0, 5, 127]] * 4, np.int8))
    with pytest.raises(DataError, match="signed 8-bit values"):
        open_dataset(tmp_path / "signed")
    png_of_16_bits(tmp_path / "dark" / "a.png", np.stack([ramp((0, 4095), np.uint16)] * 3, -1))
    with pytest.raises(DataError, match="colours of 16 bits, but no value above 4095"):
        open_dataset(tmp_path / "dark")
    png_of_16_bits(tmp_path / "full" / "a.png", np.stack([ramp((0, 65535), np.uint16)] * 3, -1))
    assert levels(open_dataset(tmp_path / "full")) == RAMP
    with pytest.raises(DataError, match=r"value_range cannot be used.*colours of 16 bits"):
        open_dataset(tmp_path / "full", value_range=(0, 4095))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, bad):
    array = ramp((0, 1), np.float32)
    array[1, 1] = bad
    for _, opened in sources(tmp_path, (0, 1), np.float32, clear=True):
        opened()
    tiff(tmp_path / "files" / "a.tif", array)
    for opened in (
        lambda: open_dataset(tmp_path / "files"),
        lambda: open_dataset(write_npz(tmp_path / "a.npz", array[None])),
        lambda: from_arrays(array[None], value_range=(0, 1)),
    ):
        with pytest.raises(DataError, match="not finite"):
            opened()


def test_one_image_is_not_taken_for_many():
    with pytest.raises(DataError, match=r"looks like one image \(H, W, C\): use images\[None\]"):
        from_arrays(np.zeros((16, 16, 3), np.uint8), image_size=16)


def test_colour_spaces(tmp_path):
    Image.new("LAB", (2, 2), (128, 128, 128)).save(tmp_path / "a.tif")  # L = 50 %, no colour
    Image.new("LAB", (2, 2), (136, 208, 195)).save(tmp_path / "b.tif")  # about sRGB's red
    assert read_kind(tmp_path / "b.tif")[0].channels == 3
    Image.new("CMYK", (2, 2), (0, 255, 0, 128)).save(tmp_path / "c.tif")
    dataset = open_dataset(tmp_path, 2)
    colours = [((dataset[i][0][:, 0, 0] + 1) * 127.5).round().int().tolist() for i in range(3)]
    assert colours[0] == [119, 119, 119]  # 255 (1.055 Y^(1/2.4) - 0.055) with Y = ((50 + 16) / 116)³
    assert np.abs(np.array(colours[1]) - [255, 0, 0]).max() < 15
    assert np.abs(np.array(colours[2]) - [127, 0, 127]).max() <= 1


def sprite(alpha: int = 0) -> Image.Image:
    """A grey dot on an outside of this alpha."""
    image = Image.new("RGBA", (2, 2), (100, 100, 100, 255))
    image.putpixel((0, 0), (0, 0, 0, alpha))
    return image


def test_the_canvas_continues_the_background_of_transparent_images(tmp_path):
    sprite().save(tmp_path / "a.png")
    Image.new("RGB", (2, 2), (50, 50, 50)).save(tmp_path / "b.png")
    with pytest.warns(UserWarning, match="transparent images: they lie on white, and all images are padded with white"):
        dataset = open_dataset(tmp_path, 4, fit="pad")
    assert levels(dataset, 0) == levels(dataset, 1) == [255] * 4  # around
    assert ((dataset[0][0][:, 1, 1:3] + 1) * 127.5).round().int().tolist() == [[255, 100]] * 3
    black = open_dataset(tmp_path, 4, fit="pad", background=0)
    assert levels(black, 0) == [0] * 4
    assert ((black[0][0][:, 1, 1:3] + 1) * 127.5).round().int().tolist() == [[0, 100]] * 3


def test_a_channel_of_transparency_that_hides_nothing_leaves_the_canvas_black(tmp_path):
    sprite(alpha=255).save(tmp_path / "a.png")
    assert levels(open_dataset(tmp_path, 4, fit="pad")) == [0] * 4
    white = open_dataset(write_npz(tmp_path / "a.npz", np.zeros((1, 2, 2), np.uint8)), 4, fit="pad", background=255)
    assert levels(white) == [255] * 4


def animated(folder: Path) -> Path:
    folder.mkdir()
    for name in ("a.gif", "b.webp", "c.png"):
        frames = [Image.new("RGB", (4, 4), colour) for colour in ("red", "lime", "blue")]
        frames[0].save(folder / name, save_all=True, append_images=frames[1:], lossless=True)
    pages = [Image.new("L", (4, 4), value) for value in range(0, 250, 50)]
    pages[0].save(folder / "d.tif", save_all=True, append_images=pages[1:])
    Image.new("RGB", (4, 4), "white").save(folder / "e.png")
    return folder


def test_the_first_frame_is_used_and_the_others_are_counted(tmp_path):
    with pytest.warns(UserWarning, match=r"4 of 5 files in .* several frames or pages, 14 in all: only the first"):
        dataset = open_dataset(animated(tmp_path / "files"), 4)
    assert len(dataset) == 5
    assert [((dataset[i][0][0, 0, 0] + 1) * 127.5).round().item() for i in range(5)] == [255, 255, 255, 0, 255]


def test_all_frames_can_be_images(tmp_path, recwarn):
    dataset = open_dataset(animated(tmp_path / "files"), 4, frames="all")
    assert len(dataset) == 3 * 3 + 5 + 1 and not recwarn.list
    pixels = [((dataset[i][0][:, 0, 0] + 1) * 127.5).round().int().tolist() for i in range(15)]
    assert pixels[:9] == 3 * [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert pixels[9:] == [[v] * 3 for v in (0, 50, 100, 150, 200, 255)]
    with pytest.raises(DataError, match="frames must be one of 'first', 'all', got 'last'"):
        open_dataset(tmp_path / "files", 4, frames="last")
    np.savez(tmp_path / "images.npz", arr_0=np.zeros((3, 4, 4, 3), np.uint8))
    with pytest.raises(DataError, match=r'frames="all" does not apply to .*images.npz, which holds arrays'):
        open_dataset(tmp_path / "images.npz", 4, frames="all")


def test_frames_are_not_taken_for_channels(tmp_path):
    """An animation of as many frames as channels; only grey pages of a TIFF file are channels."""
    frames = [Image.new("RGBA", (4, 4), (level, level, level, 200)) for level in (10, 60, 110, 160)]
    frames[0].save(tmp_path / "a.webp", save_all=True, append_images=frames[1:], lossless=True)
    dataset = open_dataset(tmp_path, 4, frames="all", channels=4)
    assert [int(((dataset[i][0][0, 0, 0] + 1) * 127.5).round()) for i in range(len(dataset))] == [10, 60, 110, 160]
    with pytest.warns(UserWarning, match="1 of 1 files .* several frames or pages, 4 in all: only the first"):
        assert len(open_dataset(tmp_path, 4, channels=4)) == 1
    grey, *pages = [Image.new("L", (4, 4), level) for level in (10, 60, 110, 160)]
    grey.save(tmp_path / "pages.tif", save_all=True, append_images=pages)
    (tmp_path / "a.webp").unlink()
    for options in ({}, {"frames": "all"}):
        (x, _) = open_dataset(tmp_path, 4, channels=4, **options)[0]
        assert ((x[:, 0, 0] + 1) * 127.5).round().int().tolist() == [10, 60, 110, 160]
    assert len(open_dataset(tmp_path, 4, frames="all")) == 4


def test_the_options_of_training_say_how_files_are_read(tmp_path, capsys):
    folder = animated(tmp_path / "files")
    opened = data.DataConfig(data=str(folder), image_size=6, fit="pad", frames="all", background="white").open()
    assert len(opened) == 15 and levels(opened) == [255] * 6
    write_npz(tmp_path / "masks.npz", np.array([[[0, 1], [2, 3]]], np.uint8))
    masks = data.DataConfig(data=str(tmp_path / "masks.npz"), image_size=2, value_range=(0, 3)).open()
    assert levels(masks) == RAMP[:2]
    for wrong in ((3, 0), (0,), (1, 1)):
        with pytest.raises(ValueError, match="value_range must be two numbers LOW,HIGH in increasing order"):
            data.DataConfig(data="masks.npz", image_size=2, value_range=wrong)
    options = ["--image-size", "8", "--frames", "all", "--value-range", "-1000,3000", "--print-config", "--out", "run"]
    out = run(capsys, "train", "--data", folder, *options)[1]
    assert 'frames = "all"' in out and "value_range = [-1000" in out


@pytest.mark.parametrize("channels", [1, 2, 4, 5, 12])
def test_arrays_of_any_number_of_channels(tmp_path, channels):
    images = np.random.default_rng(0).integers(0, 256, (3, 14, 16, channels), dtype=np.uint8)
    by_channel = [from_arrays(images[..., c], image_size=16, fit="pad", flip=True) for c in range(channels)]
    for dataset in (
        open_dataset(write_npz(tmp_path / "a.npz", images), 16, fit="pad", flip=True),
        from_arrays(images, image_size=16, fit="pad", flip=True),
        from_arrays(torch.from_numpy(images.transpose(0, 3, 1, 2).copy()), image_size=16, fit="pad", flip=True),
    ):
        assert dataset.channels == channels
        for seed in range(4):
            expected = torch.cat([one.get(1, seed)[0] for one in by_channel])
            assert torch.equal(dataset.get(1, seed)[0], expected)
    resized = open_dataset(tmp_path / "a.npz", 6, crop="random")
    by_channel = [from_arrays(images[..., c], image_size=6, crop="random") for c in range(channels)]
    assert torch.equal(resized.get(2, 5)[0], torch.cat([one.get(2, 5)[0] for one in by_channel]))
    items = from_dataset([image for image in images], image_size=14)
    assert torch.equal(items[0][0], from_arrays(images, image_size=14)[0][0])


def test_transparency_is_a_channel_if_four_are_asked_for(tmp_path):
    sprite(alpha=7).save(tmp_path / "a.png")
    pixels = ((open_dataset(tmp_path, channels=4)[0][0] + 1) * 127.5).round().int()
    assert pixels[:, 0, 0].tolist() == [0, 0, 0, 7] and pixels[:, 1, 1].tolist() == [100, 100, 100, 255]
    Image.new("RGB", (2, 2)).save(tmp_path / "b.png")
    with pytest.raises(DataError, match=r"b\.png: it has 3 channels \(RGB\), not 4"):
        open_dataset(tmp_path, channels=4).batch([1])
    grey = data.open(write_npz(tmp_path / "a.npz", np.zeros((2, 8, 8, 4), np.uint8)))
    with pytest.raises(DataError, match="4 channels, but channels is 3: only grey and colour are converted"):
        data.open(tmp_path / "a.npz", channels=3)
    assert grey.channels == 4


@pytest.mark.parametrize(("colour_type", "channels"), [(6, 4), (4, 2), (2, 3)])
def test_opaque_transparency_does_not_hide_that_colours_have_few_bits(tmp_path, colour_type, channels):
    pixels = np.random.default_rng(0).integers(0, 1024, (8, 8, channels))  # a camera of 10 bits
    if channels != 3:
        pixels[..., -1] = 65535
    png_of_16_bits(tmp_path / "a.png", pixels, colour_type)
    with pytest.raises(DataError, match="colours of 16 bits, but no value above 1023"):
        open_dataset(tmp_path)


def test_grey_of_16_bits_with_transparency_is_grey(tmp_path):
    png_of_16_bits(tmp_path / "a.png", np.full((4, 4, 2), (40000, 65535)), 4)
    assert open_dataset(tmp_path).channels == 1 and levels(open_dataset(tmp_path)) == [40000 // 256] * 4
    assert open_dataset(tmp_path, channels=2)[0][0].shape == (2, 4, 4)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "I;16"])
def test_raw_tiffs_are_upright(tmp_path, orientation, mode):
    stored = np.arange(6).reshape(2, 3) * 50
    turned = {1: stored, 2: stored[:, ::-1], 3: stored[::-1, ::-1], 4: stored[::-1], 5: stored.T,
              6: np.rot90(stored, -1), 7: stored[::-1, ::-1].T, 8: np.rot90(stored)}[orientation]  # fmt: skip
    if mode == "I;16":
        image = Image.fromarray((stored * 257).astype(np.uint16))
    else:
        image = Image.fromarray(stored.astype(np.uint8)).convert(mode)
    image.save(tmp_path / "a.tif", tiffinfo={274: orientation})
    canvas = ((open_dataset(tmp_path, 3, fit="pad", background=0)[0][0][0] + 1) * 127.5).round().int().numpy()
    top, left = ((3 - side) // 2 for side in turned.shape)
    assert np.array_equal(canvas[top : top + turned.shape[0], left : left + turned.shape[1]], turned)


def test_a_stated_range_is_that_of_the_colours_and_not_of_what_is_behind_them(tmp_path):
    colours = np.array([[0, 40, 100, 100]] * 4, np.uint8)
    alpha = np.array([[255, 255, 255, 0]] * 4, np.uint8)
    for mode, count in (("LA", 1), ("RGBA", 3)):
        Image.fromarray(np.dstack([colours] * count + [alpha])).save(tmp_path / "a.png")
        for background, behind in ((None, 255), (0, 0)):
            dataset = open_dataset(tmp_path, value_range=(0, 100), background=background)
            assert levels(dataset) == [0, 102, 255, behind], mode
    with pytest.raises(DataError, match=r"outside \[0, 90\]"):
        open_dataset(tmp_path, value_range=(0, 90)).batch([0])


@pytest.mark.parametrize("mode", ["L", "RGB", "LA", "RGBA", "P"])
def test_files_of_0_and_1_are_refused(tmp_path, mode):
    bits = np.random.default_rng(0).integers(0, 2, (8, 8), dtype=np.uint8)
    image = Image.fromarray(bits).convert("L" if mode == "P" else mode)
    if mode == "P":
        image = Image.fromarray(bits)
        image.putpalette([level for level in range(256) for _ in range(3)])
    image.save(tmp_path / "a.png")
    with pytest.raises(DataError, match="only the values 0 and 1 of 0 to 255"):
        open_dataset(tmp_path)


def test_black_icons_are_no_masks(tmp_path):
    pixels = np.zeros((8, 8, 4), np.uint8)
    pixels[2:6, 2:6, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert levels(open_dataset(tmp_path)) == [255] * 8


def test_a_later_frame_may_have_colours(tmp_path):
    grey, red = Image.new("L", (8, 8), 100), Image.new("RGB", (8, 8), (255, 0, 0))
    grey.save(tmp_path / "a.tif", save_all=True, append_images=[red])
    dataset = open_dataset(tmp_path, frames="all")
    assert (dataset.batch([0, 1])[0][:, :, 0, 0] * 127.5 + 127.5).round().tolist() == [[100.0] * 3, [255.0, 0.0, 0.0]]
