"""Fonts that have the letters of a text: Pillow's own, DejaVu Sans from matplotlib, and the system's fonts.

Pillow draws a box for a letter that a font lacks. DejaVu Sans has Latin, Greek, Cyrillic, Hebrew and Arabic letters;
Chinese, Japanese and Korean ones need a font of the system, such as Noto Sans CJK.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont
WIDE_COVERAGE = re.compile(
    "cjk|noto ?sans|sourcehan|wqy|wenquan|unifont|unicode|fallback|ipa[egp]|takao|nanum|malgun|gulim|msyh|msgothic|"
    "simsun|simhei|yugoth|meiryo|pingfang|hiragino|sdgothic",
    re.IGNORECASE,
)
"""Names of common system fonts for scripts that DejaVu Sans lacks."""
ABSENT = "\uffff"
"""A code point that no font has."""


def font_for(text: str, size: int) -> Font:
    """Return the first font that has all letters of a text, or else the one that lacks the fewest."""
    fonts: list[Font] = []
    for font in _fonts(size):
        if not (lacking := missing(font, text)):
            return font
        fonts.append(font)
    return min(fonts, key=lambda font: len(missing(font, text))) if lacking else fonts[0]


def missing(font: Font, text: str) -> set[str]:
    """Return the letters of a text that a font draws as boxes."""
    return {letter for letter in set(text) if not _has(font, letter)}


def drawable(text: str, size: int = 15) -> str:
    """Return a text with a question mark for each letter that no font has."""
    lacking = missing(font_for(text, size), text)
    return "".join("?" if letter in lacking else letter for letter in text)


def label_title(name: str, number: int | None) -> str:
    """Return the name of a label as pictures show it: its number if no font has all letters of the name."""
    return name if number is None or number < 0 or drawable(name) == name else f"label {number}"


@contextmanager
def figure_fonts(*texts: str) -> Iterator[None]:
    """Set matplotlib's fonts such that it can draw these texts, if there are fonts with their letters."""
    import matplotlib
    from matplotlib import font_manager

    families = ["DejaVu Sans"]
    for text in texts:
        path = font_for(text, 15).path
        if isinstance(path, str) and missing(_dejavu(15), text):
            font_manager.fontManager.addfont(path)
            families.append(font_manager.FontProperties(fname=path).get_name())
    with matplotlib.rc_context({"font.family": families}):
        yield


def system_fonts() -> list[str]:
    """Return the paths of the system's fonts with many letters, regular ones first."""
    from matplotlib.font_manager import findSystemFonts

    found = [path for path in findSystemFonts() if WIDE_COVERAGE.search(Path(path).stem)]
    return sorted(found, key=lambda path: ("regular" not in path.lower(), "cjk" not in path.lower(), path))


def _fonts(size: int) -> Iterator[Font]:
    yield _default(size)
    yield _dejavu(size)
    yield from _system(size)


@lru_cache
def _default(size: int) -> Font:
    font = ImageFont.load_default(size)
    assert isinstance(font, ImageFont.FreeTypeFont)
    return font


@lru_cache
def _dejavu(size: int) -> Font:
    matplotlib = find_spec("matplotlib")  # found without importing it, which is slow
    assert matplotlib is not None and matplotlib.submodule_search_locations
    folder = Path(matplotlib.submodule_search_locations[0], "mpl-data", "fonts", "ttf")
    return ImageFont.truetype(folder / "DejaVuSans.ttf", size)


@lru_cache
def _system(size: int) -> tuple[Font, ...]:
    fonts = []
    for path in system_fonts():
        try:
            fonts.append(ImageFont.truetype(path, size))
        except OSError:  # a bitmap font of other sizes, or a damaged one
            continue
    return tuple(fonts)


@lru_cache(maxsize=100_000)
def _has(font: Font, letter: str) -> bool:
    if unicodedata.category(letter)[0] in "CZ":  # controls and spaces draw nothing
        return True
    mask, box = font.getmask(letter), _box(font)
    return (mask.size, bytes(mask)) != box


@lru_cache
def _box(font: Font) -> tuple[tuple[int, int], bytes]:
    mask = font.getmask(ABSENT)
    return mask.size, bytes(mask)
