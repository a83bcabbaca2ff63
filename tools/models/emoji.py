"""Colour emoji as a data set: one folder per class, square PNG files on white, apart for training and for testing.

    npm pack emoji-datasource-google emoji-datasource-twitter
    mkdir noto twemoji
    tar xzf emoji-datasource-google-16.0.0.tgz -C noto --strip-components=1
    tar xzf emoji-datasource-twitter-16.0.0.tgz -C twemoji --strip-components=1
    python tools/models/emoji.py --noto noto --twemoji twemoji --out data/emoji

Noto Emoji is copyright Google, under the Apache License 2.0; Twemoji is copyright Twitter and others, under CC BY 4.0.
The classes are Unicode's groups, some of them divided. Emoji that differ in skin tone alone are left out. A tenth of
the emoji, chosen by their code points and so the same ones of both sets, is for testing: the training images have no
picture of them.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from PIL import Image

CLASSES = {
    "Activities": "activity",
    "Animals & Nature": "animal",
    "Flags": "flag",
    "Food & Drink": "food",
    "Objects": "object",
    "People & Body": "person",
    "Smileys & Emotion": "face",
    "Symbols": "symbol",
    "Travel & Places": "place",
}
"""The class of each group of Unicode; groups that are not here are left out."""
DIVIDED = {
    "plant-": "plant",
    "transport-": "vehicle",
    "body-": "hand",
    "hand": "hand",
    "heart": "symbol",
    "emotion": "symbol",
}
"""The class of subgroups by the beginning of their names, where it is another one than that of the group."""
SETS = {"noto": "google", "twemoji": "twitter"}
"""The name of each set of pictures in its npm package, emoji-datasource-NAME."""


def class_of(entry: dict[str, Any]) -> str | None:
    """Return the class of an entry of emoji.json; None if it is left out."""
    if entry["category"] not in CLASSES:
        return None
    if entry["category"] != "Symbols":  # its "transport-sign" are signs
        for beginning, name in DIVIDED.items():
            if entry["subcategory"].startswith(beginning):
                return name
    return CLASSES[entry["category"]]


def held_out(code: str) -> bool:
    """Whether an emoji is for testing: one in ten, by the hash of its code points."""
    return hashlib.sha256(code.encode()).digest()[0] < 26


def picture(path: Path, side: int) -> Image.Image:
    """Return a picture on a white square with a border of one pixel, averaged down to a side."""
    image = Image.open(path).convert("RGBA")
    canvas = Image.new("RGBA", image.size, "white")
    canvas.alpha_composite(image)
    square = Image.new("RGB", (side, side), "white")
    inner = canvas.convert("RGB").resize(
        (side - 2, side - 2), Image.Resampling.BOX if side < 64 else Image.Resampling.LANCZOS
    )
    square.paste(inner, (1, 1))
    return square


def entries(package: Path, name: str) -> Iterator[tuple[str, str, Path]]:
    """Yield the class, the code points and the picture of every emoji that a set has."""
    for entry in json.loads((package / "emoji.json").read_text(encoding="utf-8")):
        label = class_of(entry)
        if label and entry[f"has_img_{name}"]:
            yield label, entry["unified"].lower(), package / "img" / name / "64" / entry["image"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for option, name in SETS.items():
        parser.add_argument(
            f"--{option}", type=Path, metavar="FOLDER", help=f"unpacked package emoji-datasource-{name}"
        )
    parser.add_argument(
        "--side", type=int, default=64, help="side of the pictures in pixels (default: 64, that of the sets)"
    )
    parser.add_argument("--out", type=Path, required=True, metavar="FOLDER", help="new folder for train/ and test/")
    options = parser.parse_args()
    packages = {option: getattr(options, option) for option in SETS if getattr(options, option)}
    if not packages:
        parser.error(f"give at least one of {', '.join(f'--{option}' for option in SETS)}")
    if options.out.exists():
        parser.error(f"--out {options.out} exists already")
    counts: Counter[tuple[str, str]] = Counter()
    for option, package in packages.items():
        for label, code, path in entries(package, SETS[option]):
            split = "test" if held_out(code) else "train"
            folder = options.out / split / label
            folder.mkdir(parents=True, exist_ok=True)
            picture(path, options.side).save(folder / f"{code}-{option}.png")
            counts[split, label] += 1
    for (split, label), count in sorted(counts.items()):
        print(f"{split}/{label}: {count}")


if __name__ == "__main__":
    main()
