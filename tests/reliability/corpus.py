"""One valid example of every kind of file that the commands read, with commands that read it."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import sandbox
import torch
from helpers import NAMES, TRUNK, randomised, write_idx, write_npz
from mutations import (
    Mutation,
    archive,
    damaged,
    idx,
    json_file,
    json_gz,
    json_lines,
    npy,
    npz,
    picture,
    safetensors,
    table,
    tar,
    toml,
    torch_file,
)
from PIL import Image

from admg import checksums
from admg.checkpoints.labels import Labels
from admg.checkpoints.model import Classifier, Model
from admg.diffusion.config import DiffusionConfig
from admg.files import sha256
from admg.models import ClassifierConfig, NoisyClassifier, SuperResConfig, SuperResUNet, UNet, UNetConfig
from admg.training import checkpointing

NETWORK = """
import torch
class Network(torch.nn.Module):
    def forward(self, x):
        return torch.nn.functional.adaptive_avg_pool2d(x, 2).flatten(1)
"""
SMALL_NETWORK = ["--channels", "32", "--channel-mult", "1,1"]
SHORT_TRAINING = ["--steps", "1", "--batch-size", "2", "--log", "none", "--out", "o"]
SAMPLE = [
    "sample",
    "--model",
    "model",
    "--classifier",
    "classifier",
    "--num",
    "2",
    "--steps",
    "2",
    "--scale",
    "1",
    "--out",
]
TRAIN = [
    "train",
    "--data",
    "data.npz",
    "--image-size",
    "8",
    *SMALL_NETWORK,
    "--num-res-blocks",
    "1",
    "--attention-resolutions",
    "4",
    "--head-channels",
    "32",
    "--diffusion-steps",
    "50",
    "--batch-size",
    "4",
    "--log-every",
    "2",
    "--checkpoint-every",
    "2",
    "--preview-every",
    "1000",
    "--log",
    "none",
    "--precision",
    "fp32",
    "--ema-snapshots",
    "2",
    "--out",
]
EVALUATE = ["--network", "net.py:Network", "--metrics", "fid,kid", "--no-interval"]
FEATURES = ["--network", "net.py:Network"]


@dataclass(frozen=True)
class Kind:
    """A kind of file.

    target: pattern of the files that are changed, of which one is chosen
    needed: files and folders that the commands read besides
    commands: of which one is run on a changed file
    mutation: how a file is changed
    after: what is done with the changed file, so that its checksum is right
    """

    name: str
    target: str
    needed: Sequence[str]
    commands: Sequence[Sequence[str]]
    mutation: Mutation
    after: Callable[[Path], None] | None = None


def with_own_checksum(path: Path) -> None:
    """Give config.json the checksum of the changed weights, as a hostile folder would have it."""
    config = path.with_name("config.json")
    content = json.loads(config.read_text())
    config.write_text(json.dumps(content | {"sha256": sha256(path)}))


def with_own_entry(path: Path) -> None:
    """Give most JSON files that hold a checksum of their content the right one."""
    content = path.read_bytes()
    with contextlib.suppress(ValueError, RecursionError, TypeError):
        if checksums.KEY in json.loads(content) and sum(content) % 5:
            path.write_text(json.dumps(checksums.with_checksum(json.loads(content))))


def with_checksums(path: Path) -> None:
    checksums = path.with_name(checkpointing.CHECKSUMS)
    checksums.unlink()
    checkpointing.write_checksums(path.parent)


WITH_MODEL = [
    ["info", "model"],
    [*SAMPLE, "o"],
    [
        "edit",
        "--model",
        "model",
        "--image",
        "a.png",
        "--num",
        "1",
        "--steps",
        "2",
        "--classifier",
        "none",
        "--out",
        "o",
    ],
    [
        "train",
        "--init",
        "model",
        "--data",
        "data.npz",
        *SHORT_TRAINING,
    ],
    ["export", "model", "--to", "openai", "--out", "o.pt"],
    ["export", "model", "--to", "diffusers", "--out", "o"],
    ["evaluate", "nll", "--model", "model", "--data", "data.npz", "--num", "2", "--steps", "2"],
    ["interpolate", "--model", "model", "--seeds", "0,1", "--frames", "2", "--steps", "2", "--out", "o"],
]
WITH_CLASSIFIER = [
    ["info", "classifier"],
    [*SAMPLE, "o"],
    [
        "train-classifier",
        "--init",
        "classifier",
        "--data",
        "data.npz",
        *SHORT_TRAINING,
    ],
    ["evaluate", "data.npz", "data.npz", "--metrics", "accuracy", "--classifier", "classifier"],
]
WITH_UPSAMPLER = [
    ["info", "upsampler"],
    ["upsample", "--model", "upsampler", "--base", "small.npz", "--steps", "2", "--num", "2", "--out", "o"],
    [*SAMPLE, "o", "--upsampler", "upsampler", "--upsampler-steps", "2"],
]
WITH_PT = [
    ["info", "{}"],
    ["sample", "--model", "{}", "--num", "1", "--steps", "2", "--out", "o"],
    ["import-openai", "{}", "--out", "o"],
    ["diagnose", "{}", "--images", "data.npz", "--num", "2", "--image-size", "8"],
    ["info", "{}"],
    ["export", "{}", "--to", "diffusers", "--out", "o"],
]
WITH_IMAGES = [
    ["data", "info", "{}"],
    ["data", "info", "{}", "--verify", "full", "--all"],
    ["data", "pack", "{}", "--image-size", "8", "--out", "o.zip", "--workers", "0"],
    [
        "data",
        "pack",
        "{}",
        "--image-size",
        "8",
        "--out",
        "o.zip",
        "--workers",
        "0",
        "--verify",
        "full",
        "--frames",
        "all",
    ],
    [*TRAIN, "o", "--steps", "1", "--data", "{}"],
    [*TRAIN, "o", "--steps", "1", "--data", "{}", "--verify", "none", "--crop", "random", "--fit", "pad"],
    ["neighbours", "data.npz", "{}", *FEATURES, "--num", "2", "--k", "1", "--out", "o.png"],
    ["evaluate", "data.npz", "{}", *EVALUATE],
]
WITH_ARRAYS = [
    *WITH_IMAGES,
    ["edit", "--model", "model", "--image", "{}", "--num", "1", "--steps", "2", "--classifier", "none", "--out", "o"],
    ["upsample", "--model", "upsampler", "--base", "{}", "--steps", "2", "--num", "2", "--out", "o"],
    ["evaluate", "{}", "data.npz", *EVALUATE],
    ["evaluate", "nll", "--model", "model", "--data", "{}", "--num", "2", "--steps", "2"],
    [
        "train-classifier",
        "--data",
        "{}",
        "--image-size",
        "8",
        *SMALL_NETWORK,
        *SHORT_TRAINING,
    ],
    [
        "train-upsampler",
        "--data",
        "{}",
        "--image-size",
        "8",
        "--small-size",
        "4",
        *SMALL_NETWORK,
        *SHORT_TRAINING,
    ],
]


def given(commands: Sequence[Sequence[str]], path: str) -> list[list[str]]:
    return [[word.replace("{}", path) for word in command] for command in commands]


BOTH = ("model", "classifier")
KINDS = [
    Kind(
        "config.json of a model",
        "model/config.json",
        (*BOTH, "data.npz", "a.png"),
        WITH_MODEL,
        json_file,
        with_own_entry,
    ),
    Kind(
        "config.json of a classifier",
        "classifier/config.json",
        (*BOTH, "data.npz"),
        WITH_CLASSIFIER,
        json_file,
        with_own_entry,
    ),
    Kind(
        "config.json of an upsampler",
        "upsampler/config.json",
        (*BOTH, "upsampler", "small.npz"),
        WITH_UPSAMPLER,
        json_file,
        with_own_entry,
    ),
    Kind(
        "weights of a model",
        "model/model.safetensors",
        (*BOTH, "data.npz", "a.png"),
        WITH_MODEL,
        safetensors,
        with_own_checksum,
    ),
    Kind(
        "weights of a model, other checksum",
        "model/model.safetensors",
        (*BOTH, "data.npz", "a.png"),
        WITH_MODEL,
        damaged,
    ),
    Kind("safetensors file", "w.safetensors", ("data.npz",), given(WITH_PT, "w.safetensors"), safetensors),
    Kind(".pt of a model", "m.pt", ("data.npz",), given(WITH_PT, "m.pt"), torch_file),
    Kind(
        ".pt of a classifier",
        "c.pt",
        (*BOTH, "data.npz"),
        [["info", "c.pt"], [*SAMPLE, "o", "--classifier", "c.pt"], ["import-openai", "c.pt", "--out", "o"]],
        torch_file,
    ),
    Kind(
        "state.pt of a run, other checksum",
        "run/checkpoints/*/state.pt",
        ("run", "data.npz"),
        [[*TRAIN, "run", "--steps", "5"]],
        damaged,
    ),
    Kind(
        "state.pt of a run",
        "run/checkpoints/*4/state.pt",
        ("run", "data.npz"),
        [[*TRAIN, "run", "--steps", "5"], ["info", "run/checkpoints/0000004/state.pt"]],
        torch_file,
        with_checksums,
    ),
    Kind(
        "JSON of a run",
        "run/*.json",
        ("run", "data.npz"),
        [[*TRAIN, "run", "--steps", "5"], ["info", "run"]],
        json_file,
        with_own_entry,
    ),
    Kind(
        "checksums.json of a run",
        "run/checkpoints/*/checksums.json",
        ("run", "data.npz"),
        [[*TRAIN, "run", "--steps", "5"]],
        json_file,
        with_own_entry,
    ),
    Kind(
        "config.json in a run",
        "run/model/config.json",
        ("run", "data.npz"),
        [[*TRAIN, "run", "--steps", "5"], ["info", "run"], ["ema", "run", "--length", "10%", "--out", "o"]],
        json_file,
        with_own_entry,
    ),
    Kind("log.csv of a run", "run/log.csv", ("run", "data.npz"), [[*TRAIN, "run", "--steps", "5"]], table),
    Kind(
        "metrics.jsonl of a run",
        "run/metrics.jsonl",
        ("run", "data.npz"),
        [[*TRAIN, "run", "--steps", "5"]],
        json_lines,
    ),
    Kind(
        "snapshots of a run",
        "run/ema/*",
        ("run", "data.npz"),
        [["ema", "run", "--length", "10%", "--out", "o"], [*TRAIN, "run", "--steps", "5"]],
        safetensors,
    ),
    Kind(
        "run.json of samples",
        "o/run.json",
        (*BOTH, "o"),
        [[*SAMPLE, "o"], [*SAMPLE, "o", "--overwrite"]],
        json_file,
        with_own_entry,
    ),
    Kind("shards of samples", "half/shards/*.npz", (*BOTH, "half"), [[*SAMPLE, "half", "--shard-size", "1"]], npz),
    Kind("merged samples", "o/*.npz", (*BOTH, "o"), [[*SAMPLE, "o"], [*SAMPLE, "o", "--images"]], npz),
    Kind(".npz of images", "d.npz", (*BOTH, "data.npz", "upsampler"), given(WITH_ARRAYS, "d.npz"), npz),
    Kind(".npy of images", "d.npy", (*BOTH, "data.npz", "upsampler"), given(WITH_ARRAYS, "d.npy"), npy),
    Kind("IDX images", "idx/*images*", ("idx", "data.npz", *BOTH, "upsampler"), given(WITH_ARRAYS, "idx"), idx),
    Kind("IDX labels", "idx/*labels*", ("idx", "data.npz", *BOTH, "upsampler"), given(WITH_ARRAYS, "idx"), idx),
    Kind("images", "images/a*", ("images", "data.npz"), given(WITH_IMAGES, "images"), picture),
    Kind(
        "pictures to edit",
        "images/a*",
        ("images", *BOTH),
        [
            [
                "edit",
                "--model",
                "model",
                "--image",
                "images/{target}",
                "--num",
                "1",
                "--steps",
                "2",
                "--classifier",
                "none",
                "--out",
                "o",
            ],
            [*SAMPLE, "o", "--init", "images/{target}"],
            [
                "interpolate",
                "--model",
                "model",
                "--image",
                "images/{target}",
                "--image",
                "images/x.png",
                "--frames",
                "2",
                "--steps",
                "2",
                "--out",
                "o",
            ],
        ],
        picture,
    ),
    Kind("zip of images", "d.zip", ("data.npz",), given(WITH_IMAGES, "d.zip"), archive),
    Kind("tar of images", "d.tar", ("data.npz",), given(WITH_IMAGES, "d.tar"), tar),
    Kind("table of images", "d.parquet", ("data.npz",), given(WITH_IMAGES, "d.parquet"), damaged),
    Kind("Arrow file", "d.arrow", ("data.npz",), given(WITH_IMAGES, "d.arrow"), damaged),
    Kind(
        "dataset.json",
        "described/dataset.json",
        ("described", "data.npz"),
        given(WITH_IMAGES[:5], "described"),
        json_file,
        with_own_entry,
    ),
    Kind("metadata.csv", "listed/metadata.csv", ("listed", "data.npz"), given(WITH_IMAGES[:5], "listed"), table),
    Kind("metadata.jsonl", "lines/metadata.jsonl", ("lines", "data.npz"), given(WITH_IMAGES[:5], "lines"), json_lines),
    Kind("index of a folder", "home/folders/*", ("many", "home", "data.npz"), given(WITH_IMAGES[:2], "many"), json_gz),
    Kind("index of a tar", "home/tars/*", ("d.tar", "home", "data.npz"), given(WITH_IMAGES[:2], "d.tar"), json_gz),
    Kind(
        "cached features",
        "home/features/*/*",
        ("home", "data.npz", "other.npz"),
        [["evaluate", "data.npz", "other.npz", *EVALUATE]],
        npz,
    ),
    Kind(
        "statistics",
        "statistics.npz",
        ("data.npz",),
        [["evaluate", "statistics.npz", "statistics.npz"], ["evaluate", "data.npz", "statistics.npz", *EVALUATE]],
        npz,
    ),
    Kind(
        "weights of Inception",
        "inception.pth",
        ("data.npz",),
        [["evaluate", "data.npz", "data.npz", "--weights", "inception.pth"]],
        torch_file,
    ),
    Kind(
        "metrics of a sweep",
        "sweep/*/metrics.json",
        ("sweep", *BOTH, "data.npz"),
        [
            [
                "sweep",
                "--model",
                "model",
                "--classifier",
                "classifier",
                "--num",
                "4",
                "--scale",
                "0,1",
                "--steps",
                "2",
                "--reference",
                "data.npz",
                "--metrics",
                "fid",
                "--no-interval",
                "--network",
                "net.py:Network",
                "--out",
                "sweep",
            ]
        ],
        json_file,
        with_own_entry,
    ),
    Kind(
        "TOML of sample",
        "sample.toml",
        BOTH,
        [
            ["sample", "--config", "sample.toml", "--model", "model", "--num", "1", "--steps", "1", "--out", "o"],
            ["sample", "--config", "sample.toml", "--print-config"],
        ],
        toml,
    ),
    Kind(
        "TOML of train",
        "train.toml",
        ("data.npz",),
        [
            [*TRAIN, "o", "--steps", "1", "--config", "train.toml"],
            ["train", "--config", "train.toml", "--print-config"],
        ],
        toml,
    ),
    Kind(
        "TOML of evaluate",
        "evaluate.toml",
        ("data.npz",),
        [["evaluate", "data.npz", "data.npz", *EVALUATE, "--config", "evaluate.toml"]],
        toml,
    ),
]


def build(root: Path) -> None:
    """Write the valid files into a folder, those that commands make among them."""
    write_files(root)
    _run_commands(root)


def write_files(root: Path) -> None:
    """Write the valid files that need no command."""
    root.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 8, 8, 1), np.uint8)
    labels = np.arange(24) % 5
    write_npz(root / "data.npz", images, labels)
    write_npz(root / "d.npz", images, labels)
    write_npz(root / "other.npz", images[::-1], labels)
    write_npz(root / "small.npz", images[:4, :4, :4], labels[:4])
    np.save(root / "d.npy", images)
    (root / "net.py").write_text(NETWORK)
    _networks(root)
    for split, count in (("train", 24), ("t10k", 8)):
        write_idx(root / "idx" / f"{split}-images-idx3-ubyte.gz", images[:count, ..., 0])
        write_idx(root / "idx" / f"{split}-labels-idx1-ubyte", labels[:count])
    _pictures(root, images, labels)
    np.savez(root / "statistics.npz", mu=np.zeros(4), sigma=np.eye(4))
    torch.save({"Conv2d_1a_3x3.conv.weight": torch.ones(2, 3)}, root / "inception.pth")


def _run_commands(root: Path) -> None:
    commands = [
        [*TRAIN, "run", "--steps", "4"],
        [*SAMPLE, "o"],
        [*SAMPLE, "half", "--shard-size", "1", "--keep-shards"],
        ["evaluate", "data.npz", "other.npz", *EVALUATE],
        ["data", "info", "many"],
        ["data", "info", "d.tar"],
        ["export", "model", "--to", "openai", "--out", "m.pt"],
        ["export", "classifier", "--to", "openai", "--out", "c.pt"],
        ["export", "model", "--to", "diffusers", "--out", "exported"],
        next(kind for kind in KINDS if kind.name == "metrics of a sweep").commands[0],
    ]
    for command in commands:
        result = sandbox.run(command, root)
        assert result.code == 0, (command, result.err)
    for path in (root / "half").glob("*.npz"):
        path.unlink()
    for command in ("sample", "train", "evaluate"):
        needed = {"train": ["--data", "data.npz"], "evaluate": ["data.npz", "data.npz"]}.get(command, [])
        text = sandbox.run([command, *needed, "--print-config"], root).out
        lines = [line for line in text.splitlines() if "=" in line and not line.startswith("#")]
        (root / f"{command}.toml").write_text("\n".join(lines) + "\n")
    shutil.copy(root / "model" / "model.safetensors", root / "w.safetensors")


def _networks(root: Path) -> None:
    config = DiffusionConfig(diffusion_steps=100)
    labels = Labels(len(NAMES), NAMES)
    unet = randomised(UNet(UNetConfig(**TRUNK, num_classes=len(NAMES))), 0)
    Model(unet, config.build(), (1, 8, 8), labels, config, {"seed": 0, "label_dropout": 0.1}).save(root / "model")
    noisy = randomised(NoisyClassifier(ClassifierConfig(**TRUNK, num_classes=len(NAMES))), 1)
    Classifier(noisy, config.build(), labels, config).save(root / "classifier")
    larger = randomised(SuperResUNet(SuperResConfig(**TRUNK, num_classes=len(NAMES), small_size=4)), 2)
    Model(larger, config.build(), (1, 8, 8), labels, config).save(root / "upsampler")


def _pictures(root: Path, images: np.ndarray, labels: np.ndarray) -> None:
    """Write images as files of several formats, in folders with labels, and in archives."""
    grey = [Image.fromarray(image[..., 0]) for image in images]
    grey[0].save(root / "a.png")
    for folder in ("images", "described", "listed", "lines", "many"):
        (root / folder).mkdir()
    for ending in ("png", "jpg", "tif", "gif", "webp", "bmp"):
        grey[1].convert("RGB").resize((12, 9)).save(root / "images" / f"a.{ending}")
    grey[2].save(root / "images" / "x.png")
    for number, image in enumerate(grey[:4]):
        for folder in ("described", "listed", "lines"):
            image.save(root / folder / f"{number}.png")
    for number in range(70):
        grey[number % 24].save(root / "many" / f"c{number % 3}_{number}.png")
    (root / "described" / "dataset.json").write_text(
        '{"labels": [["0.png", 0], ["1.png", 1], ["2.png", 0], ["3.png", 1]], "label_names": {"0": "a", "1": "b"}}'
    )
    (root / "listed" / "metadata.csv").write_text("file_name,label\n0.png,a\n1.png,b\n2.png,a\n3.png,b\n")
    (root / "lines" / "metadata.jsonl").write_text(
        "".join(f'{{"file_name": "{n}.png", "label": {n % 2}}}\n' for n in range(4))
    )
    with zipfile.ZipFile(root / "d.zip", "w") as file, tarfile.open(root / "d.tar", "w") as tar_file:
        for number in range(6):
            content = (root / "many" / f"c{number % 3}_{number}.png").read_bytes()
            file.writestr(f"c{number % 3}/{number}.png", content)
            for ending, data in (("png", content), ("cls", str(number % 3).encode())):
                info = tarfile.TarInfo(f"{number:03d}.{ending}")
                info.size = len(data)
                tar_file.addfile(info, io.BytesIO(data))
        file.writestr(
            "dataset.json", '{"labels": [' + ", ".join(f'["c{n % 3}/{n}.png", {n % 3}]' for n in range(6)) + "]}"
        )
    _tables(root)


def _tables(root: Path) -> None:
    import pyarrow
    import pyarrow.parquet

    rows = [(root / "many" / f"c{n % 3}_{n}.png").read_bytes() for n in range(6)]
    content = pyarrow.table(
        {"image": [{"bytes": row, "path": None} for row in rows], "label": [n % 3 for n in range(6)]}
    )
    pyarrow.parquet.write_table(content, root / "d.parquet")
    with pyarrow.ipc.new_stream(str(root / "d.arrow"), content.schema) as writer:
        writer.write_table(content)
