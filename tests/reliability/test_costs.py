"""Small files and short command lines that would cost much are refused or streamed: under 10 s and 2 GiB."""

from __future__ import annotations

import json
import shutil
import zipfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import sandbox
from corpus import NETWORK
from helpers import write_npz

from admg.checksums import with_checksum

Build = Callable[[Path], None]
TRAINING = [
    "--data",
    "data.npz",
    "--channels",
    "32",
    "--channel-mult",
    "1",
    "--num-res-blocks",
    "1",
    "--image-size",
    "8",
    "--log",
    "none",
    "--steps",
    "1",
    "--out",
    "o",
]
MANY = ",".join(map(str, range(20_000)))
STEPS = ",".join(map(str, range(1, 90)))
FEATURES = ["--network", "net.py:Network", "--metrics", "fid", "--no-interval"]


def zeros(size: int, kind: int) -> Iterator[bytes]:
    """Yield a compressed stream of so many zeros, made from one part that is repeated. kind: window bits of zlib"""
    part = 1 << 24
    packer = zlib.compressobj(9, zlib.DEFLATED, kind)
    yield packer.compress(bytes(part)) + packer.flush(zlib.Z_FULL_FLUSH)
    packer = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    repeated = packer.compress(bytes(part)) + packer.flush(zlib.Z_FULL_FLUSH)
    yield from (repeated for _ in range(size // part - 1))


def gzip_of_zeros(path: Path, header: bytes, size: int) -> None:
    """Write a gzip file of a header and zeros; its checksum is wrong, which a reader would see only at its end."""
    packer = zlib.compressobj(9, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    with path.open("wb") as file:
        file.write(packer.compress(header) + packer.flush(zlib.Z_FULL_FLUSH))
        file.writelines(list(zeros(size, -zlib.MAX_WBITS)))
        file.write(b"\x03\0" + bytes(8))


def idx_bomb(folder: Path) -> None:
    header = bytes([0, 0, 8, 3]) + b"".join(n.to_bytes(4, "big") for n in (4_300_000, 32, 32))
    gzip_of_zeros(folder / "train-images-idx3-ubyte.gz", header, 4_300_000 * 1024)
    (folder / "train-labels-idx1-ubyte").write_bytes(bytes([0, 0, 8, 1, 0, 0, 0, 1, 7]))


def npz_bomb(folder: Path) -> None:
    """Write an .npz whose directory announces 4 GiB for a small member."""
    with (
        zipfile.ZipFile(folder / "d.npz", "w", zipfile.ZIP_DEFLATED) as file,
        file.open("arr_0.npy", "w", force_zip64=True) as member,
    ):
        np.lib.format.write_array_header_1_0(
            member, {"descr": "|u1", "fortran_order": False, "shape": (1 << 22, 32, 32, 1)}
        )
        for _ in range(64):
            member.write(bytes(1 << 26))


def labelled(label: int) -> Build:
    return lambda folder: (
        write_npz(folder / "d.npz", np.zeros((4, 8, 8, 1), np.uint8), np.array([0, 1, 2, label])) and None
    )


def deep_png(folder: Path) -> None:
    """Write a PNG of 80 megapixels with 16 bits per channel in colour, which is small since all pixels are alike."""
    (folder / "images").mkdir()
    width, height = 10_000, 8_000
    header = width.to_bytes(4, "big") + height.to_bytes(4, "big") + bytes([16, 2, 0, 0, 0])
    row = b"\0" + b"\xff" * 6 * width
    packer = zlib.compressobj(1)
    data = b"".join(packer.compress(row) for _ in range(height)) + packer.flush()
    parts = [(b"IHDR", header), (b"IDAT", data), (b"IEND", b"")]
    chunks = [
        len(body).to_bytes(4, "big") + name + body + zlib.crc32(name + body).to_bytes(4, "big") for name, body in parts
    ]
    (folder / "images" / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(chunks))


def config(section: str, **values: object) -> Build:
    """Change config.json of the model."""

    def change(folder: Path) -> None:
        path = folder / "model" / "config.json"
        content = json.loads(path.read_text())
        (content if section == "" else content[section]).update(values)
        path.write_text(json.dumps(with_checksum(content)))

    return change


def long_toml(folder: Path) -> None:
    (folder / "c.toml").write_text("".join(f"k{n}=1\n" for n in range(100_000)))


def table_bomb(folder: Path) -> None:
    """Write a Parquet file that has a row per bit: all images are the same entry of a dictionary."""
    pyarrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = 20_000_000
    image = pyarrow.DictionaryArray.from_arrays(
        pyarrow.array(np.zeros(rows, np.int32)), pyarrow.array([b"\x89PNG" + bytes(500)])
    )
    parquet.write_table(pyarrow.table({"image": image}), folder / "d.parquet")


def nothing(folder: Path) -> None:
    pass


COSTLY: dict[str, tuple[Build, str]] = {
    "blocks": (config("network", num_res_blocks=10**9), "info model"),
    "blocks in 64 bits": (config("network", num_res_blocks=2**63 - 1), "sample --model model --num 1 --out o"),
    "levels": (config("network", channel_mult=[1] * 100_000), "info model"),
    "channels": (config("network", channels=10**9), "info model"),
    "heads": (config("network", head_channels=1, channels=2**20), "info model"),
    "size": (config("network", image_size=2**40), "info model"),
    "classes": (config("network", num_classes=10**9), "info model"),
    "diffusion steps": (config("diffusion", diffusion_steps=10**9), "sample --model model --num 1 --out o"),
    "labels": (config("", labels=10_000_000), "sample --model model --num 1 --out o"),
    "IDX": (idx_bomb, "data info ."),
    "IDX in training": (idx_bomb, f"train {' '.join(TRAINING)} --data ."),
    "npz": (npz_bomb, "data info d.npz"),
    "npz to evaluate": (npz_bomb, f"evaluate d.npz data.npz {' '.join(FEATURES)} --num 20"),
    "label": (labelled(10**8), "data info d.npz"),
    "label in training": (labelled(10**8), f"train {' '.join(TRAINING)} --data d.npz"),
    "label to evaluate": (
        labelled(10**8),
        f"evaluate d.npz data.npz {' '.join(FEATURES)} --metrics accuracy --classifier classifier",
    ),
    "label to enlarge": (labelled(10**8), "upsample --model upsampler --base d.npz --out o"),
    "label of 63 bits": (labelled(2**63 - 1), f"train-classifier {' '.join(TRAINING)} --data d.npz"),
    "deep PNG": (deep_png, "data info images --verify full"),
    "deep PNG to edit": (
        deep_png,
        "edit --model model --image images/a.png --num 1 --steps 2 --out o --classifier none",
    ),
    "deep PNG in training": (deep_png, "data pack images --image-size 8 --out o.zip --workers 0"),
    "table": (table_bomb, "data info d.parquet"),
    "TOML": (long_toml, "sample --config c.toml"),
    "range of tars": (nothing, "data info x-{000..999999999999}.tar"),
    "ranges of tars": (nothing, "data info x-{000..9999}-{000..9999}-{000..9999}.tar"),
    "number": (nothing, "sample --model model --num 100000000000 --out o"),
    "edits": (nothing, "edit --model model --image data.npz --num 10000000 --out o"),
    "frames": (nothing, "interpolate --model model --seeds 0,1 --frames 1000000000 --out o"),
    "steps": (nothing, "sample --model model --num 1 --steps 1000000000 --out o"),
    "digits": (nothing, f"sample --model model --num {'9' * 5000} --out o"),
    "digits of steps": (nothing, f"sample --model model --num 1 --steps {'9' * 5000} --out o"),
    "shards": (nothing, "sample --model model --num 1 --shard-size 100000000000 --steps 2 --out o"),
    "processes": (nothing, "sample --model model --num 1 --rank 0 --world-size 100000000000 --steps 2 --out o"),
    "scales": (nothing, f"sample --model model --classifier classifier --sheet scale={MANY} --out o"),
    "cells": (
        nothing,
        f"sweep --model model --classifier classifier --scale {MANY} --steps {STEPS} --reference data.npz --out o",
    ),
    "workers": (nothing, f"train {' '.join(TRAINING)} --workers 1000000"),
    "workers that pack": (nothing, "data pack data.npz --image-size 8 --out o.zip --workers 1000000"),
    "packed size": (nothing, "data pack data.npz --image-size 1000000 --out o.zip --workers 0"),
    "trained size": (nothing, f"train {' '.join(TRAINING)}".replace("--image-size 8", "--image-size 1000000")),
    "trained channels": (nothing, f"train {' '.join(TRAINING)}".replace("--channels 32", "--channels 100000000")),
    "trained blocks": (nothing, f"train {' '.join(TRAINING)} --num-res-blocks 100000000"),
    "trained levels": (nothing, f"train {' '.join(TRAINING)} --channel-mult {','.join('1' * 100_000)}"),
    "trained diffusion steps": (nothing, f"train {' '.join(TRAINING)} --diffusion-steps 1000000000"),
    "trained batch": (nothing, f"train {' '.join(TRAINING)} --batch-size 1000000000000"),
    "accumulation": (nothing, f"train {' '.join(TRAINING)} --batch-size 1000000000 --accumulate 1000000000"),
    "neighbours": (
        nothing,
        "neighbours data.npz data.npz --network net.py:Network --k 1000000000 --num 1000000000 --out o.png",
    ),
    "evaluated": (nothing, f"evaluate data.npz data.npz {' '.join(FEATURES)} --num 1000000000 --batch-size 1000000000"),
    "validated": (nothing, f"train {' '.join(TRAINING)} --val-data data.npz --val-images 1000000000000"),
    "GPUs": (nothing, "recipes --gpus 100000000000000000000"),
    "likelihood": (
        nothing,
        "evaluate nll --model model --data data.npz --num 1000000000 --steps 2 --batch-size 1000000000",
    ),
    **{
        f"{device}: {' '.join(words)[:40]}": (nothing, " ".join(words).replace("FILE", device))
        for device in ("/dev/zero", "/dev/random")
        for words in (
            ["sample", "--config", "FILE"],
            ["sample", "--model", "FILE", "--out", "o"],
            ["sample", "--model", "model", "--classifier", "FILE", "--out", "o"],
            ["sample", "--model", "model", "--init", "FILE", "--out", "o"],
            ["edit", "--model", "model", "--image", "FILE", "--out", "o"],
            ["info", "FILE"],
            ["import-openai", "FILE", "--out", "o"],
            ["data", "info", "FILE"],
            ["data", "pack", "FILE", "--image-size", "8", "--out", "o.zip"],
            ["train", *TRAINING, "--data", "FILE"],
            ["train", *TRAINING, "--init", "FILE"],
            ["train", *TRAINING, "--val-data", "FILE"],
            ["evaluate", "FILE", "data.npz", *FEATURES],
            ["evaluate", "data.npz", "data.npz", "--weights", "FILE"],
            ["evaluate", "data.npz", "data.npz", "--network", "FILE:x"],
            ["upsample", "--model", "upsampler", "--base", "FILE", "--out", "o"],
            ["neighbours", "data.npz", "FILE", "--network", "net.py:Network"],
            ["diagnose", "FILE", "--images", "data.npz"],
        )
    },
}
SHORT = [
    "blocks",
    "diffusion steps",
    "label",
    "TOML",
    "range of tars",
    "number",
    "steps",
    "trained levels",
    "/dev/zero: sample --config FILE",
]


@pytest.fixture(scope="module", autouse=True)
def preloaded() -> None:
    sandbox.preload(networks=False)


def outcome(name: str, folder: Path, tiny_folders: dict[str, str], upsampler: object) -> sandbox.Result:
    for part, path in tiny_folders.items():
        shutil.copytree(path, folder / part)
    upsampler.save(folder / "upsampler")  # type: ignore[attr-defined]
    write_npz(folder / "data.npz", np.arange(20 * 64).reshape(20, 8, 8, 1).astype(np.uint8), np.arange(20) % 5)
    (folder / "net.py").write_text(NETWORK)
    build, command = COSTLY[name]
    build(folder)
    result = sandbox.run(command.split(), folder)
    about = f"exit code {result.code}, {result.seconds:.1f} s, {result.peak / 2**20:.0f} MiB"
    print(f"{name}: {about}: {result.err.strip()[-160:]}")
    assert not sandbox.problems(result, folder), result
    return result


@pytest.mark.thorough
@pytest.mark.parametrize("name", SHORT)
def test_what_would_cost_much_is_refused_at_once(name, tmp_path, tiny_folders, tiny_upsampler):
    assert outcome(name, tmp_path, tiny_folders, tiny_upsampler).code == 2
    assert not (tmp_path / "o").exists()


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in COSTLY if name not in SHORT])
def test_nothing_small_costs_much(name, tmp_path, tiny_folders, tiny_upsampler):
    outcome(name, tmp_path, tiny_folders, tiny_upsampler)
