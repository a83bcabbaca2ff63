"""Colour emoji as a small data set: one folder per class of Unicode, 32-pixel PNG files.

    apt-get install fonts-noto-color-emoji unicode-data
    python benchmarks/emoji.py --out runs/emoji

Classes are the groups of Unicode's emoji-test.txt. Emoji that differ in skin tone alone are left out.
"""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
LIST = Path("/usr/share/unicode/emoji/emoji-test.txt")
SIDE = 109
"""Size of the pictures in the font, in pixels."""
JOINER = "\u200d"
"""Sequences with it, such as families, are left out: most are variants of one emoji."""


def emoji(path: Path) -> Iterator[tuple[str, str]]:
    """Yield the group and the text of every emoji of an emoji-test.txt that is no variant of another one."""
    group = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        if line.startswith("# group: "):
            group = re.sub(r"\W+", "-", line.removeprefix("# group: ")).lower()
        elif match := re.match(r"([0-9A-F ]+?) *; fully-qualified", line):
            text = "".join(chr(int(code, 16)) for code in match[1].split())
            if JOINER not in text and not re.search("[\U0001f3fb-\U0001f3ff]", text):
                yield group, text


def picture(text: str, font: ImageFont.FreeTypeFont, side: int) -> Image.Image | None:
    """Return an emoji on white, or None if the font does not have it."""
    canvas = Image.new("RGB", (2 * SIDE, 2 * SIDE), "white")
    ImageDraw.Draw(canvas).text((SIDE // 2, SIDE // 2), text, font=font, embedded_color=True)
    box = Image.eval(canvas.convert("L"), lambda value: 255 - value).getbbox()
    if box is None or box[2] - box[0] > 1.5 * SIDE:  # two pictures side by side: the sequence is not in the font
        return None
    width, height = box[2] - box[0], box[3] - box[1]
    square = Image.new("RGB", (max(width, height),) * 2, "white")
    square.paste(canvas.crop(box), ((square.width - width) // 2, (square.height - height) // 2))
    return square.resize((side - 2, side - 2), Image.Resampling.BOX)


def write(out: Path, side: int = 32, font: Path = FONT, listing: Path = LIST) -> int:
    """Write the data set, and return the number of its images."""
    opened, count = ImageFont.truetype(str(font), SIDE), 0
    for group, text in emoji(listing):
        image = picture(text, opened, side)
        if image is not None:
            bordered = Image.new("RGB", (side, side), "white")
            bordered.paste(image, (1, 1))
            (out / group).mkdir(parents=True, exist_ok=True)
            bordered.save(out / group / f"{count:04d}.png")
            count += 1
    return count


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--size", type=int, default=32)
    parser.add_argument("--font", type=Path, default=FONT)
    parser.add_argument("--list", type=Path, default=LIST, dest="listing")
    options = parser.parse_args()
    print(f"{write(options.out, options.size, options.font, options.listing)} images in {options.out}")
