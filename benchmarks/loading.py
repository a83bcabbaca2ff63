"""Images per second of each kind of data set, side by side, against a plain DataLoader over Pillow.

    python benchmarks/loading.py                               # 400 photographs of 500x375, in about two minutes
    python benchmarks/loading.py --data imagenet/train --num 2000 --image-size 256 --workers 0,4,8

The same JPEG files are read from a folder, a zip, a tar, an Arrow file that was copied from Parquet, and from the zip
of `admg data pack`, in which they are resized already. Without workers the sides take turns, so that all meet the same
load of the machine, and the median of the rounds counts; with workers they run one after the other. A row shows the
images per second, and the ratio to the plain loader.
"""

from __future__ import annotations

import argparse
import shutil
import sys
import tarfile
import tempfile
import time
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from admg.cli.tables import table
from admg.data import Dataset, batches, pack
from admg.data import open as open_dataset


class Plain(torch.utils.data.Dataset[tuple[torch.Tensor, int]]):
    """Files decoded and resized as guided-diffusion does, as one would write it without a library."""

    def __init__(self, files: list[Path], size: int):
        self.files, self.size = files, size

    def __len__(self) -> int:
        return len(self.files)

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        with Image.open(self.files[index]) as file:
            image = file.convert("RGB")
        while min(image.size) >= 2 * self.size:
            image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
        scale = self.size / min(image.size)
        image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
        array = np.asarray(image)
        y, x = (array.shape[0] - self.size) // 2, (array.shape[1] - self.size) // 2
        array = array[y : y + self.size, x : x + self.size].astype(np.float32) / 127.5 - 1
        return torch.from_numpy(array.transpose(2, 0, 1).copy()), -1


def plain_batches(files: list[Path], size: int, batch_size: int, workers: int) -> Iterator[tuple[torch.Tensor, ...]]:
    """Yield batches of a plain DataLoader without end."""
    loader = torch.utils.data.DataLoader(
        Plain(files, size),
        batch_size,
        shuffle=True,
        num_workers=workers,
        drop_last=True,
        persistent_workers=workers > 0,
    )
    while True:
        yield from loader


def make_photographs(folder: Path, num: int) -> None:
    """Write JPEG files of 500x375, the usual size of ImageNet's, with smooth shapes and some noise."""
    rng = np.random.default_rng(0)
    for i in range(num):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize(
            (500, 375), Image.Resampling.BICUBIC
        )
        pixels = np.asarray(coarse).astype(np.int16) + rng.integers(-8, 9, (375, 500, 1))
        target = folder / f"class{i % 10}" / f"{i:05}.jpg"
        target.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(target, quality=90)


def copy_photographs(source: str, folder: Path, num: int) -> None:
    """Copy images that are spread over a folder."""
    dataset = open_dataset(source, 8, labels="none", verify="none")
    chosen = [dataset.images[i * len(dataset) // num] for i in range(num)] if num < len(dataset) else dataset.images
    for i, file in enumerate(chosen):
        target = folder / "images" / f"{i:06}{Path(str(file)).suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(file.read_bytes())


def write_archives(folder: Path, target: Path) -> dict[str, Path]:
    """Write the images of a folder as a zip, a tar and a Parquet file, which is left out without pyarrow."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    with zipfile.ZipFile(target / "images.zip", "w") as archive, tarfile.open(target / "images.tar", "w") as tar:
        for file in files:
            archive.write(file, file.relative_to(folder))
            tar.add(file, file.relative_to(folder).as_posix())
    paths = {"folder": folder, "zip": target / "images.zip", "tar": target / "images.tar"}
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        print("no Parquet: pip install pyarrow", file=sys.stderr)
        return paths
    content = pyarrow.table({"image": [{"bytes": file.read_bytes(), "path": file.name} for file in files]})
    pyarrow.parquet.write_table(content, target / "images.parquet", row_group_size=100)
    return paths | {"parquet": target / "images.parquet"}


def write_packed(dataset: Dataset, target: Path) -> None:
    for _ in pack(dataset, target):
        pass


def measure(streams: dict[str, Iterator[object]], batch_size: int, rounds: int) -> dict[str, float]:
    """Return the images per second of each stream, by the median of the rounds, in which they take turns."""
    seconds: dict[str, list[float]] = {name: [] for name in streams}
    for stream in streams.values():
        next(stream)  # starts its workers
    for _ in range(rounds):
        for name, stream in streams.items():
            started = time.perf_counter()
            next(stream)
            seconds[name].append(time.perf_counter() - started)
    return {name: batch_size / float(np.median(values)) for name, values in seconds.items()}


def measure_alone(stream: Iterator[object], batch_size: int, rounds: int) -> float:
    """Return the images per second of a stream with workers, which would make batches in the turns of others."""
    for _ in range(5):
        next(stream)  # what was made in advance
    started = time.perf_counter()
    for _ in range(rounds):
        next(stream)
    return batch_size * rounds / (time.perf_counter() - started)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="data set of photographs (default: made for the benchmark)")
    parser.add_argument("--num", type=int, default=400, help="number of images (default: 400)")
    parser.add_argument("--image-size", type=int, default=64, help="side of the loaded images (default: 64)")
    parser.add_argument("--batch-size", type=int, default=32, help="images per batch (default: 32)")
    parser.add_argument("--rounds", type=int, default=8, help="batches that are measured (default: 8)")
    parser.add_argument("--workers", default="0,1,2", help="numbers of worker processes (default: 0,1,2)")
    options = parser.parse_args(argv)
    warnings.simplefilter("ignore")  # of labels that nobody needs here
    torch.set_num_threads(1)
    folder = Path(tempfile.mkdtemp(prefix="admg-loading-"))
    try:
        (folder / "images").mkdir()
        if options.data:
            copy_photographs(options.data, folder / "images", options.num)
        else:
            make_photographs(folder / "images", options.num)
        print(report(folder, options))
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def report(folder: Path, options: argparse.Namespace) -> str:
    """Return the table of images per second."""
    paths = write_archives(folder / "images", folder)
    size, batch_size, rounds = options.image_size, options.batch_size, options.rounds
    sets = {name: open_dataset(path, size, labels="none", progress=False) for name, path in paths.items()}
    write_packed(sets["folder"], folder / "packed.zip")
    sets["packed"] = open_dataset(folder / "packed.zip", size)
    files = [file for file in sets["folder"].images if isinstance(file, Path)]
    rows: dict[str, list[str]] = {name: [] for name in ("plain DataLoader", *sets)}
    counts = [int(text) for text in options.workers.split(",")]
    for workers in counts:
        make = {"plain DataLoader": lambda w=workers: plain_batches(files, size, batch_size, w)}
        make |= {
            name: lambda d=data, w=workers: batches(d, batch_size, seed=0, workers=w) for name, data in sets.items()
        }
        if workers == 0:
            found = measure({name: start() for name, start in make.items()}, batch_size, rounds)
        else:
            found = {name: measure_alone(start(), batch_size, rounds) for name, start in make.items()}
        for name, rate in found.items():
            rows[name].append(f"{rate:.0f} ({rate / found['plain DataLoader']:.2f}x)")
    columns = ["images/s", *(f"{count} worker{'' if count == 1 else 's'}" for count in counts)]
    return table(columns, [(name, *row) for name, row in rows.items()], left=("images/s",))


if __name__ == "__main__":
    main()
