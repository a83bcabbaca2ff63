"""Letters in pictures: no label is drawn as boxes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from fontTools.fontBuilder import FontBuilder
from fontTools.pens.ttGlyphPen import TTGlyphPen

from admg.evaluation.curves import figure_fonts
from admg.generation import fonts
from admg.generation.contact_sheet import sheet
from admg.generation.samples import Samples

LETTERS = "äöüßéèçñåøæłžşğабвгдαβγδعربيשלום"


@pytest.fixture
def without_system_fonts(monkeypatch):
    monkeypatch.setattr(fonts, "system_fonts", list)
    fonts._system.cache_clear()
    yield monkeypatch
    fonts._system.cache_clear()


def font_of(letters: str, path: Path) -> str:
    """Write a font in which each of these letters is a filled square, and any other an empty box."""
    builder = FontBuilder(1000, isTTF=True)
    names = {letter: f"uni{ord(letter):04X}" for letter in letters}
    builder.setupGlyphOrder([".notdef", *names.values()])
    builder.setupCharacterMap({ord(letter): name for letter, name in names.items()})
    glyphs = {}
    for name, side in ((".notdef", 400), *((name, 900) for name in names.values())):
        pen = TTGlyphPen(None)
        pen.moveTo((0, 0))
        for corner in ((0, side), (side, side), (side, 0)):
            pen.lineTo(corner)
        pen.closePath()
        glyphs[name] = pen.glyph()
    builder.setupGlyf(glyphs)
    builder.setupHorizontalMetrics({name: (1000, 0) for name in glyphs})
    builder.setupHorizontalHeader(ascent=900, descent=-100)
    builder.setupNameTable({"familyName": "Squares", "styleName": "Regular"})
    builder.setupOS2()
    builder.setupPost()
    builder.save(path)
    return str(path)


def test_letters_of_europe_and_arabia_have_glyphs(without_system_fonts):
    assert not [letter for letter in LETTERS if fonts.missing(fonts.font_for(letter, 15), letter)]
    assert fonts.drawable(LETTERS) == LETTERS and fonts.label_title("glaçon", 3) == "glaçon"
    assert fonts.font_for("coat", 15).getname() == ("Aileron", "Regular")  # other pictures stay as they are
    glyphs = [bytes(fonts.font_for(letter, 30).getmask(letter)) for letter in "äаβع"]
    assert len(set(glyphs)) == 4 and all(glyphs)


def test_a_label_that_no_font_has_is_drawn_as_its_number(without_system_fonts):
    assert fonts.label_title("中文", 3) == "label 3" and fonts.label_title("", -1) == ""
    assert fonts.drawable("runs/中 coat") == "runs/? coat"
    x = torch.zeros(4, 1, 8, 8)
    named = Samples(x, torch.tensor([0, 0, 3, 3]), ("Mantel", "Mantel", "中文", "中文"))
    plain = Samples(x, torch.tensor([0, 0, 3, 3]), ("Mantel", "Mantel", "label 3", "label 3"))
    assert np.array_equal(named.sheet("中"), plain.sheet("?"))


def test_a_font_of_the_system_is_used_for_its_letters(without_system_fonts, tmp_path):
    path = font_of("中文", tmp_path / "squares-cjk.ttf")
    without_system_fonts.setattr(fonts, "system_fonts", lambda: [str(tmp_path / "missing.ttf"), path])
    fonts._system.cache_clear()
    assert fonts.label_title("中文", 3) == "中文" and fonts.label_title("日本", 4) == "label 4"
    rows = [np.zeros((1, 8, 8, 1), np.uint8)]
    ink = (np.asarray(sheet(rows, row_titles=["中"]))[:, :20] < 100).all(-1)
    assert 100 < ink.sum() < 225  # a filled square of about 0.9 · 15 pixels
    from matplotlib.figure import Figure

    with figure_fonts("中文"):
        assert Figure().suptitle("中文").get_fontfamily() == ["DejaVu Sans", "Squares"]
    with figure_fonts("coat"):
        assert Figure().suptitle("coat").get_fontfamily() == ["DejaVu Sans"]
