"""`open`: recognises the layout of images on disk, and validates it before training."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Shaped, UInt8
from PIL import Image

from .arrays import Split, open_arrays_file, open_idx
from .dataset import Crop, Dataset, Fit, check_options
from .decoding import Decoding, Frames, check_not_binary, choose_decoding, has_colours, note_frames
from .errors import DataError, check_choice
from .folder import ImageFile
from .labelling import LabelSource, checked_names, checked_source, find_labels, names_for
from .listing import Listing
from .scan import Verify, open_images
from .sources import find_source
from .transforms import check_pad
from .value_range import ValueRange, check_array_8_bits, infer_range, to_8_bits, to_signed

FASHION_MNIST_LABELS = (
    "T-shirt/top",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)


def open(
    path: str | Path,
    image_size: int | None = None,
    *,
    channels: int | None = None,
    fit: Fit = "resize",
    crop: Crop = "center",
    flip: bool = False,
    labels: LabelSource | bool = "auto",
    label_names: Sequence[str] | None = None,
    value_range: ValueRange | None = None,
    wide_range: ValueRange | None = None,
    frames: Frames = "first",
    background: int | None = None,
    split: Split = "train",
    strict: bool = False,
    verify: Verify | bool = "headers",
    progress: bool = True,
) -> Dataset:
    """Open a data set on disk. The layout is recognised:

    - A folder with a sub-folder for each class. The sorted names of the sub-folders get the numbers 0, 1, ...
    - A flat folder whose file names begin with the label and an underscore, as in guided-diffusion. The sorted labels
      get the numbers. If no file name has an underscore, there are no labels. With sub-folders, see `labels`.
    - A folder with dataset.json, which has the number of each file's label: the layout of EDM and StyleGAN, and of the
      images that admg saves. Its label_names, if it has any, name the numbers.
    - A folder of samples that admg wrote: the images in it, without pictures of many of them.
    - A folder of IDX files (the MNIST family), from which `split` picks "train" or "test"; or one IDX file of images,
      with its labels file beside it.
    - An .npz with arr_0, images (N, H, W[, C]), and optionally arr_1, integer labels (N,); or an .npy of images.
    - A zip or a tar of any of these folders of images, such as the zips of StyleGAN's and EDM's dataset tools.
    - Tars of WebDataset: a tar, a folder of them, or "shards-{000..099}.tar" or "shards-*.tar"; see `list_tars`.
    - A Parquet or Arrow file or a folder of them, a folder that `save_to_disk` of Hugging Face's `datasets` wrote, or
      "hf:NAME" or "hf:NAME:CONFIG" of their hub; see `list_tables`.

    image_size: side of the data set's images in pixels; by default that of the stored images, if all are square and of
        one size.
    channels: number of channels. By default that of an .npz; for files 1 if every image is grey, else 3. With 2 or 4,
        the transparency of grey or colour files is a channel of its own; else they are put on white. The pages of a
        TIFF file can be its channels.
    fit: "resize" scales the shorter side to `image_size`; "pad" puts smaller images on a canvas.
    crop: "center", or "random": a random square with fit="resize", a random place on the canvas with fit="pad".
    flip: mirror a random half of the images left to right.
    labels: where the labels of a folder are: "folders" (sub-folders), "prefix" (file names up to the first underscore,
        in sub-folders as well), "json" (dataset.json), or "auto", which recognises it, with a warning where it may be
        mistaken. "none" leaves labels out, also those of IDX files and .npz. True and False are "auto" and "none".
    label_names: names of the labels, in the order of their numbers. For a folder they fix the numbers, which helps if a
        part of the data lacks a class.
    value_range: values of black and white in all images; by default 0 and 255 in 8 bits, 0 and 65535 in 16 bits if some
        value needs the highest bit, and (0, 1) or (-1, 1) in floats that clearly have this range. Other types of
        numbers need it. There is one range for the whole data set. Files are rounded to 8 bits.
    wide_range: values of black and white in images of more than 8 bits alone, if `value_range` is not given, such as
        those that a model was trained with.
    frames: "first" takes the first frame or page of a file with several, and warns; "all" takes every one as an image.
    background: grey level behind transparent pixels and around padded images; by default white behind, and black
        around images if none is transparent, else white.
    split: part of data that have several: IDX files, tables, and class folders in train/, test/, val/, ...; with
        labels="none", also images directly in such folders.
    strict: raise an error for a file in a folder that is not an image, instead of listing it in `Dataset.skipped`.
    verify: "full" decodes every image of a folder now. "headers" reads only their headers, and keeps them in an index
        in the cache folder; an image that cannot be decoded raises DataError when it is used. "none" reads 64 headers,
        and assumes that the other images are like them. True and False are "full" and "headers".
    progress: show a progress bar if reading a folder takes more than two seconds.

    Names of labels are in Unicode's NFC. Raises DataError, with one line that says what is wrong and what is allowed.

    Example::

        >>> import admg
        >>> dataset = admg.data.open("photos", 64, flip=True)  # photos/cat/1.jpg, photos/dog/2.jpg, ...
        >>> dataset
        Dataset(3 images of 3x64x64, labels: cat, dog)
        >>> x, y = dataset[2]
        >>> x.shape, dataset.label_names[y]
        (torch.Size([3, 64, 64]), 'dog')
    """
    check_options(image_size, channels, fit, crop)
    check_choice(split, Split, "split")
    check_choice(frames, Frames, "frames")
    if background is not None and not 0 <= background <= 255:
        raise DataError(f"background must be a grey level from 0 to 255, got {background}")
    names, source, level = checked_names(label_names), checked_source(labels), checked_verify(verify)
    if level == "none" and frames == "all":
        raise DataError('verify="none" cannot be combined with frames="all", which needs the headers of all files')
    file = find_source(path, split, classes=source != "none", sizes=level != "none", progress=progress)
    if isinstance(file, Listing):
        root = file.root
        images, skipped = open_images(file, verify=level, strict=strict, progress=progress)
        kinds = [(image.path, image.kind) for image in images]
        if frames == "first":
            note_frames(kinds, root, channels)
        padded, every = fit == "pad", level == "full"
        ranges = {"value_range": value_range, "wide_range": wide_range}
        decoding = choose_decoding(kinds, root, **ranges, background=background, padded=padded, every=every)
        dataset = _open_images(file, images, image_size, channels, fit, source, names, frames)
        dataset = replace(dataset, skipped=skipped, decoding=decoding)
        if value_range is None and all(kind.has_8_bits for _, kind in kinds):
            check_not_binary([path for path, _ in kinds], root)
    else:
        if source not in ("auto", "none"):
            raise DataError(f"labels must be 'auto' or 'none', since {file} is not a folder of images, got {source!r}")
        if frames == "all":
            raise DataError(f'frames="all" does not apply to {file}, which holds arrays')
        dataset = _open_arrays(
            file, image_size, channels, fit, crop, source == "auto", names, value_range, wide_range, background
        )
    return replace(dataset, fit=fit, crop=crop, flip=flip)


def checked_verify(verify: Verify | bool) -> Verify:
    """Return the level of verification. Raises DataError if it is unknown."""
    if isinstance(verify, bool):
        return "full" if verify else "headers"
    check_choice(verify, Verify, "verify")
    return verify


def _open_images(
    listing: Listing,
    images: Sequence[ImageFile],
    image_size: int | None,
    channels: int | None,
    fit: Fit,
    labels: LabelSource,
    names: tuple[str, ...] | None,
    frames: Frames,
) -> Dataset:
    size = _common_size(images, listing.root) if image_size is None else image_size
    if fit == "pad":
        for image in images:
            check_pad(*image.size, size, image.path)
    kinds = [image.kind for image in images]
    if channels is None:
        channels = max(kind.channels for kind in kinds)
        several = [image for image in images if image.kind.frames > 1 and frames == "all"]
        if channels == 1 and any(has_colours(image.path) for image in several):
            channels = 3
    counts = [1 if frames == "first" or kind.has_page_for_each(channels) else kind.frames for kind in kinds]
    shown = [(image.path, frame) for image, count in zip(images, counts) for frame in range(count)]
    paths, numbers_of_frames = tuple(path for path, _ in shown), tuple(frame for _, frame in shown)
    labelling = find_labels(listing, paths, labels, names)
    dataset = Dataset(paths, size, channels, frames=numbers_of_frames if any(numbers_of_frames) else None)
    if labelling is None:
        return dataset
    return replace(dataset, labels=labelling.numbers, label_names=labelling.names, numbered=labelling.numbered)


def _common_size(images: Sequence[ImageFile], root: Path) -> int:
    """Return the side of the images. Raises DataError if they are not square or differ in size."""
    width, height = images[0].size
    sizes = list(dict.fromkeys(image.size for image in images))
    if len(sizes) > 1 or width != height:
        shown = " and ".join(f"{width}x{height}" for width, height in sizes[:2])
        raise DataError(f"{root} has images of {shown}: pass image_size, since they are not all square and of one size")
    return height


def _open_arrays(
    file: Path,
    image_size: int | None,
    channels: int | None,
    fit: Fit,
    crop: Crop,
    labels: bool,
    names: tuple[str, ...] | None,
    value_range: ValueRange | None,
    wide_range: ValueRange | None,
    background: int | None,
) -> Dataset:
    whole = file.suffix.lower() in (".npz", ".npy")
    images, numbers = open_arrays_file(file, labels) if whole else open_idx(file, labels)
    height, width, stored = map(int, images.shape[1:])
    if image_size is None and width != height:
        raise DataError(f"{file} has images of {width}x{height}: pass image_size, since they are not square")
    size = height if image_size is None else image_size
    if fit == "pad":
        check_pad(width, height, size, f"every image of {file}")
    channels, name = stored if channels is None else channels, f"the images in {file}"
    value_limits, eight_bits = range_in(images, value_range, wide_range, what=name), images.dtype == np.uint8
    images = prepared(images, size, channels, value_limits, zooms=fit == "resize" and crop == "random", what=name)
    decoding = Decoding(value_range, None if eight_bits else value_limits, background)
    if numbers is None:
        return Dataset(images, size, channels, decoding=decoding)
    if names is None and is_fashion_mnist(file):
        names = FASHION_MNIST_LABELS
    names_of_all, numbered = names_for(numbers, names, file), names is None
    return Dataset(images, size, channels, numbers, names_of_all, decoding=decoding, numbered=numbered)


def range_in(
    images: Shaped[np.ndarray, "n h w c"],
    value_range: ValueRange | None,
    wide_range: ValueRange | None = None,
    what: str = "the images",
) -> ValueRange | None:
    """Return the values of black and white of an array, None for 0 and 255 of 8 bits. Raises DataError if unclear."""
    if images.dtype == np.uint8:
        if value_range is None:
            check_array_8_bits(images, what)
        return None if value_range == (0, 255) else value_range
    return value_range or wide_range or infer_range(images, what)


def prepared(
    images: Shaped[np.ndarray, "n h w c"],
    size: int,
    channels: int,
    value_range: ValueRange | None = None,
    *,
    zooms: bool = False,
    what: str = "the images",
) -> UInt8[np.ndarray, "n h w c2"] | Float32[np.ndarray, "n s s c"]:
    """Return images as `Dataset` holds them: 8 bits, or float32 in [-1, 1] if nothing is resampled or converted.

    value_range: values of black and white, see `range_in`
    zooms: whether images of the right size are resampled as well
    Raises DataError if values are outside of the range, or if the channels do not fit.
    """
    if value_range is not None:
        if images.shape[1:3] != (size, size) or zooms or channels != images.shape[3]:
            images = to_8_bits(images, value_range, what)
        else:
            images = to_signed(images, value_range, what)
    return to_channels(images, channels, what)


def to_channels(
    images: Shaped[np.ndarray, "n h w c"], channels: int, what: str = "the images"
) -> Shaped[np.ndarray, "n h w c2"]:
    """Convert 8-bit colour images to grey if `channels` is 1. `Dataset` repeats the channel of grey images.

    Raises DataError for any other change of the number of channels.
    """
    if channels == images.shape[3] or (channels == 3 and images.shape[3] == 1):
        return images
    if (images.shape[3], channels) != (3, 1):
        stored = f"{images.shape[3]} channel{'s' if images.shape[3] > 1 else ''}"
        raise DataError(f"{what} have {stored}, but channels is {channels}: only grey and colour are converted")
    return np.stack([np.asarray(Image.fromarray(image).convert("L"))[..., None] for image in images])


def in_channels(dataset: Dataset, channels: int) -> Dataset:
    """Return a data set of grey images in colour, with three equal channels, or one of colour images in grey.

    Raises DataError for any other change of the number of channels of an array.
    """
    images = dataset.images
    if isinstance(images, np.ndarray):
        if channels < images.shape[3] and images.dtype != np.uint8:
            images = to_8_bits(images, (-1.0, 1.0))
        images = to_channels(images, channels)
    return replace(dataset, images=images, channels=channels)


def is_fashion_mnist(file: Path) -> bool:
    """Whether the file lies in a folder named fashion-mnist/, or FashionMNIST/raw/ as torchvision names it."""
    folders = file.resolve().parent.parts[-2:]
    return any(name.lower().replace("_", "").replace("-", "") == "fashionmnist" for name in folders)
