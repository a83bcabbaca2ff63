"""tools/models/emoji.py, which makes the images that the models of emoji are trained on."""

from __future__ import annotations

import importlib
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "tools" / "models" / "emoji.py"
ENTRIES = {  # code points, group and subgroup of Unicode: class
    ("1F600", "Smileys & Emotion", "face-smiling"): "face",
    ("2764-FE0F", "Smileys & Emotion", "heart"): "symbol",
    ("1F436", "Animals & Nature", "animal-mammal"): "animal",
    ("1F339", "Animals & Nature", "plant-flower"): "plant",
    ("1F697", "Travel & Places", "transport-ground"): "vehicle",
    ("1F6AD", "Symbols", "transport-sign"): "symbol",
    ("1F44B", "People & Body", "hand-fingers-open"): "hand",
    ("1F9D1", "People & Body", "person"): "person",
    ("1F3FB", "Component", "skin-tone"): None,
}


@pytest.fixture
def sets(tmp_path) -> list[str]:
    """Options that name two sets of pictures, half transparent red; the second one lacks the flower."""
    options = []
    for option, name in (("noto", "google"), ("twemoji", "twitter")):
        folder = tmp_path / option / "img" / name / "64"
        folder.mkdir(parents=True)
        listed = []
        for code, category, subcategory in ENTRIES:
            Image.new("RGBA", (64, 64), (255, 0, 0, 128)).save(folder / f"{code}.png")
            has = {"has_img_google": True, "has_img_twitter": code != "1F339"}
            listed.append({"unified": code, "category": category, "subcategory": subcategory, "image": f"{code}.png",
                           "skin_variations": {"1F3FB": {"unified": f"{code}-1F3FB"}}, **has})  # fmt: skip
        (tmp_path / option / "emoji.json").write_text(json.dumps(listed))
        options += [f"--{option}", str(tmp_path / option)]
    return options


def test_classes_splits_and_pictures(sets, tmp_path):
    done = subprocess.run([sys.executable, SCRIPT, *sets, "--out", tmp_path / "made"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    made = sorted((tmp_path / "made").glob("*/*/*.png"))
    found = {(path.stem.rpartition("-")[0], path.parent.name) for path in made}
    assert found == {(code.lower(), label) for (code, _, _), label in ENTRIES.items() if label}
    assert len(made) == 2 * 8 - 1  # no skin tones, no component, and no second flower
    split = {(path.stem.rpartition("-")[0], path.parts[-3]) for path in made}
    assert len(split) == 8  # both pictures of an emoji are in the same split
    image = np.asarray(Image.open(made[0]))
    assert image.shape == (64, 64, 3) and (image[0] == 255).all() and (image[:, -1] == 255).all()
    assert (abs(image[1:-1, 1:-1].astype(int) - [255, 127, 127]) <= 1).all()  # red over white, half and half


def test_a_tenth_of_the_emoji_is_for_testing(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    emoji = importlib.import_module("emoji")
    counts = Counter(emoji.held_out(f"{code:x}") for code in range(10_000))
    expected, deviation = 10_000 * 26 / 256, (10_000 * 26 / 256 * 230 / 256) ** 0.5
    assert abs(counts[True] - expected) < 4 * deviation


def test_an_existing_folder_is_refused(sets, tmp_path):
    (tmp_path / "made").mkdir()
    done = subprocess.run([sys.executable, SCRIPT, *sets, "--out", tmp_path / "made"], capture_output=True, text=True)
    assert done.returncode == 2 and "exists already" in done.stderr and not list((tmp_path / "made").iterdir())
